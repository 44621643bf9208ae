"""``afterimage verify [PHASE]``: check that every result matches the study, its inputs and its
code.

For every job of the study: its folder exists, was produced by the current settings and code from
inputs that are unchanged, and contains exactly the files that it was published with. ``PHASE``
stops after that phase; each stage of ``dvc.yaml`` ends with it, so that DVC cannot record results
of other settings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from afterimage import artifacts, config, provenance
from afterimage.plan import jobs
from afterimage.plan.parts import listed_sha256
from afterimage.plan.resolved import modules, resolved
from afterimage.plan.step import Job
from afterimage.provenance import digest


class Problem(NamedTuple):
    """What is wrong with one folder. A warning does not invalidate the results."""

    folder: Path
    text: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{'warning: ' if self.warning else ''}{self.folder}: {self.text}"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "until",
        nargs="?",
        choices=jobs.PHASES,
        metavar="PHASE",
        help="last phase to check; default: all",
    )
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
    started = time.monotonic()
    study = config.load(args.study)
    listed = problems(study, args.results, args.until)
    for problem in listed:
        print(problem)
    errors = sum(not problem.warning for problem in listed)
    checked = len(_jobs(study, args.results / study.study, args.until))
    print(
        f"study {study.study!r}: {checked} results checked, {errors} problem(s), "
        f"{len(listed) - errors} warning(s), {time.monotonic() - started:.1f} s"
    )
    return 1 if errors else 0


def problems(study: config.Study, results: Path, until: str | None = None) -> list[Problem]:
    """Return all problems with the results of ``study``, upstream first.

    Args:
        results: The folder that contains ``<study>``; recorded inputs are relative to the working
            folder.
        until: The last phase to check; None checks all.
    """
    root = Path(results) / study.study
    hash_of = cache(artifacts.sha256)
    listed: list[Problem] = []
    other_locks: set[str | None] = set()
    here = provenance.environment()["lock_sha256"]
    derived = study.with_selection
    for job in _jobs(study, root, until):
        folder = root / job.folder
        try:
            run = artifacts.read_run(folder)
        except artifacts.ArtifactError as error:
            listed.append(Problem(folder, str(error).removeprefix(f"{folder} ")))
            continue
        whole = study if job.arm is None or job.arm in study.arms else derived
        texts = [
            *_settings(whole, job, run),
            *_code(whole, job, run),
            *_outputs(folder, run, hash_of),
        ]
        listed += [Problem(folder, text) for text in texts]
        listed += [Problem(folder, text, warning) for text, warning in _inputs(run, root, hash_of)]
        if run["environment"]["lock_sha256"] != here:
            other_locks.add(run["environment"]["lock_sha256"])
    if other_locks:
        others = ", ".join(sorted(str(lock)[:12] for lock in other_locks))
        locks = f"lock {others}, now {str(here)[:12]}"
        text = f"some results were made in another environment: {locks}"
        listed.append(Problem(root, text, warning=True))
    return listed + list(_leftovers(study, root, until))


def _jobs(study: config.Study, root: Path, until: str | None) -> list[Job]:
    """Return the study's jobs, and those of ``loyal_selection`` that have been run."""
    selection = [job for job in jobs.selection_jobs(study) if (root / job.folder).exists()]
    return [job for job in jobs.jobs(study) + selection if job.phase in _phases(until)]


def _phases(until: str | None) -> tuple[str, ...]:
    return jobs.PHASES if until is None else jobs.PHASES[: jobs.PHASES.index(until) + 1]


def _settings(study: config.Study, job: Job, run: dict[str, Any]) -> Iterator[str]:
    current = resolved(study, job)
    if digest(run["config"]) != run["config_sha256"]:
        yield f"{artifacts.RUN} was changed: its config is not the one that it has the hash of"
    elif run["config_sha256"] != digest(current):
        yield f"made under other settings: {artifacts.difference(run['config'], current)}"


def _code(study: config.Study, job: Job, run: dict[str, Any]) -> Iterator[str]:
    entries = modules(study, job)
    if run["code_sha256"] != provenance.fingerprint(*entries):
        yield f"made by other code than that of {', '.join(entries)} and what it imports now"


def _outputs(folder: Path, run: dict[str, Any], hash_of: Callable[[Path], str]) -> Iterator[str]:
    files = {path.relative_to(folder).as_posix() for path in artifacts.files_in(folder)}
    for name, expected in run["outputs"].items():
        if name not in files:
            yield f"{name} is missing"
        elif hash_of(folder / name) != expected:
            yield f"{name} is not the file that was published: truncated or changed since"
    for name in sorted(files - run["outputs"].keys()):
        yield f"{name} is not one of its files"


def _inputs(
    run: dict[str, Any], root: Path, hash_of: Callable[[Path], str]
) -> Iterator[tuple[str, bool]]:
    """Yield the problems with recorded inputs, and whether each is only a warning."""
    for name, recorded in run["inputs"].items():
        path = Path(recorded["path"])
        if not path.exists():
            # Source files need not be on a machine that only pulled results.
            yield (
                f"input {name} ({path}) is not here to be checked",
                not path.resolve().is_relative_to(root.resolve()),
            )
        elif hash_of(path) != recorded["sha256"]:
            yield f"input {name} ({path}) has changed since", False
        elif listed_sha256(path) not in (None, recorded["sha256"]):
            yield f"input {name} ({path}) is not what its own {artifacts.RUN} lists", False


def _leftovers(study: config.Study, root: Path, until: str | None) -> Iterator[Problem]:
    folders = {root / job.folder for job in jobs.jobs(study) + jobs.selection_jobs(study)}
    for phase in _phases(until):
        for record in sorted((root / phase).rglob(artifacts.RUN)):
            if record.parent not in folders:
                yield Problem(
                    record.parent, "belongs to no arm and replicate of the study: a leftover", True
                )
