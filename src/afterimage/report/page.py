"""Run one notebook on finished results and write its HTML page.

Notebooks are stored as plain Python (jupytext's percent format), so that changes are readable.
papermill runs them; nbconvert writes a page that opens offline.

The kernel is this interpreter, whatever kernels and templates of other installations Jupyter would
find on ``JUPYTER_PATH`` or in the user's home. It communicates over sockets in a folder of its own:
TCP ports are chosen before the kernel opens them, and if another process takes one first the kernel
dies. Its standard error before the first answer is passed to that of this command.
"""

from __future__ import annotations

import argparse
import asyncio
import html
import importlib.util
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from afterimage import artifacts

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager

SOCKET_PATH = 90
"""Maximum length of the socket folder in bytes: with the socket's name a path must not be longer
than 103 (macOS; Linux: 107)."""
EARLIER = "This page is of an earlier run"
START_SECONDS = 120
"""Seconds that a kernel may take for its first answer."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--notebook", type=Path, required=True, help="notebook in jupytext's percent form"
    )
    parser.add_argument("--results", type=Path, required=True, help="folder of the study's results")
    parser.add_argument(
        "--tables", type=Path, required=True, help="store of the tables that the notebook reads"
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved config of step report/page"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the notebook, the page and its figures"
    )


def run(args: argparse.Namespace) -> None:
    config = artifacts.read_config(args.config, "report/page", "selection/page")
    inputs = {"notebook": args.notebook, "tables": args.tables / artifacts.RUN}
    with artifacts.step(config, args.out, inputs, (__name__, module_of(args.notebook))) as step:
        figures = step.folder / "figures"
        figures.mkdir()
        executed = step.folder / f"{args.notebook.stem}.ipynb"
        parameters = {"results": str(args.results), "figures": str(figures), **step.settings}
        with isolated_jupyter() as scratch:
            execute(args.notebook, executed, parameters, scratch)
            (step.folder / f"{args.notebook.stem}.html").write_text(to_html(executed))


def module_of(notebook: Path) -> str:
    """Return the module whose code a notebook shows: the one of its name in ``report.pages``, or
    else ``report.notebook``."""
    module = f"afterimage.report.pages.{notebook.stem}"
    return module if importlib.util.find_spec(module) else "afterimage.report.notebook"


@contextmanager
def isolated_jupyter() -> Iterator[Path]:
    """Isolate Jupyter in this environment: nothing is read from, or written to, the user's home or
    other installations.

    Yields:
        A folder for Jupyter's files, with a path short enough for sockets.
    """
    before = os.environ.copy()
    place = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(
        dir=place if len(place) < SOCKET_PATH - len("/tmp12345678") else "/tmp"
    ) as scratch:
        for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "PYTHONSTARTUP"):
            os.environ.pop(name, None)
        folders = dict.fromkeys(
            ("IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"), scratch
        )
        os.environ.update(folders, JUPYTER_PREFER_ENV_PATH="1", MPLBACKEND="agg")
        try:
            yield Path(scratch)
        finally:
            os.environ.clear()
            os.environ.update(before)


def execute(notebook: Path, executed: Path, parameters: dict, scratch: Path) -> None:
    """Run a notebook from the current working folder and write it, executed, to ``executed``.

    Args:
        scratch: Folder for the kernel's files and sockets.

    Raises:
        papermill.PapermillExecutionError: with the cell's traceback, if a cell fails.
        ArtifactError: if the notebook does not declare one of ``parameters``, or its kernel dies.
    """
    import jupytext
    import papermill
    from nbclient.exceptions import DeadKernelError

    source = scratch / executed.name
    content = jupytext.read(notebook)
    content.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    jupytext.write(content, source)
    declared = papermill.inspect_notebook(source)
    unknown = sorted(parameters.keys() - declared.keys())
    if unknown:
        raise artifacts.ArtifactError(
            f"{notebook} declares no parameter {', '.join(unknown)}; it has: {', '.join(declared)}"
        )
    target = scratch / f"executed-{executed.name}"
    with kernel(scratch) as manager:
        try:
            papermill.execute_notebook(
                source, target, parameters=parameters, progress_bar=False, km=manager
            )
        except DeadKernelError as error:
            raise artifacts.ArtifactError(
                f"{notebook}: the kernel died while it ran a cell ({end_of(manager)})"
            ) from error
    shutil.move(target, executed)


@contextmanager
def kernel(scratch: Path) -> Iterator[AsyncKernelManager]:
    """Run a kernel in this interpreter, with its sockets in ``scratch``.

    A kernel without a first answer is started once more: it has not executed anything yet, so
    nothing is done twice.

    Raises:
        ArtifactError: if the second does not answer either.
    """
    from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync

    failures = []
    for attempt in (1, 2):
        manager = AsyncKernelManager(
            kernel_name=NATIVE_KERNEL_NAME,
            kernel_spec_manager=KernelSpecManager(
                kernel_dirs=[]
            ),  # none but ipykernel's own, with sys.executable
            transport="ipc",
            connection_file=str(scratch / f"{attempt}.json"),
        )
        run_sync(manager.start_kernel)(extra_arguments=["--HistoryManager.hist_file=:memory:"])
        try:
            client = manager.blocking_client()
            client.start_channels()
            try:
                client.wait_for_ready(timeout=START_SECONDS)
            except RuntimeError as error:
                failures.append(f"{error} ({end_of(manager)})")
                print(f"kernel {attempt} of 2: {failures[-1]}", file=sys.stderr)
                continue
            finally:
                client.stop_channels()
            yield manager
            return
        finally:
            run_sync(manager.shutdown_kernel)(now=True)
    raise artifacts.ArtifactError(
        f"{sys.executable} -m ipykernel_launcher started two kernels, and neither came to its "
        "first answer; what they wrote is above."
        f" {'; '.join(failures)}"
    )


def end_of(manager: AsyncKernelManager) -> str:
    """Return a description of how a kernel's process ended."""
    assert manager.provisioner is not None
    status = asyncio.run(manager.provisioner.poll())
    if status is None:
        return "it still runs"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def mark_earlier(page: Path, log: Path) -> bool:
    """Add a note to a page from an earlier run that it is outdated.

    A store without ``run.json`` is incomplete: Snakemake removes it before a page is rendered
    again, and after a failure it restores only the page.

    Args:
        page: HTML file; need not exist.
        log: Log of the failed run.

    Returns:
        Whether it is such a page.
    """
    if not page.is_file() or (page.parent / artifacts.RUN).is_file():
        return False
    text = page.read_text()
    if EARLIER not in text:
        link = html.escape(os.path.relpath(log, page.parent))
        note = (
            f"{EARLIER}, and may not show the current results: rendering it again failed "
            f"(<a href='{link}'>log</a>)."
        )
        style = (
            "position:sticky;top:0;z-index:9;padding:1em;background:#b00020;color:white;"
            "font-family:sans-serif"
        )
        marked = re.sub(
            r"<body\b[^>]*>",
            lambda match: f"{match[0]}<p style='{style}'>{note}</p>",
            text,
            count=1,
        )
        artifacts.write_atomically(page, marked.encode())
    return True


def to_html(executed: Path) -> str:
    """Return an executed notebook as a single HTML page without code cells or references to the
    network."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True
    )
    exporter.mathjax_url = ""
    exporter.require_js_url = ""
    text, _ = exporter.from_filename(str(executed))
    return text
