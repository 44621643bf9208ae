"""Intervals of reported numbers.

Two kinds stand side by side for shares. The percentile bootstrap over units resamples the units
that were counted; of 0 in 8 it says [0, 0], because no resample holds anything else. The exact
interval (Clopper & Pearson 1934) does not have that flaw and covers at least as often as it says,
so it is the one to read for small counts.

A unit is what could have come out otherwise: a generation for rates of generations, a held-out
image for the control, a distinct training image for shares of training images. Intervals say
nothing about another training of the same arm; only replicates do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm

from afterimage.config import ConfigError


@dataclass(frozen=True)
class Share:
    """A share of units with its percentile-bootstrap interval and its exact interval, all in [0,
    1]."""

    value: float
    low: float
    high: float
    exact_low: float
    exact_high: float


def share(
    count: int, of: int, resamples: int, confidence: float, rng: np.random.Generator
) -> Share:
    """Return ``count / of`` with intervals.

    A resample of the units holds a binomial number of the counted ones, so it is drawn as that
    number.

    Raises:
        ConfigError: if there are no units, or more counted than there are.
    """
    if not 0 <= count <= of or of == 0:
        raise ConfigError(f"a share of {count} in {of} units does not exist")
    low, high = percentile(rng.binomial(of, count / of, resamples) / of, confidence)
    exact = binomtest(count, of).proportion_ci(confidence, method="exact")
    return Share(count / of, low, high, float(exact.low), float(exact.high))


def percentile(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the central ``confidence`` range of resampled values, (R,)."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def basic(value: float, values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the basic bootstrap interval: the resampled values mirrored at ``value``."""
    low, high = percentile(values, confidence)
    return 2 * value - high, 2 * value - low


def normal(value: float, values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the normal interval: ``value`` plus and minus the resampled values' standard deviation
    times the normal quantile.

    For statistics that resampling shifts, such as a Fréchet distance (a resample has fewer
    different images, and the distance rises): the percentile interval would hold that shift and the
    basic one its opposite, and either may miss ``value``. The bias of the value itself for few
    images stays; it is the same for sets of one size.
    """
    half = norm.ppf((1 + confidence) / 2) * np.std(values, ddof=1)
    return float(value - half), float(value + half)


def resampled(
    statistic: Callable[[np.ndarray], float], units: int, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return ``statistic`` of resamples of the units, float64 (R,).

    Args:
        statistic: Takes rows, int64 (units,), drawn with replacement.
        units: How many units there are.
        resamples: How often to resample.
        rng: The stream to draw from.
    """
    return np.array([statistic(rng.integers(units, size=units)) for _ in range(resamples)])
