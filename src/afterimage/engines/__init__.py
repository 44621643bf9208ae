"""What Snakemake, SLURM, DVC and MLflow need of this project, and their faults worked around."""
