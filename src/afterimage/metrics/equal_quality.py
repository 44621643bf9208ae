"""Copying at equal quality: two trainings as paths, compared where both reach a quality.

A path is a training's states in the order in which it went through them, joined by straight lines
in the plane of quality (lower is better: the logarithm of a Fréchet distance, or minus coverage)
and copying (log-odds). ``least_copying`` is what a path offers to whoever may stop it anywhere: the
least copying at a quality at least as good. Of plain training that is early stopping. It is defined
whether training improves quality, as from scratch, or spoils it, as unlearning does, and where
quality turns; on a path that improves all the way it is the path itself.

``difference`` averages how much less (or more) one path offers than the other over the qualities
that both reach. Both paths have as many states and as much noise, so that what noise does to a
least value, it does to both. ``tests/metrics/test_equal_quality.py`` simulates the intervals over
replicates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

GRID = 65
"""Qualities at which two paths are compared."""


def least_copying(quality: np.ndarray, copying: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the least copying of a path's points whose quality is at least as good.

    Args:
        quality: float64 (K,), of the states in their order, lower is better.
        copying: float64 (K,), of the same states.
        at: float64 (G,), qualities.

    Returns:
        float64 (G,); NaN where the path does not reach a quality.
    """
    within = np.where(quality <= at[:, None], copying, np.inf)  # (G, K), the states
    first, second = quality[:-1], quality[1:]
    low, high = np.minimum(first, second), np.maximum(first, second)
    crossed = (low <= at[:, None]) & (at[:, None] <= high) & (low < high)  # (G, K - 1), the lines
    length = np.where(low < high, second - first, 1)
    with np.errstate(over="ignore"):  # far beyond a line of next to no length
        along = np.clip((at[:, None] - first) / length, 0, 1)  # used where crossed
    on_line = np.where(crossed, copying[:-1] + along * (copying[1:] - copying[:-1]), np.inf)
    least = np.minimum(within.min(axis=1), on_line.min(axis=1, initial=np.inf))
    return np.where(np.isinf(least), np.nan, least)


class Difference(NamedTuple):
    """How two paths compare.

    Attributes:
        value: Mean difference in copying, path - other; NaN if no quality is reached by both.
        other: What the other path offers at the best of these qualities.
        best, worst: The range of qualities; NaN likewise.
    """

    value: float
    other: float
    best: float
    worst: float


def difference(
    quality: np.ndarray, copying: np.ndarray, other_quality: np.ndarray, other_copying: np.ndarray
) -> Difference:
    """Return how much more a path copies than another over the qualities that both reach.

    The range is from the better of their worst states to the worse of their best ones.

    Args:
        quality: float64 (K,), of the path's states, lower is better.
        copying: float64 (K,), of the same.
        other_quality: float64 (L,), of the other path's.
        other_copying: float64 (L,), of the same.
    """
    best = max(quality.min(), other_quality.min())
    worst = min(quality.max(), other_quality.max())
    if not best < worst:  # NaN, too
        return Difference(*[float("nan")] * 4)
    at = np.linspace(best, worst, GRID)
    own = least_copying(quality, copying, at)
    other = least_copying(other_quality, other_copying, at)
    return Difference(float((own - other).mean()), float(other[0]), float(best), float(worst))
