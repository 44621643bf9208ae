"""The jackknife (Quenouille 1956, Tukey 1958): bias and error of a statistic from its values
without one unit each.

For statistics that resampling with replacement shifts, such as a mean of rank correlations: a
resample holds ties, and a percentile interval holds their effect. Leaving a unit out makes none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

_ROUNDING = 1e-9
"""A standard error below this is rounding, of statistics of the order of 1."""


@dataclass(frozen=True)
class Jackknife:
    """A statistic, corrected for its bias, with its standard error.

    Attributes:
        value: n S - (n - 1) mean(S_-i), without the bias of order 1 / n; NaN with fewer than two
            units, or where a value is.
        error: sqrt((n - 1) / n sum (S_-i - mean(S_-i))^2); NaN likewise.
        units: n.
    """

    value: float
    error: float
    units: int

    @classmethod
    def of(cls, statistic: float, without: np.ndarray) -> Jackknife:
        """Return the jackknife of a statistic.

        Args:
            statistic: S, of all units.
            without: S_-i, of all units but one each, floating (n,).
        """
        n = len(without)
        if n < 2:
            return cls(np.nan, np.nan, n)
        mean = without.mean()
        error = np.sqrt((n - 1) / n * np.square(without - mean).sum())
        return cls(float(n * statistic - (n - 1) * mean), float(error), n)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the interval by Student's t with n - 1 degrees of freedom; NaN where there is
        none.

        It is that of the expected value for many units, around ``value``, not the statistic.
        """
        half = stdtrit(self.units - 1, (1 + confidence) / 2) * self.error
        return float(self.value - half), float(self.value + half)

    def p_value(self) -> float:
        """Return the two-sided p-value of 0, by Student's t; NaN where the units show no spread."""
        if not self.error > _ROUNDING:
            return float("nan")
        return float(2 * stdtr(self.units - 1, -abs(self.value) / self.error))
