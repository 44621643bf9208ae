"""REQUIRED INPUTS: results/{study}/data/{planting,dedup}/{job}/train.npz

OUTPUTS:
    results/{study}/train/{arm}/rep{rep}/
        pipeline/ (averaged weights) and raw/ as diffusers folders,
                                            training curves, the table of members, and states/ and
                                            tables/, empty for most arms
"""


localrules:
    train,


rule slice:
    """Train a part of a training that is too long for one job; the next part resumes it."""
    input:
        unpack(inputs("train")),
        before=lambda wildcards: PARTS.before(
            wildcards.arm, wildcards.rep, int(wildcards.k), int(wildcards.parts)
        ),
    output:
        temp(touch("results/{study}/state/{arm}/rep{rep}/{k}of{parts}")),
    log:
        "results/{study}/logs/train/{arm}/rep{rep}/{k}of{parts}.log",
    benchmark:
        "results/{study}/benchmarks/train/{arm}/rep{rep}/{k}of{parts}.tsv"
    wildcard_constraints:
        k=r"\d+",
        parts=r"\d+",
    threads: PLAN.training_threads
    resources:
        **needs("train"),
    params:
        inputs=flags("train"),
        out="results/{study}/train/{arm}/rep{rep}",
        state="results/{study}/state/{arm}/rep{rep}",
        processes=PLAN.processes_flag,
    shell:
        "afterimage train run {params.inputs} --state {params.state:q}"
        " --part {wildcards.k}/{wildcards.parts} {params.processes}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule fit:
    """Train one replicate of an arm. Its state is not an output, which Snakemake would delete."""
    input:
        unpack(inputs("train")),
        before=lambda wildcards: PARTS.last(wildcards.arm, wildcards.rep),
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
    threads: PLAN.training_threads
    resources:
        **needs("train"),
    params:
        inputs=flags("train"),
        out=subpath(output.run, parent=True),
        state="results/{study}/state/{arm}/rep{rep}",
        part=lambda wildcards: PARTS.flag(wildcards.arm, wildcards.rep),
        processes=PLAN.processes_flag,
    shell:
        "afterimage train run {params.inputs} --state {params.state:q} {params.part}"
        " {params.processes}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule train:
    """The train phase."""
    input:
        phase("train"),
