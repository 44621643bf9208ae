"""The replication score: how similar the generations are to the training images (Somepalli et al.
2023; Li et al. 2024).

S_ij = <f(i), f(j)>, with f of unit length, for a generation i and a training image j; top1_i =
max_j S_ij; R is the 95th percentile of top1. The papers take f from SSCD, a network for copy
detection in photographs; here f is a named space of ``spaces``, centred by the caller, and R cannot
be compared across spaces. R of real held-out images is its floor: the value without any copying.
"""

from __future__ import annotations

import numpy as np

from afterimage.config import ConfigError

PERCENTILE = 95
_BLOCK = 1024
"""Images compared at once; bounds memory."""


def top1(
    features: np.ndarray,
    gallery: np.ndarray,
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
    features: np.ndarray,
    gallery: np.ndarray,
    sources: np.ndarray | None = None,
    gallery_sources: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the most similar image of the gallery to each image, the lowest row of equally similar
    ones, int64 (Q,), and their cosine, float64 (Q,); otherwise as ``top1``."""
    if not len(gallery):
        raise ConfigError("a replication score needs images to compare with")
    queries, others = _unit(features), _unit(gallery)
    rows, best = np.empty(len(queries), np.int64), np.empty(len(queries))
    for start in range(0, len(queries), _BLOCK):
        part = slice(start, start + _BLOCK)
        cosines = queries[part] @ others.T
        if sources is not None and gallery_sources is not None:
            cosines[sources[part, None] == gallery_sources] = -np.inf
        rows[part] = cosines.argmax(axis=1)
        best[part] = np.take_along_axis(cosines, rows[part, None], axis=1)[:, 0]
    if np.isneginf(best).any():
        raise ConfigError("a replication score needs other images to compare each image with")
    return rows, best


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.divide(features, lengths, out=np.zeros(features.shape), where=lengths > 0)


def replication(similarities: np.ndarray) -> float:
    """Return R of ``top1`` values, (Q,)."""
    return float(np.percentile(similarities, PERCENTILE))
