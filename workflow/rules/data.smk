"""REQUIRED INPUTS: none (the study names the source).

OUTPUTS:
    results/{study}/data/fetch/      the source as one checked array file
    results/{study}/data/split/
        train (with planted duplicates), holdout, reference, twins, left-out images
    results/{study}/data/classifier/ the feature network, trained on the reference split
    results/{study}/data/dedup/      the deduplicated training set, and the score of each detector
"""


localrules:
    data,
    fetch,
    split,


rule fetch:
    """Read the source; the only rule that may use the network."""
    input:
        unpack(inputs("data/fetch")),
    output:
        run="results/{study}/data/fetch/run.json",
        metrics="results/{study}/data/fetch/metrics.jsonl",
        images="results/{study}/data/fetch/images.npz",
        manifest="results/{study}/data/fetch/manifest.json",
    log:
        "results/{study}/logs/data/fetch.log",
    benchmark:
        "results/{study}/benchmarks/data/fetch.tsv"
    params:
        inputs=flags("data/fetch"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage data fetch {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule split:
    """Draw the splits and plant duplicates."""
    input:
        unpack(inputs("data/split")),
    output:
        run="results/{study}/data/split/run.json",
        metrics="results/{study}/data/split/metrics.jsonl",
        train="results/{study}/data/split/train.npz",
        holdout="results/{study}/data/split/holdout.npz",
        reference="results/{study}/data/split/reference.npz",
        twins="results/{study}/data/split/twins.npz",
        index="results/{study}/data/split/index.parquet",
        left_out="results/{study}/data/split/left_out.parquet",
        manifest="results/{study}/data/split/manifest.json",
    log:
        "results/{study}/logs/data/split.log",
    benchmark:
        "results/{study}/benchmarks/data/split.tsv"
    params:
        inputs=flags("data/split"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage data split {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule classifier:
    """Train the feature network on images that no arm sees."""
    input:
        unpack(inputs("data/classifier")),
    output:
        run="results/{study}/data/classifier/run.json",
        metrics="results/{study}/data/classifier/metrics.jsonl",
        weights="results/{study}/data/classifier/classifier.safetensors",
        architecture="results/{study}/data/classifier/classifier.json",
    log:
        "results/{study}/logs/data/classifier.log",
    benchmark:
        "results/{study}/benchmarks/data/classifier.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs("data/classifier"),
    params:
        inputs=flags("data/classifier"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage data classifier {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule dedup:
    """Remove near-duplicates and score the search against the planted ground truth."""
    input:
        unpack(inputs("data/dedup")),
    output:
        run="results/{study}/data/dedup/run.json",
        metrics="results/{study}/data/dedup/metrics.jsonl",
        train="results/{study}/data/dedup/train.npz",
        groups="results/{study}/data/dedup/groups.parquet",
        pairs="results/{study}/data/dedup/pairs.parquet",
        table="results/{study}/data/dedup/table.csv",
    log:
        "results/{study}/logs/data/dedup.log",
    benchmark:
        "results/{study}/benchmarks/data/dedup.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs("data/dedup"),
    params:
        inputs=flags("data/dedup"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage data dedup {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule data:
    """The data phase."""
    input:
        phase("data"),
