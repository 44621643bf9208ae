"""One eigendecomposition of a feature matrix, for every regulariser.

Phi is (N, k), one row per training example; A = (Phi^T Phi + lambda I)^-1. All that the scores need of A follows from the
singular value decomposition Phi = U S V^T: the kernel z A Phi^T (TRAK, Park et al. 2023), the leverages
h_i = phi_i A phi_i^T and the lengths |A phi_i| (RelatIF, Barshan et al. 2020). U and S come from Phi Phi^T where N <= k,
V and S from Phi^T Phi otherwise, in float64.

The directions that no row of Phi has a part in carry the eigenvalue lambda alone. They drop out where one side is a row of
Phi, but not from a A b^T for other vectors a and b.

Here lambda is given relative to the mean of the min(N, k) largest eigenvalues of Phi^T Phi, the others being 0. So one grid of
lambdas serves features of any scale (DAS and D-TRAK: absolute values).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.artifacts import ArtifactError
from afterimage.attribution.attributors.inner_products import inner


class Spectrum:
    """The decomposed Gram matrix of some features.

    Attributes:
        values: The eigenvalues of Phi^T Phi that are not 0, float64 (r,).
        coordinates: The rows of Phi in the basis of the eigenvectors, Phi V, float64 (N, r).
    """

    def __init__(self, features: np.ndarray):
        """Decompose ``features``, floating (N, k); they are kept, not copied.

        Raises:
            ArtifactError: if they hold values that are not finite, or nothing but 0.
        """
        if not np.isfinite(features).all():
            raise ArtifactError("gradient features hold values that are not finite")
        self._features = features
        self._dual = features.shape[0] <= features.shape[1]
        matrix = features if self._dual else features.T
        gram = inner(matrix, matrix)
        self._mean = np.trace(gram) / len(gram)
        if self._mean == 0:
            raise ArtifactError("gradient features are all 0: there is nothing to attribute by")
        values, vectors = np.linalg.eigh(gram)
        there = values > values[-1] * len(gram) * np.finfo(np.float64).eps
        self.values, vectors = values[there], vectors[:, there]
        if self._dual:
            self.coordinates = vectors * np.sqrt(self.values)
            self._basis = vectors / np.sqrt(self.values)
        else:
            self._basis = vectors
            self.coordinates = self.rotate(features)

    def rotate(self, vectors: np.ndarray) -> np.ndarray:
        """Return ``vectors``, floating (m, k), in the basis of the eigenvectors, float64 (m, r)."""
        if self._dual:
            return inner(vectors, self._features) @ self._basis
        return inner(vectors, self._basis.T)

    def regulariser(self, relative: float) -> float:
        """Return lambda itself for a relative one."""
        return float(relative * self._mean)

    def weights(self, relative: float) -> np.ndarray:
        """Return the eigenvalues of A that belong to ``values``, float64 (r,)."""
        return 1 / (self.values + self.regulariser(relative))

    def kernel(self, queries: np.ndarray) -> Callable[[float], np.ndarray]:
        """Return relative lambda -> queries A Phi^T, float64 (Q, N), for ``queries``, floating (Q, k)."""
        rotated = self.rotate(queries)
        return lambda relative: (rotated * self.weights(relative)) @ self.coordinates.T

    def bilinear(self, a: np.ndarray, b: np.ndarray) -> Callable[[float], np.ndarray]:
        """Return relative lambda -> a A b^T, float64 (n, m), for any vectors: floating, (n, k) and (m, k)."""
        left, right = self.rotate(a), self.rotate(b)
        full = len(self.values) == self._features.shape[1]
        outside = np.zeros((len(a), len(b))) if full else inner(a, b) - left @ right.T
        return lambda relative: (
            (left * self.weights(relative)) @ right.T + outside / self.regulariser(relative)
        )

    def leverage(self, relative: float) -> np.ndarray:
        """Return h_i = phi_i A phi_i^T of every row, float64 (N,), in [0, 1)."""
        return np.square(self.coordinates) @ self.weights(relative)

    def preconditioned_norms(self, relative: float) -> np.ndarray:
        """Return |A phi_i| of every row, float64 (N,)."""
        return np.sqrt(np.square(self.coordinates) @ np.square(self.weights(relative)))
