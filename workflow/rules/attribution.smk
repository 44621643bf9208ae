"""REQUIRED INPUTS: results/{study}/{train,sample,attack}/ of the explained arm's first replicates,
    results/{study}/data/

OUTPUTS:
    results/{study}/attribution/rep{rep}/queries/    the images to attribute
    results/{study}/attribution/rep{rep}/features/{job}/
        projected gradients of a network for one block of training images, in the first
        block for the queries, too
    results/{study}/attribution/rep{rep}/retrain/{job}/
        losses of the queries under networks retrained on subsets
    results/{study}/attribution/rep{rep}/counterfactual/{job}/
        generations after removal of top-ranked images
    results/{study}/attribution/rep{rep}/scores/{job}/
        scores of every attributor, evaluated by retraining
    results/{study}/attribution/rep{rep}/acceleration/
        cost and quality of cheaper features, two-stage ranking
    results/{study}/attribution/rep{rep}/remedied/{job}/
        influence of forgotten images before and after a remedy
"""


localrules:
    attribution,
    queries,


rule queries:
    """Choose the images to attribute."""
    input:
        unpack(inputs("attribution/queries")),
    output:
        run="results/{study}/attribution/rep{rep}/queries/run.json",
        holdout="results/{study}/attribution/rep{rep}/queries/holdout.npz",
        generated="results/{study}/attribution/rep{rep}/queries/generated.npz",
        extracted="results/{study}/attribution/rep{rep}/queries/extracted.npz",
    log:
        "results/{study}/logs/attribution/rep{rep}/queries.log",
    benchmark:
        "results/{study}/benchmarks/attribution/rep{rep}/queries.tsv"
    params:
        inputs=flags("attribution/queries"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage attribution queries {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule features:
    """Project the gradients of one network for one block of images."""
    input:
        unpack(inputs("attribution/features")),
    output:
        run="results/{study}/attribution/rep{rep}/features/{job}/run.json",
        features="results/{study}/attribution/rep{rep}/features/{job}/features.safetensors",
    log:
        "results/{study}/logs/attribution/rep{rep}/features/{job}.log",
    benchmark:
        "results/{study}/benchmarks/attribution/rep{rep}/features/{job}.tsv"
    wildcard_constraints:
        job=r"\w+/\w+/\d+",
    threads: STUDY.cluster.threads
    resources:
        **needs("attribution/features"),
    params:
        inputs=flags("attribution/features"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage attribution features {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule retrain:
    """Retrain networks on random subsets of the training images and measure the queries' losses."""
    input:
        unpack(inputs("attribution/retrain")),
    output:
        run="results/{study}/attribution/rep{rep}/retrain/{job}/run.json",
        metrics="results/{study}/attribution/rep{rep}/retrain/{job}/metrics.jsonl",
        losses="results/{study}/attribution/rep{rep}/retrain/{job}/losses.npz",
    log:
        "results/{study}/logs/attribution/rep{rep}/retrain/{job}.log",
    benchmark:
        "results/{study}/benchmarks/attribution/rep{rep}/retrain/{job}.tsv"
    wildcard_constraints:
        job=r"\d+",
    threads: STUDY.cluster.threads
    resources:
        **needs("attribution/retrain"),
    params:
        inputs=flags("attribution/retrain"),
        out=subpath(output.run, parent=True),
        state="results/{study}/state/attribution/rep{rep}/retrain/{job}",
    shell:
        "afterimage attribution retrain {params.inputs} --state {params.state:q}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule scores:
    """Score with every attributor; evaluate by retraining, and by copies of known origin."""
    input:
        unpack(inputs("attribution/scores")),
    output:
        run="results/{study}/attribution/rep{rep}/scores/{job}/run.json",
        metrics="results/{study}/attribution/rep{rep}/scores/{job}/metrics.jsonl",
        lds="results/{study}/attribution/rep{rep}/scores/{job}/lds.csv",
        differences="results/{study}/attribution/rep{rep}/scores/{job}/differences.csv",
        units="results/{study}/attribution/rep{rep}/scores/{job}/units.parquet",
        paired="results/{study}/attribution/rep{rep}/scores/{job}/paired.parquet",
        regularisers="results/{study}/attribution/rep{rep}/scores/{job}/regularisers.csv",
        copies="results/{study}/attribution/rep{rep}/scores/{job}/copies.csv",
        concepts="results/{study}/attribution/rep{rep}/scores/{job}/concepts.csv",
        first="results/{study}/attribution/rep{rep}/scores/{job}/first.parquet",
        leverage="results/{study}/attribution/rep{rep}/scores/{job}/leverage.csv",
        scores="results/{study}/attribution/rep{rep}/scores/{job}/scores.safetensors",
    log:
        "results/{study}/logs/attribution/rep{rep}/scores/{job}.log",
    benchmark:
        "results/{study}/benchmarks/attribution/rep{rep}/scores/{job}.tsv"
    wildcard_constraints:
        job=r"\w+",
    threads: STUDY.cluster.threads
    resources:
        **needs("attribution/scores"),
    params:
        inputs=flags("attribution/scores"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage attribution scores {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule counterfactual:
    """Retrain without a generation's top-ranked training images, and generate it again."""
    input:
        unpack(inputs("attribution/counterfactual")),
    output:
        run="results/{study}/attribution/rep{rep}/counterfactual/{job}/run.json",
        changes="results/{study}/attribution/rep{rep}/counterfactual/{job}/changes.csv",
        images="results/{study}/attribution/rep{rep}/counterfactual/{job}/regenerated.npz",
    log:
        "results/{study}/logs/attribution/rep{rep}/counterfactual/{job}.log",
    benchmark:
        "results/{study}/benchmarks/attribution/rep{rep}/counterfactual/{job}.tsv"
    wildcard_constraints:
        job=r"\w+(/\d+)?",
    threads: STUDY.cluster.threads
    resources:
        **needs("attribution/counterfactual"),
    params:
        inputs=flags("attribution/counterfactual"),
        out=subpath(output.run, parent=True),
        state="results/{study}/state/attribution/rep{rep}/counterfactual/{job}",
    shell:
        "afterimage attribution counterfactual {params.inputs} --state {params.state:q}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule acceleration:
    """Compare the cost of features with the quality of their scores."""
    input:
        unpack(inputs("attribution/acceleration")),
    output:
        run="results/{study}/attribution/rep{rep}/acceleration/run.json",
        table="results/{study}/attribution/rep{rep}/acceleration/acceleration.csv",
        units="results/{study}/attribution/rep{rep}/acceleration/units.parquet",
    log:
        "results/{study}/logs/attribution/rep{rep}/acceleration.log",
    benchmark:
        "results/{study}/benchmarks/attribution/rep{rep}/acceleration.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs("attribution/acceleration"),
    params:
        inputs=flags("attribution/acceleration"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage attribution acceleration {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule remedied:
    """Compare the influence of forgotten images before and after a remedy."""
    input:
        unpack(inputs("attribution/remedied")),
    output:
        run="results/{study}/attribution/rep{rep}/remedied/{job}/run.json",
        metrics="results/{study}/attribution/rep{rep}/remedied/{job}/metrics.jsonl",
        influence="results/{study}/attribution/rep{rep}/remedied/{job}/influence.csv",
    log:
        "results/{study}/logs/attribution/rep{rep}/remedied/{job}.log",
    benchmark:
        "results/{study}/benchmarks/attribution/rep{rep}/remedied/{job}.tsv"
    wildcard_constraints:
        job=r"\w+",
    threads: STUDY.cluster.threads
    resources:
        **needs("attribution/remedied"),
    params:
        inputs=flags("attribution/remedied"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage attribution remedied {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule attribution:
    """The attribution phase; empty if the study skips it."""
    input:
        phase("attribution"),
