"""Where the parts meet, and nowhere else."""
