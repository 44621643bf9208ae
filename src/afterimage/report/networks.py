"""What several explained networks tell together: means and ratios of means, with intervals.

A network contributes independent units: the subsets that it was judged on (as pseudo-values of the
jackknife), or the generations that were made again. Networks share none of them, so that the errors
of their means are independent and add up. The intervals are of the mean **of these networks**: how
much one network differs from another is not in them, since two or three say next to nothing of
that, and nothing is claimed about others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

_ROUNDING = 1e-9
"""A standard error below this is rounding, of statistics of the order of 1."""


class Estimate(NamedTuple):
    """A number with its interval and the p-value of 0; NaN where there is none."""

    value: float
    low: float
    high: float
    p: float = math.nan


def mean(units: Sequence[np.ndarray], confidence: float, shared: Sequence[float] = ()) -> Estimate:
    """Return the mean over networks of the means of their units.

    Student's interval, with the degrees of freedom of Welch and Satterthwaite; of one network it is
    the usual one. Without any spread it has no width and there is no p-value; with a single unit of
    a network, or one that is NaN, both are NaN.

    Args:
        units: Of each network, floating (n_k,).
        confidence: Coverage of the interval.
        shared: Of each network, another standard error of its mean, which its units have in common;
            taken as known. None by default.
    """
    value = float(np.mean([values.mean() for values in units]))
    squared, freedom = _error([_squared_error(values) for values in units], units)
    if len(shared):
        further = float(np.square(shared).sum()) / len(shared) ** 2
        freedom *= (1 + further / squared) ** 2 if squared > 0 else math.inf
        squared += further
    error = math.sqrt(squared)
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    p = float(2 * stdtr(freedom, -abs(value) / error)) if error > _ROUNDING else math.nan
    return Estimate(value, value - half, value + half, p)


def ratio(
    numerators: Sequence[np.ndarray], denominators: Sequence[np.ndarray], confidence: float
) -> Estimate:
    """Return the mean of ``numerators`` over that of ``denominators``, both as in ``mean``.

    Fieller's interval (1954), of the ratios that the paired units do not exclude. It has no ends
    (-inf, inf) where they do not exclude a mean denominator of 0, nor where that is negative or 0:
    then there is no ratio either (NaN).

    Args:
        numerators: Of each network, floating (n_k,).
        denominators: Of the same units.
        confidence: Coverage of the interval.
    """
    x, y = (
        float(np.mean([values.mean() for values in each])) for each in (numerators, denominators)
    )
    if math.isnan(x) or math.isnan(y):
        return Estimate(math.nan, math.nan, math.nan)
    if y <= 0:
        return Estimate(math.nan, -math.inf, math.inf)
    pairs = list(zip(numerators, denominators, strict=True))
    _, freedom = _error([_squared_error(a - x / y * b) for a, b in pairs], numerators)
    covariances = [
        np.cov(a, b) / len(a) if len(a) > 1 else np.full((2, 2), np.nan) for a, b in pairs
    ]
    (xx, xy), (_, yy) = np.sum(covariances, axis=0) / len(pairs) ** 2
    square = float(stdtrit(freedom, (1 + confidence) / 2)) ** 2
    # Ratios r that are not excluded: (x - r y)^2 <= square (xx - 2 r xy + r^2 yy).
    a, b, c = y**2 - square * yy, x * y - square * xy, x**2 - square * xx
    if math.isnan(a):
        return Estimate(x / y, math.nan, math.nan)
    if a <= 0:
        return Estimate(x / y, -math.inf, math.inf)
    half = math.sqrt(max(b**2 - a * c, 0))
    return Estimate(x / y, (b - half) / a, (b + half) / a)


def _squared_error(values: np.ndarray) -> float:
    """Return the squared standard error of a mean; NaN of one value."""
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.nan


def _error(squared: Sequence[float], units: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the squared error of a mean over networks, and its degrees of freedom."""
    parts = np.array(squared) / len(squared) ** 2
    counts = np.array([len(values) - 1.0 for values in units])
    total = parts.sum()
    if not total > 0:
        return float(total), float(counts.sum())
    return float(total), float(total**2 / (parts**2 / counts).sum())
