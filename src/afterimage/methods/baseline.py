"""Plain training (Ho et al. 2020, algorithm 1), the control of every other method.

With ``base`` it starts from the averaged weights of another arm (what that arm's users would get), with a fresh optimiser.
"""

from __future__ import annotations

import torch

from afterimage.diffusion.model import load_weights
from afterimage.methods import Job, Spent, Trained
from afterimage.training import loop
from afterimage.training.learner import Learner, plain
from afterimage.training.order import Order


def train(job: Job) -> Trained:
    """Train ``job.net`` on every image alike."""
    if job.base is not None:
        load_weights(job.net, job.base)
    settings = job.train
    learner = Learner(job.net, settings, job.accelerator)
    order = Order(job.seed, job.path, len(job.task), settings.batch_size)

    def update(s: int) -> dict[str, float]:
        torch.manual_seed(order.dropout_seed(s))
        return learner.update(s, job.task.batch(order.rows(s), order.generator(s)), plain(job.task))

    progress = loop.run(
        update,
        {"learner": learner},
        job.store,
        updates=job.updates,
        batch_size=settings.batch_size,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
    )
    seen = progress.update * settings.batch_size
    spent = Spent(updates=progress.update, updates_per_model=progress.update, images_seen=seen, kept_samples=seen)
    return Trained(raw=job.net, average=learner.average.module, progress=progress, spent=spent)
