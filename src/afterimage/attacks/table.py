"""The tidy table of an attack's numbers, each with its interval.

Columns: metric, anchor, alpha (fixed, calibrated or none), alpha_value, subset, count, of, value,
low, high (bootstrap over the ``of`` units), exact_low, exact_high (Clopper-Pearson). Cells that do
not apply are empty. Every row has its own random stream, so that rows are independent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from afterimage import config, seeds
from afterimage.metrics import intervals, ranking

Statistic = Callable[[np.ndarray, np.ndarray], float]
"""Takes how many positives and negatives there are at each level of a score (``ranking``)."""
COLUMNS = ["metric", "anchor", "alpha", "alpha_value", "subset", "count", "of"]
COLUMNS += ["value", "low", "high", "exact_low", "exact_high"]


class Reading(NamedTuple):
    """One decision rule: the anchor, whose neighbours normalise the distance, and the threshold."""

    anchor: str
    alpha: str
    value: float

    @property
    def name(self) -> str:
        return f"{self.anchor}_{self.alpha}"


class Results:
    """The table, built row by row.

    Args:
        statistics: Settings of the intervals.
        seed: Root seed.
        path: Address of the resamples' streams under that seed.
    """

    def __init__(self, statistics: config.Statistics, seed: int, *path: str):
        self._statistics, self._seed, self._path = statistics, seed, path
        self._rows: list[dict[str, Any]] = []

    def share(
        self, metric: str, flags: np.ndarray, reading: Reading | None = None, subset: str = "all"
    ) -> None:
        """Add the share of flagged units, bool (U,)."""
        anchor, alpha, value = reading or ("none", "none", None)
        count = int(np.count_nonzero(flags))
        rng = self._rng(metric, anchor, alpha, subset)
        share = intervals.share(
            count, len(flags), self._statistics.bootstrap, self._statistics.confidence, rng
        )
        row = {
            "metric": metric,
            "anchor": anchor,
            "alpha": alpha,
            "alpha_value": value,
            "subset": subset,
        }
        self._rows.append(row | {"count": count, "of": len(flags)} | vars(share))

    def ranking(
        self,
        metric: str,
        statistic: Statistic,
        positives: np.ndarray,
        negatives: np.ndarray,
        anchor: str,
    ) -> None:
        """Add a statistic of how scores rank positives before negatives, floating (U,) each, which
        are pairs and resampled as such."""
        rng = self._rng(metric, anchor, "none", "all")
        levels = ranking.Levels(positives, negatives)

        def of(rows: np.ndarray) -> float:
            return statistic(
                levels.count(levels.positives[rows]), levels.count(levels.negatives[rows])
            )

        pairs = len(positives)
        values = intervals.resampled(of, pairs, self._statistics.bootstrap, rng)
        self.number(metric, of(np.arange(pairs)), pairs, self._percentile(values), anchor=anchor)

    def mean(self, metric: str, values: np.ndarray, subset: str = "all") -> None:
        """Add the mean of the units' values, floating (U,)."""
        rng = self._rng(metric, "none", "none", subset)
        means = intervals.resampled(
            lambda rows: float(values[rows].mean()), len(values), self._statistics.bootstrap, rng
        )
        self.number(metric, float(values.mean()), len(values), self._percentile(means), subset)

    def contrast(
        self,
        metric: str,
        statistic: Statistic,
        positives: np.ndarray,
        negatives: np.ndarray,
        subset: str = "all",
    ) -> None:
        """Add a statistic of how scores rank positives, floating (U,), before negatives, (V,), each
        resampled independently; ``of`` counts the first."""
        rng = self._rng(metric, "none", "none", subset)
        levels = ranking.Levels(positives, negatives)

        def of(positives: np.ndarray, negatives: np.ndarray) -> float:
            return statistic(levels.count(positives), levels.count(negatives))

        samples = (levels.positives, levels.negatives)
        values = np.array(
            [
                of(*(rng.choice(sample, len(sample)) for sample in samples))
                for _ in range(self._statistics.bootstrap)
            ]
        )
        self.number(metric, of(*samples), len(positives), self._percentile(values), subset)

    def number(
        self,
        metric: str,
        value: float | None,
        of: int,
        interval: tuple[float | None, float | None] = (None, None),
        subset: str = "all",
        anchor: str = "none",
    ) -> None:
        """Add a number of ``of`` units with its interval, if any."""
        row = {
            "metric": metric,
            "anchor": anchor,
            "alpha": "none",
            "subset": subset,
            "of": of,
            "value": value,
        }
        self._rows.append(row | dict(zip(("low", "high"), interval, strict=True)))

    def frame(self) -> pd.DataFrame:
        """Return the table."""
        return pd.DataFrame(self._rows, columns=COLUMNS).astype({"count": "Int64"})

    def _rng(self, metric: str, anchor: str, alpha: str, subset: str) -> np.random.Generator:
        return seeds.numpy_rng(self._seed, *self._path, "bootstrap", metric, anchor, alpha, subset)

    def _percentile(self, values: np.ndarray) -> tuple[float, float]:
        return intervals.percentile(values, self._statistics.confidence)
