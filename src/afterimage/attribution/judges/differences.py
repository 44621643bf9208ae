"""Differences between the scores of attributors, paired by subset and query.

Every attributor predicts the same networks, so that most of what makes a score uncertain, the
choice of subsets, is common to all and cancels in a difference. Two scores may differ clearly where
their own intervals overlap.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from afterimage.attribution.judges.lds import Correlations, difference

COLUMNS = ["attributor", "other", "difference", "low", "high", "p", "p_adjusted"]


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values adjusted for the size of their family after Holm (1979), float64 (P,).

    At a level of 5 %, at most 5 % of families have any false finding. A missing p-value (NaN)
    counts as 1 and stays missing.
    """
    filled = np.nan_to_num(p_values, nan=1.0)
    order = np.argsort(filled, kind="stable")
    steps = np.maximum.accumulate(filled[order] * np.arange(len(filled), 0, -1))
    adjusted = np.empty_like(filled)
    adjusted[order] = np.minimum(steps, 1)
    return np.where(np.isnan(p_values), np.nan, adjusted)


def between_attributors(correlations: dict[str, Correlations], confidence: float) -> pd.DataFrame:
    """Return the difference of every pair of attributors, in the order of ``correlations``.

    Args:
        correlations: Attributor -> its correlations; all with the same subsets and queries.
        confidence: Coverage of each interval, by itself.

    Returns:
        Columns ``COLUMNS``: ``difference`` is the score of ``attributor`` minus that of ``other``,
        ``p`` the p-value of no difference and ``p_adjusted`` the same adjusted for the number of
        pairs (``holm``); see ``lds.Difference`` for where they are NaN.
    """
    rows = []
    for (name, first), (other, second) in combinations(correlations.items(), 2):
        found = difference(first, second, confidence)
        rows.append((name, other, found.value, found.low, found.high, found.p))
    table = pd.DataFrame(rows, columns=COLUMNS[:-1])
    return table.assign(p_adjusted=holm(table["p"].to_numpy(np.float64)))
