"""The parts into which long trainings and samplings are split, so that each fits into a cluster
job."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from afterimage import artifacts
from afterimage.config.study import Study
from afterimage.plan.cost import estimate
from afterimage.plan.jobs import STEPS, jobs
from afterimage.plan.step import TOGETHER, Job


class Parts:
    """The parts of a study's jobs, as planned (``config/parts.json``).

    Args:
        study: Including the arms of its selection.
        results: The folder that contains ``<study>``.
    """

    def __init__(self, study: Study, results: Path = Path("results")) -> None:
        self.study, self.root = study, results / study.study
        self._known: dict[str, list[str]] = {}

    def of(self, step: str, arm: str, rep: str) -> list[str]:
        """Return the parts of a training or a sampling."""
        if not self._known:
            self._known = json.loads((self.root / "config" / "parts.json").read_text())
        return self._known[f"{step}/{arm}/rep{rep}"]

    def blocks(self, arm: str, rep: str) -> list[str]:
        """Return the folders of the blocks of a replicate's generations; empty if it is drawn
        whole."""
        folders = blocks_of(self.root, arm, rep, self.of("sample", arm, rep))
        return [str(folder) for folder in folders]

    def blocks_flag(self, arm: str, rep: str) -> str:
        """Return the flag that passes these blocks for merging."""
        blocks = self.blocks(arm, rep)
        return f"--blocks {shlex.join(blocks)}" if blocks else ""

    def before(self, arm: str, rep: str, k: int, parts: int) -> list[str]:
        """Return the marker file of the part of a training before the ``k``-th of ``parts``, if
        any."""
        return [f"{self.root}/state/{arm}/rep{rep}/{k - 1}of{parts}"] if k > 1 else []

    def last(self, arm: str, rep: str) -> list[str]:
        """Return the marker file of the last part before the final job, if the training has
        parts."""
        return [
            f"{self.root}/state/{arm}/rep{rep}/{part}" for part in self.of("train", arm, rep)[-1:]
        ]

    def flag(self, arm: str, rep: str) -> str:
        """Return the flag that names the last part of a training."""
        count = len(self.of("train", arm, rep)) + 1
        return f"--part {count}/{count}" if count > 1 else ""

    def share(self, step: str, wildcards: Mapping[str, str]) -> float:
        """Return the share of a job's work in one part."""
        if step not in ("train", "sample"):
            return 1.0
        part = None
        if "k" in wildcards:
            part = f"{wildcards['k']}of{wildcards['parts']}"
        elif "first" in wildcards:
            part = f"{wildcards['first']}-{wildcards['end']}"
        known = self.of(step, wildcards["arm"], wildcards["rep"])
        return estimate.share_of(self.study, step, part, known)


def parts(study: Study, job: Job) -> list[str]:
    """Return the jobs that compute parts of ``job`` before it finishes, according to the study's
    ``cluster``; most jobs have none.

    Parts of a training are named by their position, ``1of3`` and ``2of3``, those of a sampling by
    their images, ``0-256``.
    """
    cluster = study.cluster
    if job.step == "train" and cluster.max_minutes_per_job is not None:
        assert job.arm is not None
        minutes = cluster.headroom * estimate.training_minutes(study, job.arm)
        count = math.ceil(minutes / cluster.max_minutes_per_job)
        return [f"{k}of{count}" for k in range(1, count)]
    if job.step == "sample" and cluster.generations_per_job is not None:
        images, per_job = study.sample.images, cluster.generations_per_job
        return (
            [f"{first}-{min(first + per_job, images)}" for first in range(0, images, per_job)]
            if per_job < images
            else []
        )
    return []


def up_to_date_in(
    root: Path, settings: Mapping[str, tuple[str, str]]
) -> Callable[..., dict[str, Any] | None]:
    """Return a function of a job's folder, and of the name of its record, that returns the record
    of a result that is up to date, and None for any other.

    A result is up to date if the hashes of its config and code are the current ones, and its inputs
    are up to date.

    Args:
        root: ``results/<study>``.
        settings: Folder of every job that may be asked for, and of those that it reads -> hashes of
            its resolved config and of its code.
    """
    here = root.resolve()

    @cache
    def up_to_date(folder: str, record: str = artifacts.RUN) -> dict[str, Any] | None:
        try:
            run = artifacts.read_run(root / folder, record)
        except artifacts.ArtifactError:
            return None
        if (run["config_sha256"], run["code_sha256"]) != settings[folder]:
            return None
        for recorded in run["inputs"].values():
            path = Path(recorded["path"]).resolve()
            if path.is_relative_to(here):  # files elsewhere are the user's
                store = store_of(path)
                source = "" if store is None else store.relative_to(here).as_posix()
                if (
                    source not in settings
                    or up_to_date(source) is None
                    or listed_sha256(path) != recorded["sha256"]
                ):
                    return None
        return run

    return up_to_date


def parts_of_jobs(
    study: Study, root: Path, settings: Mapping[str, tuple[str, str]]
) -> dict[str, list[str]]:
    """Return folder -> parts of every training and sampling.

    An up-to-date result keeps its original partition: a new one would change its inputs, and
    Snakemake would compute it again.

    Generations are drawn by a process that does more (``step.TOGETHER``). Where they are up to date
    and something else of it is not, the process keeps them: it reads their blocks only if these
    are still there, as no block is to be drawn for it again, and records so.

    Args:
        study: Including the arms of its selection.
        root: ``results/<study>``.
        settings: Folder of every job -> hashes of its resolved config and of its code.
    """
    up_to_date = up_to_date_in(root, settings)

    def partition(job: Job) -> list[str]:
        process = TOGETHER if job.step in TOGETHER else (job.step,)
        stores = [STEPS[step].job(job.arm, job.replicate).folder for step in process]
        run = up_to_date(job.folder)
        if run is not None and all(map(up_to_date, stores)):
            return run["facts"]["parts"]
        # If a process ended early, Snakemake has removed the record, and left its copy.
        kept = up_to_date(job.folder, artifacts.RECORD)
        if kept is None:
            return parts(study, job)
        names = kept["facts"]["parts"]
        folders = blocks_of(root, str(job.arm), str(job.replicate), names)
        return names if all(folder.is_dir() for folder in folders) else []

    return {job.folder: partition(job) for job in jobs(study) if job.step in ("train", "sample")}


def blocks_of(root: Path, arm: str, rep: str, names: Iterable[str]) -> list[Path]:
    """Return the folders of blocks of a replicate's generations, by their names."""
    return [root / "blocks" / arm / f"rep{rep}" / name for name in names]


def store_of(path: Path) -> Path | None:
    """Return the store that contains a file or folder; None outside of stores."""
    return next(
        (folder for folder in (path, *path.parents) if (folder / artifacts.RUN).is_file()), None
    )


def listed_sha256(path: Path) -> str | None:
    """Return the hash of a file or folder according to the store that contains it; None outside of
    stores."""
    store = store_of(path)
    if store is None:
        return None
    if path.name == artifacts.RUN:
        return artifacts.sha256(path)
    outputs = artifacts.read_run(store)["outputs"]
    name = path.relative_to(store).as_posix()
    if path.is_file():
        return outputs.get(name, "unlisted")
    prefix = "" if path == store else f"{name}/"
    inside = {
        Path(file.removeprefix(prefix)): sha256
        for file, sha256 in outputs.items()
        if file.startswith(prefix)
    }
    return artifacts.folder_sha256(inside)
