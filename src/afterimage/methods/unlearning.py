"""What all unlearning methods start from: a trained network, the images to forget and the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from afterimage.methods import Job
from afterimage.training.order import Order
from afterimage.training.task import Batch

Side = Literal["forget", "remain"]


class Sides:
    """Batches of the forgotten images and of the rest, each in its own shuffled order without replacement."""

    def __init__(self, job: Job) -> None:
        self.task = job.task
        self.rows: dict[Side, np.ndarray] = {
            "forget": np.flatnonzero(job.forgotten),
            "remain": np.flatnonzero(~job.forgotten),
        }
        self.orders = {
            side: Order(job.seed, (*job.path, side), len(rows), job.train.batch_size) for side, rows in self.rows.items()
        }

    def batch(self, side: Side, s: int, *, keep_labels: bool = False) -> Batch:
        """Return the batch of update ``s``: a pure function of the seed and ``s``.

        Args:
            keep_labels: Undo label dropout: every image comes with its own label.
        """
        order = self.orders[side]
        batch = self.task.batch(self.rows[side][order.rows(s)], order.generator(s))
        return replace(batch, labels=self.task.labels_of(batch.rows)) if keep_labels else batch


def seed_dropout(sides: Sides, s: int) -> None:
    """Seed the network's own dropout in update ``s``."""
    torch.manual_seed(sides.orders["remain"].dropout_seed(s))
