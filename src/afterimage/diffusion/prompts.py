"""The prompts of a study's generations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afterimage import seeds
from afterimage.config import ConfigError
from afterimage.diffusion.texts import Texts
from afterimage.images import load_images


def prompted(count: int, images: int, resolved: dict[str, Any]) -> np.ndarray:
    """Return the row of the training image whose caption each generation is drawn for, int64
    (images,); the same for every arm.

    Args:
        count: Training images of the planting.
        images: Generations.
        resolved: Config of a job, with ``seed`` and ``replicate``.
    """
    rng = seeds.numpy_rng(resolved["seed"], "sample", resolved["replicate"], "prompts")
    return rng.integers(count, size=images)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a replicate's generations: captions of training images, drawn with
    replacement: the same images for every arm, in the arm's variant of the captions.

    Attributes:
        captions: text, (N,), one for each generation of the study.
        texts: Embeddings of captions.
    """

    captions: np.ndarray
    texts: Texts

    @classmethod
    def of(
        cls, texts: Path | None, train: Path | None, images: int, resolved: dict[str, Any]
    ) -> Prompts | None:
        """Return the prompts; None without texts.

        Args:
            texts: Store of ``data/encode``.
            train: Training images of the planting.
            images: N, ``sample.images``.
            resolved: Config of the job, with ``seed`` and ``replicate``.

        Raises:
            ConfigError: if the images are missing.
        """
        if texts is None:
            return None
        if train is None:
            raise ConfigError(f"--texts is {texts}: give --train too, whose captions are prompts")
        encoded = Texts.load(texts)
        captions = encoded.captions_of(load_images(train))
        return cls(captions[prompted(len(captions), images, resolved)], encoded)

    def rows(self, ids: np.ndarray) -> tuple[Texts, torch.Tensor]:
        """Return the embeddings, and the row of the prompt of each generation."""
        return self.texts, self.texts.rows(self.captions[ids])
