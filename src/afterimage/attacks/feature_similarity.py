"""Copies by similarity in a feature space: generations that are more similar to a training image
than unseen images are (Somepalli et al. 2023).

The similarity of two images is the cosine of their features; that of one image is the largest with
any training image. R, the 95th percentile over the generations, and the share above 0.5 are what
papers report. A cut-off of 0.5 has no false-alarm rate: it depends on network and data how many
unseen images lie above it. So a level is calibrated on held-out images (``calibration``), and the
answer compares generations with held-out images over all levels at once (``verdict``), both with
the distance 1 - cosine.

The background is the similarity of each training image to the most similar different one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afterimage.attacks import calibration, verdict
from afterimage.metrics import similarity
from afterimage.metrics.exceedance import TAIL

FIXED = 0.5
"""The published cut-off."""
ROUNDING = 1e-6
"""Features of float32 that differ by rounding alone have a smaller distance."""


@dataclass(frozen=True)
class Compared:
    """Images compared with the training images.

    Attributes:
        rows: int64 (N,), the most similar training image, the lowest of equally similar ones.
        similarities: float64 (N,), the cosine with it.
    """

    rows: np.ndarray
    similarities: np.ndarray

    @property
    def distances(self) -> np.ndarray:
        """1 - cosine, float64 (N,); rounding makes none negative."""
        return np.maximum(0.0, 1 - self.similarities)


@dataclass(frozen=True)
class FeatureSimilarity:
    """Similarities and the answer that they give.

    Attributes:
        generations: The generations.
        holdout: The held-out images; None without.
        background: float64, similarity of each different training image to the most similar other
            one; None with a single one.
        level: The calibrated level, a cosine; None without held-out images, or with too few.
        above_level: bool (N,), generations at or above it; None without a level.
        holdout_above_level: float64 (M,), per held-out image the share of the splits in which it is
            above the level while it is not used for calibration; None without a level.
        verdict: The answer; its ``threshold`` is a distance, 1 - cosine.
        flagged: bool (N,), generations above the answer's level.
    """

    generations: Compared
    holdout: Compared | None
    background: np.ndarray | None
    level: float | None
    above_level: np.ndarray | None
    holdout_above_level: np.ndarray | None
    verdict: verdict.Verdict
    flagged: np.ndarray


def compare(
    generations: np.ndarray,
    train: np.ndarray,
    holdout: np.ndarray | None,
    contents: np.ndarray,
    low_detail: np.ndarray,
    holdout_low_detail: np.ndarray | None,
    rate: float,
    seed: int,
    confidence: float,
) -> FeatureSimilarity:
    """Compare generations and held-out images with training images by their features.

    Args:
        generations: (V, N, D), N >= 1: features of the generations. V is 1, or 2 with mirrored
            images too, second; the larger similarity counts.
        train: (V, T, D), T >= 1.
        holdout: (V, M, D), of held-out images that are not training images; None without.
        contents: (T,), equal for training images with equal pixels.
        low_detail: bool (N,), generations that are blank or blurred; not counted as copies.
        holdout_low_detail: bool (M,), held-out images that are; None without.
        rate: False-alarm rate of the calibrated level.
        seed: Root seed; determines the splits of the held-out images.
        confidence: Of the answer.
    """
    near = _compared(generations, train)
    unseen = None if holdout is None or not holdout.shape[1] else _compared(holdout, train)

    # Calibrate a level.
    level = above = holdout_above = None
    if unseen is not None:
        fitted = calibration.cross_fit(unseen.distances, rate, seed)
        if fitted.alpha > 0:
            level, holdout_above = 1 - fitted.alpha, fitted.flagged
            above = near.distances <= fitted.alpha

    # Compare the training images with each other, equal ones once.
    _, first, groups = np.unique(contents, return_index=True, return_inverse=True)
    different = np.sort(first)
    background = None
    if len(different) > 1:
        some = train[:, different]
        background = _compared(some, some, groups[different]).similarities

    held_out: np.ndarray | None = None
    if holdout is not None:
        held_out = np.empty(0)
        if unseen is not None and holdout_low_detail is not None:
            held_out = np.where(holdout_low_detail, np.inf, unseen.distances)
    answer, flagged = verdict.decide(
        np.where(low_detail, np.inf, near.distances),
        held_out,
        groups[near.rows],
        low_detail,
        0,
        len(different),
        confidence,
    )
    if answer.outcome == verdict.NOT_SHOWN and unseen is not None:
        alike = unseen.distances <= ROUNDING
        if alike.mean() > TAIL:  # no generation can be nearer than these
            answer = verdict.Verdict(
                verdict.CANNOT_TELL,
                f"the space does not tell these images apart: {alike.sum()} of {len(alike)} "
                "held-out images have the features of a training image.",
                len(near.rows),
                len(alike),
                confidence=confidence,
            )
    return FeatureSimilarity(near, unseen, background, level, above, holdout_above, answer, flagged)


def _compared(
    images: np.ndarray, gallery: np.ndarray, sources: np.ndarray | None = None
) -> Compared:
    """Return the most similar image of the gallery's first view to any view of each image; with
    ``sources``, of another source."""
    rows, cosines = similarity.nearest(images[0], gallery[0], sources, sources)
    for view in images[1:]:
        other_rows, other = similarity.nearest(view, gallery[0], sources, sources)
        better = (other > cosines) | ((other == cosines) & (other_rows < rows))
        rows, cosines = np.where(better, other_rows, rows), np.where(better, other, cosines)
    return Compared(rows, cosines.clip(-1, 1))
