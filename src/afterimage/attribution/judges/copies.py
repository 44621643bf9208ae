"""Known sources: a generation that shows a training image planted m times owes it to the m copies.

Similarities should rank the copies first. Leave-one-out scores need not: when one copy is left out,
the others replace it and the prediction hardly changes. For the same reason the leverage of an
image falls with the number of its copies, to about 1 / m where their gradients agree, so that a low
leverage indicates duplicates without any query.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from afterimage.config import ConfigError
from afterimage.metrics.ranking import roc_auc

COLUMNS = ["query", "source", "copies", "recall", "chance"]


def recall(scores: np.ndarray, sources: np.ndarray, query_sources: np.ndarray) -> pd.DataFrame:
    """Return what share of a query's m copies are among the m top-ranked training images.

    If scores are tied at the m-th rank, the result is the expectation over all orders of the tied
    images.

    Args:
        scores: float64, (Q, N), finite.
        sources: Source of each training image, (N,); copies have the same one.
        query_sources: Source of the training image that each query shows, (Q,).

    Returns:
        One row per query: ``query`` (its position), ``source``, ``copies`` (m), ``recall`` and
        ``chance`` (its expectation for a random ranking, m / N).

    Raises:
        ConfigError: if no training image has a query's source.
    """
    table = []
    for query, source in enumerate(query_sources):
        is_copy = sources == source
        m = int(is_copy.sum())
        if m == 0:
            raise ConfigError(
                f"query {query} shows source {source}, but no training image has that source"
            )
        query_scores = scores[query]
        threshold = np.sort(query_scores)[-m]
        above, tied = query_scores > threshold, query_scores == threshold
        retrieved = (above & is_copy).sum() + (tied & is_copy).sum() * (
            m - above.sum()
        ) / tied.sum()
        table.append(
            {
                "query": query,
                "source": source,
                "copies": m,
                "recall": retrieved / m,
                "chance": m / len(sources),
            }
        )
    return pd.DataFrame(table, columns=COLUMNS)


def leverage_auc(leverage: np.ndarray, copies: np.ndarray) -> float:
    """Return the probability that an image with copies has a lower leverage than one without.

    This is the area under the ROC curve; ties count half.

    Args:
        leverage: float64, (N,).
        copies: Number of copies of each image, itself included, int64 (N,).

    Raises:
        ConfigError: unless there are images with and without copies.
    """
    has_copies = copies > 1
    if has_copies.all() or not has_copies.any():
        raise ConfigError(
            f"leverage is compared between images with and without copies, but {has_copies.sum()} "
            f"of {len(copies)} images have copies"
        )
    return roc_auc(leverage[has_copies], leverage[~has_copies])
