"""The denoising loss of single images: the score of loss-threshold membership inference.

Carlini et al. 2023, section 5.2: the squared error of the prediction at a noise level, here for
several levels and noise draws, and for both orientations if the training mirrored images. The noise
is addressed by the study's seed, the level, the draw and the image, so that it is the same for
every arm, and the batch size changes a loss by no more than rounding.
"""

from __future__ import annotations

import numpy as np
import torch

from afterimage import seeds
from afterimage.artifacts import ArtifactError
from afterimage.diffusion.noising import Pixels


@torch.inference_mode()
def measure(
    net: torch.nn.Module,
    task: Pixels,
    ids: np.ndarray,
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
        task: The denoising of the images, at least one.
        ids: Ids of the images, (N,).
        part: Name of the set, which with an image's id addresses its noise.
        at: The levels: timesteps from 0.
        draws: Noise draws per image and level.
        seed: Root seed.
        flips: Average over the image and its mirror image, under the same noise.
        batch_size: Images per batch; bounds memory.

    Raises:
        ArtifactError: if a loss is NaN or infinite.
    """
    device = next(net.parameters()).device
    losses = np.zeros((len(task), len(at)))
    for start in range(0, len(task), batch_size):
        batch_rows = slice(start, start + batch_size)
        rows = torch.arange(len(task))[batch_rows]
        for column, t in enumerate(at):
            timesteps = torch.full_like(rows, t)
            for draw in range(draws):
                noise = torch.stack(
                    [
                        torch.randn(
                            task.shape,
                            generator=seeds.torch_rng(seed, "membership", part, name, t, draw),
                        )
                        for name in ids[batch_rows].tolist()
                    ]
                )
                for mirror in (False, True)[: 1 + flips]:
                    batch = task.noised(
                        rows,
                        timesteps,
                        noise,
                        torch.full(rows.shape, mirror),
                        task.condition_of(rows),
                    )
                    losses[batch_rows, column] += task.losses(net, batch.to(device)).cpu().numpy()
    losses /= draws * (1 + flips)
    if not np.isfinite(losses).all():
        raise ArtifactError(f"the network's loss on an image of the {part} set is not finite")
    return losses
