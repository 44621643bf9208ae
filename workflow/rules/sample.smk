"""REQUIRED INPUTS: results/{study}/train/{arm}/rep{rep}/

OUTPUTS:
    results/{study}/blocks/{arm}/rep{rep}/  some of them, where cluster.generations_per_job cuts the work; removed at the end
    results/{study}/sample/{arm}/rep{rep}/  generations as one array file and a picture of the first of them
"""


localrules:
    sample,


rule draw_block:
    """Draw some of the generations."""
    input:
        config="results/{study}/config/sample/{arm}/rep{rep}.json",
        code="results/{study}/config/sample/{arm}/rep{rep}.code",
        model="results/{study}/train/{arm}/rep{rep}/run.json",
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
        model=subpath(input.model, parent=True),
    shell:
        "afterimage sample draw --model {params.model:q} --config {input.config:q} --block {wildcards.first}:{wildcards.end}"
        " --out {output:q} > {log:q} 2>&1"


rule draw:
    """Draw generations, seeded per image, or put them together."""
    input:
        config="results/{study}/config/sample/{arm}/rep{rep}.json",
        code="results/{study}/config/sample/{arm}/rep{rep}.code",
        model="results/{study}/train/{arm}/rep{rep}/run.json",
        blocks=blocks_of,
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
        out=subpath(output.run, parent=True),
        model=subpath(input.model, parent=True),
        blocks=lambda wildcards, input: (
            f"--blocks {' '.join(map(shlex.quote, input.blocks))}"
            if input.blocks
            else ""
        ),
    shell:
        "afterimage sample draw --model {params.model:q} --config {input.config:q} {params.blocks} --out {params.out:q}"
        " > {log:q} 2>&1"


rule sample:
    """The sample phase."""
    input:
        per_replicate(rules.draw.output),
