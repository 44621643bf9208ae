"""REQUIRED INPUTS: results/{study}/data/{split,dedup}/train.npz

OUTPUTS:
    results/{study}/train/{arm}/rep{rep}/   pipeline/ (averaged weights) and raw/ as diffusers folders, training curves,
                                            which rows were trained on, and states/ and tables/, empty for most arms
"""


localrules:
    train,


rule slice:
    """Train a part of what takes longer than one job may. What it leaves is the state, from which the next part, or `fit`, goes on."""
    input:
        config="results/{study}/config/train/{arm}/rep{rep}.json",
        code="results/{study}/config/train/{arm}/rep{rep}.code",
        images=training_images,
        base=base_run,
        matched=matched_run,
        extraction=extraction_to_forget,
        before=part_before,
    output:
        temp(touch("results/{study}/state/{arm}/rep{rep}/{k}of{parts}")),
    log:
        "results/{study}/logs/train/{arm}/rep{rep}/{k}of{parts}.log",
    benchmark:
        "results/{study}/benchmarks/train/{arm}/rep{rep}/{k}of{parts}.tsv"
    wildcard_constraints:
        k=r"\d+",
        parts=r"\d+",
    threads: training_threads
    resources:
        **needs("train"),
    params:
        out="results/{study}/train/{arm}/rep{rep}",
        state="results/{study}/state/{arm}/rep{rep}",
        others=lambda wildcards, input: optional_stores(
            base=input.base, matched=input.matched, extraction=input.extraction
        ),
        processes=processes_flag,
    shell:
        "afterimage train run --train {input.images:q} --config {input.config:q} --state {params.state:q} {params.others}"
        " --part {wildcards.k}/{wildcards.parts} {params.processes} --out {params.out:q} > {log:q} 2>&1"


rule fit:
    """Train one replicate of one arm. The resumable state is no output: Snakemake would delete it."""
    input:
        config="results/{study}/config/train/{arm}/rep{rep}.json",
        code="results/{study}/config/train/{arm}/rep{rep}.code",
        images=training_images,
        base=base_run,
        matched=matched_run,
        extraction=extraction_to_forget,
        before=last_part,
    output:
        run="results/{study}/train/{arm}/rep{rep}/run.json",
        metrics="results/{study}/train/{arm}/rep{rep}/metrics.jsonl",
        members="results/{study}/train/{arm}/rep{rep}/members.parquet",
        pipeline=directory("results/{study}/train/{arm}/rep{rep}/pipeline"),
        raw=directory("results/{study}/train/{arm}/rep{rep}/raw"),
        states=directory("results/{study}/train/{arm}/rep{rep}/states"),
        tables=directory("results/{study}/train/{arm}/rep{rep}/tables"),
    log:
        "results/{study}/logs/train/{arm}/rep{rep}.log",
    benchmark:
        "results/{study}/benchmarks/train/{arm}/rep{rep}.tsv"
    threads: training_threads
    resources:
        **needs("train"),
    params:
        out=subpath(output.run, parent=True),
        state="results/{study}/state/{arm}/rep{rep}",
        others=lambda wildcards, input: optional_stores(
            base=input.base, matched=input.matched, extraction=input.extraction
        ),
        part=part_flag,
        processes=processes_flag,
    shell:
        "afterimage train run --train {input.images:q} --config {input.config:q} --state {params.state:q} {params.others}"
        " {params.part} {params.processes} --out {params.out:q} > {log:q} 2>&1"


rule train:
    """The train phase."""
    input:
        per_replicate(rules.fit.output),
