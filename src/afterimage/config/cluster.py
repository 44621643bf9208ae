"""How the work is split into the jobs of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from afterimage.config.base import Block

PACKAGE = Path(__file__).parent.parent


class Cluster(Block):
    """How the work is split into jobs. No setting of a result depends on it: finished results stay
    valid when it changes."""

    device: Literal["cpu", "a100", "h100", "h200"] = "cpu"
    """Device that networks run on, which determines whether jobs request a GPU, and their estimated
    run time (``plan.cost`` has the assumed speed of each)."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of each job, or of each process of a job. More than one changes the last bits of
    sums."""
    headroom: Annotated[float, Field(ge=1)] = 2.0
    """Factor by which the requested time and memory exceed the estimate. A second attempt requests
    twice as much, a third three times."""

    max_minutes_per_job: Annotated[float, Field(gt=0)] | None = None
    """Maximum length of a training job. A longer training becomes a chain of jobs, each of which
    resumes where the previous one stopped, bit for bit. null: one job each. Networks retrained for
    attribution are short, and are bundled (``attribution.networks_per_job``) instead."""
    gpus_per_training: Annotated[int, Field(ge=1)] = 1
    """GPUs, and processes, of a training whose method can be distributed; others always use one.
    Processes that share every batch (baseline, loyal) see the same data in the same order, but sum
    in a different order."""
    generations_per_job: Annotated[int, Field(ge=1)] | None = None
    """Generations drawn by one job, a multiple of ``sample.batch_size``; the result has the same
    bytes. null: all of a replicate."""
