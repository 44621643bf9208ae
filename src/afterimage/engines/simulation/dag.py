"""The jobs of a study and their dependencies, as planned by the workflow itself.

``snakemake --dry-run`` lists every job with its files. A job depends on those that produce its
inputs. No rule is named here, so that nothing can get out of step with the rules; the study is
planned in a folder of its own, where nothing is finished yet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from afterimage.artifacts import ArtifactError
from afterimage.config import Study


class Planned(NamedTuple):
    """One job of Snakemake's plan.

    Attributes:
        rule: Its rule.
        outputs: Its files and folders, relative to ``results/<study>``.
        needs: Positions of the jobs it depends on; all smaller than its own.
        submitted: Whether it is submitted to the cluster, i.e. declares a runtime. The others are
            local.
    """

    rule: str
    outputs: list[str]
    needs: tuple[int, ...]
    submitted: bool


def plan(study: Study, folder: Path) -> tuple[list[Planned], dict[str, list[str]]]:
    """Plan a study from the start; must be called from where ``snakemake`` would be, next to the
    Snakefile.

    Args:
        study: The study.
        folder: Empty; receives the study and the files that Snakemake writes when it plans.

    Returns:
        The jobs in topological order, and the parts that jobs are split into, by folder
        (``plan.parts``).

    Raises:
        ArtifactError: if Snakemake cannot plan it.
    """
    params = folder / "study.json"
    params.write_text(study.model_dump_json())
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--directory",
        str(folder),
        "--configfile",
        str(params),
    ]
    command += ["--dry-run", "--cores", "1", "--nocolor", "--", "all"]
    environment = {name: value for name, value in os.environ.items() if name != "SNAKEMAKE_PROFILE"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise ArtifactError(
            f"`{' '.join(command)}` failed:\n{done.stdout.strip()}\n{done.stderr.strip()}"
        )
    root = Path("results", study.study)
    parts = json.loads((folder / root / "config" / "parts.json").read_text())
    return in_order(read(done.stdout, root)), parts


class Listed(NamedTuple):
    """One entry of the list; files are relative to ``results/<study>``, others are dropped."""

    rule: str
    inputs: list[str]
    outputs: list[str]
    submitted: bool


def read(listing: str, root: Path) -> Iterator[Listed]:
    """Yield the jobs with outputs from the text of a dry run.

    Args:
        listing: The text.
        root: Folder of the results.
    """
    rule, fields = "", dict[str, str]()
    for line in [*listing.splitlines(), "rule :"]:
        kind, _, name = line.partition(" ")
        if kind in ("rule", "localrule") and name.endswith(":"):
            if "output" in fields:
                files = {key: _below(fields.get(key, ""), root) for key in ("input", "output")}
                yield Listed(
                    rule, files["input"], files["output"], "runtime=" in fields.get("resources", "")
                )
            rule, fields = name.removesuffix(":"), {}
        elif line.startswith("    ") and ": " in line:
            key, _, value = line.strip().partition(": ")
            fields[key] = value


def _below(listed: str, root: Path) -> list[str]:
    prefix = f"{root.as_posix()}/"
    paths = (path.removesuffix(" (update)") for path in listed.split(", "))
    return [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]


def in_order(listed: Iterator[Listed]) -> list[Planned]:
    """Return the jobs in topological order, with ties by name: Snakemake's order varies."""
    jobs = sorted(listed, key=lambda job: job.outputs)
    producer = {path: i for i, job in enumerate(jobs) for path in job.outputs}
    needs = [sorted({producer[path] for path in job.inputs if path in producer}) for job in jobs]
    position: dict[int, int] = {}
    planned: list[Planned] = []
    while len(planned) < len(jobs):
        ready = [
            i
            for i in range(len(jobs))
            if i not in position and all(before in position for before in needs[i])
        ]
        assert ready, "the plan has a cycle"
        for i in ready:
            position[i] = len(planned)
            planned.append(
                Planned(
                    jobs[i].rule,
                    jobs[i].outputs,
                    tuple(position[before] for before in needs[i]),
                    jobs[i].submitted,
                )
            )
    return planned
