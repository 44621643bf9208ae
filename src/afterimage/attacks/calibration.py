"""An alpha with a known false-alarm rate, from real images that no model saw.

The paper's alpha = 0.5 promises no false-positive rate, and on simple data it flags many held-out images. So the held-out images
are halved: one half sets alpha, the other, which had no part in it, says what rate that alpha really has.
"""

from __future__ import annotations

import math

import numpy as np

from afterimage import seeds
from afterimage.config import ConfigError


def halves(count: int, seed: int) -> np.ndarray:
    """Return which of ``count`` held-out images calibrate, bool (count,); the same for every arm and replicate of a study.

    Raises:
        ConfigError: for fewer than 2 images.
    """
    if count < 2:
        raise ConfigError(f"calibrating alpha needs at least 2 held-out images, not {count}")
    chosen = np.zeros(count, bool)
    chosen[seeds.numpy_rng(seed, "attack", "extraction", "halves").permutation(count)[: count // 2]] = True
    return chosen


def largest_alpha(relative_distances: np.ndarray, rate: float) -> float:
    """Return the largest alpha at which at most a share ``rate`` of the images is flagged.

    With a = the largest number of images that the rate allows, that is the largest floating-point number below the (a + 1)-th
    smallest relative distance. If that distance is 0, i.e. more held-out images than allowed are byte-identical to
    training images, no alpha keeps the rate; the answer is then 0, which flags nothing.

    Args:
        relative_distances: Of the calibrating images, float64 (N,), N >= 1; may hold infinities.
        rate: In [0, 1).
    """
    count = len(relative_distances)
    allowed = math.floor(rate * count)
    if (allowed + 1) / count <= rate:  # rate * count came out a little under a whole number
        allowed += 1
    first_too_many = np.partition(relative_distances, allowed)[allowed]
    return float(np.nextafter(first_too_many, 0)) if first_too_many > 0 else 0.0
