"""Timesteps, the noise of an image at a timestep, and the random probes of a network's output.

The released codes of D-TRAK (Zheng et al., ICLR 2024) and DAS (Lin et al., ICLR 2025) seed the
noise per batch, so that an image's noise depends on the batch size and on its position. Here noise
and probes are seeded by the set of images, the image's id and the timestep.
"""

from __future__ import annotations

import numpy as np
import torch

from afterimage import seeds
from afterimage.config import ConfigError


def timestep_grid(count: int, total: int, grid: str, seed: int) -> list[int]:
    """Return ``count`` timesteps in [0, ``total``), ascending, the same for all images.

    Args:
        count: T.
        total: Timesteps of the network.
        grid: ``regular``: t = 0, total / T, 2 total / T, ..., rounded down (both released codes).
            ``stratified``: one drawn at random from each of T equal intervals.
        seed: Root seed.

    Raises:
        ConfigError: if ``count`` is more than ``total``.
    """
    if count > total:
        raise ConfigError(
            f"attribution.features.timesteps = {count} is more than the model's {total} timesteps"
        )
    edges = [number * total // count for number in range(count + 1)]
    if grid == "regular":
        return edges[:-1]
    rng = seeds.numpy_rng(seed, "attribution", "timesteps")
    return rng.integers(edges[:-1], edges[1:]).tolist()


def gaussian_noise(
    seed: int, image_set: str, ids: np.ndarray, t: int, shape: tuple[int, ...]
) -> torch.Tensor:
    """Return standard normal noise for images at timestep ``t``, float32 (B, *shape), on the CPU.

    Args:
        seed: Root seed.
        image_set: Name of the set of images.
        ids: Ids of the images, (B,).
        t: The timestep.
        shape: Of one image: (C, H, W).
    """
    streams = [seeds.torch_rng(seed, "attribution", image_set, i, t) for i in ids.tolist()]
    return torch.stack([torch.randn(shape, generator=stream) for stream in streams])


def random_signs(
    seed: int, image_set: str, ids: np.ndarray, t: int, shape: tuple[int, ...]
) -> torch.Tensor:
    """Return an array of random signs, -1 or 1, for each image, float32 (B, *shape), on the CPU.

    Independent of the image's noise; the arguments are those of ``gaussian_noise``.
    """
    streams = [seeds.torch_rng(seed, "attribution", image_set, i, t, "probe") for i in ids.tolist()]
    bits = torch.stack([torch.randint(2, shape, generator=stream) for stream in streams])
    return bits * 2.0 - 1.0
