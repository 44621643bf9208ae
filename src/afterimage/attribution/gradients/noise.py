"""Where gradients are taken: the timesteps, the noise of an image at a timestep, and the random probes of a network's output.

The released codes of D-TRAK (Zheng et al., ICLR 2024) and DAS (Lin et al., ICLR 2025) seed the noise per batch, so that what an
image sees depends on the batch size and on its place. Here noise and probes are addressed by the image's set and id and the
timestep.
"""

from __future__ import annotations

import numpy as np
import torch

from afterimage import seeds
from afterimage.config import ConfigError


def timesteps(count: int, total: int, grid: str, seed: int) -> list[int]:
    """Return ``count`` timesteps in [0, ``total``), ascending, the same for all images.

    Args:
        count: T.
        total: Timesteps of the network.
        grid: ``regular``: t = 0, total / T, 2 total / T, ..., rounded down (both released codes). ``stratified``: one at random
            in each of T equal parts.
        seed: Root seed.

    Raises:
        ConfigError: if there are not so many.
    """
    if count > total:
        raise ConfigError(
            f"attribution.features.timesteps = {count} is more than the model's {total} timesteps"
        )
    edges = [part * total // count for part in range(count + 1)]
    if grid == "regular":
        return edges[:-1]
    return (
        seeds.numpy_rng(seed, "attribution", "timesteps").integers(edges[:-1], edges[1:]).tolist()
    )


def gaussian(seed: int, part: str, ids: np.ndarray, t: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return standard normal noise for images at timestep ``t``, float32, (B, *shape), on the CPU.

    Args:
        seed: Root seed.
        part: Name of the set of images.
        ids: Their ids, (B,).
        t: The timestep.
        shape: Of one image: (C, H, W).
    """
    return torch.stack(
        [
            torch.randn(shape, generator=seeds.torch_rng(seed, "attribution", part, i, t))
            for i in ids.tolist()
        ]
    )


def signs(seed: int, part: str, ids: np.ndarray, t: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a random vector of -1 and 1 for each image at timestep ``t``, drawn apart from its noise; else like ``noise``."""
    streams = [seeds.torch_rng(seed, "attribution", part, i, t, "probe") for i in ids.tolist()]
    return (
        torch.stack([torch.randint(2, shape, generator=stream) for stream in streams]) * 2.0 - 1.0
    )
