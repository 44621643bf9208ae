"""What scores are computed from: features of images, and the losses under retrained networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from afterimage.artifacts import ArtifactError
from afterimage.attribution.attributors.spectrum import Spectrum
from afterimage.images import Images


@dataclass(frozen=True)
class ImageFeatures:
    """One set of n images with their features.

    A feature is the gradient of a scalar readout of the predicted noise f, projected to k
    coordinates and averaged over timesteps: ``mean`` and ``square`` (means of f and f^2), ``l1``
    (mean of |f|) and ``loss`` (mean of (f - noise)^2). The suffix ``/normalised`` means that
    gradients are divided by their norm before they are averaged. ``journey`` (queries only) is
    ``loss`` at the states of the query's own sampling.

    Attributes:
        images: The images.
        features: Name -> float32 (n, k).
        rows: Projected gradients of v . f, with new random sign vectors v for each timestep,
            float32 (n, T R, k), R of them per timestep. In expectation, their outer products sum to
            R times the Gauss-Newton matrix; scores do not depend on this factor.
        residual: The network's error on each image, as weighted by the released DAS, float32 (n,).
        embedding: Features of a classifier, float32 (n, d), or None.

    Raises:
        ArtifactError: if an array has another number of images.
    """

    images: Images
    features: Mapping[str, np.ndarray]
    rows: np.ndarray
    residual: np.ndarray
    embedding: np.ndarray | None

    def __post_init__(self) -> None:
        arrays = {**self.features, "rows": self.rows, "residual": self.residual}
        if self.embedding is not None:
            arrays["embedding"] = self.embedding
        for name, array in arrays.items():
            if len(array) != len(self.images):
                raise ArtifactError(
                    f"{name} has values for {len(array)} images, but there are {len(self.images)}"
                )

    def feature(self, name: str) -> np.ndarray:
        """Return the features called ``name``.

        Raises:
            ArtifactError: if there are none of that name.
        """
        if name not in self.features:
            raise ArtifactError(
                f"there are no features {name!r}; available are "
                f"{', '.join(sorted(self.features)) or 'none'}"
            )
        return self.features[name]

    def take(self, rows: np.ndarray) -> ImageFeatures:
        """Return the features of some images.

        Args:
            rows: Which of them, in this order, int64 (m,).
        """
        return replace(
            self,
            images=self.images.take(rows),
            features={name: values[rows] for name, values in self.features.items()},
            rows=self.rows[rows],
            residual=self.residual[rows],
            embedding=None if self.embedding is None else self.embedding[rows],
        )

    def pixels(self) -> np.ndarray:
        """Return the images as vectors of values in [-1, 1], as the network sees them, (n, D)."""
        return self.images.pixels.reshape(len(self.images), -1) / 127.5 - 1


@dataclass(frozen=True)
class AttributionInputs:
    """Everything that an attributor may use.

    Attributes:
        train: The N training images.
        queries: The Q images to be attributed.
        checkpoints: ``loss`` features of the training images and of the queries at each checkpoint,
            first to last.
        masks: Which training images each retrained network was trained on, bool (M, N); only
            networks that scores may be fitted to.
        losses: Loss of every query under each of these networks, mean over seeds, float64 (M, Q).
        seed: Root seed of the study.

    Raises:
        ArtifactError: if ``masks`` and ``losses`` do not match the images.
    """

    train: ImageFeatures
    queries: ImageFeatures
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
                f"masks {self.masks.shape} and losses {self.losses.shape} do not match {train} "
                f"training images and {queries} queries"
            )

    @classmethod
    def from_gradients(
        cls, train: ImageFeatures, queries: ImageFeatures, seed: int
    ) -> AttributionInputs:
        """Return the inputs without checkpoints and without retrained networks."""
        return cls(
            train,
            queries,
            checkpoints=(),
            masks=np.zeros((0, len(train.images)), bool),
            losses=np.zeros((0, len(queries.images))),
            seed=seed,
        )

    def spectrum(self, feature: str) -> Spectrum:
        """Return the spectrum of the training images' features of that name, computed once."""
        if feature not in self._spectra:
            self._spectra[feature] = Spectrum(self.train.feature(feature))
        return self._spectra[feature]

    def kernel(self, feature: str) -> Callable[[float], np.ndarray]:
        """Return relative lambda -> phi_z A phi_i, float64 (Q, N), for features of that name."""
        return self.spectrum(feature).kernel(self.queries.feature(feature))

    def squared_kernel(self, feature: str) -> Callable[[float], np.ndarray]:
        """Return relative lambda -> (phi_z A phi_i)^2, float64 (Q, N)."""
        kernel = self.kernel(feature)
        return lambda relative: np.square(kernel(relative))

    @cached_property
    def curvature(self) -> Spectrum:
        """Spectrum of the training images' rows, (N R, k): that of the Gauss-Newton matrix."""
        return Spectrum(self.train.rows.reshape(-1, self.train.rows.shape[-1]))

    def mean_over_checkpoints(
        self, similarity: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Return the mean similarity of queries and training images over checkpoints, (Q, N).

        Raises:
            ArtifactError: if there are no checkpoints.
        """
        if not self.checkpoints:
            raise ArtifactError("gradients at checkpoints are needed, and there are no checkpoints")
        total = np.zeros((len(self.queries.images), len(self.train.images)))
        for train, queries in self.checkpoints:
            total += similarity(queries, train)
        return total / len(self.checkpoints)
