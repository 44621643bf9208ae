"""An alpha with a known false-alarm rate, from real images that the model never saw.

The paper's alpha = 0.5 guarantees no false-positive rate, and on simple data it flags many held-out
images. So alpha is calibrated on the held-out images: they are split in half, each half calibrates
alpha and the other half, which was not used for it, estimates the false-alarm rate at that alpha;
alpha and rate are averaged over both directions of several random splits (cross-fitting).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from afterimage import seeds
from afterimage.config import ConfigError

HALVINGS = 20
"""Number of random splits that alpha and its rate are averaged over."""
FEWEST = 20
"""Minimum number of held-out images for a calibrated alpha."""


@dataclass(frozen=True)
class Calibration:
    """A cross-fitted alpha.

    Attributes:
        alpha: Mean of the alphas of all halves; 0, which flags nothing, with fewer than ``FEWEST``
            images or without a finite distance.
        flagged: float64 (m,), per held-out image the share of the splits that flag it while it is
            not used for calibration. Its mean is the out-of-sample false-alarm rate.
    """

    alpha: float
    flagged: np.ndarray


def halves(count: int, seed: int, halving: int = 0) -> np.ndarray:
    """Return the mask of the held-out images used for calibration, bool (count,); the same for
    every arm and replicate of a study.

    Raises:
        ConfigError: for fewer than 2 images.
    """
    if count < 2:
        raise ConfigError(f"calibrating alpha needs at least 2 held-out images, not {count}")
    half = np.zeros(count, bool)
    rng = seeds.numpy_rng(seed, "attack", "extraction", "halves", halving)
    half[rng.permutation(count)[: count // 2]] = True
    return half


def cross_fit(relative_distances: np.ndarray, rate: float, seed: int) -> Calibration:
    """Calibrate on the relative distances of held-out images, float64 (m,); see
    ``largest_alpha``."""
    count = len(relative_distances)
    finite = relative_distances[np.isfinite(relative_distances)]
    if count < FEWEST or not len(finite):
        return Calibration(0.0, np.zeros(count))
    alphas, flagged = [], np.zeros(count)
    for halving in range(HALVINGS):
        half = halves(count, seed, halving)
        for calibrates in (half, ~half):
            alpha = min(largest_alpha(relative_distances[calibrates], rate), finite.max())
            alphas.append(alpha)
            flagged[~calibrates] += (relative_distances[~calibrates] <= alpha) & (alpha > 0)
    return Calibration(float(np.mean(alphas)), flagged / HALVINGS)


def smallest_rate(count: int) -> float:
    """Return the smallest false-alarm rate that ``count`` held-out images can distinguish from
    zero: 5 of one half."""
    return min(1.0, 5 / (count // 2)) if count > 1 else 1.0


def largest_alpha(relative_distances: np.ndarray, rate: float) -> float:
    """Return the largest alpha at which at most a share ``rate`` of the images is flagged.

    With a = the largest number of images that the rate allows, that is the largest floating-point
    number below the (a + 1)-th smallest relative distance. If that distance is 0, i.e. more
    held-out images than allowed are byte-identical to training images, no alpha achieves the rate;
    the result is then 0, which flags nothing.

    Args:
        relative_distances: Of the images used for calibration, float64 (N,), N >= 1; may contain
            infinities.
        rate: In [0, 1).
    """
    count = len(relative_distances)
    allowed = math.floor(rate * count)
    if (allowed + 1) / count <= rate:  # rate * count was rounded to just below an integer
        allowed += 1
    first_too_many = np.partition(relative_distances, allowed)[allowed]
    return float(np.nextafter(first_too_many, 0)) if first_too_many > 0 else 0.0
