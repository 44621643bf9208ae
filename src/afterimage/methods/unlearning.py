"""The common ground of all unlearning methods: a trained network, a forget set and the remaining
images."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from afterimage.artifacts import ArtifactError
from afterimage.diffusion.noising import Batch, Change
from afterimage.training.job import TrainingRun
from afterimage.training.learner import Learner, Number
from afterimage.training.order import Order
from afterimage.training.task import Task

Side = Literal["forget", "remain"]


class Sides:
    """Batches of the forget set and of the remaining images, each in its own shuffled order without
    replacement.

    Args:
        job: The run.
        only: The sides that are needed; the other one may be empty.

    Raises:
        ArtifactError: if a side has no images.
    """

    def __init__(self, job: TrainingRun, only: tuple[Side, ...] = ("forget", "remain")) -> None:
        self.task = job.task
        masks: dict[Side, np.ndarray] = {"forget": job.forgotten, "remain": ~job.forgotten}
        self.rows = {side: np.flatnonzero(masks[side]) for side in only}
        for side, rows in self.rows.items():
            if not len(rows):
                raise ArtifactError(
                    f"this arm's {len(job.task)} training images hold none to {side}; see its "
                    "data and fraction"
                )
        self.orders = {
            side: Order(job.seed, (*job.path, side), len(rows), job.train.batch_size)
            for side, rows in self.rows.items()
        }

    def batch(
        self, side: Side, s: int, *, keep_labels: bool = False, retime: Change | None = None
    ) -> Batch:
        """Return the batch of update ``s``: a pure function of the seed and ``s``.

        Args:
            keep_labels: Undo label dropout: every image keeps its own label.
            retime: Maps the drawn timesteps to those used, int64, (B,).
        """
        order = self.orders[side]
        rows = self.rows[side][order.rows(s)]
        batch = self.task.batch(rows, order.generator(s), retime=retime)
        condition = self.task.condition_of(batch.rows)
        return replace(batch, condition=condition) if keep_labels else batch


def seed_dropout(sides: Sides, s: int, side: Side = "remain") -> None:
    """Seed the network's own dropout in update ``s``, before the pass over one side."""
    torch.manual_seed(sides.orders[side].dropout_seed(s))


def gradients(net: torch.nn.Module) -> list[torch.Tensor]:
    """Return copies of the gradients of all weights that have one, in the order of
    ``net.parameters()``."""
    return [weight.grad.clone() for weight in net.parameters() if weight.grad is not None]


def loss_of(learner: Learner, task: Task, batch: Batch) -> Number:
    """Return the mean loss on ``batch``, computed as ``Learner.gradient`` does, but without a
    gradient.

    Raises:
        NonFiniteError: if it is NaN or infinite.
    """
    total = torch.zeros((), dtype=torch.float64, device=learner.numbers_on)
    with torch.no_grad(), learner.accelerator.autocast():
        device, pieces = learner.accelerator.device, learner.settings.accumulation
        for micro_batch in batch.to(device).split(pieces):
            total += task.losses(learner.net, micro_batch).sum().to(learner.numbers_on)
    return learner.told("loss", total / len(batch))


def wrong_labels(
    labels: torch.Tensor, classes: int, generator: torch.Generator, *, one_draw: bool = False
) -> torch.Tensor:
    """Return a wrong label for every sample, int64, (B,), uniform over the other labels.

    Args:
        labels: int64, (B,), in [0, classes).
        classes: Number of labels, at least 2.
        generator: On the CPU.
        one_draw: Draw the distance between wrong and right label once for the whole batch, so that
            samples of one class all get the same wrong label.
    """
    shift = torch.randint(1, classes, (1 if one_draw else len(labels),), generator=generator)
    return (labels + shift) % classes
