"""Projected gradients of a set of images, averaged over timesteps: what every gradient-based attribution starts from.

For image i, timestep t and readout c, g_it = J_it^T c_it is the gradient of a number read out of the network's prediction (see
``readouts``), and P its projection (``projection``). A feature of image i is the mean over T timesteps of P g_it (TRAK and
D-TRAK, Zheng et al., ICLR 2024), or of P g_it / (|g_it| + 1e-8) (the release of DAS, Lin et al., ICLR 2025). The released codes
average before they project, which is the same. With ``projection: kronecker`` the norm is that of the projected gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage.artifacts import ArtifactError
from afterimage.attribution.gradients import projection
from afterimage.attribution.gradients.layers import Layers
from afterimage.attribution.gradients.noise import gaussian, signs, timesteps
from afterimage.attribution.gradients.readouts import READOUTS
from afterimage.config.attribution import Features
from afterimage.diffusion.model import classes_of
from afterimage.diffusion.noising import Pixels
from afterimage.images import Images
from afterimage.progress import batches

TINY = 1e-8
"""What the released DAS adds to a norm that it divides by."""


@dataclass(frozen=True)
class Projected:
    """Features of n images, float32.

    Attributes:
        features: ``<readout>`` and ``<readout>/normalised`` -> (n, k), for every readout but ``probe``.
        rows: (n, T, k): with ``probe``, the projected gradient at each timestep, each of a fresh probe; (n, 0, k) without.
        residual: (n,), the error weight of the released DAS: the root of the mean squared error at each timestep, divided by
            the norm of the image's T of them, averaged over these.
    """

    features: dict[str, np.ndarray]
    rows: np.ndarray
    residual: np.ndarray


def features(
    net: UNet2DModel,
    scheduler_config: dict[str, Any],
    images: Images,
    part: str,
    settings: Features,
    readouts: Iterable[str],
    seed: int,
    at: list[int] | None = None,
) -> Projected:
    """Return the features of images.

    They are a function of the arguments: the batch size changes them by no more than rounding.

    Args:
        net: The network, on the device to use; put into evaluation mode.
        scheduler_config: Config of the scheduler that it was trained with; its ``prediction_type`` says what the target is.
        images: The images; a label-conditional net is told their true labels.
        part: Name of the set, which with an image's id addresses its noise.
        settings: How features are made.
        readouts: Names of ``READOUTS``.
        seed: Root seed.
        at: Timesteps, instead of those of the settings.

    Raises:
        ConfigError: if the settings do not fit the network.
        ArtifactError: if an image lacks the label that the network needs, or a gradient is no number.
    """
    asked, count = set(readouts), len(images)
    scalars = [name for name in READOUTS if name in asked and name != "probe"]
    names = [*scalars, "probe"] if "probe" in asked else scalars
    device = next(net.parameters()).device
    layers = Layers(net.eval(), settings.parameters)
    project = projection.build(settings.projection, settings.dimension, layers.shapes, seed, device)
    at = at or timesteps(
        settings.timesteps, scheduler_config["num_train_timesteps"], settings.grid, seed
    )
    classes = classes_of(net)
    labels = images.labels if classes is not None and count else None
    task = Pixels(images.pixels, DDPMScheduler.from_config(scheduler_config), labels, classes or 0)

    plain, normalised = (
        np.empty((len(scalars), count, project.dimension), np.float32) for _ in range(2)
    )
    rows = np.empty((count, len(at) if "probe" in asked else 0, project.dimension), np.float32)
    errors = np.empty((count, len(at)), np.float32)
    for start in batches(count, settings.batch_size, "taken gradients of", f"{part} images"):
        of = slice(start, start + settings.batch_size)
        index, ids = torch.arange(count)[of], images.ids[of]
        sums = torch.zeros(2, len(index), len(scalars), project.dimension, device=device)
        for column, t in enumerate(at):
            noise = gaussian(seed, part, ids, t, task.images.shape[1:])
            probe = signs(seed, part, ids, t, task.images.shape[1:]).to(device)
            unmirrored = torch.zeros(len(index), dtype=torch.bool)
            batch = task.noised(
                index, torch.full_like(index, t), noise, unmirrored, task.labels_of(index)
            ).to(device)
            with (
                layers.recorded() as tape,
                torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"),
            ):
                prediction = task.predict(net, batch)
            f = prediction.detach()
            errors[of, column] = (f - batch.target).square().mean(dim=(1, 2, 3)).sqrt().cpu()
            cotangents = [READOUTS[name](f, batch.target, probe) for name in names]
            gradients, norms = project(
                tape.gradients(prediction, cotangents), len(index), len(names)
            )
            if "probe" in asked:
                rows[of, column] = gradients[:, -1].cpu()
            of_scalars = gradients[:, : len(scalars)]
            sums[0] += of_scalars
            sums[1] += of_scalars / (norms[:, : len(scalars), None] + TINY)
        plain[:, of], normalised[:, of] = (sums / len(at)).transpose(1, 2).cpu()
    found = dict(zip(scalars, plain, strict=True))
    found |= {
        f"{name}/normalised": values for name, values in zip(scalars, normalised, strict=True)
    }
    residual = (errors / np.linalg.norm(errors, axis=1, keepdims=True)).mean(axis=1)
    if not all(np.isfinite(values).all() for values in (plain, normalised, rows, residual)):
        raise ArtifactError(f"the network's gradient at an image of the {part} part is no number")
    return Projected(found, rows, residual)
