"""How the work is cut into jobs of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from afterimage.config.base import Block

PACKAGE = Path(__file__).parent.parent


class Cluster(Block):
    """How the work is cut into jobs. No setting of any result depends on it: what is finished stays
    finished when it changes."""

    device: Literal["cpu", "a100", "h100", "h200"] = "cpu"
    """What networks run on, which decides whether jobs ask for a GPU, and how long they are
    estimated to take (``cluster.cost`` says how fast each is taken to be)."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of each job, or of each process of one. More than one changes sums in their last
    bits."""
    headroom: Annotated[float, Field(ge=1)] = 2.0
    """How many times the estimated time and memory jobs ask for. A second attempt asks for twice as
    much, a third for three times."""

    max_minutes_per_job: Annotated[float, Field(gt=0)] | None = None
    """Longest job of a training. One that is estimated to take longer becomes a chain of jobs, each
    of which goes on where the one before stopped, bit for bit. null: one job each. Networks
    retrained for attribution are short, and come in bundles (``attribution.networks_per_job``)
    instead."""
    gpus_per_training: Annotated[int, Field(ge=1)] = 1
    """GPUs, and processes, of a training whose method can share its work; others always take one.
    Processes that share every batch (baseline, loyal) see the same data in the same order, but sum
    in another."""
    generations_per_job: Annotated[int, Field(ge=1)] | None = None
    """Generations that one job draws, a multiple of ``sample.batch_size``; the result has the same
    bytes. null: all of a replicate."""
