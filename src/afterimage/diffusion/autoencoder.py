"""The frozen autoencoder of latent diffusion (Rombach et al. 2022): diffusers' ``AutoencoderKL``.

Networks see latents minus the autoencoder's ``shift_factor``, times its ``scaling_factor``, as in
every diffusers pipeline; here latents always are in that form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from afterimage.diffusion.pixels import to_float
from afterimage.diffusion.stored_files import read_json
from afterimage.diffusion.stored_network import fill, weights_of

FOLDER = "vae"
"""Its folder in a pipeline's."""
PIXELS = 2**22
"""Pixels encoded or decoded at once, at most; at least one image."""


class Autoencoder:
    """An autoencoder, on its device.

    Args:
        vae: The network, float32.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae: Any = vae
        self._shift = float(vae.config.get("shift_factor") or 0)
        self._scale = float(vae.config["scaling_factor"])

    @classmethod
    def load(cls, folder: Path) -> Autoencoder:
        """Open a stored autoencoder on the device of the process, frozen.

        Raises:
            ArtifactError: if its weights do not fit its config exactly, or are not finite.
        """
        name = str(folder)
        with torch.random.fork_rng(devices=[]):  # initial weights, all of which are replaced
            vae: Any = AutoencoderKL.from_config(read_json(folder / "config.json", name))
        fill(vae, weights_of(folder, name)[0], folder, name)
        return cls(vae.to(PartialState().device).eval().requires_grad_(False))

    @classmethod
    def of(cls, pipeline: Path) -> Autoencoder | None:
        """Open that of a stored pipeline; None for a pipeline of pixels."""
        return cls.load(pipeline / FOLDER) if (pipeline / FOLDER).is_dir() else None

    @torch.inference_mode()
    def moments(self, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of the latents of images.

        Args:
            images: uint8, (N, H, W, C).

        Returns:
            Two tensors on the CPU, float32, (N, c, h, w).
        """
        means, deviations = [], []
        for part in np.array_split(images, self._parts(images.shape[:3])):
            encoded = self.vae.encode(to_float(part).to(self.vae.device)).latent_dist
            means.append(((encoded.mean - self._shift) * self._scale).cpu())
            deviations.append((encoded.std * self._scale).cpu())
        return torch.cat(means).clone(), torch.cat(deviations).clone()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the images of latents, (N, c, h, w): float32, (N, C, H, W), in [-1, 1] up to the
        network's error."""
        count, _, *sides = latents.shape
        parts = latents.tensor_split(self._parts((count, *self.shape(*sides)[:2])))
        unscaled = (part / self._scale + self._shift for part in parts)
        return torch.cat([self.vae.decode(part, return_dict=False)[0] for part in unscaled])

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return height, width and channels of the image of a latent."""
        factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        return factor * height, factor * width, self.vae.config["out_channels"]

    @staticmethod
    def _parts(size: tuple[int, ...]) -> int:
        count, height, width = size
        at_once = max(1, PIXELS // (height * width))
        return max(1, -(-count // at_once))
