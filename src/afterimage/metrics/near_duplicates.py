"""Near-duplicates: images that are a gallery's image but for a re-encoding, a little noise or
brightness.

An image is a near-duplicate of the gallery image nearest to it when its relative distance is at
most ``NEAR``: the normalised l2 distance to that image, divided by the mean distance of that image
to its 50 nearest different others. This is the adaptive distance of the extraction attack (Carlini
et al. 2023, section 5.1) at alpha = 1, so that a control image that is left out is one that the
attack would take for a copy.

``NEAR`` = 0.15 was measured on digits, MNIST, CIFAR-10 and emoji at 8 x 8 to 32 x 32: below it lies
no independent image of the first three (in random galleries of 10 to 1,000 digits at most 0.3 in
1,000) and of the emoji those alone that look the same. It finds all images with noise of 2 and
nearly all with noise of 8 in 255, most that are brighter by 5 % and, where edges are soft, most
that were JPEG files in between. It does not find crops or images shifted by a pixel, nor those
near-duplicates of CIFAR-10's own that lie at 0.28 or more, where independent digits lie too. What
is left out is missing from the lower tail of the very distances that a control measures, so a
larger ``NEAR`` would make false alarms vanish by construction, while a duplicate that stays only
makes the attack look less certain than it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afterimage import scratch
from afterimage.images import different
from afterimage.metrics.neighbours import Gallery

NEAR = 0.15
"""Largest relative distance of a near-duplicate."""
NEIGHBOURS = 50
"""Different gallery images that the distance is relative to; all others where there are fewer."""


@dataclass(frozen=True)
class NearDuplicates:
    """What N images duplicate.

    Attributes:
        rows: int64 (N,), the gallery image that each duplicates, the lowest of equal ones; -1 for
            none.
        exact: bool (N,), byte-identical to it, or to its mirror image where these count.
        distances: float64 (N,), normalised l2 to the nearest gallery image, duplicate or not.
        relative: float64 (N,), the same as a relative distance; infinite where the gallery has one
            different image, unless exact.
    """

    rows: np.ndarray
    exact: np.ndarray
    distances: np.ndarray
    relative: np.ndarray


def find(images: np.ndarray, gallery: np.ndarray, flips: bool) -> NearDuplicates:
    """Say which images are duplicates or near-duplicates of a gallery's.

    Args:
        images: uint8, (N, H, W, C).
        gallery: uint8, (G, H, W, C), G >= 1; equal images count once.
        flips: Compare mirrored images too.

    Raises:
        ConfigError: for an empty gallery, or images of another kind or shape.
    """
    rows, _ = different(gallery, flips)
    search = Gallery(scratch.taken(gallery, rows))
    nearest = search.nearest(images, 1, flips=flips)
    found, distances = nearest.rows[:, 0], nearest.distances[:, 0]

    relative = np.where(distances == 0, 0.0, np.inf)
    others = min(NEIGHBOURS, len(search) - 1)
    if others:
        once, position = np.unique(found, return_inverse=True)
        means = search.nearest(
            search.images[once], others, exclude=once, flips=flips
        ).distances.mean(axis=1)
        relative = distances / means[position]  # different images have a distance
    return NearDuplicates(
        np.where(relative <= NEAR, rows[found], -1), distances == 0, distances, relative
    )


def alone(images: np.ndarray, flips: bool) -> np.ndarray:
    """Say which images have neither a duplicate nor a near-duplicate among the others.

    An image is compared with the others as ``find`` compares it with a gallery of them. If it is a
    near-duplicate of another, neither of the two is alone.

    Args:
        images: uint8, (N, H, W, C), N >= 1.
        flips: Compare mirrored images too.

    Returns:
        bool, (N,).

    Raises:
        ConfigError: as ``find``.
    """
    rows, times = different(images, flips)
    single = times == 1
    if len(rows) > 1:
        search, every = Gallery(scratch.taken(images, rows)), np.arange(len(rows))
        nearest = search.nearest(search.images, 1, exclude=every, flips=flips)
        found, distances = nearest.rows[:, 0], nearest.distances[:, 0]
        others = min(NEIGHBOURS, len(search) - 2)
        if others:
            once, position = np.unique(found, return_inverse=True)
            around = search.nearest(search.images[once], others + 1, exclude=once, flips=flips)
            # Of the neighbours of the nearest, the image itself does not count; the farthest does
            # not where it is not among them.
            ignored = around.rows[position] == every[:, None]
            ignored[~ignored.any(axis=1), -1] = True
            means = around.distances[position][~ignored].reshape(-1, others).mean(axis=1)
            near = distances / means <= NEAR
            single[near] = False
            single[found[near]] = False
    result = np.zeros(len(images), bool)
    result[rows[single]] = True
    return result
