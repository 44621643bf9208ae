"""REQUIRED INPUTS: none (the study names the source).

OUTPUTS:
    results/{study}/data/fetch/      the source as one checked array file
    results/{study}/data/split/
        the pool of distinct images for training sets and twins, holdout, reference, images for dual
        fusion, left-out images
    results/{study}/data/encode/{job}/
        embeddings of all captions in one of their variants, for arms that are conditioned on them
    results/{study}/data/planting/{job}/
        a training set with planted duplicates, and the never-trained twins of the planted images
    results/{study}/data/classifier/ the feature network, trained on the reference split
    results/{study}/data/dedup/{job}/
        the same training set without duplicates, and the score of each detector
"""


localrules:
    data,
    fetch,
    split,
    planting,


rule fetch:
    """Read the source; the only rule that may use the network."""
    input:
        unpack(inputs("data/fetch")),
    output:
        run="results/{study}/data/fetch/run.json",
        metrics="results/{study}/data/fetch/metrics.jsonl",
        images="results/{study}/data/fetch/images.npz",
        manifest="results/{study}/data/fetch/manifest.json",
        captions="results/{study}/data/fetch/captions.parquet",
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
    """Draw the pool of training images, and held-out, reference and fusion images."""
    input:
        unpack(inputs("data/split")),
    output:
        run="results/{study}/data/split/run.json",
        metrics="results/{study}/data/split/metrics.jsonl",
        pool="results/{study}/data/split/pool.npz",
        pool_table="results/{study}/data/split/pool.parquet",
        holdout="results/{study}/data/split/holdout.npz",
        reference="results/{study}/data/split/reference.npz",
        fusion="results/{study}/data/split/fusion.npz",
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


rule planting:
    """Plant duplicates: make one of the study's training sets, and its twins."""
    input:
        unpack(inputs("data/planting")),
        # Checked, and not part of the result: a study with other forget sets does not rerun this.
        study=ancient("results/{study}/config/study.json"),
    output:
        run="results/{study}/data/planting/{job}/run.json",
        metrics="results/{study}/data/planting/{job}/metrics.jsonl",
        train="results/{study}/data/planting/{job}/train.npz",
        twins="results/{study}/data/planting/{job}/twins.npz",
        index="results/{study}/data/planting/{job}/index.parquet",
        manifest="results/{study}/data/planting/{job}/manifest.json",
    log:
        "results/{study}/logs/data/planting/{job}.log",
    benchmark:
        "results/{study}/benchmarks/data/planting/{job}.tsv"
    wildcard_constraints:
        job=r"\d+",
    params:
        inputs=flags("data/planting"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage data planting {params.inputs} --study {input.study:q}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule encode:
    """Embed the captions of all images in one variant, for arms that are conditioned on them."""
    input:
        unpack(inputs("data/encode")),
    output:
        run="results/{study}/data/encode/{job}/run.json",
        metrics="results/{study}/data/encode/{job}/metrics.jsonl",
        texts="results/{study}/data/encode/{job}/texts.safetensors",
        captions="results/{study}/data/encode/{job}/captions.json",
        tokenizer=directory("results/{study}/data/encode/{job}/tokenizer"),
        encoder=directory("results/{study}/data/encode/{job}/text_encoder"),
    log:
        "results/{study}/logs/data/encode/{job}.log",
    benchmark:
        "results/{study}/benchmarks/data/encode/{job}.tsv"
    wildcard_constraints:
        job=r"[a-z][a-z0-9_]*",
    threads: STUDY.cluster.threads
    resources:
        **needs("data/encode"),
    params:
        inputs=flags("data/encode"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage data encode {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule autoencoder:
    """Train the autoencoder of latents on images that no arm sees, or check a stored one."""
    input:
        unpack(inputs("data/autoencoder")),
    output:
        run="results/{study}/data/autoencoder/run.json",
        metrics="results/{study}/data/autoencoder/metrics.jsonl",
        vae=directory("results/{study}/data/autoencoder/vae"),
    log:
        "results/{study}/logs/data/autoencoder.log",
    benchmark:
        "results/{study}/benchmarks/data/autoencoder.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs("data/autoencoder"),
    params:
        inputs=flags("data/autoencoder"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage data autoencoder {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule latents:
    """Encode the images that networks are trained on or attacked with."""
    input:
        unpack(inputs("data/latents")),
    output:
        run="results/{study}/data/latents/run.json",
        metrics="results/{study}/data/latents/metrics.jsonl",
        latents="results/{study}/data/latents/latents.safetensors",
        vae=directory("results/{study}/data/latents/vae"),
    log:
        "results/{study}/logs/data/latents.log",
    benchmark:
        "results/{study}/benchmarks/data/latents.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs("data/latents"),
    params:
        inputs=flags("data/latents"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage data latents {params.inputs}"
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
    """Remove near-duplicates of a planting and score the search against the planted ground truth."""
    input:
        unpack(inputs("data/dedup")),
    output:
        run="results/{study}/data/dedup/{job}/run.json",
        metrics="results/{study}/data/dedup/{job}/metrics.jsonl",
        train="results/{study}/data/dedup/{job}/train.npz",
        groups="results/{study}/data/dedup/{job}/groups.parquet",
        pairs="results/{study}/data/dedup/{job}/pairs.parquet",
        table="results/{study}/data/dedup/{job}/table.csv",
    log:
        "results/{study}/logs/data/dedup/{job}.log",
    benchmark:
        "results/{study}/benchmarks/data/dedup/{job}.tsv"
    wildcard_constraints:
        job=r"(\w+/)?\d+",
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
