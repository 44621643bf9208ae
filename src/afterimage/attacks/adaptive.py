"""The adaptive distance of untargeted extraction (Carlini et al. 2023, section 5.1).

A generation x̂ with nearest training image x at distance r is called extracted if

    ratio = r / (alpha * m) <= 1,

where m is a mean distance to n neighbours. Sources differ on whose neighbours: those of the
training image x among the other training images (anchor ``training``), or those of the generation
(anchor ``candidate``). Both are computed everywhere.

The *relative distance* r / m, the ratio at alpha = 1, does not depend on alpha; a pair is flagged
if it is at most alpha. If m = 0 (all n neighbours are copies) the relative distance is 0 if r = 0
too, and infinite otherwise.
"""

from __future__ import annotations

import numpy as np

ANCHORS = ("training", "candidate")


def relative(distance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the relative distance r / m of each pair, float64 (Q,); never NaN.

    Args:
        distance: r, float64 (Q,).
        mean: m, float64 (Q,).
    """
    out = np.where(distance == 0, 0.0, np.inf)
    np.divide(distance, mean, out=out, where=mean > 0)
    return out


def flagged(relative_distance: np.ndarray, alpha: float) -> np.ndarray:
    """Return the mask of pairs with a ratio of at most 1, bool (Q,). An alpha of 0 flags
    nothing."""
    return (relative_distance <= alpha) & (alpha > 0)


def ratio(relative_distance: np.ndarray, alpha: float) -> np.ndarray:
    """Return the paper's ratio, float64 (Q,)."""
    return relative_distance / alpha
