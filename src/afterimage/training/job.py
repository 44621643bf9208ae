"""What a method receives for a training run, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.config import Arm, Match, Train, TransferBlocks
from afterimage.diffusion.model import save_pipeline
from afterimage.diffusion.router import UNet
from afterimage.images import Images
from afterimage.training import distributed, loop
from afterimage.training.checkpoint import Store
from afterimage.training.learner import Learner, Networks, Number
from afterimage.training.loop import Part, Progress
from afterimage.training.task import Task


@dataclass(frozen=True)
class TrainingRun:
    """One training run, as a method sees it.

    Attributes:
        seed: Root seed of the study.
        path: Address of this run's random streams under that seed.
        arm: The arm's settings, including the method's own keys.
        train: The arm's optimisation settings.
        updates: The budget in optimiser updates, over all networks of the run.
        net: The initialised network, with the arm's information transfer blocks.
        build: Builds a further network, given its blocks (or None) and the name of its random
            stream.
        scheduler: The forward process.
        task: What is denoised.
        sources: The original image of each of the task's items, int64, (N,); planted copies share
            it.
        labels: The class of each of the task's items, int64, (N,), whether or not the network is
            conditioned on it; -1 without a label.
        forgotten: Mask of the task's items to be forgotten, bool, (N,); all False for methods
            without a forget set.
        base: Pipeline folder of the arm that this arm starts from, or None.
        accelerator: Device and precision.
        store: Where checkpoints are saved.
        frozen: Part of the stored pipelines that no training changes -> its folder
            (``diffusion.model.save_pipeline``).
        states: Name -> share of the budget at which the network of that moment is kept, (0, 1).
        share: (k, K): this process exits when k/K of the budget is spent.
    """

    seed: int
    path: tuple[str | int, ...]
    arm: Arm
    train: Train
    updates: int
    net: UNet
    build: Callable[[TransferBlocks | None, str], UNet]
    scheduler: DDPMScheduler
    task: Task
    sources: np.ndarray
    labels: np.ndarray
    forgotten: np.ndarray
    base: Path | None
    accelerator: Accelerator
    store: Store
    frozen: Mapping[str, Path] = field(default_factory=dict)
    states: Mapping[str, float] = field(default_factory=dict)
    share: tuple[int, int] = (1, 1)

    @property
    def kept(self) -> Path:
        """Folder of the networks kept during training, one for each state, with ``pipeline/`` and
        ``raw/``."""
        return self.store.folder / "kept"

    def run(
        self,
        update: Callable[[int], Mapping[str, Number]],
        parts: Mapping[str, Part],
        networks: Callable[[], Networks],
        *,
        updates: int | None = None,
        batch_size: int | None = None,
    ) -> Progress:
        """Call ``update`` until the budget is spent (see ``training.loop``), with this run's store
        and intervals, and keep the networks of its states.

        Args:
            update: Performs update s and returns numbers for the curves.
            parts: Name -> part, for everything that ``update`` changes.
            networks: Returns the networks as they would be if the run ended now.
            updates: Number of calls; by default the budget.
            batch_size: Images per call; by default one batch.
        """
        calls = self.updates if updates is None else updates
        marks = {name: max(1, int(calls * share)) for name, share in self.states.items()}

        def update_and_keep(s: int) -> Mapping[str, Number]:
            values = update(s)
            names = [name for name, mark in marks.items() if mark == s + 1]
            if names:
                kept = networks()  # in every process: they may have to exchange weights
                for name in names if distributed.first() else []:
                    for folder, net in (("pipeline", kept.average), ("raw", kept.raw)):
                        save_pipeline(net, self.scheduler, self.kept / name / folder, self.frozen)
            return values

        return loop.run(
            update_and_keep,
            parts,
            self.store,
            updates=calls,
            batch_size=batch_size or self.train.batch_size,
            log_every=self.train.log_every,
            checkpoint_every=self.train.checkpoint_every,
            share=self.share,
        )


@dataclass(frozen=True)
class Spent:
    """The cost of a training run, so that arms can be given equal budgets.

    Attributes:
        updates: Optimiser updates, over all networks.
        updates_per_model: Optimiser updates of each network.
        images_seen: Samples that went through a network in training.
        kept_samples: Samples among them that carried a gradient.
        backward_passes: Forward and backward passes of a batch, in the updates.
    """

    updates: int
    updates_per_model: int
    images_seen: int
    kept_samples: int
    backward_passes: int


@dataclass(frozen=True)
class Trained:
    """The result of a training run.

    Attributes:
        raw: The network with its last weights.
        average: The network with the moving average of its weights.
        progress: State of the loop at the end.
        spent: Cost of the run.
        facts: Further numbers for ``run.json``, plain JSON values.
        tables: Name -> table, stored as parquet in the folder ``tables``.
    """

    raw: torch.nn.Module
    average: torch.nn.Module
    progress: Progress
    spent: Spent
    facts: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pa.Table] = field(default_factory=dict)

    @classmethod
    def of_one(
        cls,
        learner: Learner,
        progress: Progress,
        images_seen: int,
        kept_samples: int | None = None,
        backward_passes: int | None = None,
        facts: dict[str, Any] | None = None,
    ) -> Trained:
        """Return the result of training one network; without ``kept_samples`` all samples carried
        a gradient, without ``backward_passes`` every update made one."""
        spent = Spent(
            updates=progress.update,
            updates_per_model=progress.update,
            images_seen=images_seen,
            kept_samples=images_seen if kept_samples is None else kept_samples,
            backward_passes=progress.update if backward_passes is None else backward_passes,
        )
        return cls(learner.net, learner.average.module, progress, spent, facts or {})


def stream_path(arm: Arm, replicate: int) -> tuple[str | int, ...]:
    """Return the address of a run's random streams under the study's seed.

    Arms of a replicate that train on the same images from the same start share it (common random
    numbers): their initial weights, order, timesteps, noise, flips and dropped labels are the same,
    so that their difference is the method's. Its name is no part of the address, and neither is
    what found the duplicates in deduplicated images.
    """
    images = (arm.data, arm.without or "", f"{arm.fraction:g}")
    return ("train", replicate, *images, arm.base or "")


def budget(train: Train, images: int, matched_to: Match | None, matched: Path | None) -> int:
    """Return the number of optimiser updates of a run on ``images`` images.

    Args:
        matched_to: The arm's reference to another arm's budget.
        matched: Folder of that arm's finished training.
    """
    if matched_to is not None and matched is not None:
        facts = artifacts.read_run(matched)["facts"]
        if matched_to.by == "kept_samples":
            return max(1, -(-facts["kept_samples"] // train.batch_size))
        return facts["backward_passes" if matched_to.by == "passes" else matched_to.by]
    if train.epochs is not None:
        return -(-train.epochs * images // train.batch_size)
    assert train.updates is not None
    return train.updates


def classes_of(images: Images, arm: Arm) -> int | None:
    """Return the number of labels of a label-conditional arm; None for an unconditional arm.

    Args:
        images: The whole training split, so that a class missing from this arm keeps its index.

    Raises:
        ArtifactError: if an image has no label.
    """
    if arm.condition != "label":
        return None
    if images.labels.min() < 0:
        raise ArtifactError("condition = 'label', but the training split has unlabelled images")
    return int(images.labels.max()) + 1


def accelerator_for(train: Train) -> Accelerator:
    """Return the accelerator of a run: its precision, on an accelerator device if there is one."""
    # By default accelerate treats several processes on a CPU as as many independent runs. In fp16
    # the learner scales its losses itself, on a CPU too.
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision="bf16" if train.precision == "bf16" else "no",
    )
