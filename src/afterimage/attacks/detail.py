"""Blank and blurred images: near to a training image because they show nothing, not because they
copy it.

Detail is the root mean square difference between neighbouring pixels, in units of the full range
[0, 1].
"""

from __future__ import annotations

import numpy as np

BLANK = 1 / 255
"""Images with less detail are blank, whatever their nearest training image."""
BLURRED = 0.5
"""Images with less than this share of the detail of their nearest training image are blurred."""


def detail(images: np.ndarray) -> np.ndarray:
    """Return the detail of uint8 or floating images in [0, 1], (N, H, W, C), as float64 (N,)."""
    scale = 255 if images.dtype == np.uint8 else 1
    squares = np.zeros(len(images))
    for row, image in enumerate(images):
        values = image.astype(np.float64) / scale
        for axis in (0, 1):
            if values.shape[axis] > 1:
                squares[row] += (np.diff(values, axis=axis) ** 2).mean()
    return np.sqrt(squares)


def low_detail(images: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """Return the mask of images, (N, H, W, C), that are blank, or blurred compared with
    ``nearest``, of the same shape; bool (N,)."""
    details = detail(images)
    return (details < BLANK) | (details < BLURRED * detail(nearest))
