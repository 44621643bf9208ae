"""Plain training (Ho et al. 2020, algorithm 1), the control of every other method.

With ``base`` it starts from the averaged weights of another arm (those its users would get), with a
fresh optimiser. Several processes train the one network together.
"""

from __future__ import annotations

import torch

from afterimage.diffusion.model import load_weights
from afterimage.training import distributed
from afterimage.training.job import Trained, TrainingRun
from afterimage.training.learner import Learner, plain
from afterimage.training.order import Order


def train(job: TrainingRun) -> Trained:
    """Train ``job.net`` on all images, equally weighted."""
    if job.base is not None:
        load_weights(job.net, job.base)
    settings = job.train
    learner = Learner(job.net, settings, job.accelerator, job.updates, shared=True)
    order = Order(job.seed, job.path, len(job.task), settings.batch_size)

    def update(s: int) -> dict[str, float]:
        torch.manual_seed(order.dropout_seed(s) + distributed.index())
        batch = job.task.batch(order.rows(s), order.generator(s))
        return learner.update(s, batch, plain(job.task))

    progress = job.run(update, {"learner": learner}, learner.networks)
    return Trained.of_one(learner, progress, progress.update * settings.batch_size)
