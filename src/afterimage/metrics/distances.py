"""Distances between images: normalised l2 and its tiled form (Carlini et al. 2023, sections 4.1 and
4.2).

Normalised l2 is the root mean square difference of the values, sqrt(sum_i (a_i - b_i)^2 / d), with
pixels in [0, 1]; the tiled form is the largest normalised l2 over a grid of tiles, so that a shared
uniform background cannot hide a difference. Both are computed from differences in float64, never
from |a|^2 + |b|^2 - 2ab, whose cancellation loses near-copies. For uint8 pixels the sums of squares
are exact integers.
"""

from __future__ import annotations

import numpy as np

from afterimage import scratch
from afterimage.config import ConfigError


def cut(images: np.ndarray, tiles: int = 1) -> np.ndarray:
    """Flatten images tile by tile.

    Args:
        images: uint8 (0..255 representing [0, 1]) or floating, (N, H, W, C).
        tiles: Tiles per side; 1 keeps each image whole.

    Returns:
        Same dtype, (N, tiles^2, d) with d values per tile; a view with one tile.

    Raises:
        ConfigError: if ``tiles`` does not divide both sides.
    """
    count, height, width, channels = images.shape
    if tiles < 1 or height % tiles or width % tiles:
        raise ConfigError(
            f"extraction.tiles = {tiles} must divide the image's sides, {height} and {width}"
        )
    if tiles == 1:
        return images.reshape(count, 1, -1)
    grid = images.reshape(count, tiles, height // tiles, tiles, width // tiles, channels)
    flat = scratch.empty((count, tiles * tiles, images[:1].size // tiles**2), images.dtype)
    for some in scratch.blocks(count, images[:1].size):
        flat[some] = grid[some].swapaxes(2, 3).reshape(flat[some].shape)
    return flat


def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the largest sum of squared differences over the tiles of paired cut images, in units
    of their values.

    Args:
        a: Cut images, (P, T, d).
        b: Cut images of the same dtype and shape.

    Returns:
        float64, (P,).
    """
    difference = np.subtract(a, b, dtype=np.float64)
    return np.einsum("ptd,ptd->pt", difference, difference).max(axis=1)


def normalise(squares: np.ndarray, values: int, dtype: np.dtype) -> np.ndarray:
    """Convert sums of squared differences over ``values`` values of ``dtype`` to normalised l2,
    float64, in [0, 1] units."""
    root = np.sqrt(squares / values)
    return root / 255 if dtype == np.uint8 else root


def between(a: np.ndarray, b: np.ndarray, tiles: int = 1) -> np.ndarray:
    """Return the normalised l2 (with ``tiles`` > 1: tiled l2) of paired images.

    Args:
        a: uint8 or floating, (N, H, W, C).
        b: Of the same dtype and shape.
        tiles: Tiles per side.

    Returns:
        float64, (N,).

    Raises:
        ConfigError: if they differ in shape or dtype, or ``tiles`` does not divide the sides.
    """
    check_alike(a, b)
    if len(a) != len(b):
        raise ConfigError(f"paired images are needed, not {len(a)} against {len(b)}")
    a, b = cut(a, tiles), cut(b, tiles)
    return normalise(squared(a, b), a.shape[2], a.dtype)


def check_alike(a: np.ndarray, b: np.ndarray) -> None:
    """Refuse images that cannot be compared.

    Raises:
        ConfigError: unless both are (N, H, W, C) with the same H, W, C, and both uint8 or both
            floating.
    """
    for images in (a, b):
        if images.ndim != 4 or not (
            images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)
        ):
            raise ConfigError(
                f"images must be uint8 or floating, (N, H, W, C), not {images.dtype} {images.shape}"
            )
    if a.shape[1:] != b.shape[1:]:
        raise ConfigError(
            f"images of shape {a.shape[1:]} cannot be compared with images of shape {b.shape[1:]}"
        )
    if (a.dtype == np.uint8) != (b.dtype == np.uint8):
        raise ConfigError(
            f"images must be uint8 on both sides or floating on both sides, not {a.dtype} and "
            f"{b.dtype}"
        )
