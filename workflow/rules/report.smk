"""REQUIRED INPUTS: results/{study}/{train,sample,attack}/{arm}/rep{rep}/,
    results/{study}/data/{planting,dedup}/{job}/, results/{study}/attribution/ if the study has it

OUTPUTS:
    results/{study}/report/tables/        tidy tables over all arms, headline numbers as JSON
    results/{study}/report/pages/{job}/  an executed notebook, its HTML page and its figures
"""


localrules:
    report,
    tables,
    page,


rule tables:
    """Collect the results of all arms."""
    input:
        unpack(inputs("report/tables")),
    output:
        run="results/{study}/report/tables/run.json",
        metrics="results/{study}/report/tables/metrics.json",
        arms=report(
            "results/{study}/report/tables/arms.csv",
            caption="../report/arms.rst",
            category="Tables",
            labels={"table": "headline numbers of every arm"},
        ),
        comparison=report(
            "results/{study}/report/tables/comparison.csv",
            caption="../report/comparison.rst",
            category="Tables",
            labels={"table": "every arm against its own control"},
        ),
        wide=report(
            "results/{study}/report/tables/comparison_wide.csv",
            caption="../report/comparison_wide.rst",
            category="Tables",
            labels={"table": "one row per arm, with the verdict"},
        ),
        points="results/{study}/report/tables/points.csv",
        attacks=[
            f"results/{{study}}/report/tables/{step.verb}.csv"
            for step in STEPS.values()
            if step.phase_name == "attack"
        ],
        copies="results/{study}/report/tables/copies.csv",
        multiplicity="results/{study}/report/tables/multiplicity.csv",
        repeats="results/{study}/report/tables/repeats.csv",
        prompts="results/{study}/report/tables/prompts.csv",
        prompts_ranked="results/{study}/report/tables/prompts_ranked.csv",
        paths="results/{study}/report/tables/paths.csv",
        frontier="results/{study}/report/tables/frontier.csv",
        attribution=[
            f"results/{{study}}/report/tables/attribution{table}.csv"
            for table in ("", "_differences", "_counterfactual", "_concepts", "_cost")
        ],
        union="results/{study}/report/tables/union.csv",
        loss="results/{study}/report/tables/loss.csv",
        dedup=report(
            "results/{study}/report/tables/dedup.csv",
            caption="../report/dedup.rst",
            category="Tables",
            labels={"table": "deduplication against the planted truth"},
        ),
    log:
        "results/{study}/logs/report/tables.log",
    benchmark:
        "results/{study}/benchmarks/report/tables.tsv"
    params:
        out=subpath(output.run, parent=True),
        results=subpath(input.config, ancestor=3),
    shell:
        "afterimage report tables --results {params.results:q}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule page:
    """Run a notebook on the tables and on single replicates, and write its page."""
    input:
        unpack(inputs("report/page")),
        notebook=str(NOTEBOOKS / "{job}.py"),
    output:
        run="results/{study}/report/pages/{job}/run.json",
        notebook="results/{study}/report/pages/{job}/{job}.ipynb",
        page=report(
            kept("results/{study}/report/pages/{job}/{job}.html"),
            caption="../report/page.rst",
            category="Pages",
            labels={"page": "{job}"},
        ),
        figures=report(
            directory("results/{study}/report/pages/{job}/figures"),
            patterns=["{figure}.png"],
            caption="../report/figure.rst",
            category="Figures",
            labels={"page": "{job}", "figure": "{figure}"},
        ),
    log:
        "results/{study}/logs/report/{job}.log",
    benchmark:
        "results/{study}/benchmarks/report/{job}.tsv"
    wildcard_constraints:
        job="|".join(pages(STUDY)),
    params:
        out=subpath(output.run, parent=True),
        results=subpath(input.config, ancestor=4),
        tables=subpath(input.tables, parent=True),
    shell:
        "afterimage report page --notebook {input.notebook:q} --results {params.results:q}"
        " --tables {params.tables:q}"
        " --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule report:
    """The report phase."""
    input:
        phase("report"),
