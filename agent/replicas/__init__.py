"""Replicas of the agent that serve the same pools: what each reports to the others, and over which stream."""
