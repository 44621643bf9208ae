"""REQUIRED INPUTS: the results of all other phases.

OUTPUTS:
    results/{study}/track/track.json   summary of the runs imported into MLflow
"""


localrules:
    track,
    mlflow,


rule mlflow:
    """Import all results in one process: parallel writers on a fresh SQLite store lose runs."""
    input:
        runs=lambda wildcards: [
            f"results/{STUDY.study}/{job.run}"
            for job in jobs(STUDY)
            if job.phase != "data"
        ],
        study="results/{study}/config/study.json",
    output:
        "results/{study}/track/track.json",
    log:
        "results/{study}/logs/track/mlflow.log",
    benchmark:
        "results/{study}/benchmarks/track/mlflow.tsv"
    shell:
        "afterimage track import --study {input.study:q} --out {output:q} > {log:q} 2>&1"


rule track:
    """Show the study in MLflow."""
    input:
        expand(rules.mlflow.output, study=STUDY.study),
