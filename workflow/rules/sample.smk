"""REQUIRED INPUTS: results/{study}/train/{arm}/rep{rep}/

OUTPUTS:
    results/{study}/sample/{arm}/rep{rep}/  generations as one array file and a picture of the first of them
"""


localrules:
    sample,


rule draw:
    """Draw generations, seeded per image."""
    input:
        config="results/{study}/config/sample/{arm}/rep{rep}.json",
        code="results/{study}/config/sample/{arm}/rep{rep}.code",
        model="results/{study}/train/{arm}/rep{rep}/run.json",
    output:
        run="results/{study}/sample/{arm}/rep{rep}/run.json",
        images="results/{study}/sample/{arm}/rep{rep}/images.npz",
        grid="results/{study}/sample/{arm}/rep{rep}/grid.png",
    log:
        "results/{study}/logs/sample/{arm}/rep{rep}.log",
    benchmark:
        "results/{study}/benchmarks/sample/{arm}/rep{rep}.tsv"
    params:
        out=subpath(output.run, parent=True),
        model=subpath(input.model, parent=True),
    shell:
        "afterimage sample draw --model {params.model:q} --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule sample:
    """The sample phase."""
    input:
        per_replicate(rules.draw.output),
