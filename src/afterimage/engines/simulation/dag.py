"""The jobs of a study and what each waits for, as the workflow itself plans them.

``snakemake --dry-run`` lists every job with its files. A job waits for those that make its inputs.
Nothing here knows a rule, so that nothing can go out of step with the rules; the study is planned
in a folder of its own, where nothing is finished yet.
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
        needs: Positions of the jobs that it waits for; all smaller than its own.
        submitted: Whether it is one for the cluster: it says how long it may run. The others are
            local.
    """

    rule: str
    outputs: list[str]
    needs: tuple[int, ...]
    submitted: bool


def plan(study: Study, folder: Path) -> tuple[list[Planned], dict[str, list[str]]]:
    """Plan a study from the start; must be called where ``snakemake`` would be, beside the
    Snakefile.

    Args:
        study: The study.
        folder: Empty; takes the study and what Snakemake writes when it plans.

    Returns:
        The jobs, each after those that it waits for, and the parts that jobs are cut into, by
        folder (``plan.parts``).

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
    """One entry of the list; files are relative to ``results/<study>``, others are left out."""

    rule: str
    inputs: list[str]
    outputs: list[str]
    submitted: bool


def read(listing: str, root: Path) -> Iterator[Listed]:
    """Yield the jobs with outputs of what a dry run prints.

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
    """Return the jobs, each after those that make its inputs, otherwise by name: Snakemake's order
    varies."""
    jobs = sorted(listed, key=lambda job: job.outputs)
    maker = {path: at for at, job in enumerate(jobs) for path in job.outputs}
    needs = [sorted({maker[path] for path in job.inputs if path in maker}) for job in jobs]
    place: dict[int, int] = {}
    found: list[Planned] = []
    while len(found) < len(jobs):
        free = [
            at
            for at in range(len(jobs))
            if at not in place and all(before in place for before in needs[at])
        ]
        assert free, "the plan has a circle"
        for at in free:
            place[at] = len(found)
            found.append(
                Planned(
                    jobs[at].rule,
                    jobs[at].outputs,
                    tuple(place[before] for before in needs[at]),
                    jobs[at].submitted,
                )
            )
    return found
