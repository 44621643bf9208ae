"""REQUIRED INPUTS: results/{study}/{train,sample}/{arm}/rep{rep}/,
    results/{study}/data/{split,classifier}/

OUTPUTS:
    results/{study}/attack/{arm}/rep{rep}/extraction/
        nearest training images, extracted images, controls
    results/{study}/attack/{arm}/rep{rep}/quality/     distances to real images that no arm saw
    results/{study}/attack/{arm}/rep{rep}/membership/
        losses of members and non-members, and their separation
    results/{study}/attack/{arm}/rep{rep}/forgetting/
        retention of the forget sets; only for arms with one
"""


localrules:
    attack,


rule extraction:
    """Extract training images from generations (Carlini et al. 2023, section 5.1)."""
    input:
        unpack(inputs("attack/extraction")),
    output:
        run="results/{study}/attack/{arm}/rep{rep}/extraction/run.json",
        metrics="results/{study}/attack/{arm}/rep{rep}/extraction/metrics.jsonl",
        results="results/{study}/attack/{arm}/rep{rep}/extraction/results.csv",
        pairs="results/{study}/attack/{arm}/rep{rep}/extraction/pairs.parquet",
        holdout="results/{study}/attack/{arm}/rep{rep}/extraction/holdout_pairs.parquet",
        images="results/{study}/attack/{arm}/rep{rep}/extraction/images.parquet",
        twins="results/{study}/attack/{arm}/rep{rep}/extraction/twins.parquet",
        curve="results/{study}/attack/{arm}/rep{rep}/extraction/precision_recall.csv",
    log:
        "results/{study}/logs/attack/{arm}/rep{rep}/extraction.log",
    benchmark:
        "results/{study}/benchmarks/attack/{arm}/rep{rep}/extraction.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs("attack/extraction"),
    params:
        inputs=flags("attack/extraction"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage attack extraction {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule quality:
    """Measure quality, diversity and similarity to training images, with held-out controls."""
    input:
        unpack(inputs("attack/quality")),
    output:
        run="results/{study}/attack/{arm}/rep{rep}/quality/run.json",
        metrics="results/{study}/attack/{arm}/rep{rep}/quality/metrics.jsonl",
        results="results/{study}/attack/{arm}/rep{rep}/quality/results.csv",
    log:
        "results/{study}/logs/attack/{arm}/rep{rep}/quality.log",
    benchmark:
        "results/{study}/benchmarks/attack/{arm}/rep{rep}/quality.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs("attack/quality"),
    params:
        inputs=flags("attack/quality"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage attack quality {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule membership:
    """Infer membership from the loss (Carlini et al. 2023, section 5.2.1)."""
    input:
        unpack(inputs("attack/membership")),
    output:
        run="results/{study}/attack/{arm}/rep{rep}/membership/run.json",
        metrics="results/{study}/attack/{arm}/rep{rep}/membership/metrics.jsonl",
        results="results/{study}/attack/{arm}/rep{rep}/membership/results.csv",
        losses="results/{study}/attack/{arm}/rep{rep}/membership/losses.parquet",
    log:
        "results/{study}/logs/attack/{arm}/rep{rep}/membership.log",
    benchmark:
        "results/{study}/benchmarks/attack/{arm}/rep{rep}/membership.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs("attack/membership"),
    params:
        inputs=flags("attack/membership"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage attack membership {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule forgetting:
    """Measure what a model retains of its forget sets."""
    input:
        unpack(inputs("attack/forgetting")),
    output:
        run="results/{study}/attack/{arm}/rep{rep}/forgetting/run.json",
        metrics="results/{study}/attack/{arm}/rep{rep}/forgetting/metrics.jsonl",
        results="results/{study}/attack/{arm}/rep{rep}/forgetting/results.csv",
        relearning="results/{study}/attack/{arm}/rep{rep}/forgetting/relearning.csv",
    log:
        "results/{study}/logs/attack/{arm}/rep{rep}/forgetting.log",
    benchmark:
        "results/{study}/benchmarks/attack/{arm}/rep{rep}/forgetting.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs("attack/forgetting"),
    params:
        inputs=flags("attack/forgetting"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage attack forgetting {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule attack:
    """The attack phase: every attack on every arm; forgetting only for arms with a forget set."""
    input:
        phase("attack"),
