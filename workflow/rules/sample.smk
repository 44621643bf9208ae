"""REQUIRED INPUTS: results/{study}/train/{arm}/rep{rep}/

OUTPUTS:
    results/{study}/blocks/{arm}/rep{rep}/
        blocks of generations, with cluster.generations_per_job; removed at the end

The generations themselves, results/{study}/sample/, are drawn by the process that attacks them:
attack.smk.
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


rule sample:
    """The sample phase: the generations of every arm, and the attacks that its process runs on
    them."""
    input:
        phase("sample"),
