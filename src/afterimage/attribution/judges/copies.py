"""Known truth: a generation that shows a training image planted m times was made by those m copies.

Similarities should rank the copies first. Scores of leaving a single image out need not: without one copy the others still
stand for it, and the prediction hardly moves. For the same reason the leverage of an image falls with its copies, to about
1 / m where their gradients agree, so that a low leverage points at duplicates without any query.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from afterimage.config import ConfigError

COLUMNS = ["query", "source", "copies", "recall", "chance"]


def recall(scores: np.ndarray, sources: np.ndarray, query_sources: np.ndarray) -> pd.DataFrame:
    """Return how many of a query's m copies are among the first m of its ranking.

    Where equal scores straddle the m-th place, the copies among them count as on average over the orders of these images.

    Args:
        scores: float64, (Q, N), finite.
        sources: Source of each training image, (N,); copies share it.
        query_sources: Source of the training image that each query shows, (Q,).

    Returns:
        One row per query: ``query`` (its position), ``source``, ``copies`` (m), ``recall`` (share of the copies found) and
        ``chance`` (the same for a random ranking, m / N).

    Raises:
        ConfigError: if no training image has a query's source.
    """
    table = []
    for query, source in enumerate(query_sources):
        copy = sources == source
        m = int(copy.sum())
        if m == 0:
            raise ConfigError(
                f"query {query} shows source {source}, but no training image has that source"
            )
        own = scores[query]
        last = np.sort(own)[-m]
        above, level = own > last, own == last
        found = (above & copy).sum() + (level & copy).sum() * (m - above.sum()) / level.sum()
        table.append(
            {
                "query": query,
                "source": source,
                "copies": m,
                "recall": found / m,
                "chance": m / len(sources),
            }
        )
    return pd.DataFrame(table, columns=COLUMNS)


def leverage_auc(leverage: np.ndarray, copies: np.ndarray) -> float:
    """Return the chance that a training image with copies has a smaller leverage than one without; ties count half.

    Args:
        leverage: float64, (N,).
        copies: How often each image is there, int64 (N,), 1 for one without copies.

    Raises:
        ConfigError: unless there are images of both kinds.
    """
    several = copies > 1
    if several.all() or not several.any():
        raise ConfigError(
            f"leverage is compared between images with and without copies, but {several.sum()} of {len(copies)} have some"
        )
    return float(roc_auc_score(several, -leverage))
