"""REQUIRED INPUTS: everything that the other phases made.

OUTPUTS:
    results/{study}/track/track.json   what was imported into MLflow
"""


localrules:
    track,
    mlflow,


rule mlflow:
    """Import all results in one process: parallel writers on a fresh SQLite store lose runs."""
    input:
        per_replicate(
            rules.fit.output.run,
            rules.draw.output.run,
            rules.extraction.output.run,
            rules.quality.output.run,
            rules.membership.output.run,
        ),
        per_replicate(rules.forgetting.output.run, arms=JUDGED),
        attribution_results,
        expand(rules.page.output.run, page=PAGES, allow_missing=True),
        tables="results/{study}/report/tables/run.json",
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
        once(rules.mlflow.output),
