"""One eigendecomposition of a feature matrix that serves every regulariser.

Phi is (N, k), one row per training example; A = (Phi^T Phi + lambda I)^-1. All that the scores need
of A follows from the singular value decomposition Phi = U S V^T: the kernel z A Phi^T (TRAK, Park
et al. 2023), the leverages h_i = phi_i A phi_i^T and the norms |A phi_i| (RelatIF, Barshan et al.
2020). It is computed in float64 from the smaller Gram matrix: U and S from Phi Phi^T where N <= k,
V and S from Phi^T Phi otherwise.

In the directions orthogonal to all rows of Phi, A has the eigenvalue 1 / lambda. They contribute
nothing to products with a row of Phi, but they do contribute to a A b^T for other vectors a and b.

Lambda is given relative to the mean of the min(N, k) largest eigenvalues of Phi^T Phi, the others
being 0, so that one grid of lambdas suits features of any scale (DAS and D-TRAK use absolute
values).

Features may be memory-mapped (``scratch``); the coordinates are, where they are large, and neither
is copied as a whole.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage import scratch
from afterimage.artifacts import ArtifactError
from afterimage.attribution.attributors.inner_products import inner


class Spectrum:
    """The eigendecomposition of the Gram matrix of some features.

    Attributes:
        values: The nonzero eigenvalues of Phi^T Phi, float64 (r,).
        coordinates: The rows of Phi in the basis of the eigenvectors, Phi V, float64 (N, r).
    """

    def __init__(self, features: np.ndarray):
        """Decompose ``features``, floating (N, k), which are referenced, not copied.

        Raises:
            ArtifactError: if a feature is NaN or infinite, or all are 0.
        """
        rows, width = features.shape
        if not all(np.isfinite(features[some]).all() for some in scratch.blocks(rows, width)):
            raise ArtifactError("gradient features contain NaN or infinite values")
        self._features = features
        self._dual = features.shape[0] <= features.shape[1]
        matrix = features if self._dual else features.T
        gram = inner(matrix, matrix)
        self._mean = np.trace(gram) / len(gram)
        if self._mean == 0:
            raise ArtifactError("gradient features are all 0, so that no score can be computed")
        values, vectors = np.linalg.eigh(gram)
        nonzero = values > values[-1] * len(gram) * np.finfo(np.float64).eps
        self.values, vectors = values[nonzero], vectors[:, nonzero]
        if self._dual:
            self.coordinates = vectors * np.sqrt(self.values)
            self._basis = vectors / np.sqrt(self.values)
        else:
            self._basis = vectors
            self.coordinates = self.rotate(features)

    def rotate(self, vectors: np.ndarray) -> np.ndarray:
        """Return ``vectors``, floating (m, k), in the basis of the eigenvectors, float64 (m, r);
        memory-mapped where they are large."""
        rotated = scratch.empty((len(vectors), len(self.values)), np.float64)
        for some in scratch.blocks(*vectors.shape):
            if self._dual:
                rotated[some] = inner(vectors[some], self._features) @ self._basis
            else:
                rotated[some] = inner(vectors[some], self._basis.T)
        return rotated

    def regulariser(self, relative: float) -> float:
        """Return the absolute lambda for a relative one."""
        return float(relative * self._mean)

    def weights(self, relative: float) -> np.ndarray:
        """Return the eigenvalues of A that correspond to ``values``, float64 (r,)."""
        return 1 / (self.values + self.regulariser(relative))

    def kernel(self, queries: np.ndarray) -> Callable[[float], np.ndarray]:
        """Return relative lambda -> queries A Phi^T, float64 (Q, N); ``queries`` are (Q, k)."""
        rotated = self.rotate(queries)
        return lambda relative: (rotated * self.weights(relative)) @ self.coordinates.T

    def bilinear(self, a: np.ndarray, b: np.ndarray) -> Callable[[float, slice], np.ndarray]:
        """Return relative lambda, rows of b -> a A b^T, float64 (n, m).

        Args:
            a: Any vectors, (n, k).
            b: Any vectors, of which the m rows in question are used, (., k).
        """
        left, right = self.rotate(a), self.rotate(b)
        outside = None
        if len(self.values) < self._features.shape[1]:
            outside = scratch.empty((len(a), len(b)), np.float64)
            for some in scratch.blocks(len(b), max(len(a), b.shape[1])):
                outside[:, some] = inner(a, b[some]) - left @ right[some].T

        def product(relative: float, rows: slice) -> np.ndarray:
            within = (left * self.weights(relative)) @ right[rows].T
            if outside is None:
                return within
            return within + outside[:, rows] / self.regulariser(relative)

        return product

    def leverage(self, relative: float, rows: slice = slice(None)) -> np.ndarray:
        """Return h_i = phi_i A phi_i^T of some rows, by default all, float64 (n,), in [0, 1)."""
        return self._weighted_squares(self.weights(relative), self.coordinates[rows])

    def preconditioned_norms(self, relative: float) -> np.ndarray:
        """Return |A phi_i| of every row, float64 (N,)."""
        squared = np.square(self.weights(relative))
        return np.sqrt(self._weighted_squares(squared, self.coordinates))

    def _weighted_squares(self, weights: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        """Return the weighted sum of every row's squared coordinates, float64 (n,)."""
        return np.concatenate(
            [np.square(coordinates[some]) @ weights for some in scratch.blocks(*coordinates.shape)]
        )
