"""The planning side of a workflow step: its jobs, and for each job settings, inputs and cost.

The steps are declared in ``data``, ``train``, ``sample``, ``attack``, ``attribution``, ``report``
and ``selection``, one file per rule file, and listed in ``jobs.STEPS``. The command line, the
resolved configs, the rules' inputs, ``verify``, MLflow, the tables, the simulation and DVC's params
all read that list. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from afterimage.artifacts import RUN
from afterimage.config.study import Study
from afterimage.plan.cost.measured import SizeOf, all_images
from afterimage.plan.cost.memory import Bytes
from afterimage.plan.cost.work import Work

TOGETHER = ("sample", "attack/extraction", "attack/quality", "attack/membership")
"""Steps that one process does after each other, for each arm and replicate: starting Python and
importing torch takes longer than many of them."""


class Job(NamedTuple):
    """One folder of results.

    Attributes:
        phase: Phase of the workflow, and stage of DVC.
        folder: Relative to ``results/<study>``.
        step: Key of ``jobs.STEPS``.
        job: Name among the step's jobs, if arm and replicate do not identify it.
    """

    phase: str
    folder: str
    step: str
    arm: str | None = None
    replicate: int | None = None
    job: str | None = None

    @property
    def name(self) -> str:
        """Name among the step's jobs for the cost model: the arm or the job, if any."""
        return self.arm or self.job or ""

    @property
    def run(self) -> str:
        """Its record, relative to ``results/<study>``."""
        return f"{self.folder}/{RUN}"

    @property
    def process(self) -> str:
        """Name of the process that does it, which several jobs may share (``TOGETHER``): the path
        of its log and of its benchmark table."""
        return f"attack/{self.arm}/rep{self.replicate}" if self.step in TOGETHER else self.folder

    def process_file(self, folder: Path, suffix: str) -> Path | None:
        """Return what the job's process left in ``folder``; None if there is nothing yet.

        Args:
            folder: ``results/<study>/logs`` or ``benchmarks``.
            suffix: ``.log`` or ``.tsv``.
        """
        file = folder / f"{self.process}{suffix}"
        return file if file.is_file() else None


Address = dict[str, Any]
"""The fields of a ``Job`` that identify it within its step: some of arm, replicate and job."""

Inputs = dict[str, str | list[str] | dict[str, str]]
"""Flag of the command, without dashes -> its files, relative to ``results/<study>``: one, a list,
or name -> file if the flag is repeated as NAME=FILE. A ``run.json`` represents its store. Flags
without a file are omitted."""

Settings = dict[str, Any]
"""The settings that a job depends on, as plain JSON values."""


def once(study: Study) -> Iterable[Address]:
    """Return the address of the only job of a step."""
    return [{}]


def per_replicate(study: Study) -> Iterable[Address]:
    """Return one address per arm and replicate."""
    return [{"arm": arm, "replicate": k} for arm in study.arms for k in range(study.replicates)]


@dataclass(frozen=True)
class Step:
    """One step of the workflow.

    Attributes:
        name: ``<phase>/<verb>``, or the phase alone.
        verb: Verb on the command line.
        module: Module whose ``run`` does the work.
        help: One line for the command line.
        folder: Folder of a job, relative to ``results/<study>``, with the fields ``{arm}``,
            ``{rep}`` and ``{job}``.
        keys: Blocks of the study that the settings come from.
        settings: Returns the settings of a job.
        inputs: Returns the inputs of a job.
        addresses: Returns the addresses of the step's jobs, upstream first.
        code: Returns modules that the step imports by name, for the fingerprint.
        work: Returns the networks' work in the job with a name (``Job.name``).
        memory: Returns the memory of that work.
        size: Returns what the rest of a job grows with, as measured; None where networks are all
            that counts.
        networks: Whether it runs networks for most of its time, and requests a GPU.
        libraries: Whether it imports torch without running networks.
        phase: Phase of the workflow and stage of DVC; by default the first part of ``name``.
    """

    name: str
    verb: str
    module: str
    help: str
    folder: str
    keys: tuple[str, ...]
    settings: Callable[[Study, Job], Settings]
    inputs: Callable[[Study, Job], Inputs]
    addresses: Callable[[Study], Iterable[Address]] = once
    code: Callable[[Study, Job], tuple[str, ...]] = lambda study, job: ()
    work: Callable[[Study, str], Work] = lambda study, name: Work()
    memory: Callable[[Study, str], Bytes] = lambda study, name: Bytes()
    size: SizeOf | None = all_images
    networks: bool = False
    libraries: bool = False
    phase: str = ""

    @property
    def command(self) -> tuple[str, str]:
        """Phase and verb of the command line."""
        return self.name.partition("/")[0], self.verb

    @property
    def phase_name(self) -> str:
        """Phase of the workflow."""
        return self.phase or self.name.partition("/")[0]

    @property
    def address(self) -> tuple[str, ...]:
        """The fields of a ``Job`` that identify it within the step."""
        fields = {"arm": "{arm}", "replicate": "{rep}", "job": "{job}"}
        return tuple(field for field, wildcard in fields.items() if wildcard in self.folder)

    def job(
        self, arm: str | None = None, replicate: int | None = None, job: str | None = None
    ) -> Job:
        """Return the job with an address."""
        folder = self.folder.format(arm=arm, rep=replicate, job=job)
        return Job(self.phase_name, folder, self.name, arm, replicate, job)

    def jobs(self, study: Study) -> list[Job]:
        """Return the step's jobs."""
        return [self.job(**address) for address in self.addresses(study)]

    def modules(self, study: Study, job: Job) -> tuple[str, ...]:
        """Return the modules whose code, with their imports, computes the result of a job."""
        return (self.module, *self.code(study, job))
