"""What every job of a study costs: wall time, memory, GPUs and threads.

Networks: from counted FLOP (``work``, ``memory``) and a few speeds. Those of ``cpu`` are measured,
on one thread of a server processor (AMD EPYC with AVX-512, torch 2.13). Those of GPUs are assumed:
30 % of the peak that their maker states. All else: from what finished studies took on such a thread
(``measured``). That n threads are n times as fast as one is assumed too. The jobs of the default
study are estimated within a factor of two of what they took (``tests/plan/test_cost.py``).

No result depends on an estimate: it is there to ask a cluster for enough, to cut long trainings
into parts, and to see what a study costs before it runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from afterimage.config import Study
from afterimage.plan.cost.measured import Measured, measured, rows
from afterimage.plan.cost.work import Work
from afterimage.plan.jobs import STEPS, study_of
from afterimage.plan.step import Job


class Device(NamedTuple):
    """How fast networks run.

    Attributes:
        gpu: Whether a job that runs networks asks for one.
        fp32: Sustained FLOP/s; on GPUs with convolutions in TF32, which torch takes unless told
            otherwise.
        bf16: The same with bf16 autocast.
        launch: Seconds that a forward pass takes beside its FLOP.
        memory_mb: Of the device; 0 where networks use the host's.
    """

    gpu: bool
    fp32: float
    bf16: float
    launch: float
    memory_mb: int


SUSTAINED = 0.3
"""Share of the stated peak that networks reach on a GPU: assumed."""

DEVICES = {
    # Measured, one thread: trainings and samplings of digits' networks. bf16: assumed.
    "cpu": Device(False, 60e9, 60e9, 3e-3, 0),
    # Peaks as stated, without sparsity. Assumed: a pass is some 400 kernels of 5 us.
    "a100": Device(True, SUSTAINED * 156e12, SUSTAINED * 312e12, 2e-3, 80_000),
    "h100": Device(True, SUSTAINED * 495e12, SUSTAINED * 989e12, 2e-3, 80_000),
    "h200": Device(True, SUSTAINED * 495e12, SUSTAINED * 989e12, 2e-3, 141_000),
}
"""Name in ``cluster.device`` -> device."""

SHARING = 0.9
"""Speed of W processes that share a training, beside W times that of one: assumed."""

START, START_TORCH, START_GPU = 2.0, 5.5, 15.0
"""Seconds until a step computes, without torch, with torch (both measured) and with a GPU's
libraries (assumed)."""

SLACK_MINUTES = 5
"""What every job asks for beside its estimate: programs and data come over a network at first."""

ENGINE_MB, SMALL_MB, TORCH_MB, GPU_MB = 260, 150, 450, 4000
"""Memory of Snakemake in a job, of a step without torch, with torch (all measured), and with a
GPU's libraries (assumed)."""


@dataclass(frozen=True)
class Cost:
    """What one job costs.

    Attributes:
        minutes: Wall time, without headroom.
        mem_mb: Memory of the host, without headroom.
        gpu: GPUs.
        threads: Threads of the host.
        device_mb: Memory of each GPU; 0 without.
    """

    minutes: float
    mem_mb: float
    gpu: int
    threads: int
    device_mb: float = 0.0

    def asks(self, headroom: float, attempt: int, limit: float | None = None) -> dict[str, int]:
        """Return what to ask a cluster for: gpu, mem_mb and runtime (minutes), the last two times
        the number of the attempt.

        Args:
            headroom: How many times the estimate.
            attempt: From 1.
            limit: Longest runtime, for jobs that save their state when it is up.
        """
        runtime = attempt * math.ceil(SLACK_MINUTES + headroom * self.minutes)
        return {
            "gpu": self.gpu,
            "mem_mb": attempt * math.ceil(headroom * self.mem_mb),
            "runtime": runtime if limit is None else min(runtime, math.ceil(limit)),
        }


def seconds(done: Work, device: Device, threads: int) -> float:
    """Return the time of networks' work."""
    flop = done.fp32 / device.fp32 + done.bf16 / device.bf16
    return (flop + done.launches * device.launch) / (1 if device.gpu else threads)


