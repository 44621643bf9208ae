"""What scores are computed from: the features of the training images and of the queries, and what retraining said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from afterimage.artifacts import ArtifactError
from afterimage.attribution.attributors.spectrum import Spectrum
from afterimage.images import Images


@dataclass(frozen=True)
class Side:
    """One set of n images with their features.

    Every readout of the predicted noise f is a scalar whose gradient, projected to k coordinates, is averaged over timesteps:
    ``mean`` and ``square`` (of f and f^2), ``l1`` (mean of |f|) and ``loss`` (mean of (f - noise)^2). A name ending in
    ``/normalised`` stands for gradients divided by their own length before the average. ``journey`` (queries only) is ``loss``
    at the states of the query's own sampling.

    Attributes:
        images: The images.
        features: Name -> float32 (n, k).
        rows: Projected gradients of v . f with a fresh v of random signs per timestep, float32 (n, R, k), R = T. Their outer
            products sum to the Gauss-Newton matrix in expectation.
        residual: How large the network's error on each image is, as the released DAS weighs it, float32 (n,).
        embedding: Features of a classifier, float32 (n, d), or None.
    """

    images: Images
    features: Mapping[str, np.ndarray]
    rows: np.ndarray
    residual: np.ndarray
    embedding: np.ndarray | None

    def __post_init__(self) -> None:
        parts = {**self.features, "rows": self.rows, "residual": self.residual}
        if self.embedding is not None:
            parts["embedding"] = self.embedding
        for name, values in parts.items():
            if len(values) != len(self.images):
                raise ArtifactError(
                    f"{name} is there for {len(values)} images, but there are {len(self.images)}"
                )

    def feature(self, name: str) -> np.ndarray:
        """Return the features called ``name``.

        Raises:
            ArtifactError: if there are none of that name.
        """
        if name not in self.features:
            raise ArtifactError(
                f"there are no features {name!r}; there are {', '.join(sorted(self.features)) or 'none at all'}"
            )
        return self.features[name]

    def pixels(self) -> np.ndarray:
        """Return the images as vectors of values in [-1, 1], as the network sees them, float64 (n, D)."""
        return self.images.pixels.reshape(len(self.images), -1) / 127.5 - 1


@dataclass(frozen=True)
class Evidence:
    """All that an attributor may use.

    Attributes:
        train: The N training images.
        queries: The Q images whose origin is asked for.
        checkpoints: ``loss`` features of the training images and of the queries at each saved state, first to last.
        masks: Which training images each retrained network saw, bool (M, N); only networks that may be learned from.
        losses: Loss of every query under each of these networks, mean over seeds, float64 (M, Q).
        seed: Root seed of the study.
    """

    train: Side
    queries: Side
    checkpoints: tuple[tuple[np.ndarray, np.ndarray], ...]
    masks: np.ndarray
    losses: np.ndarray
    seed: int
    _spectra: dict[str, Spectrum] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        networks, train, queries = len(self.masks), len(self.train.images), len(self.queries.images)
        if self.masks.shape != (networks, train) or self.losses.shape != (networks, queries):
            raise ArtifactError(
                f"masks {self.masks.shape} and losses {self.losses.shape} do not belong to {train} training images "
                f"and {queries} queries"
            )

    def spectrum(self, feature: str) -> Spectrum:
        """Return the spectrum of the training images' features of that name; it is computed once."""
        if feature not in self._spectra:
            self._spectra[feature] = Spectrum(self.train.feature(feature))
        return self._spectra[feature]

    @cached_property
    def curvature(self) -> Spectrum:
        """The spectrum of the training images' rows, (N R, k): of the Gauss-Newton matrix of the network's squared error."""
        return Spectrum(self.train.rows.reshape(-1, self.train.rows.shape[-1]))

    def over_checkpoints(
        self, similarity: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Return the mean over the saved states of the similarity of queries and training images, float64 (Q, N).

        Raises:
            ArtifactError: if there are no saved states.
        """
        if not self.checkpoints:
            raise ArtifactError(
                "gradients at saved states are needed, and there are no saved states"
            )
        found = np.zeros((len(self.queries.images), len(self.train.images)))
        for train, queries in self.checkpoints:
            found += similarity(queries, train)
        return found / len(self.checkpoints)
