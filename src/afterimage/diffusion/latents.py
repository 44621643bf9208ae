"""Denoising in the latent space of an autoencoder (Rombach et al. 2022).

Images are encoded once: stored are mean and standard deviation of each one's latent. A training
draws from that distribution anew in every update; losses of single images are measured at the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from afterimage import artifacts, scratch
from afterimage.artifacts import ArtifactError
from afterimage.diffusion.autoencoder import Autoencoder
from afterimage.diffusion.noising import Pixels
from afterimage.images import contents, different

FILE = "latents.safetensors"
CONTENTS, MEAN, DEVIATION = "contents", "mean", "deviation"


@dataclass(frozen=True)
class EncodedImages:
    """Latents of images, found by the images' bytes.

    Attributes:
        row: Digest of an image (``images.contents``) -> its row.
        mean: float32, (U, M, c, h, w), scaled as networks see them: of each different image, and
            with M = 2 of its mirror image.
        deviation: float32, the same shape: standard deviation.
    """

    row: dict[bytes, int]
    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, autoencoder: Autoencoder, images: np.ndarray, mirrors: bool) -> EncodedImages:
        """Encode images, uint8 (N, H, W, C), with their mirror images or without."""
        images = scratch.taken(images, different(images)[0])
        views = [images, images[:, :, ::-1]][: 1 + mirrors]
        means, deviations = zip(*map(autoencoder.moments, views), strict=True)
        return cls(_rows(contents(images)), torch.stack(means, 1), torch.stack(deviations, 1))

    @classmethod
    def load(cls, folder: Path) -> EncodedImages:
        """Open the store of ``data/latents``; latents are mapped into memory.

        Raises:
            ArtifactError: if the file is damaged.
        """
        artifacts.check_file(folder / FILE)
        with safe_open(folder / FILE, "pt") as stored:
            digests, mean, deviation = (
                stored.get_tensor(name) for name in (CONTENTS, MEAN, DEVIATION)
            )
        return cls(_rows(digests.numpy()), mean, deviation)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a latent."""
        channels, height, width = self.mean.shape[2:]
        return height, width, channels

    def save(self, folder: Path) -> None:
        """Write the file of ``data/latents``."""
        digests = np.frombuffer(b"".join(self.row), np.uint8).reshape(len(self.row), -1)
        tensors = {
            CONTENTS: torch.from_numpy(digests.copy()),
            MEAN: self.mean.contiguous(),
            DEVIATION: self.deviation.contiguous(),
        }
        save_file(tensors, folder / FILE)

    def rows(self, images: np.ndarray) -> torch.Tensor:
        """Return the row of each image, uint8 (N, H, W, C); int64, (N,).

        Raises:
            ArtifactError: with the position of the first image that was not encoded.
        """
        found = [self.row.get(digest.tobytes()) for digest in contents(images)]
        if None in found:
            raise ArtifactError(f"image {found.index(None)} of {len(found)} was not encoded")
        return torch.tensor(found)


def _rows(digests: np.ndarray) -> dict[bytes, int]:
    return {digest.tobytes(): row for row, digest in enumerate(digests)}


class Latents(Pixels):
    """Denoising of the latents of images.

    Args:
        images: uint8, (N, H, W, C).
        encoded: Their latents.
        settings: As ``Pixels`` takes them.

    Raises:
        ArtifactError: if an image was not encoded, and as ``Pixels`` does.
    """

    def __init__(
        self, images: np.ndarray, encoded: EncodedImages, *settings: Any, **named: Any
    ) -> None:
        super().__init__(images, *settings, **named)
        self.encoded, self.row = encoded, encoded.rows(images)

    @property
    def shape(self) -> torch.Size:
        """Channels, height and width of a latent."""
        return self.encoded.mean.shape[2:]

    def clean(self, rows: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """Return the mean latents of the images at ``rows``, or of their mirror images."""
        return self.encoded.mean[self.row[rows], mirrored.long()]

    def drawn(
        self, rows: torch.Tensor, mirrored: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Return a latent of each image, drawn from the autoencoder's distribution."""
        mean = self.clean(rows, mirrored)
        deviation = self.encoded.deviation[self.row[rows], mirrored.long()]
        return mean + deviation * torch.randn(mean.shape, generator=generator)


class DrawnLatents(Pixels):
    """Denoising of latents that a network drew: of no image, and nothing is drawn of them.

    Args:
        latents: float32, (N, c, h, w), on the CPU.
        settings: As ``Pixels`` takes them after the images; there are no mirror images.
    """

    def __init__(self, latents: torch.Tensor, *settings: Any, **named: Any) -> None:
        super().__init__(np.zeros((len(latents), 1, 1, 1), np.uint8), *settings, **named)
        assert not self.flips
        self.latents = latents

    @property
    def shape(self) -> torch.Size:
        """Channels, height and width of a latent."""
        return self.latents.shape[1:]

    def clean(self, rows: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """Return the latents at ``rows``."""
        return self.latents[rows]
