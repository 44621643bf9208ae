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

FILE, CAPTIONS = "texts.safetensors", "captions.json"
EMBEDDINGS, NULL = "embeddings", "null"
TEXT = "encoder_hidden_states"
"""Argument of a network for the embeddings of its samples' texts."""


@dataclass(frozen=True)
class Texts:
    """The captions of a study, and what networks are given for them.

    Attributes:
        row: Caption -> its row.
        embeddings: float32, (U, L, D), one row per caption.
        null: float32, (L, D), of the empty caption: what a dropped caption becomes.
    """

    row: dict[str, int]
    embeddings: torch.Tensor
    null: torch.Tensor

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
        return cls({caption: row for row, caption in enumerate(captions)}, embeddings, null)

    @property
    def width(self) -> int:
        """D, the size of a token's embedding."""
        return self.embeddings.shape[-1]

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