def share_of(study: Study, step: str, part: str | None, parts: Sequence[str]) -> float:
    """Return which share of a job's work one of its parts does (``jobs.parts``), or the job itself.

    Args:
        study: The study.
        step: The job's step.
        part: Name of the part; None is the job, which comes after its parts.
        parts: Names of all parts.
    """
    if part is None:
        return {"train": 1 / (1 + len(parts)), "sample": 0.0 if parts else 1.0}.get(step, 1.0)
    if step == "train":
        return 1 / int(part.partition("of")[2])
    first, end = map(int, part.split("-"))
    return (end - first) / study.sample.images


def step_cost(study: Study, step: str, name: str = "", *, share: float = 1.0) -> Cost:
    """Return what one job costs on the device that the study names.

    Args:
        study: With the arms of its selection, if the job is one of theirs.
        step: Key of ``jobs.STEPS``.
        name: The job's arm, or what tells the step's jobs apart.
        share: Of the work, for one of several jobs that do it in parts; each has a start of its
            own. What only puts parts together runs no network.

    Raises:
        KeyError: for an unknown step.
    """
    declared, threads = STEPS[step], study.cluster.threads
    processes = study.processes_of(name) if step == "train" else 1
    device = DEVICES[study.cluster.device]
    gpu = device.gpu and declared.networks and share > 0
    beside = Measured()
    if declared.size is not None:
        beside = measured(study, step, declared.size(study, name))
    taken = seconds(
        declared.work(study, name), device if declared.networks else DEVICES["cpu"], threads
    )
    taken += beside.seconds / threads
    taken *= share / (SHARING * processes if processes > 1 else 1)
    held = declared.memory(study, name)
    on_host = held.arrays + (0 if device.gpu else processes * held.networks)
    if gpu:
        start, libraries = START_GPU, GPU_MB
    elif declared.networks or declared.libraries:
        start, libraries = START_TORCH, TORCH_MB
    else:
        start, libraries = START, SMALL_MB
    return Cost(
        minutes=(start + taken) / 60,
        mem_mb=ENGINE_MB + processes * libraries + on_host / 2**20 + beside.megabytes,
        gpu=processes if gpu else 0,
        threads=processes * threads,
        device_mb=held.networks / 2**20 if gpu else 0.0,
    )


def together(costs: Sequence[Cost]) -> Cost:
    """Return what several steps cost that one job does after each other."""
    return Cost(
        minutes=sum(cost.minutes for cost in costs),
        mem_mb=max(cost.mem_mb for cost in costs),
        gpu=max(cost.gpu for cost in costs),
        threads=max(cost.threads for cost in costs),
        device_mb=max(cost.device_mb for cost in costs),
    )


def counted(study: Study, step: str, name: str) -> Measured:
    """Return what is counted of a job on one thread, and its libraries: what ``measured`` does not
    have."""
    declared = STEPS[step]
    libraries = TORCH_MB if declared.networks or declared.libraries else SMALL_MB
    held = sum(declared.memory(study, name)) / 2**20
    return Measured(seconds(declared.work(study, name), DEVICES["cpu"], 1), libraries + held)


def unmeasured(jobs: Iterable[Job]) -> list[str]:
    """Return the steps of some jobs that take the default of ``measured``, as nobody measured
    them."""
    steps = dict.fromkeys(job.step for job in jobs)
    return [step for step in steps if STEPS[step].size is not None and step not in rows()]


def asks(study: Study, job: Job, share: float, attempt: int) -> dict[str, int]:
    """Return what a job, or a part of it, asks a cluster for (``Cost.asks``)."""
    limit = study.cluster.max_minutes_per_job if job.step == "train" else None
    return job_cost(study, job, share).asks(study.cluster.headroom, attempt, limit)


def job_cost(study: Study, job: Job, share: float = 1.0) -> Cost:
    """Return what a job of ``jobs.jobs`` or ``jobs.selection_jobs``, or a share of it, costs."""
    return step_cost(study_of(study, job), job.step, job.name, share=share)


def training_minutes(study: Study, arm: str) -> float:
    """Return the wall minutes of one training of an arm in one piece, without headroom."""
    return step_cost(study, "train", arm).minutes
