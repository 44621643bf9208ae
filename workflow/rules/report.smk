"""REQUIRED INPUTS: results/{study}/attack/{arm}/rep{rep}/, results/{study}/data/

OUTPUTS:
    results/{study}/report/tables/      tidy tables over all arms, headline numbers as JSON
    results/{study}/report/extraction/  the executed notebook, its HTML page and its figures
"""


localrules:
    report,
    tables,
    page,


rule tables:
    """Gather the results of all arms."""
    input:
        per_replicate(rules.extraction.output.run, rules.quality.output.run),
        config="results/{study}/config/report/tables.json",
        code="results/{study}/config/report/tables.code",
        dedup="results/{study}/data/dedup/run.json",
    output:
        run="results/{study}/report/tables/run.json",
        metrics="results/{study}/report/tables/metrics.json",
        arms=report(
            "results/{study}/report/tables/arms.csv",
            caption="../report/arms.rst",
            category="Tables",
            labels={"table": "headline numbers of every arm"},
        ),
        extraction="results/{study}/report/tables/extraction.csv",
        copies="results/{study}/report/tables/copies.csv",
        quality="results/{study}/report/tables/quality.csv",
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
        results=subpath(output.run, ancestor=3),
    shell:
        "afterimage report tables --results {params.results:q} --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule page:
    """Run the notebook on the tables and write its page."""
    input:
        per_replicate(rules.draw.output.run),
        config="results/{study}/config/report/{page}.json",
        code="results/{study}/config/report/{page}.code",
        notebook=str(NOTEBOOKS / "{page}.py"),
        tables="results/{study}/report/tables/run.json",
    output:
        run="results/{study}/report/{page}/run.json",
        notebook="results/{study}/report/{page}/{page}.ipynb",
        page=report(
            "results/{study}/report/{page}/{page}.html",
            caption="../report/page.rst",
            category="Pages",
            labels={"page": "{page}"},
        ),
        figures=report(
            directory("results/{study}/report/{page}/figures"),
            patterns=["{figure}.png"],
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        "results/{study}/logs/report/{page}.log",
    benchmark:
        "results/{study}/benchmarks/report/{page}.tsv"
    wildcard_constraints:
        page="|".join(PAGES),
    params:
        out=subpath(output.run, parent=True),
        results=subpath(output.run, ancestor=3),
    shell:
        "afterimage report page --notebook {input.notebook:q} --results {params.results:q} --config {input.config:q}"
        " --out {params.out:q} > {log:q} 2>&1"


rule report:
    """The report phase."""
    input:
        once(
            rules.tables.output,
            expand(rules.page.output, page=PAGES, allow_missing=True),
        ),
