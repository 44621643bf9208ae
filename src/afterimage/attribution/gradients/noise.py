"""Timesteps, the noise of an image at a timestep, and the random probes of a network's output.

The released codes of D-TRAK (Zheng et al., ICLR 2024) and DAS (Lin et al., ICLR 2025) seed the
noise per batch, so that an image's noise depends on the batch size and on its position. Here noise
and probes are seeded by the set of images, the image's id and the timestep, or one noise of a
timestep serves all images.

With one noise for all, scores at T = 10 repeat and predict better. A network of 68,000 weights on
240 digits, retrained on 24 random halves, 32 held-out queries: LDS of ``trak`` 0.34 instead of
0.13, of ``dtrak`` 0.36 instead of 0.16, of ``das_revised`` 0.41 instead of 0.31, of ``das`` (one
probe) 0.29 instead of 0.20, not told apart.
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


def shared_noise(seed: int, draw: int, t: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the standard normal noise of timestep ``t`` for images of all sets, on the CPU.

    Args:
        seed: Root seed.
        draw: Number of the draw; others are independent of it.
        t: The timestep.
        shape: Of one image: (C, H, W).

    Returns:
        float32 (*shape).
    """
    stream = seeds.torch_rng(seed, "attribution", "shared noise", draw, t)
    return torch.randn(shape, generator=stream)


def random_signs(
    seed: int, image_set: str, ids: np.ndarray, t: int, shape: tuple[int, ...], probes: int = 1
) -> torch.Tensor:
    """Return arrays of random signs, -1 or 1, for each image, on the CPU.

    Independent of the image's noise; the other arguments are those of ``gaussian_noise``.

    Args:
        probes: Arrays per image, R; the first ones do not depend on how many there are.

    Returns:
        float32 (R, B, *shape).
    """
    streams = [seeds.torch_rng(seed, "attribution", image_set, i, t, "probe") for i in ids.tolist()]
    bits = [torch.randint(2, (probes, *shape), generator=stream) for stream in streams]
    return torch.stack(bits, dim=1) * 2.0 - 1.0
