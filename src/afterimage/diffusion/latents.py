"""Denoising in the latent space of an autoencoder, conditioned on texts or labels (Rombach et al.
2022): what networks of text-to-image and class-conditional pipelines are trained on."""

from __future__ import annotations

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage.diffusion.condition import Condition, each_tensor
from afterimage.diffusion.noising import Pixels


class Latents(Pixels):
    """Denoising of latents by a network that is given the conditions of each.

    Args:
        latents: float32, (N, C, H, W), scaled as the network sees them.
        scheduler: The forward process; its ``prediction_type`` determines the target.
        conditions: What the network is given, with one row per different condition.
        rows: int64, (N,): the row of ``conditions`` of each latent.
    """

    def __init__(
        self,
        latents: torch.Tensor,
        scheduler: DDPMScheduler,
        conditions: Condition,
        rows: torch.Tensor,
    ) -> None:
        self.images, self.scheduler = latents, scheduler
        self.conditions, self.rows = conditions, rows
        self.labels, self.classes, self.label_dropout, self.flips = None, 0, 0.0, False

    def clean(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the latents at ``rows``, float32, (B, C, H, W)."""
        return self.images[rows]

    def condition_of(self, rows: torch.Tensor) -> Condition:
        """Return the conditions of the latents at ``rows``."""
        chosen = self.rows[rows]
        condition: Condition = each_tensor(self.conditions, lambda tensor: tensor[chosen])
        return condition
