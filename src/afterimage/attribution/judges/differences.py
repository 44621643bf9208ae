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
from afterimage.metrics.replicates import holm

COLUMNS = ["attributor", "other", "difference", "low", "high", "p", "p_adjusted"]


def units(correlations: dict[str, Correlations]) -> pd.DataFrame:
    """Return what each subset says of the difference of every pair of attributors.

    Args:
        correlations: As in ``between_attributors``.

    Returns:
        Columns attributor, other, subset and difference, a pseudo-value of the jackknife.
    """
    tables = []
    for (name, first), (other, second) in combinations(correlations.items(), 2):
        values = first.minus(second).units()
        part = {"attributor": name, "other": other, "subset": np.arange(len(values))}
        tables.append(pd.DataFrame(part | {"difference": values}))
    columns = ["attributor", "other", "subset", "difference"]
    return pd.concat(tables) if tables else pd.DataFrame(columns=columns)


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
