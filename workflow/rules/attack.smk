"""REQUIRED INPUTS: results/{study}/{train,sample}/{arm}/rep{rep}/, results/{study}/data/{split,classifier}/

OUTPUTS:
    results/{study}/attack/{arm}/rep{rep}/extraction/  nearest training image of every generation, extracted images, controls
    results/{study}/attack/{arm}/rep{rep}/quality/     distances to real images that no arm saw
    results/{study}/attack/{arm}/rep{rep}/membership/  losses of trained and other images, and how well they tell them apart
    results/{study}/attack/{arm}/rep{rep}/forgetting/  what is left of the forgotten images; only for arms with a forget set
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
        out=subpath(output.run, parent=True),
    shell:
        "afterimage attack extraction --samples {input.samples:q} --train {input.train:q} --members {input.members:q}"
        " --holdout {input.holdout:q} --twins {input.twins:q} --index {input.index:q} --config {input.config:q}"
        " --out {params.out:q} > {log:q} 2>&1"


rule quality:
    """How good and how varied the generations are, against images that no arm saw, and how like the training images."""
    input:
        config="results/{study}/config/attack/{arm}/rep{rep}/quality.json",
        code="results/{study}/config/attack/{arm}/rep{rep}/quality.code",
        samples="results/{study}/sample/{arm}/rep{rep}/images.npz",
        members="results/{study}/train/{arm}/rep{rep}/members.parquet",
        train="results/{study}/data/split/train.npz",
        reference="results/{study}/data/split/reference.npz",
        holdout="results/{study}/data/split/holdout.npz",
        classifier="results/{study}/data/classifier/classifier.safetensors",
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
        out=subpath(output.run, parent=True),
        classifier=subpath(input.classifier, parent=True),
    shell:
        "afterimage attack quality --samples {input.samples:q} --train {input.train:q} --members {input.members:q}"
        " --reference {input.reference:q} --holdout {input.holdout:q} --classifier {params.classifier:q}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule membership:
    """Which images were trained on, by their loss (Carlini et al. 2023, section 5.2.1)."""
    input:
        config="results/{study}/config/attack/{arm}/rep{rep}/membership.json",
        code="results/{study}/config/attack/{arm}/rep{rep}/membership.code",
        model="results/{study}/train/{arm}/rep{rep}/run.json",
        members="results/{study}/train/{arm}/rep{rep}/members.parquet",
        train="results/{study}/data/split/train.npz",
        holdout="results/{study}/data/split/holdout.npz",
        twins="results/{study}/data/split/twins.npz",
        index="results/{study}/data/split/index.parquet",
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
        out=subpath(output.run, parent=True),
        model=subpath(input.model, parent=True),
    shell:
        "afterimage attack membership --model {params.model:q} --train {input.train:q} --members {input.members:q}"
        " --holdout {input.holdout:q} --twins {input.twins:q} --index {input.index:q} --config {input.config:q}"
        " --out {params.out:q} > {log:q} 2>&1"


rule forgetting:
    """What is left of images that were to be forgotten."""
    input:
        config="results/{study}/config/attack/{arm}/rep{rep}/forgetting.json",
        code="results/{study}/config/attack/{arm}/rep{rep}/forgetting.code",
        model="results/{study}/train/{arm}/rep{rep}/run.json",
        members="results/{study}/train/{arm}/rep{rep}/members.parquet",
        samples="results/{study}/sample/{arm}/rep{rep}/images.npz",
        train="results/{study}/data/split/train.npz",
        holdout="results/{study}/data/split/holdout.npz",
        reference="results/{study}/data/split/reference.npz",
        classifier="results/{study}/data/classifier/classifier.safetensors",
        extractions=extractions_judged,
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
        out=subpath(output.run, parent=True),
        model=subpath(input.model, parent=True),
        classifier=subpath(input.classifier, parent=True),
        extractions=extractions_judged_flags,
    shell:
        "afterimage attack forgetting --model {params.model:q} --samples {input.samples:q} --train {input.train:q}"
        " --members {input.members:q} --holdout {input.holdout:q} --reference {input.reference:q}"
        " --classifier {params.classifier:q} {params.extractions} --config {input.config:q}"
        " --out {params.out:q} > {log:q} 2>&1"


rule attack:
    """The attack phase: every arm meets every attack, and is judged on forgetting where it has something to forget."""
    input:
        per_replicate(
            rules.extraction.output, rules.quality.output, rules.membership.output
        ),
        per_replicate(rules.forgetting.output, arms=JUDGED),
