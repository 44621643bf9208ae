"""Projected gradients of images, averaged over timesteps: the features of gradient attributors.

For image i, timestep t and readout c, g_it = J_it^T c_it is the gradient of a scalar computed from
the network's prediction (see ``readouts``), and P its projection (``projection``). A feature of
image i is the mean over T timesteps of P g_it (TRAK and D-TRAK, Zheng et al., ICLR 2024), or of P
g_it / (|g_it| + 1e-8) (the release of DAS, Lin et al., ICLR 2025). The released codes average
before they project, which is equivalent. With ``projection: kronecker`` the norm is that of the
projected gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from afterimage.artifacts import ArtifactError
from afterimage.attribution.gradients import projection
from afterimage.attribution.gradients.layers import Layers
from afterimage.attribution.gradients.noise import (
    gaussian_noise,
    random_signs,
    shared_noise,
    timestep_grid,
)
from afterimage.attribution.gradients.readouts import READOUTS
from afterimage.config.attribution import Features
from afterimage.diffusion.noising import Pixels
from afterimage.progress import batches

EPSILON = 1e-8
"""Added to a norm before dividing by it, as in the released DAS."""


@dataclass(frozen=True)
class ProjectedGradients:
    """Features of n images, float32.

    Attributes:
        features: ``<readout>`` and ``<readout>/normalised`` -> (n, k), for all readouts but
            ``probe``.
        rows: (n, T R, k): with ``probe``, the projected gradients for R new random probes at each
            timestep; (n, 0, k) without.
        residual: (n,), the error weight of the released DAS: the root mean squared error at each
            timestep, divided by the norm over the image's T of them, averaged over timesteps.
    """

    features: dict[str, np.ndarray]
    rows: np.ndarray
    residual: np.ndarray


def project_gradients(
    net: torch.nn.Module,
    task: Pixels,
    ids: np.ndarray,
    image_set: str,
    settings: Features,
    readouts: Iterable[str],
    seed: int,
    timesteps: list[int] | None = None,
    draw: int = 0,
) -> ProjectedGradients:
    """Return the features of images.

    They depend on the arguments alone; the batch size changes them by rounding errors only.

    Args:
        net: The network, on the device to use; put into evaluation mode.
        task: The denoising of the images, with the labels or texts that the network takes.
        ids: Ids of the images, (n,).
        image_set: Name of the set of images; with an image's id, it seeds the image's noise.
        settings: How features are computed.
        readouts: Names of ``READOUTS``, and ``probe`` for ``rows``.
        seed: Root seed.
        timesteps: Timesteps to use instead of those of ``settings``.
        draw: Number of the draw of noise and probes; others are independent of it.

    Raises:
        ConfigError: if the settings do not suit the network.
        ArtifactError: if a gradient is NaN or infinite.
    """
    # Set up layers, projection, timesteps and the noising task.
    requested, count = set(readouts), len(task)
    scalars = [name for name in READOUTS if name in requested]
    probes = settings.probes if "probe" in requested else 0
    stream = image_set if draw == 0 else f"draw {draw} {image_set}"
    device = next(net.parameters()).device
    layers = Layers(net.eval(), settings.parameters)
    project = projection.build(settings.projection, settings.dimension, layers.shapes, seed, device)
    timesteps = timesteps or timestep_grid(
        settings.timesteps, task.scheduler.config["num_train_timesteps"], settings.grid, seed
    )

    # Allocate the results.
    plain, normalised = (
        np.empty((len(scalars), count, project.dimension), np.float32) for _ in range(2)
    )
    rows = np.empty((count, len(timesteps) * probes, project.dimension), np.float32)
    errors = np.empty((count, len(timesteps)), np.float32)

    for start in batches(
        count, settings.batch_size, "computed gradients of", f"{image_set} images"
    ):
        batch_slice = slice(start, start + settings.batch_size)
        index, batch_ids = torch.arange(count)[batch_slice], ids[batch_slice]
        unmirrored = torch.zeros(len(index), dtype=torch.bool)
        sums = torch.zeros(2, len(index), len(scalars), project.dimension, device=device)
        for column, t in enumerate(timesteps):
            # Noise the images and predict, recording what the layers receive.
            shape = task.shape
            if settings.noise == "shared":
                noise = shared_noise(seed, draw, t, shape).expand(len(index), *shape)
            else:
                noise = gaussian_noise(seed, stream, batch_ids, t, shape)
            signs = random_signs(seed, stream, batch_ids, t, shape, probes).to(device)
            batch = task.noised(
                index, torch.full_like(index, t), noise, unmirrored, task.condition_of(index)
            ).to(device)
            with (
                layers.recorded() as tape,
                torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"),
            ):
                prediction = task.predict(net, batch)
            f = prediction.detach()
            errors[batch_slice, column] = (
                (f - batch.target).square().mean(dim=(1, 2, 3)).sqrt().cpu()
            )

            # Project the gradient of each readout and add it up.
            cotangents = [READOUTS[name](f, batch.target) for name in scalars] + list(signs)
            gradients, norms = project(
                tape.gradients(prediction, cotangents), len(index), len(cotangents)
            )
            rows[batch_slice, column * probes : (column + 1) * probes] = gradients[
                :, len(scalars) :
            ].cpu()
            scalar_gradients = gradients[:, : len(scalars)]
            sums[0] += scalar_gradients
            sums[1] += scalar_gradients / (norms[:, : len(scalars), None] + EPSILON)
        plain[:, batch_slice], normalised[:, batch_slice] = (
            (sums / len(timesteps)).transpose(1, 2).cpu()
        )

    # Name the features and check them.
    features = dict(zip(scalars, plain, strict=True))
    features |= {
        f"{name}/normalised": values for name, values in zip(scalars, normalised, strict=True)
    }
    residual = (errors / np.linalg.norm(errors, axis=1, keepdims=True)).mean(axis=1)
    if not all(np.isfinite(values).all() for values in (plain, normalised, rows, residual)):
        raise ArtifactError(f"a gradient for the {image_set} images is NaN or infinite")
    return ProjectedGradients(features, rows, residual)
