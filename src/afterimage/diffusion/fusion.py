"""Dual fusion (Li et al. 2023, arXiv 2309.07254; part of LoyalDiffusion): pictures that the network
is not meant to learn are mixed into the training images, and their captions into the captions.

    z' = (1 - w_lat) z + w_lat z_other,    e' = (1 - w_emb) e + w_emb e_other

with images or latents z and embeddings of captions e. The other picture is drawn anew for every
sample. The authors draw it from Tiny ImageNet, with the name of its class as the caption; here it
is a reference image of the study, with its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from afterimage.diffusion.condition import Condition
from afterimage.diffusion.texts import TEXT

if TYPE_CHECKING:
    from afterimage.diffusion.noising import Pixels


@dataclass(frozen=True)
class Fusion:
    """What is mixed into training batches.

    Attributes:
        others: The denoising of the other pictures, with their captions.
        image: w_lat, in [0, 1].
        caption: w_emb, in [0, 1].
    """

    others: Pixels
    image: float
    caption: float

    def fused(
        self, clean: torch.Tensor, condition: Condition, generator: torch.Generator
    ) -> tuple[torch.Tensor, Condition]:
        """Return images, float32 (B, C, H, W), and their condition with others mixed in, which are
        drawn by ``generator``."""
        rows = torch.randint(len(self.others), (len(clean),), generator=generator)
        plain = torch.zeros(len(rows), dtype=torch.bool)
        other = self.others.drawn(rows, plain, generator)
        texts = cast(torch.Tensor, condition[TEXT])
        other_texts = cast(torch.Tensor, self.others.condition_of(rows)[TEXT])
        return (
            _mixed(clean, other, self.image),
            {**condition, TEXT: _mixed(texts, other_texts, self.caption)},
        )


def _mixed(own: torch.Tensor, other: torch.Tensor, weight: float) -> torch.Tensor:
    return (1 - weight) * own + weight * other
