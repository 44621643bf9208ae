"""Denoising in the latent space of an autoencoder, conditioned on texts or labels (Rombach et al.
2022): what networks of text-to-image and class-conditional pipelines are trained on."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage.diffusion.noising import Batch, Pixels

Conditions = dict[str, "torch.Tensor | dict[str, torch.Tensor]"]
"""Argument of a network -> a tensor with one row per different condition, or several by name."""


class Latents(Pixels):
    """Denoising of latents by a network that is given the conditions of each.

    Args:
        latents: float32, (N, C, H, W), scaled as the network sees them.
        scheduler: The forward process; its ``prediction_type`` determines the target.
        conditions: What the network is given.
        rows: int64, (N,): the row of ``conditions`` of each latent.
    """

    def __init__(
        self,
        latents: torch.Tensor,
        scheduler: DDPMScheduler,
        conditions: Conditions,
        rows: torch.Tensor,
    ) -> None:
        self.images, self.scheduler = latents, scheduler
        self.conditions, self.rows = conditions, rows
        self.labels, self.classes, self.label_dropout, self.flips = None, 0, 0.0, False

    def clean(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the latents at ``rows``, float32, (B, C, H, W)."""
        return self.images[rows]

    def predict(self, net: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the network's prediction for each latent, float32, (B, C, H, W), without a
        predicted variance."""
        rows, device = self.rows[batch.rows.cpu()], batch.noisy.device

        def of(values: Any) -> Any:
            if isinstance(values, dict):
                return {name: of(tensor) for name, tensor in values.items()}
            return values[rows].to(device)

        given = {name: of(values) for name, values in self.conditions.items()}
        output = net(batch.noisy, timestep=batch.timesteps, return_dict=False, **given)[0]
        return output[:, : batch.noisy.shape[1]].float()
