"""Embeddings of captions, as ``afterimage data encode`` stores them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.images import Images

FILE, CAPTIONS = "texts.safetensors", "captions.json"
EMBEDDINGS, NULL = "embeddings", "null"
IMAGES, ROWS = "images", "rows"
TEXT = "encoder_hidden_states"
"""Argument of a network for the embeddings of its samples' texts."""


@dataclass(frozen=True)
class Texts:
    """The captions of a study in one variant, and what networks are given for them.

    Attributes:
        row: Caption -> its row.
        embeddings: float32, (U, L, D), one row per caption.
        null: float32, (L, D), of the empty caption: what a dropped caption becomes.
        row_of_image: Id of an image -> the row of its caption in the variant; None where captions
            are as they are.
    """

    row: dict[str, int]
    embeddings: torch.Tensor
    null: torch.Tensor
    row_of_image: dict[int, int] | None = None

    @classmethod
    def load(cls, folder: Path) -> Texts:
        """Open the store of ``data/encode``; embeddings are mapped into memory.

        Raises:
            ArtifactError: if a file is damaged.
        """
        for name in (FILE, CAPTIONS):
            artifacts.check_file(folder / name)
        captions = json.loads((folder / CAPTIONS).read_text())
        with safe_open(folder / FILE, "pt") as stored:
            embeddings, null = (stored.get_tensor(name) for name in (EMBEDDINGS, NULL))
            row_of_image = None
            if IMAGES in stored.keys():  # noqa: SIM118 - not a mapping
                images, rows = (stored.get_tensor(name).tolist() for name in (IMAGES, ROWS))
                row_of_image = dict(zip(images, rows, strict=True))
        row = {caption: place for place, caption in enumerate(captions)}
        return cls(row, embeddings, null, row_of_image)

    @property
    def width(self) -> int:
        """D, the size of a token's embedding."""
        return self.embeddings.shape[-1]

    def captions_of(self, images: Images) -> np.ndarray:
        """Return the caption of each image in this variant, text, (N,): the text of the image that
        its caption was written for.

        Raises:
            ArtifactError: naming the first image without one.
        """
        if self.row_of_image is None:
            return images.captions
        captions = list(self.row)
        try:
            rows = [self.row_of_image[image] for image in images.caption_sources.tolist()]
        except KeyError as error:
            raise ArtifactError(f"the caption of image {error.args[0]} was not encoded") from error
        return np.array([captions[row] for row in rows], str)

    def rows_of(self, images: Images) -> torch.Tensor:
        """Return the row of the caption of each image in this variant, int64, (N,).

        Raises:
            ArtifactError: naming the first caption or image that was not encoded.
        """
        return self.rows(self.captions_of(images))

    def embedding(self, text: str | None) -> torch.Tensor:
        """Return what networks are given for one text, float32, (L, D); None is the empty caption.

        Raises:
            ArtifactError: if it was not encoded.
        """
        return self.null if text is None else self.embeddings[self.rows(np.array([text]))][0]

    def rows(self, captions: np.ndarray) -> torch.Tensor:
        """Return the row of each caption, int64, (N,).

        Raises:
            ArtifactError: naming the first caption that was not encoded.
        """
        try:
            return torch.tensor([self.row[str(caption)] for caption in captions])
        except KeyError as error:
            raise ArtifactError(f"the caption {error.args[0]!r} was not encoded") from error


def embedded_captions(texts: Texts | None, images: Images) -> tuple[Texts, torch.Tensor] | None:
    """Return the texts with the row of each image's caption, int64, (N,), as networks are given
    them; None for networks without texts.

    Raises:
        ArtifactError: naming the first caption or image that was not encoded.
    """
    return None if texts is None else (texts, texts.rows_of(images))
