"""Plain training (Ho et al. 2020, algorithm 1), the control of every other method.

With ``base`` it starts from the averaged weights of another arm (what that arm's users would get), with a fresh optimiser.
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from afterimage.diffusion.model import load_weights
from afterimage.methods import Job, Trained
from afterimage.training import loop
from afterimage.training.learner import Learner
from afterimage.training.order import Order
from afterimage.training.task import Batch


def train(job: Job) -> Trained:
    """Train ``job.net`` on every image alike."""
    if job.base is not None:
        load_weights(job.net, job.base)
    settings = job.train
    learner = Learner(job.net, settings, job.accelerator)
    order = Order(job.seed, job.path, len(job.task), settings.batch_size)

    def objective(net: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        losses = job.task.losses(net, batch)
        return losses, torch.ones_like(losses)

    def update(s: int) -> dict[str, float]:
        torch.manual_seed(order.dropout_seed(s))
        return learner.update(s, job.task.batch(order.rows(s), order.generator(s)), objective)

    progress = loop.run(
        update,
        {"learner": learner},
        job.store,
        updates=settings.updates or order.updates(settings.epochs or 0),
        batch_size=settings.batch_size,
        log_every=settings.log_every,
        checkpoint_every=settings.checkpoint_every,
    )
    return Trained(raw=job.net, average=cast(UNet2DModel, learner.average.module), progress=progress)
