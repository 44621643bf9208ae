"""The effect of retraining on an image: its loss, and the shift of the network's prediction.

The released codes of D-TRAK (Zheng et al., ICLR 2024) and DAS (Lin et al., ICLR 2025) use the loss
as the ground truth of their linear data-modelling score. DAS is derived for another quantity, the
squared change of the predicted noise,

    shift = E_t,eps |f_theta(x_t) - f_theta'(x_t)|^2 / D,

which differs from the change of the loss by a cross term with the error. Both are measured, with
the same noise for all networks, which is independent of that of the features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from afterimage.artifacts import ArtifactError
from afterimage.attribution.gradients.noise import gaussian_noise
from afterimage.config import ConfigError, GroundTruth
from afterimage.config.attribution import TARGETS
from afterimage.diffusion.denoising import task_of
from afterimage.diffusion.latents import EncodedImages
from afterimage.diffusion.noising import levels as midpoints
from afterimage.diffusion.texts import Texts
from afterimage.images import Images

BATCH = 256
"""Images per batch; bounds the memory."""


def noise_levels(settings: GroundTruth, total: int) -> list[int]:
    """Return the timesteps: the midpoints of equal intervals of the ``total`` timesteps.

    Raises:
        ConfigError: if ``settings.timesteps`` is more than ``total``.
    """
    if settings.timesteps > total:
        raise ConfigError(
            f"attribution.ground_truth.timesteps = {settings.timesteps} is more than "
            f"diffusion.timesteps = {total}"
        )
    return midpoints(settings.timesteps, total)


@torch.inference_mode()
def measure_effects(
    net: UNet2DModel,
    explained: UNet2DModel,
    scheduler_config: dict[str, Any],
    images: Images,
    image_set: str,
    settings: GroundTruth,
    seed: int,
    texts: Texts | None = None,
    latents: EncodedImages | None = None,
) -> dict[str, np.ndarray]:
    """Return each image's ``loss`` under ``net`` and ``shift`` from ``explained``, float64 (Q,).

    Both are means over noise levels and draws.

    Args:
        net: The retrained network, in evaluation mode, on the device to use.
        explained: The explained network, likewise.
        scheduler_config: Config of the scheduler that both were trained with; ``prediction_type``
            defines the target.
        images: The images; label-conditional networks get their true labels.
        image_set: Name of the set of images; with an image's id, it seeds the image's noise.
        settings: Noise levels and draws.
        seed: Root seed.
        texts: Embeddings of the images' captions, for networks that are conditioned on them.
        latents: The images' latents, for networks that denoise those.

    Raises:
        ConfigError: if there are fewer timesteps than levels.
        ArtifactError: if an image lacks a label that the networks need, its caption was not
            encoded, or a result is NaN or infinite.
    """
    task = task_of(net, scheduler_config, images, texts, latents)
    device = next(net.parameters()).device
    levels = noise_levels(settings, scheduler_config["num_train_timesteps"])
    effects = {target: np.zeros(len(images)) for target in TARGETS}
    for start in range(0, len(images), BATCH):
        batch_slice = slice(start, start + BATCH)
        rows, ids = torch.arange(len(images))[batch_slice], images.ids[batch_slice]
        unmirrored = torch.zeros(len(rows), dtype=torch.bool)
        for t in levels:
            for draw in range(settings.draws):
                noise = gaussian_noise(seed, f"truth {draw} {image_set}", ids, t, task.shape)
                batch = task.noised(
                    rows, torch.full_like(rows, t), noise, unmirrored, task.condition_of(rows)
                ).to(device)
                prediction = task.predict(net, batch)
                references = {"loss": batch.target, "shift": task.predict(explained, batch)}
                for target, reference in references.items():
                    effects[target][batch_slice] += (
                        (prediction - reference).square().mean(dim=(1, 2, 3)).cpu().numpy()
                    )
    for target, values in effects.items():
        values /= len(levels) * settings.draws
        if not np.isfinite(values).all():
            raise ArtifactError(f"the {target} of one of the {image_set} images is NaN or infinite")
    return effects
