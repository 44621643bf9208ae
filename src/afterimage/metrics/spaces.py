"""Feature spaces for quality (pixels, the study's own classifier, Inception), and classes.

A distance between image sets depends on the space it was measured in, so every number carries the
space's name: ``FD[pixels]``, ``FD[classifier]``, and ``FID[inception]``, the only one that is
comparable with published FIDs. Classes are always those of the
study's classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from afterimage import artifacts, config, scratch
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.metrics import classifier

Space = Callable[[np.ndarray], np.ndarray]
"""Maps uint8 images, (N, H, W, C), to features, float64 (N, D)."""
Classify = Callable[[np.ndarray], np.ndarray]
"""Maps uint8 images, (N, H, W, C), to their most probable class, int64 (N,), counted from 0."""


def find(settings: config.Quality, network: Path | None, name: str | None = None) -> Space:
    """Return the space called ``name``, by default the one in ``settings.features``.

    Args:
        settings: Also gives the path of the Inception weights.
        network: Folder of the stored classifier, required for its space only.
        name: pixels, classifier or inception.

    Raises:
        ConfigError: if the classifier or the weights that the space needs are missing.
        ArtifactError: if the weights are not the file pinned by the study.
    """
    name = name or settings.features
    if name == "pixels":
        return pixels
    if name == "inception":
        assert settings.inception_weights is not None
        return inception(Path(config.expand(settings.inception_weights)), settings.inception_sha256)
    if network is None:
        raise ConfigError(
            "quality.features = classifier needs a trained classifier; allowed without one: "
            "pixels, inception"
        )
    return lambda images: classifier.embed(network, images).astype(np.float64)


def classes(network: Path) -> Classify | None:
    """Return what the stored classifier takes images for; None if it had no labels to learn.

    Raises:
        ArtifactError: if a file of the store is missing or changed.
    """
    _, description = classifier.load(network)
    if description.task != "labels":
        return None
    return lambda images: classifier.predict(network, images).argmax(axis=1)


def pixels(images: np.ndarray) -> np.ndarray:
    """Return the flattened pixels in [0, 1], float64 (N, D)."""
    return images.reshape(len(images), -1) / 255.0


class CentredPixels:
    """The flattened pixels, in [0, 1], of images relative to an origin, as rows that are computed
    when they are asked for: in float64 those of photographs are many times the images.

    Args:
        images: uint8, (N, H, W, C).
        origin: float64, (D,).
    """

    def __init__(self, images: np.ndarray, origin: np.ndarray) -> None:
        self._images, self._origin = images, origin

    @property
    def shape(self) -> tuple[int, int]:
        """N and D."""
        return len(self._images), len(self._origin)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return some rows, float64."""
        values = pixels(self._images[rows])
        values -= self._origin
        return values


def mean_pixels(images: np.ndarray) -> np.ndarray:
    """Return the mean of the flattened pixels, in [0, 1], of uint8 images, (N, H, W, C): float64
    (D,)."""
    total = np.zeros(images[0].size, np.int64)
    for some in scratch.blocks(len(images), images[0].size):
        total += images[some].reshape(-1, images[0].size).sum(axis=0, dtype=np.int64)
    return total / (255 * len(images))


def inception(weights: Path, sha256: str | None) -> Space:
    """Return the 2,048 pooled features of torch-fidelity's Inception (weights of the original FID);
    grey images are passed as RGB.

    Raises:
        ConfigError: if the extra is not installed or there is no such file.
        ArtifactError: if the file has a different checksum; it is checked before it is opened.
    """
    if not weights.is_file():
        raise ConfigError(f"quality.inception_weights = {weights}: there is no such file")
    if artifacts.sha256(weights) != sha256:
        raise ArtifactError(
            f"{weights} has sha256 {artifacts.sha256(weights)}, but quality.inception_sha256 = "
            f"{sha256}"
        )
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ConfigError(
            "quality.features = inception needs the extra: pip install 'afterimage[inception]'; "
            "allowed without it: classifier, pixels"
        ) from error
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = (
        FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights)).to(device).eval()
    )

    @torch.no_grad()
    def embed(images: np.ndarray) -> np.ndarray:
        colour = np.broadcast_to(images, (*images.shape[:3], 3)).transpose(0, 3, 1, 2)
        parts = [
            torch.from_numpy(np.ascontiguousarray(colour[i : i + 64]))
            for i in range(0, len(colour), 64)
        ]
        return np.concatenate([network(part.to(device))[0].cpu().numpy() for part in parts]).astype(
            np.float64
        )

    return embed
