"""What each published method changes about plain training, one module each.

A method is a module with ``train(job: Job) -> Trained``. It is found by name through ``config.METHODS``; adding one touches no
other. It builds its learners, says what an update is, and hands both to ``training.loop.run``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from accelerate import Accelerator
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage.config import METHODS, Train
from afterimage.training.checkpoint import Store
from afterimage.training.loop import Progress
from afterimage.training.task import Task


@dataclass(frozen=True)
class Job:
    """One training run, as a method sees it.

    Attributes:
        seed: Root seed of the study.
        path: Address of this run's random streams below it.
        arm: The arm's settings, the method's own keys included.
        train: The arm's optimisation settings.
        net: The initialised network.
        scheduler: The forward process.
        task: What is denoised.
        base: Pipeline folder of the arm that this one starts from, or None.
        accelerator: Device and precision.
        store: Where unfinished states go.
    """

    seed: int
    path: tuple[str | int, ...]
    arm: dict[str, Any]
    train: Train
    net: UNet2DModel
    scheduler: DDPMScheduler
    task: Task
    base: Path | None
    accelerator: Accelerator
    store: Store


@dataclass(frozen=True)
class Trained:
    """What training gives: the last weights, their moving average, and how it went."""

    raw: UNet2DModel
    average: UNet2DModel
    progress: Progress


class Method(Protocol):
    """What a method's module provides."""

    def train(self, job: Job) -> Trained:
        """Train, or go on training."""


def find(name: str) -> Method:
    """Return the module of the method called ``name``."""
    return cast(Method, import_module(METHODS[name]))
