"""What a network denoises: images' pixels, or their latents."""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage.config.arm import DualFusion
from afterimage.diffusion.fusion import Fusion
from afterimage.diffusion.latents import EncodedImages, Latents
from afterimage.diffusion.model import classes_of
from afterimage.diffusion.noising import Pixels
from afterimage.diffusion.router import UNet
from afterimage.diffusion.texts import Texts, embedded_captions
from afterimage.images import Images


def denoising(
    images: np.ndarray, latents: EncodedImages | None, *settings: Any, **named: Any
) -> Pixels:
    """Return the denoising of images, uint8 (N, H, W, C), or of their latents if there are any.

    The settings are those of ``Pixels``.
    """
    if latents is None:
        return Pixels(images, *settings, **named)
    return Latents(images, latents, *settings, **named)


def fusion_with(
    images: Images,
    settings: DualFusion,
    texts: Texts,
    latents: EncodedImages | None,
    scheduler: DDPMScheduler,
) -> Fusion:
    """Return what is mixed into training batches: images, with their captions."""
    given = embedded_captions(texts, images)
    others = denoising(images.pixels, latents, scheduler, texts=given)
    return Fusion(others, settings.image, settings.caption)


def task_of(
    net: UNet,
    scheduler_config: dict[str, Any],
    images: Images,
    texts: Texts | None = None,
    latents: EncodedImages | None = None,
) -> Pixels:
    """Return the denoising of images by a U-Net, which gets their labels if it takes any, or their
    captions.

    Args:
        net: The network.
        scheduler_config: Config of the scheduler that it was trained with.
        images: The images.
        texts: Embeddings, for a network that is conditioned on captions.
        latents: Their latents, for a network that denoises those.

    Raises:
        ArtifactError: if an image lacks a label that the network needs, or it or its caption was
            not encoded.
    """
    classes = classes_of(net)
    labels = images.labels if classes is not None and len(images) else None
    return denoising(
        images.pixels,
        latents,
        DDPMScheduler.from_config(scheduler_config),
        labels,
        classes or 0,
        texts=embedded_captions(texts, images),
    )
