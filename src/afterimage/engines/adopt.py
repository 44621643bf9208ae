"""``afterimage adopt``: check pulled results and register them with Snakemake.

A clone that got its results from ``dvc pull`` has none of Snakemake's records, and its file times
are in no order: Snakemake would rerun finished jobs, or miss a changed setting. If DVC reports no
changes and ``verify`` finds every result correct, it is safe to declare all of them up to date,
which is what this command does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from afterimage import config, tracking
from afterimage.artifacts import ArtifactError
from afterimage.engines import verify


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--study", type=Path, default=Path("params.yaml"), help="study file (default: %(default)s)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        help="folder of all results (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    study = config.load(args.study)
    if changed := dvc_changes():
        raise ArtifactError(
            f"`dvc status` is not clean, so nothing was adopted: {', '.join(changed)}; run `dvc "
            "pull`, or `dvc repro` for new results"
        )
    wrong = [problem for problem in verify.problems(study, args.results) if not problem.warning]
    if wrong:
        listed = "\n".join(f"  {problem}" for problem in wrong)
        raise ArtifactError(f"{len(wrong)} problem(s), so nothing was adopted:\n{listed}")
    imported = args.results / study.study / "track" / "track.json"
    if imported.is_file() and json.loads(imported.read_text()) != tracking.summary(
        study, tracking.read(study, args.results)
    ):
        imported.unlink()  # MLflow has older results: let `snakemake all` import the pulled ones
    command = [
        "snakemake",
        "--configfile",
        str(args.study),
        "--cores",
        "1",
        "--touch",
        "--forceall",
    ]
    done = _call(*command, "--", "all")
    if done.returncode:
        raise ArtifactError(
            f"`{' '.join(command)} -- all` failed; Snakemake's records are "
            f"incomplete:\n{done.stderr.strip()}"
        )
    print(f"study {study.study!r}: all results are correct and registered with Snakemake")
    return 0


def dvc_changes() -> list[str]:
    """Return the stages and files that ``dvc status`` reports.

    Raises:
        ArtifactError: if ``dvc status`` fails, e.g. outside a DVC repository.
    """
    done = _call("dvc", "status", "--json")
    if done.returncode:
        raise ArtifactError(f"`dvc status` failed, so nothing was adopted:\n{done.stderr.strip()}")
    return sorted(json.loads(done.stdout))


def _call(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of this environment, whether or not its scripts are on the path."""
    return subprocess.run([sys.executable, "-m", tool, *arguments], capture_output=True, text=True)
