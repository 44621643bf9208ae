"""What a method is given to train with, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.config import Arm, Match, Train, TransferBlocks
from afterimage.diffusion.model import save_pipeline
from afterimage.images import Images
from afterimage.training import distributed, loop
from afterimage.training.checkpoint import Store
from afterimage.training.learner import Learner
from afterimage.training.loop import Part, Progress
from afterimage.training.task import Task


@dataclass(frozen=True)
class TrainingRun:
    """One training run, as a method sees it.

    Attributes:
        seed: Root seed of the study.
        path: Address of this run's random streams below it.
        arm: The arm's settings, the method's own keys included.
        train: The arm's optimisation settings.
        updates: The budget in optimiser updates, over all networks of the run.
        net: The initialised network, with the arm's information transfer blocks.
        build: Makes a further network: takes the blocks, or None, and the name of its random
            stream.
        scheduler: The forward process.
        task: What is denoised.
        labels: The class of each of the task's items, int64, (N,), whether or not the network is
            told; -1 where there is none.
        forgotten: Which of the task's items are to be forgotten, bool, (N,); all False for methods
            that forget nothing.
        base: Pipeline folder of the arm that this one starts from, or None.
        accelerator: Device and precision.
        store: Where unfinished states go.
        states: Networks to keep of this run, evenly spread over the budget, the last one included;
            0 or 1 keeps that alone.
        share: (k, K): this process leaves when k/K of the budget is spent.
    """

    seed: int
    path: tuple[str | int, ...]
    arm: Arm
    train: Train
    updates: int
    net: UNet2DModel
    build: Callable[[TransferBlocks | None, str], UNet2DModel]
    scheduler: DDPMScheduler
    task: Task
    labels: np.ndarray
    forgotten: np.ndarray
    base: Path | None
    accelerator: Accelerator
    store: Store
    states: int = 0
    share: tuple[int, int] = (1, 1)

    @property
    def kept(self) -> Path:
        """Folder of the networks kept under way: ``state1/``, ``state2/``, ..., each with
        ``pipeline/`` and ``raw/``."""
        return self.store.folder / "kept"

    def keep(self, update: int, learner: Learner) -> None:
        """Keep the network as it is after ``update`` updates, if this is the time to."""
        marks = {self.updates * k // self.states: k for k in range(1, self.states)}
        if update in marks and distributed.first():
            save_pipeline(
                learner.average.module,
                self.scheduler,
                self.kept / f"state{marks[update]}" / "pipeline",
            )
            save_pipeline(learner.net, self.scheduler, self.kept / f"state{marks[update]}" / "raw")

    def run(
        self,
        update: Callable[[int], Mapping[str, float]],
        parts: Mapping[str, Part],
        *,
        updates: int | None = None,
        batch_size: int | None = None,
    ) -> Progress:
        """Call ``update`` until the budget is spent (see ``training.loop``), with this run's store
        and pace.

        Args:
            update: Does update s and returns numbers for the curves.
            parts: Name -> part; all that ``update`` changes.
            updates: How often to call it; by default the budget.
            batch_size: Images of one call; by default one batch.
        """
        return loop.run(
            update,
            parts,
            self.store,
            updates=self.updates if updates is None else updates,
            batch_size=batch_size or self.train.batch_size,
            log_every=self.train.log_every,
            checkpoint_every=self.train.checkpoint_every,
            share=self.share,
        )


@dataclass(frozen=True)
class Spent:
    """What a training cost, so that arms can be given equal budgets.

    Attributes:
        updates: Optimiser updates, over all networks.
        updates_per_model: Those that each network got.
        images_seen: Samples that went through a network in training.
        kept_samples: Those of them that carried gradient.
    """

    updates: int
    updates_per_model: int
    images_seen: int
    kept_samples: int


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
        raw: The last weights.
        average: Their moving average.
        progress: How it went.
        spent: What it cost.
        facts: Further numbers for ``run.json``, plain JSON values.
        tables: Name -> table, stored as parquet in the folder ``tables``.
    """

    raw: torch.nn.Module
    average: torch.nn.Module
    progress: Progress
    spent: Spent
    facts: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)

    @classmethod
    def of_one(
        cls,
        learner: Learner,
        progress: Progress,
        images_seen: int,
        kept_samples: int | None = None,
        facts: dict[str, Any] | None = None,
    ) -> Trained:
        """Return what the training of one network gives; without ``kept_samples`` all samples
        carried gradient."""
        spent = Spent(
            updates=progress.update,
            updates_per_model=progress.update,
            images_seen=images_seen,
            kept_samples=images_seen if kept_samples is None else kept_samples,
        )
        return cls(learner.net, learner.average.module, progress, spent, facts or {})


def budget(train: Train, images: int, matched_to: Match | None, matched: Path | None) -> int:
    """Return the number of optimiser updates of a run on ``images`` images.

    Args:
        matched_to: What the arm says of the other arm's budget.
        matched: That arm's finished training.
    """
    if matched_to is not None and matched is not None:
        facts = artifacts.read_run(matched)["facts"]
        if matched_to.by == "kept_samples":
            return max(1, -(-facts["kept_samples"] // train.batch_size))
        return facts[matched_to.by]
    if train.epochs is not None:
        return -(-train.epochs * images // train.batch_size)
    assert train.updates is not None
    return train.updates


def classes_of(images: Images, arm: Arm) -> int | None:
    """Return the number of labels of a label-conditional arm, None of another.

    Args:
        images: The whole training part, so that a class that the arm never sees still has its
            place.

    Raises:
        ArtifactError: if an image has no label.
    """
    if arm.condition != "label":
        return None
    if images.labels.min() < 0:
        raise ArtifactError("condition = 'label', but the training part has images without a label")
    return int(images.labels.max()) + 1


def accelerator_for(train: Train) -> Accelerator:
    """Return the device and the precision of a run: an accelerator if there is one."""
    # Without being told, accelerate takes several processes on a CPU for as many lone ones.
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision={"fp32": "no", "bf16": "bf16"}[train.precision],
    )
