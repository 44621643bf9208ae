"""Generate and filter (Carlini et al. 2023, section 4.2): images of one prompt that agree.

Many images are drawn from one prompt. Two of them are joined if their tiled distance is below a
threshold, and the prompt is flagged if ``size`` of them are all joined with each other. No
threshold was published. Here the statistic is the smallest threshold at which there is such a
clique: the diameter of the ``size`` images that agree best. Held-out prompts say which diameters
occur by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx
import numpy as np

from afterimage.metrics import distances

TILES = 4
"""Tiles per side, as published."""

SIZE = 10
"""Images in a clique, as published, for 500 images of a prompt."""

MOST_CLIQUES = 100_000
"""Maximal cliques that are looked at for one threshold; beyond that there is none."""

_PAIRS = 1024
"""Pairs of images compared at once."""


@dataclass(frozen=True)
class Clique:
    """The images of a prompt that agree best.

    Attributes:
        diameter: Largest distance between two of them.
        mean: Mean distance between two of them, by which the paper ranks prompts.
        members: Their rows, ascending.
        bounded: Whether a search was given up after ``MOST_CLIQUES``, so that there may be a
            tighter clique.
    """

    diameter: float
    mean: float
    members: tuple[int, ...]
    bounded: bool


def pairwise(images: np.ndarray, tiles: int = TILES) -> np.ndarray:
    """Return the tiled distances between images.

    Args:
        images: uint8, (M, H, W, C).
        tiles: Tiles per side.

    Returns:
        float64, (M, M), symmetric with a zero diagonal.
    """
    cut = distances.cut(images, tiles)
    result = np.zeros((len(images), len(images)))
    rows, columns = np.triu_indices(len(images), 1)
    for first in range(0, len(rows), _PAIRS):
        a, b = rows[first : first + _PAIRS], columns[first : first + _PAIRS]
        squares = distances.squared(cut[a], cut[b])
        result[a, b] = result[b, a] = distances.normalise(squares, cut.shape[2], images.dtype)
    return result


def tightest(between: np.ndarray, size: int) -> Clique:
    """Return the clique of ``size`` images whose diameter is smallest.

    Args:
        between: Distances, (M, M).
        size: Images in the clique, 2 <= ``size`` <= M.
    """
    thresholds = np.unique(between[np.triu_indices(len(between), 1)])
    bounded = False
    low, high = 0, len(thresholds) - 1
    members = tuple(range(size))  # every pair is joined at the largest threshold
    while low < high:
        middle = (low + high) // 2
        clique, given_up = _clique(between <= thresholds[middle], size)
        bounded = bounded or given_up
        if clique is None:
            low = middle + 1
        else:
            high, members = middle, clique
    inside = between[np.ix_(members, members)][np.triu_indices(size, 1)]
    return Clique(float(inside.max()), float(inside.mean()), members, bounded)


def _clique(joined: np.ndarray, size: int) -> tuple[tuple[int, ...] | None, bool]:
    """Return ``size`` images that are all joined, or None; and whether the search was given up."""
    graph = networkx.from_numpy_array(joined & ~np.eye(len(joined), dtype=bool))
    graph = networkx.k_core(graph, size - 1)
    for number, clique in enumerate(networkx.find_cliques(graph)):
        if len(clique) >= size:
            return tuple(sorted(clique)[:size]), False
        if number == MOST_CLIQUES:
            return None, True
    return None, False
