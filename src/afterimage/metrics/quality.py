"""Distances and overlaps of two sets of features: Fréchet distance, KID, precision, recall, density
and coverage.

- Fréchet distance (Heusel et al. 2017): |m1 - m2|^2 + Tr(S1 + S2) - 2 Tr((S1 S2)^(1/2)) of the
  fitted Gaussians. With any A and B such that S1 = A A^T and S2 = B B^T the last trace is the
  nuclear norm of A^T B. Centred features divided by the root of N - 1 are such matrices, so that no
  covariance is made, and neither many dimensions nor few images are a special case.
- Class-balanced Fréchet distance: the moments of the compared images are weighted so that each
  class weighs what it does among the reference images (``balancing_weights``). On real images the
  plain distance is mostly one of class shares. The mean of within-class distances follows few
  images per class instead, and does not see a class that is missing; weights by the classifier's
  probabilities follow class shares where the classifier is unsure.
- KID (Bińkowski et al. 2018): the unbiased squared maximum mean discrepancy with the kernel (x.y /
  D + 1)^3, over random subsets.
- Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020): overlap
  of the unions of balls that reach from each point to its k-th nearest other point of the same set.
  Balls are closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from afterimage.config import ConfigError

BLOCK_BYTES = 2**28
"""Memory of one block of distances."""

# ---- Fréchet distance ----------------------------------------------------------------------------


class WeightedDistance(Protocol):
    """The distance to rows of a set of features, see ``Frechet.of_rows``."""

    def __call__(self, rows: np.ndarray, weights: np.ndarray | None = None) -> float: ...


class Frechet:
    """Fréchet distance from the Gaussian that is fitted to reference features, with the unbiased
    covariance."""

    def __init__(self, reference: np.ndarray):
        """Fit to features, float64 (N, D).

        Raises:
            ConfigError: for fewer than two features, or features that are not finite.
        """
        _check(reference)
        self._mean = reference.mean(axis=0)
        triangle = np.asarray(
            np.linalg.qr((reference - self._mean) / np.sqrt(len(reference) - 1), mode="r")
        )
        self._root = triangle.T  # A, (D, min(N, D))
        self._variance = (triangle**2).sum()  # Tr S1

    def to(self, features: np.ndarray) -> float:
        """Return the distance (squared, as is the custom) to features, float64 (M, D); at least 0.

        Raises:
            ConfigError: for fewer than two features, or features that are not finite.
        """
        return self.of_rows(features)(np.arange(len(features)))

    def of_rows(self, features: np.ndarray) -> WeightedDistance:
        """Return the distance to any rows of the features, as a function of rows, int64 (M,), which
        may repeat, and of their weights, float64 (M,), which sum to 1 (default: equal ones).

        The covariance of weighted rows is unbiased, too: the weighted one over 1 - the sum of the
        squared weights. The features are multiplied by the reference once; what is left for each
        call is an eigenvalue problem of at most as many dimensions as there are different rows,
        reference images or features, whichever are fewest.

        Raises:
            ConfigError: for fewer than two features, or features that are not finite.
        """
        _check(features)
        gaps = features - self._mean
        centre = gaps.mean(axis=0)
        products = (gaps - centre) @ self._root
        squares = ((gaps - centre) ** 2).sum(axis=1)

        def distance(rows: np.ndarray, weights: np.ndarray | None = None) -> float:
            by_row = np.full(len(rows), 1 / len(rows)) if weights is None else weights
            by_image = np.bincount(rows, by_row, minlength=len(features))
            seen = np.flatnonzero(by_image)
            shares = by_image[seen]
            gap = shares @ gaps[seen]
            variance = shares @ squares[seen] - ((gap - centre) ** 2).sum()
            cross = products[seen] - shares @ products[seen]
            cross *= np.sqrt(shares)[:, None]
            gram = cross @ cross.T if len(cross) <= cross.shape[1] else cross.T @ cross
            scale = 1 / (1 - (by_row**2).sum())  # equal weights: M / (M - 1)
            trace = np.sqrt(scale * np.linalg.eigvalsh(gram).clip(0)).sum()
            return float(max(0.0, (gap**2).sum() + self._variance + scale * variance - 2 * trace))

        return distance


def _check(features: np.ndarray) -> None:
    if len(features) < 2:
        raise ConfigError(
            f"a Fréchet distance needs at least 2 images on each side, not {len(features)}"
        )
    if not np.isfinite(features).all():
        raise ConfigError("features hold values that are not finite")


# ---- classes -------------------------------------------------------------------------------------


def class_shares(classes: np.ndarray, count: int) -> np.ndarray:
    """Return the share of each of ``count`` classes, float64 (count,), in classes of images, int64
    (N,)."""
    return np.bincount(classes, minlength=count) / len(classes)


def total_variation(shares: np.ndarray, reference: np.ndarray) -> float:
    """Return the total variation distance of two distributions over classes, in [0, 1]: the share
    of the images that would have to be of another class."""
    return float(np.abs(shares - reference).sum() / 2)


def balancing_weights(classes: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return weights of images with which their classes have the reference's shares.

    What has no counterpart is not weighted away. Images of a class that the reference lacks keep
    their share of the whole, 1 / N each, and the other classes have the reference's proportions in
    what is left. A class that has no image cannot be weighted up: the others have its share, and
    the distance to a reference that has the class grows by what is missing.

    Args:
        classes: int64 (N,), N >= 1.
        reference: float64 (C,): the class shares to have, which sum to 1; C > all of ``classes``.

    Returns:
        float64 (N,), positive, with sum 1.
    """
    shares = class_shares(classes, len(reference))
    shared = (shares > 0) & (reference > 0)
    factors = np.ones(len(reference))
    if shared.any():
        wanted = reference[shared] / reference[shared].sum()
        factors[shared] = wanted * shares[shared].sum() / shares[shared]
    return factors[classes] / len(classes)


