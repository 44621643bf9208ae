"""REQUIRED INPUTS: results/{study}/train/{arm}/rep{rep}/,
    results/{study}/data/{split,planting/{job},classifier}/,
    results/{study}/data/texts/ for arms that read captions,
    results/{study}/blocks/{arm}/rep{rep}/ with cluster.generations_per_job

OUTPUTS:
    results/{study}/sample/{arm}/rep{rep}/
        generations as one array file, and a picture of the first
    results/{study}/attack/{arm}/rep{rep}/extraction/
        nearest training images, extracted images, controls
    results/{study}/attack/{arm}/rep{rep}/quality/     distances to real images that no arm saw
    results/{study}/attack/{arm}/rep{rep}/membership/
        losses of members and non-members, and their separation
    results/{study}/attack/{arm}/rep{rep}/prompts/
        detectors of memorised prompts on captions, and training images that these give away; only
        for the arms that `prompts` names
    results/{study}/attack/{arm}/rep{rep}/path/
        copies and quality of the networks kept on the way; only for arms with a path
    results/{study}/attack/{arm}/rep{rep}/forgetting/
        retention of the forget sets; only for arms with one
"""


localrules:
    attack,


rule draw_and_attack:
    """Draw generations, seeded per image, or merge their blocks, and run the attacks that every arm
    meets, in one process: extraction (Carlini et al. 2023, section 5.1), quality and diversity with
    held-out controls, and membership inference (section 5.2.1). Each has a store of its own; one
    that is up to date is skipped. The attacks are given the generations as this process wrote them:
    with slurm/scratch.yaml they are still on the node's disk.
    """
    input:
        unpack(inputs(*TOGETHER)),
        blocks=lambda wildcards: PARTS.blocks(wildcards.arm, wildcards.rep),
    output:
        sample_run="results/{study}/sample/{arm}/rep{rep}/run.json",
        sample=[
            kept(f"results/{{study}}/sample/{{arm}}/rep{{rep}}/{file}")
            for file in (".run.json", "images.npz", "grid.png")
        ],
        extraction_run="results/{study}/attack/{arm}/rep{rep}/extraction/run.json",
        extraction=[
            kept(f"results/{{study}}/attack/{{arm}}/rep{{rep}}/extraction/{file}")
            for file in (
                ".run.json",
                "metrics.jsonl",
                "results.csv",
                "pairs.parquet",
                "holdout_pairs.parquet",
                "images.parquet",
                "twins.parquet",
                "precision_recall.csv",
            )
        ],
        quality_run="results/{study}/attack/{arm}/rep{rep}/quality/run.json",
        quality=[
            kept(f"results/{{study}}/attack/{{arm}}/rep{{rep}}/quality/{file}")
            for file in (".run.json", "metrics.jsonl", "results.csv")
        ],
        membership_run="results/{study}/attack/{arm}/rep{rep}/membership/run.json",
        membership=[
            kept(f"results/{{study}}/attack/{{arm}}/rep{{rep}}/membership/{file}")
            for file in (".run.json", "metrics.jsonl", "results.csv", "losses.parquet")
        ],
    log:
        "results/{study}/logs/attack/{arm}/rep{rep}.log",
    benchmark:
        "results/{study}/benchmarks/attack/{arm}/rep{rep}.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs(*TOGETHER),
    params:
        sample=flags("sample"),
        extraction=flags("attack/extraction", "samples"),
        quality=flags("attack/quality", "samples"),
        membership=flags("attack/membership"),
        blocks=lambda wildcards: PARTS.blocks_flag(wildcards.arm, wildcards.rep),
        sample_out=subpath(output.sample_run, parent=True),
        extraction_out=subpath(output.extraction_run, parent=True),
        quality_out=subpath(output.quality_run, parent=True),
        membership_out=subpath(output.membership_run, parent=True),
    shell:
        "afterimage sample draw {params.sample} {params.blocks}"
        " --config {input.config[0]:q} --out {params.sample_out:q}"
        " --then attack extraction {params.extraction} --samples {output.sample[1]:q}"
        " --config {input.config[1]:q} --out {params.extraction_out:q}"
        " --then attack quality {params.quality} --samples {output.sample[1]:q}"
        " --config {input.config[2]:q} --out {params.quality_out:q}"
        " --then attack membership {params.membership}"
        " --config {input.config[3]:q} --out {params.membership_out:q} > {log:q} 2>&1"


rule prompts:
    """Find the captions of training by detectors of memorised prompts, and training images by the
    images of a caption that agree (Carlini et al. 2023, section 4.2)."""
    input:
        unpack(inputs("attack/prompts")),
    output:
        run="results/{study}/attack/{arm}/rep{rep}/prompts/run.json",
        metrics="results/{study}/attack/{arm}/rep{rep}/prompts/metrics.jsonl",
        results="results/{study}/attack/{arm}/rep{rep}/prompts/results.csv",
        prompts="results/{study}/attack/{arm}/rep{rep}/prompts/prompts.parquet",
        ranked="results/{study}/attack/{arm}/rep{rep}/prompts/ranked.csv",
    log:
        "results/{study}/logs/attack/{arm}/rep{rep}/prompts.log",
    benchmark:
        "results/{study}/benchmarks/attack/{arm}/rep{rep}/prompts.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs("attack/prompts"),
    params:
        inputs=flags("attack/prompts"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage attack prompts {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule path:
    """Attack the networks that a training kept on the way."""
    input:
        unpack(inputs("attack/path")),
    output:
        run="results/{study}/attack/{arm}/rep{rep}/path/run.json",
        metrics="results/{study}/attack/{arm}/rep{rep}/path/metrics.jsonl",
        results="results/{study}/attack/{arm}/rep{rep}/path/results.csv",
    log:
        "results/{study}/logs/attack/{arm}/rep{rep}/path.log",
    benchmark:
        "results/{study}/benchmarks/attack/{arm}/rep{rep}/path.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs("attack/path"),
    params:
        inputs=flags("attack/path"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage attack path {params.inputs}"
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
