"""The makespan of a study on a cluster: its jobs, scheduled."""
