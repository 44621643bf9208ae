"""Distances and overlaps of two sets of features: Fréchet distance, KID, precision, recall, density and coverage.

- Fréchet distance (Heusel et al. 2017): |m1 - m2|^2 + Tr(S1 + S2) - 2 Tr((S1 S2)^(1/2)) of the fitted Gaussians. The last trace
  is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric, so no general matrix root is needed and
  covariances without full rank are no special case.
- KID (Bińkowski et al. 2018): the unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, over random subsets.
- Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020): overlap of the unions of balls that
  reach from each point to its k-th nearest other point of the same set. Balls are closed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import pairwise_distances_chunked
from sklearn.metrics.pairwise import polynomial_kernel

from afterimage.config import ConfigError

# ---- Fréchet distance ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gaussian:
    """Mean, float64 (D,), and covariance, float64 (D, D), of features."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def fit(cls, features: np.ndarray) -> Gaussian:
        """Fit to features, (N, D), with the unbiased covariance.

        Raises:
            ConfigError: for fewer than two features, or features that are not finite.
        """
        if len(features) < 2:
            raise ConfigError(f"a Fréchet distance needs at least 2 images on each side, not {len(features)}")
        if not np.isfinite(features).all():
            raise ConfigError("features hold values that are not finite")
        return cls(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


class Frechet:
    """Fréchet distance from a fixed Gaussian, whose matrix root is taken once."""

    def __init__(self, reference: Gaussian):
        self.reference = reference
        values, vectors = np.linalg.eigh(reference.covariance)
        self._root = (vectors * np.sqrt(values.clip(0))) @ vectors.T

    def to(self, other: Gaussian) -> float:
        """Return the distance (squared, as is the custom), at least 0."""
        product = self._root @ other.covariance @ self._root
        cross = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0)).sum()
        spread = np.trace(self.reference.covariance) + np.trace(other.covariance) - 2 * cross
        return float(max(0.0, ((self.reference.mean - other.mean) ** 2).sum() + spread))


# ---- KID ----------------------------------------------------------------------------------------------------------------


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased squared MMD of two feature sets, (N, D) and (M, D), N, M >= 2; it may be negative."""
    within = []
    for features in (x, y):
        kernel = _kernel(features, features)
        within.append((kernel.sum() - np.trace(kernel)) / (len(features) * (len(features) - 1)))
    return float(sum(within) - 2 * _kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return polynomial_kernel(x, y, degree=3, gamma=1 / x.shape[1], coef0=1)


def kid(x: np.ndarray, y: np.ndarray, subsets: int, size: int, rng: np.random.Generator) -> tuple[float, float]:
    """Return mean and standard deviation of ``mmd2`` over random subsets.

    Args:
        x: Features, (N, D), N >= 2.
        y: Features, (M, D), M >= 2.
        subsets: How many pairs of subsets to draw.
        size: Images per subset, fewer where a set has fewer.
        rng: The stream to draw from.
    """
    size = min(size, len(x), len(y))
    if size < 2:
        raise ConfigError(f"KID needs at least 2 images on each side, not {len(x)} and {len(y)}")
    values = [
        mmd2(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)]) for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def resampled_mmd2(x: np.ndarray, y: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how far ``mmd2`` of all features moves when ``x`` is resampled, float64 (resamples,).

    Pairs of one image with its own repetition are left out, as ``mmd2`` leaves out each image with itself; counted in, they
    would pull every resample up.
    """
    count = len(x)
    times = rng.multinomial(count, np.full(count, 1 / count), resamples).astype(np.float64)
    times = np.concatenate([np.ones((1, count)), times])  # the first line is no resample: all images once
    pairs = np.zeros(len(times))
    cross = np.empty(count)
    for start in range(0, count, 1024):
        part = slice(start, start + 1024)
        kernel = _kernel(x[part], x)
        kernel[np.arange(len(kernel)), np.arange(start, start + len(kernel))] = 0
        pairs += np.einsum("rn,rn->r", times @ kernel.T, times[:, part])
        cross[part] = _kernel(x[part], y).mean(axis=1)
    different = count**2 - (times**2).sum(axis=1)
    values = np.divide(pairs, different, out=np.zeros_like(pairs), where=different > 0) - 2 * (times @ cross) / count
    return values[1:] - values[0]


# ---- precision, recall, density, coverage -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """The four measures, image by image; each measure is the mean of its array.

    Attributes:
        precision: bool (G,): the generation lies in the ball of a reference image.
        density: float64 (G,): the number of such balls, divided by k.
        recall: bool (R,): the reference image lies in the ball of a generation.
        coverage: bool (R,): the reference image's ball holds a generation.
    """

    precision: np.ndarray
    density: np.ndarray
    recall: np.ndarray
    coverage: np.ndarray


def overlap(generations: np.ndarray, reference: np.ndarray, k: int) -> Overlap:
    """Compare two feature sets, (G, D) and (R, D), in blocks of bounded memory.

    Raises:
        ConfigError: unless both sets have more than ``k`` images.
    """
    if min(len(generations), len(reference)) <= k:
        raise ConfigError(
            f"quality.neighbours = {k} needs more than {k} images on each side, not {len(generations)} and {len(reference)}"
        )
    reach, own_reach = _reach(reference, k), _reach(generations, k)
    balls = np.empty(len(generations), np.int64)
    recall, coverage = np.zeros(len(reference), bool), np.zeros(len(reference), bool)
    start = 0
    for block in pairwise_distances_chunked(generations, reference):
        part = slice(start, start + len(block))
        inside = block <= reach
        balls[part] = inside.sum(axis=1)
        coverage |= inside.any(axis=0)
        recall |= (block <= own_reach[part, None]).any(axis=0)
        start = part.stop
    return Overlap(balls > 0, balls / k, recall, coverage)


def _reach(features: np.ndarray, k: int) -> np.ndarray:
    """Return the distance of each point to its ``k``-th nearest other point, float64 (N,)."""
    chunks = pairwise_distances_chunked(features, reduce_func=lambda block, _: np.partition(block, k, axis=1)[:, k])
    return np.concatenate(list(chunks))