# ---- KID -----------------------------------------------------------------------------------------


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased squared MMD of two feature sets, (N, D) and (M, D), N, M >= 2; it may be
    negative."""
    within = []
    for features in (x, y):
        kernel = _kernel(features, features)
        within.append((kernel.sum() - np.trace(kernel)) / (len(features) * (len(features) - 1)))
    return float(sum(within) - 2 * _kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(
    x: np.ndarray, y: np.ndarray, subsets: int, size: int, rng: np.random.Generator
) -> tuple[float, float]:
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
        mmd2(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)])
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def resampled_mmd2(
    x: np.ndarray, y: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return how far ``mmd2`` of all features moves when ``x`` is resampled, float64 (resamples,).

    Pairs of one image with its own repetition are left out, as ``mmd2`` leaves out each image with
    itself; counted in, they would pull every resample up.
    """
    count = len(x)
    times = rng.multinomial(count, np.full(count, 1 / count), resamples).astype(np.float64)
    times = np.concatenate(
        [np.ones((1, count)), times]
    )  # the first line is no resample: all images once
    pairs = np.zeros(len(times))
    cross = np.empty(count)
    for start in range(0, count, 1024):
        part = slice(start, start + 1024)
        kernel = _kernel(x[part], x)
        kernel[np.arange(len(kernel)), np.arange(start, start + len(kernel))] = 0
        pairs += np.einsum("rn,rn->r", times @ kernel.T, times[:, part])
        cross[part] = _kernel(x[part], y).mean(axis=1)
    different = count**2 - (times**2).sum(axis=1)
    values = (
        np.divide(pairs, different, out=np.zeros_like(pairs), where=different > 0)
        - 2 * (times @ cross) / count
    )
    return values[1:] - values[0]


# ---- precision, recall, density, coverage --------------------------------------------------------


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
            f"quality.neighbours = {k} needs more than {k} images on each side, not "
            f"{len(generations)} and {len(reference)}"
        )
    reach, own_reach = _reach(reference, k), _reach(generations, k)
    balls = np.empty(len(generations), np.int64)
    recall, coverage = np.zeros(len(reference), bool), np.zeros(len(reference), bool)
    start = 0
    for block in _distances(generations, reference):
        part = slice(start, start + len(block))
        inside = block <= reach
        balls[part] = inside.sum(axis=1)
        coverage |= inside.any(axis=0)
        recall |= (block <= own_reach[part, None]).any(axis=0)
        start = part.stop
    return Overlap(balls > 0, balls / k, recall, coverage)


def _reach(features: np.ndarray, k: int) -> np.ndarray:
    """Return the distance of each point to its ``k``-th nearest other point, float64 (N,)."""
    blocks = _distances(features, features)
    return np.concatenate([np.partition(block, k, axis=1)[:, k] for block in blocks])


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the Euclidean distances of blocks of ``x`` to all of ``y``, float64, each in about
    ``BLOCK_BYTES``."""
    rows = max(1, BLOCK_BYTES // (8 * len(y)))
    for start in range(0, len(x), rows):
        block = torch.cdist(torch.from_numpy(x[start : start + rows]), torch.from_numpy(y))
        yield block.numpy()
