"""What planning knows of a step of the workflow: its jobs, and of each job the settings, the inputs
and the cost.

The steps are declared in ``data``, ``train``, ``sample``, ``attack``, ``attribution``, ``report``
and ``selection``, one file for each file of rules, and listed by ``jobs.STEPS``. The command line,
the resolved configs, the rules' inputs, ``verify``, MLflow, the tables, the simulation and DVC's
params all read that list. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from afterimage.artifacts import RUN
from afterimage.config.study import Study
from afterimage.plan.cost.measured import SizeOf, all_images
from afterimage.plan.cost.memory import Bytes
from afterimage.plan.cost.work import Work


class Job(NamedTuple):
    """One folder of results.

    Attributes:
        phase: Phase of the workflow, and of DVC, that makes it.
        folder: Relative to ``results/<study>``.
        step: Key of ``jobs.STEPS``.
        job: Which one of the step's jobs, where no arm and replicate address it.
    """

    phase: str
    folder: str
    step: str
    arm: str | None = None
    replicate: int | None = None
    job: str | None = None

    @property
    def name(self) -> str:
        """What tells the step's jobs apart when they are costed: the arm or the job, if any."""
        return self.arm or self.job or ""

    @property
    def run(self) -> str:
        """Its record, relative to ``results/<study>``."""
        return f"{self.folder}/{RUN}"


Address = dict[str, Any]
"""The fields of a ``Job`` that tell a step's jobs apart: some of arm, replicate and job."""

Inputs = dict[str, str | list[str] | dict[str, str]]
"""Flag of the verb, without dashes -> the files given by it, relative to ``results/<study>``: one,
a list, or name -> file where the flag is repeated as NAME=FILE. A ``run.json`` stands for the store
that it describes. Flags of which there is nothing to give are left out."""

Settings = dict[str, Any]
"""What a job sees of the study, as plain JSON values."""


def once(study: Study) -> Iterable[Address]:
    """Return the address of the only job of a step."""
    return [{}]


def per_replicate(study: Study) -> Iterable[Address]:
    """Return the addresses of the jobs of a step that every arm and replicate meets."""
    return [{"arm": arm, "replicate": k} for arm in study.arms for k in range(study.replicates)]


@dataclass(frozen=True)
class Step:
    """One step of the workflow.

    Attributes:
        name: ``<phase>/<verb>``, or the phase alone.
        verb: Of the command line.
        module: Whose ``run`` does the work.
        help: One line for the command line.
        folder: Of a job, relative to ``results/<study>``; ``{arm}``, ``{rep}`` and ``{job}``
            address it.
        keys: Blocks of the study that the settings are made of.
        settings: Returns what a job sees.
        inputs: Returns what a job reads.
        addresses: Returns the addresses of the step's jobs, upstream first.
        code: Returns modules that the step finds by name, for the fingerprint.
        work: Returns what the job with a name (its arm, or what tells it apart) computes with
            networks.
        memory: Returns what that job holds for it.
        size: Returns what all else that it takes grows with, as measured; None where networks are
            all that counts.
        networks: Whether it runs networks for most of its time, and asks for a GPU.
        libraries: Whether it loads torch without running networks.
        phase: Of the workflow and of DVC; the first part of ``name`` unless given.
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
        """The fields of a ``Job`` that tell the step's jobs apart."""
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
        """Return the modules whose code makes the result of a job, beside what they import."""
        return (self.module, *self.code(study, job))
