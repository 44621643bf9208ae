"""How long a study takes on a cluster: its jobs, scheduled."""
