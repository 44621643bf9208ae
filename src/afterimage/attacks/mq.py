"""MQ, the memorised quantity of IET-AGC (ECCV 2024): the number of generations that are much nearer
to one training image than to others.

With d2 the squared l2 distances of a generation to all training images, without mirror images,

    ratio = min(d2) / mean of the n smallest d2, including the nearest; n = 50,

and MQ at tau is the number of generations with ratio < tau. Distances are squared and there is no
alpha, so this ratio and that of ``adaptive`` cannot be converted into each other. An exact copy has
ratio 0, even if all n are exact copies.
"""

from __future__ import annotations

import numpy as np


def ratios(distances: np.ndarray) -> np.ndarray:
    """Return the ratio of each image, float64 (Q,), in [0, 1].

    Args:
        distances: Plain l2 distances (in any unit) to the n nearest training images, nearest first,
            float64 (Q, n).
    """
    squares = distances**2
    mean = squares.mean(axis=1)
    return np.divide(squares[:, 0], mean, out=np.zeros(len(squares)), where=mean > 0)


def below(ratio: np.ndarray, tau: float) -> np.ndarray:
    """Return the mask of images counted by MQ at ``tau``, bool (Q,); MQ itself is their number."""
    return ratio < tau
