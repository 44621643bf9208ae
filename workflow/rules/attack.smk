"""REQUIRED INPUTS: results/{study}/sample/{arm}/rep{rep}/, results/{study}/data/{split,classifier}/

OUTPUTS:
    results/{study}/attack/{arm}/rep{rep}/extraction/  nearest training image of every generation, extracted images, controls
    results/{study}/attack/{arm}/rep{rep}/quality/     distances to real images that no arm saw
"""


localrules:
    attack,


rule extraction:
    """Which training images come back (Carlini et al. 2023, section 5.1)."""
    input:
        config="results/{study}/config/attack/{arm}/rep{rep}/extraction.json",
        code="results/{study}/config/attack/{arm}/rep{rep}/extraction.code",
        samples="results/{study}/sample/{arm}/rep{rep}/images.npz",
        members="results/{study}/train/{arm}/rep{rep}/members.parquet",
        train="results/{study}/data/split/train.npz",
        holdout="results/{study}/data/split/holdout.npz",
        twins="results/{study}/data/split/twins.npz",
        index="results/{study}/data/split/index.parquet",
    output:
        run="results/{study}/attack/{arm}/rep{rep}/extraction/run.json",
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
    params:
        out=subpath(output.run, parent=True),
    shell:
        "afterimage attack extraction --samples {input.samples:q} --train {input.train:q} --members {input.members:q}"
        " --holdout {input.holdout:q} --twins {input.twins:q} --index {input.index:q} --config {input.config:q}"
        " --out {params.out:q} > {log:q} 2>&1"


rule quality:
    """How good and how varied the generations are, against images that no arm saw."""
    input:
        config="results/{study}/config/attack/{arm}/rep{rep}/quality.json",
        code="results/{study}/config/attack/{arm}/rep{rep}/quality.code",
        samples="results/{study}/sample/{arm}/rep{rep}/images.npz",
        reference="results/{study}/data/split/reference.npz",
        holdout="results/{study}/data/split/holdout.npz",
        classifier="results/{study}/data/classifier/classifier.safetensors",
    output:
        run="results/{study}/attack/{arm}/rep{rep}/quality/run.json",
        results="results/{study}/attack/{arm}/rep{rep}/quality/results.csv",
    log:
        "results/{study}/logs/attack/{arm}/rep{rep}/quality.log",
    benchmark:
        "results/{study}/benchmarks/attack/{arm}/rep{rep}/quality.tsv"
    params:
        out=subpath(output.run, parent=True),
        classifier=subpath(input.classifier, parent=True),
    shell:
        "afterimage attack quality --samples {input.samples:q} --reference {input.reference:q} --holdout {input.holdout:q}"
        " --classifier {params.classifier:q} --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule attack:
    """The attack phase: every arm meets every attack."""
    input:
        per_replicate(rules.extraction.output, rules.quality.output),
