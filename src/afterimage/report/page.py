"""Run one notebook on finished results and write its HTML page.

Notebooks are kept as plain Python (jupytext's percent form), so that a change of one can be read. papermill runs it in a kernel of
the same environment; nbconvert writes a page that opens without the network.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from afterimage import artifacts


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--notebook", type=Path, required=True, help="notebook in jupytext's percent form")
    parser.add_argument("--results", type=Path, required=True, help="folder of the study's results")
    parser.add_argument("--tables", type=Path, required=True, help="store of the tables that the notebook reads")
    parser.add_argument("--config", type=Path, required=True, help="resolved config of step report/page")
    parser.add_argument("--out", type=Path, required=True, help="folder for the notebook, the page and its figures")


def run(args: argparse.Namespace) -> None:
    config = artifacts.read_config(args.config, "report/page")
    inputs = {"notebook": args.notebook, "tables": args.tables / artifacts.RUN}
    with artifacts.step(config, args.out, inputs=inputs, entries=(__name__, "afterimage.report.notebook")) as step:
        figures = step.folder / "figures"
        figures.mkdir()
        executed = step.folder / f"{args.notebook.stem}.ipynb"
        parameters = {"results": str(args.results), "figures": str(figures), **step.settings}
        execute(args.notebook, executed, parameters)
        (step.folder / f"{args.notebook.stem}.html").write_text(to_html(executed))


def execute(notebook: Path, executed: Path, parameters: dict) -> None:
    """Run a notebook from the present working folder and write it, executed, to ``executed``.

    Raises:
        papermill.PapermillExecutionError: with the cell's traceback, if a cell fails.
        ArtifactError: if the notebook does not declare one of ``parameters``.
    """
    # A place of its own for Jupyter's run files: nothing is read from, or left in, the user's home.
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.update(IPYTHONDIR=scratch, JUPYTER_RUNTIME_DIR=scratch, JUPYTER_CONFIG_DIR=scratch, MPLBACKEND="agg")
        import jupytext
        import papermill

        source = Path(scratch) / executed.name
        jupytext.write(jupytext.read(notebook), source)
        declared = papermill.inspect_notebook(source)
        unknown = sorted(parameters.keys() - declared.keys())
        if unknown:
            raise artifacts.ArtifactError(
                f"{notebook} declares no parameter {', '.join(unknown)}; it has: {', '.join(declared)}"
            )
        target = Path(scratch) / f"executed-{executed.name}"
        papermill.execute_notebook(source, target, parameters=parameters, kernel_name="python3", progress_bar=False)
        shutil.move(target, executed)


def to_html(executed: Path) -> str:
    """Return an executed notebook as one HTML page without code cells and without references to the network."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.mathjax_url = ""
    exporter.require_js_url = ""
    page, _ = exporter.from_filename(str(executed))
    return page
