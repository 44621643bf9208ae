"""Intervals of reported numbers that come from one training, or from counts.

Two kinds stand side by side for shares. The percentile bootstrap over units resamples the units
that were counted; of 0 in 8 it says [0, 0], because no resample holds anything else. The exact
interval (Clopper & Pearson 1934) does not have that flaw and covers at least as often as it says,
so it is the one to read for small counts.

A unit is what could have come out otherwise: a generation for rates of generations, a held-out
image for the control, a distinct training image for shares of training images. Intervals say
nothing about another training of the same arm; only replicates do (``metrics.replicates``).

A count of zero is not certain: exact limits (``exact_limits``) bound it, and so every interval here
that is made of counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from scipy import special

from afterimage.config import ConfigError

Number = TypeVar("Number", float, np.ndarray)


class Interval(NamedTuple, Generic[Number]):
    """A number with its interval, or arrays of them; NaN where there is none."""

    value: Number
    low: Number
    high: Number


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
    return Share(count / of, low, high, *map(float, exact_limits(count, of, confidence)))


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
    half = special.ndtri((1 + confidence) / 2) * np.std(values, ddof=1)
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


def quantile_limits(values: np.ndarray, quantile: float, confidence: float) -> tuple[float, float]:
    """Return exact limits of a quantile of whatever ``values``, (N,), were drawn from: two of them
    by rank, or an infinity where there are too few.

    The number of values below the quantile is binomial, so these limits hold for any distribution.
    """
    from scipy.stats import binom

    ordered = np.concatenate([[-np.inf], np.sort(values), [np.inf]])
    tail = (1 - confidence) / 2
    low = int(binom.ppf(tail, len(values), quantile))
    high = int(binom.ppf(1 - tail, len(values), quantile)) + 1
    return float(ordered[low]), float(ordered[high])


def wilson(count: int, of: int, confidence: float) -> Interval:
    """Return a share with its score interval (Wilson 1927)."""
    from scipy.stats import binomtest

    limits = binomtest(count, of).proportion_ci(confidence, method="wilson")
    return Interval(count / of, float(limits.low), float(limits.high))


def square_and_add(first: Interval, second: Interval) -> Interval:
    """Return the difference ``first`` - ``second`` of two independent estimates, from their own
    intervals of the same confidence.

    With Wilson's limits this is method 10 of Newcombe (1998, Statistics in Medicine 17:873); in
    general it is the MOVER of Zou and Donner (2008, Statistics in Medicine 27:1693). With symmetric
    intervals it is the normal interval of the difference. Works on arrays element by element.
    """
    difference = first.value - second.value
    down = np.hypot(first.value - first.low, second.high - second.value)
    up = np.hypot(first.high - first.value, second.value - second.low)
    return Interval(difference, difference - down, difference + up)


def exact_limits(
    count: np.ndarray | float, of: np.ndarray | float, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact limits of shares (Clopper & Pearson 1934), arrays of the inputs' shape.

    The lower limit of a count of zero is 0 and the upper one of ``of`` in ``of`` is 1. Counts need
    not be whole: the limits are quantiles of beta distributions.
    """
    count, of = np.asarray(count, float), np.asarray(of, float)
    none, all_of_them = count <= 0, count >= of
    tail = (1 - confidence) / 2
    low = special.betaincinv(np.where(none, 1, count), np.where(none, 1, of - count + 1), tail)
    high = special.betaincinv(
        np.where(all_of_them, 1, count + 1), np.where(all_of_them, 1, of - count), 1 - tail
    )
    return np.where(none, 0.0, low), np.where(all_of_them, 1.0, high)


def clustered_share(count: np.ndarray, of: np.ndarray, confidence: float) -> Interval:
    """Return the share of all trials that succeeded, where trials on the same unit rise and fall
    together: an image that came back in one training is likelier to come back in the next.

    The interval is that of Korn and Graubard (1998, Survey Methodology 24:193): exact limits at the
    number of independent trials that would vary as much as the units do; at least that of the
    units, which is what units that always do the same are worth, and at most that of the trials.
    Units without spread (nothing came back, or everything) count as one trial each. In simulations
    with 6 to 32 units of 1 or 5 trials it covers 95 to 100 % at a nominal 95 %.

    Args:
        count: Successes on each unit, (N,).
        of: Trials on each unit, (N,), each at least 1.
        confidence: Coverage of the interval.

    Raises:
        ConfigError: if there are no units, or a unit has no trial or more successes than trials.
    """
    count, of = np.asarray(count, float), np.asarray(of, float)
    units, trials = len(of), of.sum()
    if not units or (of < 1).any() or (count < 0).any() or (count > of).any():
        raise ConfigError(f"shares of {count.tolist()} in {of.tolist()} trials do not exist")
    share = count.sum() / trials
    variance = 0.0
    if units > 1:
        variance = units / (units - 1) * ((count - share * of) ** 2).sum() / trials**2
    independent = float(units)
    if variance > 0 and 0 < share < 1:
        tail = (1 + confidence) / 2
        few_units = (special.stdtrit(trials - 1, tail) / special.stdtrit(units - 1, tail)) ** 2
        independent = float(np.clip(share * (1 - share) / variance * few_units, units, trials))
    low, high = exact_limits(share * independent, independent, confidence)
    return Interval(float(share), float(low), float(high))


def auc(value: float, first: int, second: int, confidence: float) -> Interval:
    """Return an area under the ROC curve with its score interval: method 5 of Newcombe (2006,
    Statistics in Medicine 25:559), which has a width for perfect separation too.

    Args:
        value: The area, in [0, 1].
        first: Number of cases.
        second: Number of controls.
        confidence: Coverage of the interval.
    """
    from scipy.optimize import brentq

    quantile = float(special.ndtri((1 + confidence) / 2))
    units = (first + second) / 2 - 1

    def beyond(area: float, side: float) -> float:
        spread = 1 + units * ((1 - area) / (2 - area) + area / (1 + area))
        return side * (area - value) - quantile * np.sqrt(
            area * (1 - area) * spread / (first * second)
        )

    inside = min(max(value, 1e-12), 1 - 1e-12)  # at 0 and 1 there is no spread: a root, not a limit
    low = 0.0 if value == 0 else brentq(beyond, 0.0, inside, args=(-1.0,))
    high = 1.0 if value == 1 else brentq(beyond, inside, 1.0, args=(1.0,))
    return Interval(value, float(low), float(high))
