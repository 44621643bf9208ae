"""REQUIRED INPUTS: results/{study}/{train,sample,attack}/ of the explained arm's first replicate,
    results/{study}/data/

OUTPUTS:
    results/{study}/attribution/queries/          the images to attribute
    results/{study}/attribution/features/{job}/
        projected gradients of a network for one block of images
    results/{study}/attribution/retrain/{job}/
        losses of the queries under networks retrained on subsets
    results/{study}/attribution/counterfactual/{job}/
        generations after removal of top-ranked images
    results/{study}/attribution/scores/{job}/
        scores of every attributor, evaluated by retraining
    results/{study}/attribution/acceleration/
        cost and quality of cheaper features, two-stage ranking
    results/{study}/attribution/remedied/{job}/
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
        run="results/{study}/attribution/queries/run.json",
        holdout="results/{study}/attribution/queries/holdout.npz",
        generated="results/{study}/attribution/queries/generated.npz",
        extracted="results/{study}/attribution/queries/extracted.npz",
    log:
        "results/{study}/logs/attribution/queries.log",
    benchmark:
        "results/{study}/benchmarks/attribution/queries.tsv"
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
        run="results/{study}/attribution/features/{job}/run.json",
        features="results/{study}/attribution/features/{job}/features.safetensors",
    log:
        "results/{study}/logs/attribution/features/{job}.log",
    benchmark:
        "results/{study}/benchmarks/attribution/features/{job}.tsv"
    wildcard_constraints:
        job=r"\w+/\w+/\w+",
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
        run="results/{study}/attribution/retrain/{job}/run.json",
        metrics="results/{study}/attribution/retrain/{job}/metrics.jsonl",
        losses="results/{study}/attribution/retrain/{job}/losses.npz",
    log:
        "results/{study}/logs/attribution/retrain/{job}.log",
    benchmark:
        "results/{study}/benchmarks/attribution/retrain/{job}.tsv"
    wildcard_constraints:
        job=r"\d+",
    threads: STUDY.cluster.threads
    resources:
        **needs("attribution/retrain"),
    params:
        inputs=flags("attribution/retrain"),
        out=subpath(output.run, parent=True),
        state="results/{study}/state/attribution/retrain/{job}",
    shell:
        "afterimage attribution retrain {params.inputs} --state {params.state:q}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule scores:
    """Score with every attributor; evaluate by retraining, and by copies of known origin."""
    input:
        unpack(inputs("attribution/scores")),
    output:
        run="results/{study}/attribution/scores/{job}/run.json",
        metrics="results/{study}/attribution/scores/{job}/metrics.jsonl",
        lds="results/{study}/attribution/scores/{job}/lds.csv",
        differences="results/{study}/attribution/scores/{job}/differences.csv",
        regularisers="results/{study}/attribution/scores/{job}/regularisers.csv",
        copies="results/{study}/attribution/scores/{job}/copies.csv",
        first="results/{study}/attribution/scores/{job}/first.parquet",
        leverage="results/{study}/attribution/scores/{job}/leverage.csv",
        scores="results/{study}/attribution/scores/{job}/scores.safetensors",
    log:
        "results/{study}/logs/attribution/scores/{job}.log",
    benchmark:
        "results/{study}/benchmarks/attribution/scores/{job}.tsv"
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
        run="results/{study}/attribution/counterfactual/{job}/run.json",
        changes="results/{study}/attribution/counterfactual/{job}/changes.csv",
        images="results/{study}/attribution/counterfactual/{job}/regenerated.npz",
    log:
        "results/{study}/logs/attribution/counterfactual/{job}.log",
    benchmark:
        "results/{study}/benchmarks/attribution/counterfactual/{job}.tsv"
    wildcard_constraints:
        job=r"\w+(/\d+)?",
    threads: STUDY.cluster.threads
    resources:
        **needs("attribution/counterfactual"),
    params:
        inputs=flags("attribution/counterfactual"),
        out=subpath(output.run, parent=True),
        state="results/{study}/state/attribution/counterfactual/{job}",
    shell:
        "afterimage attribution counterfactual {params.inputs} --state {params.state:q}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule acceleration:
    """Compare the cost of features with the quality of their scores."""
    input:
        unpack(inputs("attribution/acceleration")),
    output:
        run="results/{study}/attribution/acceleration/run.json",
        table="results/{study}/attribution/acceleration/acceleration.csv",
    log:
        "results/{study}/logs/attribution/acceleration.log",
    benchmark:
        "results/{study}/benchmarks/attribution/acceleration.tsv"
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
        run="results/{study}/attribution/remedied/{job}/run.json",
        metrics="results/{study}/attribution/remedied/{job}/metrics.jsonl",
        influence="results/{study}/attribution/remedied/{job}/influence.csv",
    log:
        "results/{study}/logs/attribution/remedied/{job}.log",
    benchmark:
        "results/{study}/benchmarks/attribution/remedied/{job}.tsv"
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
