"""REQUIRED INPUTS: results/{study}/train/{arm}/rep{rep}/ of the selection's base

OUTPUTS (not part of `all`: `snakemake loyal_selection`):
    results/{study}/{train,sample,attack}/select_*/rep{rep}/
        the derived arms, by the rules of every other arm
    results/{study}/selection/timestep_ablation/rep{rep}/
        blocks at some timesteps only, by swapping networks while sampling
    results/{study}/selection/table/
        what each skip group and timestep does to copying and quality
    results/{study}/selection/page/
        the same as an executed notebook, its HTML page and its figures
"""


localrules:
    loyal_selection,
    selection,
    selection_page,


rule timestep_ablation:
    """Sample with the blocks at some timesteps only, without further training."""
    input:
        unpack(inputs("selection/timestep_ablation")),
    output:
        run="results/{study}/selection/timestep_ablation/rep{rep}/run.json",
        table="results/{study}/selection/timestep_ablation/rep{rep}/table.csv",
    log:
        "results/{study}/logs/selection/timestep_ablation/rep{rep}.log",
    benchmark:
        "results/{study}/benchmarks/selection/timestep_ablation/rep{rep}.tsv"
    threads: STUDY.cluster.threads
    resources:
        **needs("selection/timestep_ablation"),
    params:
        inputs=flags("selection/timestep_ablation"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage selection timestep_ablation {params.inputs}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule selection:
    """Rank skip groups and switch timesteps by their effect on copying, subject to quality."""
    input:
        unpack(inputs("selection/table")),
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
        "afterimage selection table --results {params.results:q}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule selection_page:
    """Run the notebook of the selection on its tables and write its page."""
    input:
        unpack(inputs("selection/page")),
        notebook=str(NOTEBOOKS / "loyal_selection.py"),
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
        "afterimage selection page --notebook {input.notebook:q} --results {params.results:q}"
        " --tables {params.tables:q}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule loyal_selection:
    """Choose skip groups and the switch timestep of LoyalDiffusion."""
    input:
        PLAN.selection_results,
