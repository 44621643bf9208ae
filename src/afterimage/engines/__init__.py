"""Integration with Snakemake, SLURM, DVC and MLflow, including workarounds for their bugs."""
