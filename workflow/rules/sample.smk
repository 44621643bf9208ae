"""REQUIRED INPUTS: results/{study}/train/{arm}/rep{rep}/

OUTPUTS:
    results/{study}/blocks/{arm}/rep{rep}/
        blocks of generations, with cluster.generations_per_job; removed at the end
    results/{study}/sample/{arm}/rep{rep}/
        generations as one array file, and a picture of the first
"""


localrules:
    sample,


rule draw_block:
    """Draw a block of the generations."""
    input:
        unpack(inputs("sample")),
    output:
        temp(directory("results/{study}/blocks/{arm}/rep{rep}/{first}-{end}")),
    log:
        "results/{study}/logs/sample/{arm}/rep{rep}/{first}-{end}.log",
    benchmark:
        "results/{study}/benchmarks/sample/{arm}/rep{rep}/{first}-{end}.tsv"
    wildcard_constraints:
        first=r"\d+",
        end=r"\d+",
    threads: STUDY.cluster.threads
    resources:
        **needs("sample"),
    params:
        inputs=flags("sample"),
    shell:
        "afterimage sample draw {params.inputs} --block {wildcards.first}:{wildcards.end}"
        " --config {input.config:q} --out {output:q} > {log:q} 2>&1"


rule draw:
    """Draw generations, seeded per image, or merge their blocks."""
    input:
        unpack(inputs("sample")),
        blocks=lambda wildcards: PARTS.blocks(wildcards.arm, wildcards.rep),
    output:
        run="results/{study}/sample/{arm}/rep{rep}/run.json",
        images="results/{study}/sample/{arm}/rep{rep}/images.npz",
        grid="results/{study}/sample/{arm}/rep{rep}/grid.png",
    log:
        "results/{study}/logs/sample/{arm}/rep{rep}.log",
    benchmark:
        "results/{study}/benchmarks/sample/{arm}/rep{rep}.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs("sample"),
    params:
        inputs=flags("sample"),
        out=subpath(output.run, parent=True),
        blocks=lambda wildcards: PARTS.blocks_flag(wildcards.arm, wildcards.rep),
    shell:
        "afterimage sample draw {params.inputs} {params.blocks}"
        " --config {input.config:q} --out {params.out:q}"
        " > {log:q} 2>&1"


rule sample:
    """The sample phase."""
    input:
        phase("sample"),
