"""Plain training (Ho et al. 2020, algorithm 1), the control of every other method.

With ``weights: inverse_copies`` the loss of an image is multiplied by 1 / (copies of its source),
over the mean of that: an unbiased estimate of the loss in which every source counts once.

With ``base`` it starts from the averaged weights of another arm (those its users would get), with a
fresh optimiser. Several processes train the one network together.
"""

from __future__ import annotations

import numpy as np
import torch

from afterimage.config import Baseline
from afterimage.diffusion.model import load_weights
from afterimage.diffusion.noising import Batch, Renoise
from afterimage.training import distributed
from afterimage.training.ahead import Ahead
from afterimage.training.job import Trained, TrainingRun
from afterimage.training.learner import Learner, Number, Objective, plain
from afterimage.training.order import Order
from afterimage.training.task import Task


def train(job: TrainingRun) -> Trained:
    """Train ``job.net`` on all images, equally weighted unless the arm's ``weights`` say
    otherwise; a method that trains plainly can call this for an arm of its own."""
    objective = plain(job.task)
    if isinstance(job.arm, Baseline) and job.arm.weights == "inverse_copies":
        weights = torch.from_numpy(inverse_copies(job.sources)).to(job.accelerator.device)
        objective = weighted(job.task, weights)
    return fit(job, objective)


def fit(job: TrainingRun, objective: Objective, renoise: Renoise | None = None) -> Trained:
    """Train ``job.net`` on all images by an objective.

    Args:
        job: The run.
        objective: The losses and their weights.
        renoise: What becomes of the noise and the targets of every batch.
    """
    if job.base is not None:
        load_weights(job.net, job.base)
    settings = job.train
    learner = Learner(job.net, settings, job.accelerator, job.updates, shared=True)
    order = Order(job.seed, job.path, len(job.task), settings.batch_size)

    def batch(s: int) -> Batch:
        return job.task.batch(order.rows(s), order.generator(s), renoise=renoise)

    batches = Ahead(batch, job.accelerator.device)

    def update(s: int) -> dict[str, Number]:
        torch.manual_seed(order.dropout_seed(s) + distributed.index())
        return learner.update(s, batches(s), objective)

    progress = job.run(update, {"learner": learner}, learner.networks)
    return Trained.of_one(learner, progress, progress.update * settings.batch_size)


def inverse_copies(sources: np.ndarray) -> np.ndarray:
    """Return the weight of each image: 1 / (images with its source), of mean 1; float32, (N,).

    Args:
        sources: int64, (N,): the original of each image.
    """
    _, source, copies = np.unique(sources, return_inverse=True, return_counts=True)
    return (len(sources) / len(copies) / copies[source]).astype(np.float32)


def weighted(task: Task, weights: torch.Tensor) -> Objective:
    """Return the objective that multiplies each sample's loss by its image's weight, float32,
    (N,)."""

    def objective(net: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        losses = task.losses(net, batch) * weights[batch.rows]
        return losses, torch.ones_like(losses)

    return objective
