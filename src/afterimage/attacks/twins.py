"""The counterfactual control: would the attack have "extracted" an image that was never trained on?

Every planted image has a twin, drawn with it at random from the same pool, that no arm trains on.
Swapping the planted images of the training set for their twins and attacking the same generations
again answers the question per number of copies. Planted images and twins ranked together by their
smallest ratio give a precision-recall curve with exact ground truth, instead of the manual labels
of Carlini et al. 2023 (figure 4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from afterimage.artifacts import ArtifactError
from afterimage.images import Images


@dataclass(frozen=True)
class Planted:
    """The planted ground truth.

    Attributes:
        sources: (P,), the planted images' source ids.
        copies: int64 (P,), how often each was planted.
        twins: P images, the never-trained twin of each.
    """

    sources: np.ndarray
    copies: np.ndarray
    twins: Images

    def among(self, sources: np.ndarray) -> Planted:
        """Return the ground truth restricted to the planted images in ``sources``: an arm may train
        on a subset."""
        mask = np.isin(self.sources, sources)
        return Planted(self.sources[mask], self.copies[mask], self.twins.take(mask))


def read(index: pd.DataFrame, twins: Images) -> Planted:
    """Build the ground truth from a planting's index and its twins.

    Raises:
        ArtifactError: if the two do not name the same twins.
    """
    rows = index[index["part"] == "twin"].set_index("id")
    if set(rows.index) != set(twins.ids.tolist()):
        raise ArtifactError(
            "the index and the twins' images do not name the same twins: they come from different "
            "plantings"
        )
    rows = rows.loc[twins.ids]
    return Planted(rows["twin_of"].to_numpy(), rows["copies"].to_numpy(np.int64), twins)


def swap(train: Images, planted: Planted) -> Images:
    """Return the training set with every row of a planted source replaced by its twin; ids stay."""
    position = pd.Index(planted.sources).get_indexer(pd.Index(train.sources))
    swapped = position >= 0
    twins, own = planted.twins, position[swapped]

    def taken(values: np.ndarray, others: np.ndarray) -> np.ndarray:
        changed = values.astype(np.promote_types(values.dtype, others.dtype))  # longer texts fit
        changed[swapped] = others[own]
        return changed

    return replace(
        train,
        pixels=taken(train.pixels, twins.pixels),
        sources=taken(train.sources, twins.ids),
        labels=taken(train.labels, twins.labels),
        captions=taken(train.captions, twins.captions),
    )


class Ranking:
    """Planted images and twins in one list, in order of increasing ratio."""

    def __init__(self, planted_ratio: np.ndarray, twin_ratio: np.ndarray):
        """Rank P planted images and their P twins; infinite means that no generation came near.

        Args:
            planted_ratio: Smallest ratio of each planted image, float64 (P,).
            twin_ratio: Of its twin in the swapped run, float64 (P,).
        """
        both = np.concatenate([planted_ratio, twin_ratio])
        self._score = -rankdata(both, method="dense")  # ranks, since infinities have no score
        self._ratio = dict(zip(self._score, both, strict=True))
        self._truth = np.repeat([1, 0], len(planted_ratio))

    def curve(self) -> pd.DataFrame:
        """Return the curve: ``recall``, ``precision`` and ``ratio``, the largest ratio called
        extracted at that point."""
        from sklearn.metrics import precision_recall_curve

        precision, recall, score = precision_recall_curve(self._truth, self._score)
        ratio = [self._ratio[s] for s in score] + [np.nan]  # the last point calls nothing extracted
        return pd.DataFrame({"recall": recall, "precision": precision, "ratio": ratio})

    def average_precision(self, pairs: np.ndarray | None = None) -> float:
        """Return the average precision, over all or over the resampled ``pairs``, int64 (P,)."""
        from sklearn.metrics import average_precision_score

        rows = self._rows(pairs)
        return float(average_precision_score(self._truth[rows], self._score[rows]))

    def auc(self, pairs: np.ndarray | None = None) -> float:
        """Return the probability that a planted image ranks before a twin (ties count half), over
        all or over resampled ``pairs``."""
        from sklearn.metrics import roc_auc_score

        rows = self._rows(pairs)
        return float(roc_auc_score(self._truth[rows], self._score[rows]))

    def _rows(self, pairs: np.ndarray | None) -> np.ndarray:
        half = len(self._truth) // 2
        pairs = np.arange(half) if pairs is None else pairs
        return np.concatenate([pairs, pairs + half])
