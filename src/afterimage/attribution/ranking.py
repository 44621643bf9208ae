"""Rankings of the training images by scores."""

from __future__ import annotations

import numpy as np
import pandas as pd

from afterimage.artifacts import ArtifactError

TOP = 16
"""Top-ranked training images that are listed per query."""


def check_finite(scores: np.ndarray, name: str, regulariser: float) -> np.ndarray:
    """Return ``scores``.

    Raises:
        ArtifactError: naming the attributor, if a score is NaN or infinite.
    """
    if not np.isfinite(scores).all():
        raise ArtifactError(
            f"attributor {name} gives scores that are NaN or infinite (regulariser {regulariser:g})"
        )
    return scores


def top_images(scores: np.ndarray, ids: np.ndarray, count: int = TOP) -> pd.DataFrame:
    """Return the ``count`` top-ranked training images of each query.

    Args:
        scores: (Q, N); of equal scores, the earlier image ranks first.
        ids: Ids of the training images, (N,).
        count: Images per query.

    Returns:
        Rows by query and rank: ``query`` (its position), ``rank`` (from 0), ``id``, ``score``.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    queries, ranks = order.shape
    return pd.DataFrame(
        {
            "query": np.repeat(np.arange(queries), ranks),
            "rank": np.tile(np.arange(ranks), queries),
            "id": ids[order].ravel(),
            "score": np.take_along_axis(scores, order, axis=1).ravel(),
        }
    )
