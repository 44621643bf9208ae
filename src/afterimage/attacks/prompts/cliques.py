"""Generate and filter (Carlini et al. 2023, section 4.2): images of one prompt that agree.

Many images are drawn from one prompt. Two of them are joined if their tiled distance is below a
threshold, and the prompt is flagged if ``size`` of them are all joined with each other. No
threshold was published. There are two ways without one:

- ``tightest``: the statistic is the smallest threshold at which there is such a clique, the
  diameter of the ``size`` images that agree best. Held-out prompts say which diameters occur by
  chance;
- ``largest``: the threshold is a low quantile of the distances between images of different prompts
  (``across``), which agree by chance alone, and the statistic is the size of the largest clique.
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

ACROSS = 10_000
"""Pairs of images of different prompts that are compared."""

_PAIRS = 1024
"""Pairs of images compared at once."""


@dataclass(frozen=True)
class Clique:
    """Images of a prompt that agree.

    Attributes:
        diameter: Largest distance between two of them; 0 for a single image.
        mean: Mean distance between two of them, by which the paper ranks prompts; 0 for a single
            image.
        members: Their rows, ascending.
        bounded: Whether a search was given up after ``MOST_CLIQUES``, so that there may be a
            tighter or larger clique.
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


def across(images: np.ndarray, rng: np.random.Generator, tiles: int = TILES) -> np.ndarray:
    """Return the tiled distances of ``ACROSS`` random pairs of images of different prompts.

    The two images of a pair have different numbers, as those of one prompt have: images of one
    number are drawn from the same noise, and resemble each other for that.

    Args:
        images: uint8, (P, M, H, W, C), the M >= 2 images of each prompt.
        rng: The stream to draw pairs from.
        tiles: Tiles per side.

    Returns:
        float64, (ACROSS,); NaN if there is only one prompt.
    """
    prompts, each = images.shape[:2]
    if prompts == 1:
        return np.full(ACROSS, np.nan)
    first, number = rng.integers(prompts, size=ACROSS), rng.integers(each, size=ACROSS)
    second = (first + rng.integers(1, prompts, size=ACROSS)) % prompts
    other = (number + rng.integers(1, each, size=ACROSS)) % each
    result = np.empty(ACROSS)
    for start in range(0, ACROSS, _PAIRS):
        some = slice(start, start + _PAIRS)
        a, b = images[first[some], number[some]], images[second[some], other[some]]
        result[some] = distances.between(a, b, tiles)
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
    return Clique(*_inside(between, members), members, bounded)


def largest(between: np.ndarray, threshold: float) -> Clique:
    """Return the clique of most images; of equally large ones that with the smallest mean distance,
    and of these the one with the lowest rows.

    Args:
        between: Distances, (M, M), M >= 1.
        threshold: Largest distance of two images that are joined; NaN joins none.
    """
    graph = networkx.from_numpy_array((between <= threshold) & ~np.eye(len(between), dtype=bool))
    best: tuple[int, float, tuple[int, ...]] = (0, 0.0, ())
    bounded = False
    for number, clique in enumerate(networkx.find_cliques(graph)):
        if number == MOST_CLIQUES:
            bounded = True
            break
        if len(clique) >= -best[0]:
            members = tuple(sorted(clique))
            best = min(best, (-len(members), _inside(between, members)[1], members))
    return Clique(*_inside(between, best[2]), best[2], bounded)


def medoid(between: np.ndarray, members: tuple[int, ...]) -> int:
    """Return the row of the member whose mean distance to the others is smallest, the lowest of
    equal ones.

    Args:
        between: Distances, (M, M).
        members: Rows, ascending.
    """
    return members[int(between[np.ix_(members, members)].sum(axis=1).argmin())]


def _inside(between: np.ndarray, members: tuple[int, ...]) -> tuple[float, float]:
    """Return the largest and the mean distance of two members; zeros for a single one."""
    inside = between[np.ix_(members, members)][np.triu_indices(len(members), 1)]
    return (float(inside.max()), float(inside.mean())) if len(inside) else (0.0, 0.0)


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
