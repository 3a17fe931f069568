"""The demo: a fleet on this machine, a workload sent through it, and a table that compares the ways to pick."""
