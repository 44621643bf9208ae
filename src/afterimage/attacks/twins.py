"""The counterfactual control: would the attack have "extracted" an image that was never trained on?

Every planted image has a twin, drawn with it at random from the same pool, that no arm trains on.
Swapping the planted images of the training set for their twins and attacking the same generations
again answers the question per number of copies. Planted images and twins ranked together by their
smallest ratio give a precision-recall curve with exact ground truth, instead of the manual labels
of Carlini et al. 2023 (figure 4).

Images that were planted in other styles than with their captions (``data.planting``) are counted
apart: copies of an image with other captions, or of a caption with other images, are another
experiment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from afterimage import scratch
from afterimage.artifacts import ArtifactError
from afterimage.images import Images
from afterimage.metrics import ranking


@dataclass(frozen=True)
class Planted:
    """The planted ground truth.

    Attributes:
        sources: (P,), the planted images' source ids.
        copies: int64 (P,), how often each image was planted; 1 if its caption alone is repeated.
        twins: P images, the never-trained twin of each.
        repeat: text (P,), what was planted: both (the image with its caption), image or caption.
        times: int64 (P,), how often that was planted.
        carriers: Source of each image that carries the caption of a planted one instead of its own
            -> how often the caption was planted.
    """

    sources: np.ndarray
    copies: np.ndarray
    twins: Images
    repeat: np.ndarray
    times: np.ndarray
    carriers: dict[int, int]

    def among(self, sources: np.ndarray) -> Planted:
        """Return the ground truth restricted to the planted images in ``sources``: an arm may train
        on a subset."""
        mask = np.isin(self.sources, sources)
        return Planted(
            self.sources[mask],
            self.copies[mask],
            self.twins.take(mask),
            self.repeat[mask],
            self.times[mask],
            self.carriers,
        )

    def with_captions(self) -> Planted:
        """Return the images that were planted with their captions."""
        return self.among(self.sources[self.repeat == "both"])

    def of(self, sources: np.ndarray | pd.Series) -> pd.DataFrame:
        """Return how images of the training set were planted: ``copies``, ``repeat`` and ``times``
        of each source, in order; 1, neither and 1 for an image that is not planted, but carrier
        and how often the caption was planted for one that carries it."""
        columns = {"copies": self.copies, "repeat": self.repeat, "times": self.times}
        table = pd.DataFrame(columns, index=self.sources).reindex(sources).reset_index(drop=True)
        table = table.fillna({"copies": 1, "repeat": "neither", "times": 1})
        carried = pd.Series(np.asarray(sources)).map(self.carriers)
        table["repeat"] = table["repeat"].mask(carried.notna(), "carrier")
        table["times"] = carried.fillna(table["times"])
        return table.astype({"copies": np.int64, "times": np.int64})


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
    copies = rows["copies"].to_numpy(np.int64)
    repeat = rows["repeat"].to_numpy()
    times = np.where(repeat == "caption", rows["caption_copies"].to_numpy(np.int64), copies)
    carriers = index[(index["part"] == "train") & (index["repeat"] == "carrier")]
    carried = dict(zip(carriers["source"], carriers["caption_copies"], strict=True))
    return Planted(rows["twin_of"].to_numpy(), copies, twins, repeat, times, carried)


WITH_CAPTIONS = ("neither", "both")
"""Images of which as many are planted as captions."""


def subsets(images: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield the groups of planted images that are counted apart: the end of a metric's name, the
    subset, and the mask, bool (S,).

    Images that were planted with their captions, and unplanted ones, are grouped by their copies
    (``_by_copies``, ``copies=<n>``). If there are others, all are grouped by what was planted and
    how often (``_by_repeat``, ``repeat=<what> times=<n>``).

    Args:
        images: Their ``copies``; with a planted ground truth ``repeat`` and ``times``, too.
    """
    alike = np.ones(len(images), bool)
    if "repeat" in images:
        alike = images["repeat"].isin(WITH_CAPTIONS).to_numpy()
    for number in np.unique(images["copies"][alike]):
        yield "_by_copies", f"copies={number}", alike & (images["copies"] == number).to_numpy()
    if not alike.all():
        for repeat, times in sorted(set(zip(images["repeat"], images["times"], strict=True))):
            mask = (images["repeat"] == repeat) & (images["times"] == times)
            yield "_by_repeat", subset(repeat, times), mask.to_numpy()


def subset(repeat: str, times: int) -> str:
    """Return the subset of images of which so much was planted so often."""
    return f"repeat={repeat} times={times}"


def swap(train: Images, planted: Planted) -> Images:
    """Return the training set with the image of a planted source replaced by its twin in every row
    that shows it, and its caption by its twin's in every row that has it; ids stay."""
    twins, known = planted.twins, pd.Index(planted.sources)

    def taken(values: np.ndarray, others: np.ndarray, sources: np.ndarray) -> np.ndarray:
        position = known.get_indexer(pd.Index(sources))
        wider = np.promote_types(values.dtype, others.dtype)  # longer texts fit
        changed = scratch.joined([values.astype(wider, copy=False)])
        changed[position >= 0] = others[position[position >= 0]]
        return changed

    return replace(
        train,
        pixels=taken(train.pixels, twins.pixels, train.sources),
        sources=taken(train.sources, twins.ids, train.sources),
        labels=taken(train.labels, twins.labels, train.sources),
        captions=taken(train.captions, twins.captions, train.caption_sources),
        caption_sources=taken(train.caption_sources, twins.ids, train.caption_sources),
    )


def precision_recall(planted_ratio: np.ndarray, twin_ratio: np.ndarray) -> pd.DataFrame:
    """Return the curve of planted images and their twins in one list, from all called extracted to
    none: ``recall``, ``precision`` and ``ratio``, the largest ratio called extracted at that point.

    Args:
        planted_ratio: Smallest ratio of each planted image, float64 (P,); infinite means that no
            generation came near.
        twin_ratio: Of its twin in the swapped run, float64 (P,).
    """
    levels = ranking.Levels(planted_ratio, twin_ratio)
    planted = levels.count(levels.positives)
    found, called = np.cumsum(planted), np.cumsum(planted + levels.count(levels.negatives))
    rows = {"recall": found / found[-1], "precision": found / called, "ratio": levels.scores}
    curve = pd.DataFrame(rows).iloc[::-1]
    nothing = pd.DataFrame({"recall": [0.0], "precision": [1.0], "ratio": [np.nan]})
    return pd.concat([curve, nothing], ignore_index=True)
