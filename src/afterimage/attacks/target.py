"""A training set under attack: the nearest training image of each query, and its distance relative
to that of neighbours.

This is the part of untargeted extraction (Carlini et al. 2023, section 5.1) that looks at pixels;
everything after it is counting. It is independent of planted ground truth, held-out images and
thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afterimage import config, scratch
from afterimage.attacks import adaptive, mq
from afterimage.config import ConfigError
from afterimage.images import different
from afterimage.metrics.neighbours import Gallery
from afterimage.progress import batches


@dataclass(frozen=True)
class Scores:
    """The result of comparing Q images with a target.

    Attributes:
        row: int64 (Q,), nearest training image, a row of the target's images; the lowest on ties.
        distance: float64 (Q,), distance to it, normalised l2 or tiled l2.
        relative: anchor -> float64 (Q,), ``adaptive.relative``: the ratio at alpha = 1.
        mq: float64 (Q,), the ratio of ``mq``.
        zero_mean: anchor -> bool (Q,), whether the neighbours' mean distance is 0.
    """

    row: np.ndarray
    distance: np.ndarray
    relative: dict[str, np.ndarray]
    mq: np.ndarray
    zero_mean: dict[str, np.ndarray]

    @property
    def zero_means(self) -> dict[str, int]:
        """Anchor -> number of images for which the neighbours' mean distance is 0."""
        return {anchor: int(zero.sum()) for anchor, zero in self.zero_mean.items()}

    def take(self, rows: np.ndarray) -> Scores:
        """Return the scores of some of the images (positions or a mask)."""
        relative, zero_mean = (
            {anchor: values[rows] for anchor, values in by_anchor.items()}
            for by_anchor in (self.relative, self.zero_mean)
        )
        return Scores(self.row[rows], self.distance[rows], relative, self.mq[rows], zero_mean)


class Target:
    """Training images, prepared for comparison.

    Attributes:
        rows: int64 (G,), the rows of ``images`` in the gallery: the first of each content, or all.
        neighbours: n of the adaptive distance: the setting, or the number of other images if that
            is smaller. With a single image it is 0, and relative distances are 0 for exact copies
            and infinite for all others.
        mq_neighbours: n of MQ, likewise.
    """

    def __init__(self, images: np.ndarray, settings: config.Extraction, flips: bool):
        """Prepare a target.

        Args:
            images: uint8 or floating in [0, 1], (N, H, W, C).
            settings: Settings of the attack.
            flips: Compare mirrored images too (not in MQ, which is defined without them).

        Raises:
            ConfigError: without images, for values outside [0, 1], or for tiles that do not fit.
        """
        check_range(images, "training")
        self.images, self.settings, self.flips = images, settings, flips
        self.rows, self._times = np.arange(len(images)), np.ones(len(images), np.int64)
        if settings.gallery == "distinct":
            self.rows, self._times = different(images)
        if not len(self.rows):
            raise ConfigError("extraction needs at least 1 training image")
        self.neighbours = min(settings.neighbours, len(self.rows) - 1)
        self.mq_neighbours = min(settings.mq_neighbours, len(self.rows))
        gallery = images if len(self.rows) == len(images) else scratch.taken(images, self.rows)
        self._gallery = Gallery(gallery, settings.tiles if settings.distance == "tiled" else 1)
        self._plain = self._gallery if settings.distance == "l2" else Gallery(gallery)
        self._means = np.full(len(self.rows), np.nan)  # of each gallery image, on demand

    def score(self, images: np.ndarray) -> Scores:
        """Compare images, of the training images' dtype and shape, with the target.

        Raises:
            ConfigError: for images of another dtype or shape, or with values outside [0, 1].
        """
        check_range(images, "compared")
        count, block = len(images), self.settings.block
        nearest = np.empty(count, np.int64)
        distance, mean, mq_ratio = np.empty(count), np.empty(count), np.empty(count)
        shared = self._plain is self._gallery and not self.flips
        k = max(self.neighbours, self.mq_neighbours) if shared else max(1, self.neighbours)
        for start in batches(count, block, "compared", "images"):
            rows = slice(start, start + block)
            result = self._gallery.nearest(images[rows], k, flips=self.flips, block=block)
            nearest[rows], distance[rows] = result.rows[:, 0], result.distances[:, 0]
            n = self.neighbours
            mean[rows] = result.distances[:, :n].sum(axis=1) / max(1, n)
            if not shared:
                result = self._plain.nearest(images[rows], self.mq_neighbours, block=block)
            mq_ratio[rows] = mq.ratios(result.distances[:, : self.mq_neighbours])
        means = {"training": self._means_of(nearest), "candidate": mean}
        return Scores(
            row=self.rows[nearest],
            distance=distance,
            relative={
                anchor: adaptive.relative(distance, means[anchor]) for anchor in adaptive.ANCHORS
            },
            mq=mq_ratio,
            zero_mean={anchor: means[anchor] == 0 for anchor in adaptive.ANCHORS},
        )

    def rows_within(self, images: np.ndarray, radius: float) -> np.ndarray:
        """Count the training rows, including exact copies, within ``radius`` of each image in
        normalised l2, int64 (Q,)."""
        return self._plain.count_within(
            images, radius, weights=self._times, block=self.settings.block
        )

    def _means_of(self, nearest: np.ndarray) -> np.ndarray:
        """Return the mean distance of gallery images to their n nearest others (with
        ``include_self``: including themselves)."""
        new = np.unique(nearest[np.isnan(self._means[nearest])])
        others = self.neighbours - 1 if self.settings.include_self else self.neighbours
        if others > 0 and len(new):
            for start in range(0, len(new), self.settings.block):
                block = new[start : start + self.settings.block]
                nearest_others = self._gallery.nearest(
                    self._gallery.images[block],
                    others,
                    exclude=block,
                    flips=self.flips,
                    block=self.settings.block,
                )
                self._means[block] = nearest_others.distances.sum(axis=1) / self.neighbours
        else:
            self._means[new] = 0.0
        return self._means[nearest]


def check_range(images: np.ndarray, name: str) -> None:
    """Refuse pixel values that are not in [0, 1].

    Raises:
        ConfigError: naming the images and their range.
    """
    if images.dtype != np.uint8 and images.size and not (images.min() >= 0 and images.max() <= 1):
        raise ConfigError(
            f"{name} images must be uint8, or floating with finite values in [0, 1]; theirs are "
            f"in [{images.min()}, {images.max()}]"
        )
