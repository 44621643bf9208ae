"""What a study costs, what its jobs ask a cluster for, and how it would run on many GPUs."""
