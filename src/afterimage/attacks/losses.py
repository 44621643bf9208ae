"""The denoising loss of single images: the score of loss-threshold membership inference.

Carlini et al. 2023, section 5.2: the squared error of the prediction at a noise level, here for
several levels and noise draws, and for both orientations if the training mirrored images. The noise
is addressed by the study's seed, the level, the draw and the image, so that it is the same for
every arm, and the batch size changes a loss by no more than rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage import seeds
from afterimage.artifacts import ArtifactError
from afterimage.diffusion.model import classes_of
from afterimage.diffusion.noising import Pixels
from afterimage.images import Images


@torch.inference_mode()
def measure(
    net: UNet2DModel,
    scheduler_config: dict[str, Any],
    images: Images,
    part: str,
    at: list[int],
    draws: int,
    seed: int,
    *,
    flips: bool = False,
    batch_size: int = 256,
) -> np.ndarray:
    """Return the loss of every image at every level, averaged over the draws; float64 (N, levels).

    Args:
        net: The network, in evaluation mode, on the device to use.
        scheduler_config: Config of the scheduler that the network was trained with; its
            ``prediction_type`` determines the target.
        images: The images, at least one; a label-conditional net is conditioned on their true
            labels.
        part: Name of the set, which with an image's id addresses its noise.
        at: The levels: timesteps from 0.
        draws: Noise draws per image and level.
        seed: Root seed.
        flips: Average over the image and its mirror image, under the same noise.
        batch_size: Images per batch; bounds memory.

    Raises:
        ArtifactError: if an image lacks the label that the network needs, or a loss is NaN or
            infinite.
    """
    classes = classes_of(net)
    labels = None if classes is None else images.labels
    task = Pixels(images.pixels, DDPMScheduler.from_config(scheduler_config), labels, classes or 0)
    device = next(net.parameters()).device
    losses = np.zeros((len(images), len(at)))
    for start in range(0, len(images), batch_size):
        batch_rows = slice(start, start + batch_size)
        rows = torch.arange(len(images))[batch_rows]
        for column, t in enumerate(at):
            timesteps = torch.full_like(rows, t)
            for draw in range(draws):
                noise = torch.stack(
                    [
                        torch.randn(
                            task.images.shape[1:],
                            generator=seeds.torch_rng(seed, "membership", part, name, t, draw),
                        )
                        for name in images.ids[batch_rows].tolist()
                    ]
                )
                for mirror in (False, True)[: 1 + flips]:
                    batch = task.noised(
                        rows, timesteps, noise, torch.full(rows.shape, mirror), task.labels_of(rows)
                    )
                    losses[batch_rows, column] += task.losses(net, batch.to(device)).cpu().numpy()
    losses /= draws * (1 + flips)
    if not np.isfinite(losses).all():
        raise ArtifactError(f"the network's loss on an image of the {part} set is not finite")
    return losses
