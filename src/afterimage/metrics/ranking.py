"""How well a score ranks one sample, the positives, before another, the negatives.

The area under the ROC curve (the probability that a positive comes before a negative, ties count
half: Hanley and McNeil 1982) and the average precision (the mean precision at the positives; ties
share a threshold). Both need only how many of either sample lie at each level of the score, so a
resample is another pair of counts at the same levels.
"""

from __future__ import annotations

import numpy as np


class Levels:
    """The levels of a score: the different values of two samples together, ascending.

    Attributes:
        scores: The score at each level, (L,).
        positives: int64 (P,): the level of each positive.
        negatives: int64 (N,): the level of each negative.
    """

    def __init__(self, positives: np.ndarray, negatives: np.ndarray) -> None:
        """Find the levels of the scores of P positives and N negatives; small scores come first,
        infinite ones last."""
        self.scores, levels = np.unique(np.concatenate([positives, negatives]), return_inverse=True)
        self.positives, self.negatives = levels[: len(positives)], levels[len(positives) :]

    def count(self, levels: np.ndarray) -> np.ndarray:
        """Return how many of ``levels``, int64 (U,), are at each level, int64 (L,)."""
        return np.bincount(levels, minlength=len(self.scores))


def area(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return the area under the ROC curve from counts at each level, int64 (L,) each."""
    after = negatives.sum() - np.cumsum(negatives) + negatives / 2
    return float(positives @ after / (positives.sum() * negatives.sum()))


def average_precision(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return the average precision from counts at each level, int64 (L,) each."""
    called = np.cumsum(positives + negatives)
    precision = np.cumsum(positives) / np.maximum(called, 1)
    return float(positives @ precision / positives.sum())


def roc_auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return the probability that the score of a positive, (P,), is below that of a negative, (N,);
    ties count half."""
    levels = Levels(positives, negatives)
    return area(levels.count(levels.positives), levels.count(levels.negatives))
