"""REQUIRED INPUTS: results/{study}/{train,sample,attack}/ of the explained arm's first replicate, results/{study}/data/

OUTPUTS:
    results/{study}/attribution/queries/          images whose origin is asked for
    results/{study}/attribution/features/{job}/   projected gradients of a network for one block of images
    results/{study}/attribution/retrain/{job}/    losses of the queries under networks retrained on random halves
    results/{study}/attribution/counterfactual/{job}/   what becomes of a generation without the images that made it
    results/{study}/attribution/scores/{job}/     who made what, by every attributor, and how well that predicts retraining
    results/{study}/attribution/acceleration/     what cheaper features and two-stage ranking cost in quality
    results/{study}/attribution/remedied/{job}/   whether forgotten images lose their influence
"""


localrules:
    attribution,
    queries,


rule queries:
    """Choose the images whose origin is asked for."""
    input:
        config="results/{study}/config/attribution/queries.json",
        code="results/{study}/config/attribution/queries.code",
        holdout="results/{study}/data/split/holdout.npz",
        samples=of_explained("sample/{arm}/rep0/images.npz"),
        extraction=of_explained("attack/{arm}/rep0/extraction/run.json"),
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
        out=subpath(output.run, parent=True),
        extraction=subpath(input.extraction, parent=True),
    shell:
        "afterimage attribution queries --holdout {input.holdout:q} --samples {input.samples:q}"
        " --extraction {params.extraction:q} --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule features:
    """Project the gradients of one network for one block of images."""
    input:
        config="results/{study}/config/attribution/features/{job}.json",
        code="results/{study}/config/attribution/features/{job}.code",
        model=of_explained("train/{arm}/rep0/run.json"),
        train=explained_images,
        members=of_explained("train/{arm}/rep0/members.parquet"),
        queries="results/{study}/attribution/queries/run.json",
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
        out=subpath(output.run, parent=True),
        model=subpath(input.model, parent=True),
        queries=subpath(input.queries, parent=True),
    shell:
        "afterimage attribution features --model {params.model:q} --train {input.train:q} --members {input.members:q}"
        " --queries {params.queries:q} --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule retrain:
    """Retrain networks on random halves of the training images and take the queries' losses."""
    input:
        config="results/{study}/config/attribution/retrain/{job}.json",
        code="results/{study}/config/attribution/retrain/{job}.code",
        model=of_explained("train/{arm}/rep0/run.json"),
        train=explained_images,
        members=of_explained("train/{arm}/rep0/members.parquet"),
        queries="results/{study}/attribution/queries/run.json",
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
        out=subpath(output.run, parent=True),
        state="results/{study}/state/attribution/retrain/{job}",
        model=subpath(input.model, parent=True),
        queries=subpath(input.queries, parent=True),
    shell:
        "afterimage attribution retrain --model {params.model:q} --train {input.train:q} --members {input.members:q} --queries {params.queries:q}"
        " --state {params.state:q} --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule scores:
    """Score every attributor by what retraining shows, and by copies whose origin is known."""
    input:
        features=features_of_variant,
        states=features_of_states,
        retrain=retrained,
        config="results/{study}/config/attribution/scores/{job}.json",
        code="results/{study}/config/attribution/scores/{job}.code",
        train=explained_images,
        members=of_explained("train/{arm}/rep0/members.parquet"),
        queries="results/{study}/attribution/queries/run.json",
        classifier="results/{study}/data/classifier/classifier.safetensors",
    output:
        run="results/{study}/attribution/scores/{job}/run.json",
        metrics="results/{study}/attribution/scores/{job}/metrics.jsonl",
        lds="results/{study}/attribution/scores/{job}/lds.csv",
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
        out=subpath(output.run, parent=True),
        queries=subpath(input.queries, parent=True),
        classifier=subpath(input.classifier, parent=True),
        stores=lambda wildcards, input: store_lists(
            features=input.features, states=input.states, retrain=input.retrain
        ),
    shell:
        "afterimage attribution scores --train {input.train:q} --members {input.members:q} --queries {params.queries:q}"
        " {params.stores} --classifier {params.classifier:q} --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule counterfactual:
    """Train without what is said to have made a generation, and generate it again."""
    input:
        config="results/{study}/config/attribution/counterfactual/{job}.json",
        code="results/{study}/config/attribution/counterfactual/{job}.code",
        model=of_explained("train/{arm}/rep0/run.json"),
        train=explained_images,
        members=of_explained("train/{arm}/rep0/members.parquet"),
        queries="results/{study}/attribution/queries/run.json",
        scores="results/{study}/attribution/scores/main/run.json",
        classifier="results/{study}/data/classifier/classifier.safetensors",
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
        out=subpath(output.run, parent=True),
        state="results/{study}/state/attribution/counterfactual/{job}",
        model=subpath(input.model, parent=True),
        queries=subpath(input.queries, parent=True),
        scores=subpath(input.scores, parent=True),
        classifier=subpath(input.classifier, parent=True),
    shell:
        "afterimage attribution counterfactual --model {params.model:q} --train {input.train:q} --members {input.members:q} --queries {params.queries:q}"
        " --scores {params.scores:q} --classifier {params.classifier:q} --state {params.state:q} --config {input.config:q}"
        " --out {params.out:q} > {log:q} 2>&1"


rule acceleration:
    """Weigh the cost of features against the quality of their scores."""
    input:
        scores=scores_of_variants,
        features=features_of_variants,
        retrain=retrained,
        config="results/{study}/config/attribution/acceleration.json",
        code="results/{study}/config/attribution/acceleration.code",
        train=explained_images,
        members=of_explained("train/{arm}/rep0/members.parquet"),
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
        out=subpath(output.run, parent=True),
        stores=lambda wildcards, input: store_lists(
            scores=input.scores, features=input.features, retrain=input.retrain
        ),
    shell:
        "afterimage attribution acceleration --train {input.train:q} --members {input.members:q} {params.stores}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule remedied:
    """Compare the influence of forgotten images before and after a remedy."""
    input:
        config="results/{study}/config/attribution/remedied/{job}.json",
        code="results/{study}/config/attribution/remedied/{job}.code",
        before=of_unremedied("train/{arm}/rep0/run.json"),
        after="results/{study}/train/{job}/rep0/run.json",
        train=remedied_images,
        samples=of_unremedied("sample/{arm}/rep0/images.npz"),
        scores="results/{study}/attribution/scores/main/run.json",
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
        out=subpath(output.run, parent=True),
        before=subpath(input.before, parent=True),
        after=subpath(input.after, parent=True),
        scores=subpath(input.scores, parent=True),
    shell:
        "afterimage attribution remedied --before {params.before:q} --after {params.after:q} --train {input.train:q}"
        " --samples {input.samples:q} --scores {params.scores:q} --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule attribution:
    """The attribution phase: nothing, where the study does not ask for it."""
    input:
        attribution_results,
