"""Relearning: how quickly plain training on the forgotten images alone restores them.

A network that has forgotten needs as long as one that never saw the images (the retrained arm). One
that only hides them restores them within a few updates. All arms are attacked with the same images
in the same order under the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage.config import Forgetting, Train
from afterimage.diffusion.denoising import denoising
from afterimage.diffusion.latents import EncodedImages
from afterimage.diffusion.model import classes_of
from afterimage.diffusion.texts import Texts, embedded_captions
from afterimage.images import Images
from afterimage.training.learner import Learner, NonFiniteError, plain
from afterimage.training.order import Order


def relearn(
    net: UNet2DModel,
    scheduler_config: dict[str, Any],
    images: Images,
    settings: Forgetting,
    look: Callable[[], dict[str, float]],
    seed: int,
    path: tuple[str | int, ...],
    *,
    flips: bool = False,
    texts: Texts | None = None,
    latents: EncodedImages | None = None,
) -> pd.DataFrame:
    """Train a network on forgotten images and evaluate it at intervals; settings outside
    ``settings`` have the defaults of ``train``.

    Args:
        net: The network that has forgotten; changed in place.
        scheduler_config: Config of the scheduler that the network was trained with.
        images: The forgotten images.
        settings: Length and pace.
        look: Returns numbers of ``net``, which is then in evaluation mode.
        seed: Root seed.
        path: Address of the attack's random streams under that seed.
        flips: Mirror half of the images.
        texts: Embeddings of their captions, for a network that is conditioned on them.
        latents: Their latents, for a network that denoises those.

    Returns:
        One row per evaluation: update (0 is before the first; the last is always included) and the
        numbers.
    """
    classes = classes_of(net)
    train = Train(
        updates=settings.relearn_updates,
        batch_size=settings.relearn_batch_size,
        learning_rate=settings.relearn_learning_rate,
        ema=0,
    )
    labels = None if classes is None else images.labels
    task = denoising(
        images.pixels,
        latents,
        DDPMScheduler.from_config(scheduler_config),
        labels,
        classes or 0,
        train.label_dropout,
        flips,
        embedded_captions(texts, images),
    )
    order = Order(seed, path, len(task), train.batch_size)
    learner = Learner(net, train, Accelerator(mixed_precision="no"))

    looks = []
    for s in range(settings.relearn_updates + 1):
        if s % settings.relearn_every == 0 or s == settings.relearn_updates:
            net.eval()
            looks.append({"update": s, **look()})
            net.train()
        if s < settings.relearn_updates:
            torch.manual_seed(order.dropout_seed(s))
            told = learner.update(s, task.batch(order.rows(s), order.generator(s)), plain(task))
            if not math.isfinite(float(told["loss"])):
                raise NonFiniteError(f"the loss at relearning update {s + 1} is {told['loss']}")
    return pd.DataFrame(looks)
