"""The replication score: how similar the generations are to the training images (Somepalli et al.
2023; Li et al. 2024).

S_ij = <f(i), f(j)>, with f of unit length, for a generation i and a training image j; top1_i =
max_j S_ij; R is the 95th percentile of top1. The papers take f from SSCD, a network for copy
detection in photographs; here f is a named space of ``spaces``, centred by the caller, and R cannot
be compared across spaces. R of real held-out images is its floor: the value without any copying.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from afterimage import scratch
from afterimage.config import ConfigError

PERCENTILE = 95
_ROWS, _BYTES = 1024, 2**30
"""Images compared at once, and the memory of their features in float64: bound memory."""


class Features(Protocol):
    """Features of images, (N, D): an array, or rows that are computed when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


def top1(
    features: Features,
    gallery: Features,
    sources: np.ndarray | None = None,
    gallery_sources: np.ndarray | None = None,
) -> np.ndarray:
    """Return the largest cosine of each image with an image of the gallery, float64 (Q,); 0 for
    features of length 0.

    Args:
        features: (Q, D).
        gallery: (N, D).
        sources: (Q,), with ``gallery_sources``, (N,): images of one source are not compared.
            Needed when the gallery is compared with itself, where each image would match itself or
            its planted copies.

    Raises:
        ConfigError: if an image has no other image to be compared with.
    """
    return nearest(features, gallery, sources, gallery_sources)[1]


def nearest(
    features: Features,
    gallery: Features,
    sources: np.ndarray | None = None,
    gallery_sources: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the most similar image of the gallery to each image, the lowest row of equally similar
    ones, int64 (Q,), and their cosine, float64 (Q,); otherwise as ``top1``."""
    if not len(gallery):
        raise ConfigError("a replication score needs images to compare with")
    rows, best = np.zeros(len(features), np.int64), np.full(len(features), -np.inf)
    for part in _parts(features):
        queries = _unit(features[part])
        for some in scratch.blocks(*gallery.shape):
            cosines = queries @ _unit(gallery[some]).T
            if sources is not None and gallery_sources is not None:
                cosines[sources[part, None] == gallery_sources[some]] = -np.inf
            first = cosines.argmax(axis=1)
            most = np.take_along_axis(cosines, first[:, None], axis=1)[:, 0]
            better = most > best[part]
            rows[part] = np.where(better, some.start + first, rows[part])
            best[part] = np.where(better, most, best[part])
    if np.isneginf(best).any():
        raise ConfigError("a replication score needs other images to compare each image with")
    return rows, best


def _parts(features: Features) -> Iterator[slice]:
    size = max(1, min(_ROWS, _BYTES // (8 * max(1, features.shape[1]))))
    for start in range(0, len(features), size):
        yield slice(start, min(start + size, len(features)))


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.divide(features, lengths, out=np.zeros(features.shape), where=lengths > 0)


def replication(similarities: np.ndarray) -> float:
    """Return R of ``top1`` values, (Q,)."""
    return float(np.percentile(similarities, PERCENTILE))
