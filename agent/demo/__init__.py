"""The demo: a fleet on this machine, a workload through it, and a table of what came of each way to pick."""
