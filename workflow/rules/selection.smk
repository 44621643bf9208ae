"""REQUIRED INPUTS: results/{study}/train/{arm}/rep{rep}/ of the arm that the selection starts from

OUTPUTS (not part of `all`: `snakemake loyal_selection`):
    results/{study}/{train,sample,attack}/select_*/rep{rep}/  the derived arms, by the rules of every other arm
    results/{study}/selection/swap/rep{rep}/                  blocks at some timesteps only, by swapping networks while sampling
    results/{study}/selection/table/                          what each skip group and timestep does to copying and quality
    results/{study}/selection/page/                           the same as an executed notebook, its HTML page and its figures
"""


localrules:
    loyal_selection,
    selection,
    selection_page,


rule swap:
    """Sample with the blocks at some timesteps only, without training anew."""
    input:
        config="results/{study}/config/selection/swap/rep{rep}.json",
        code="results/{study}/config/selection/swap/rep{rep}.code",
        control="results/{study}/train/select_none/rep{rep}/run.json",
        blocks="results/{study}/train/select_whole/rep{rep}/run.json",
        train=selection_images,
        reference="results/{study}/data/split/reference.npz",
        classifier="results/{study}/data/classifier/classifier.safetensors",
    output:
        run="results/{study}/selection/swap/rep{rep}/run.json",
        table="results/{study}/selection/swap/rep{rep}/table.csv",
    log:
        "results/{study}/logs/selection/swap/rep{rep}.log",
    benchmark:
        "results/{study}/benchmarks/selection/swap/rep{rep}.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs("report/swap"),
    params:
        out=subpath(output.run, parent=True),
        control=subpath(input.control, parent=True),
        blocks=subpath(input.blocks, parent=True),
        classifier=subpath(input.classifier, parent=True),
    shell:
        "afterimage report swap --control {params.control:q} --blocks {params.blocks:q} --train {input.train:q}"
        " --reference {input.reference:q} --classifier {params.classifier:q} --config {input.config:q}"
        " --out {params.out:q} > {log:q} 2>&1"


rule selection:
    """Rank skip groups and switch timesteps by what they do to copying, subject to quality."""
    input:
        per_replicate(
            rules.fit.output.run,
            rules.extraction.output.run,
            rules.quality.output.run,
            arms=DERIVED,
        ),
        expand(rules.swap.output.run, rep=REPLICATES, allow_missing=True),
        config="results/{study}/config/selection/table.json",
        code="results/{study}/config/selection/table.code",
    output:
        run="results/{study}/selection/table/run.json",
        arms="results/{study}/selection/table/arms.csv",
        changes="results/{study}/selection/table/changes.csv",
        ranking=report(
            "results/{study}/selection/table/ranking.csv",
            caption="../report/selection.rst",
            category="Tables",
            labels={"table": "skip groups and switch timesteps for LoyalDiffusion"},
        ),
        swap="results/{study}/selection/table/swap.csv",
    log:
        "results/{study}/logs/selection/table.log",
    benchmark:
        "results/{study}/benchmarks/selection/table.tsv"
    params:
        out=subpath(output.run, parent=True),
        results=subpath(input.config, ancestor=3),
    shell:
        "afterimage report selection --results {params.results:q} --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule selection_page:
    """Run the notebook of the selection on its tables and write its page."""
    input:
        config="results/{study}/config/selection/page.json",
        code="results/{study}/config/selection/page.code",
        notebook=str(NOTEBOOKS / "loyal_selection.py"),
        tables="results/{study}/selection/table/run.json",
    output:
        run="results/{study}/selection/page/run.json",
        notebook="results/{study}/selection/page/loyal_selection.ipynb",
        page=report(
            kept("results/{study}/selection/page/loyal_selection.html"),
            caption="../report/selection_page.rst",
            category="Pages",
            labels={"page": "loyal_selection"},
        ),
        figures=report(
            directory("results/{study}/selection/page/figures"),
            patterns=["{figure}.png"],
            caption="../report/figure.rst",
            category="Figures",
            labels={"page": "loyal_selection", "figure": "{figure}"},
        ),
    log:
        "results/{study}/logs/selection/page.log",
    benchmark:
        "results/{study}/benchmarks/selection/page.tsv"
    params:
        out=subpath(output.run, parent=True),
        results=subpath(input.config, ancestor=3),
        tables=subpath(input.tables, parent=True),
    shell:
        "afterimage report page --notebook {input.notebook:q} --results {params.results:q} --tables {params.tables:q}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule loyal_selection:
    """Choose skip groups and the switch timestep of LoyalDiffusion."""
    input:
        selection_results,
