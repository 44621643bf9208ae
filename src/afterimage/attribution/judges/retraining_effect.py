"""What retraining does to an image: its loss under the other network, and how far the network's prediction for it moved.

The released codes of D-TRAK (Zheng et al., ICLR 2024) and DAS (Lin et al., ICLR 2025) take the loss as the ground truth of their
linear data-modelling score. The score that DAS derives is of another quantity, the squared change of the predicted noise,

    shift = E_t,eps |f_theta(x_t) - f_theta'(x_t)|^2 / D,

which differs from the change of the loss by a cross term with the error. Both are measured, under the same noise for all networks
and another than that of the features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage.artifacts import ArtifactError
from afterimage.attribution.gradients.noise import gaussian
from afterimage.config import ConfigError, GroundTruth
from afterimage.diffusion.model import classes_of
from afterimage.diffusion.noising import Pixels, levels
from afterimage.images import Images

TARGETS = ("loss", "shift")
BATCH = 256
"""Images at once; bounds memory."""


def timesteps(settings: GroundTruth, total: int) -> list[int]:
    """Return the noise levels: the middles of equal parts of the ``total`` timesteps.

    Raises:
        ConfigError: if there are not so many.
    """
    if settings.timesteps > total:
        raise ConfigError(
            f"attribution.ground_truth.timesteps = {settings.timesteps} is more than diffusion.timesteps = {total}"
        )
    return levels(settings.timesteps, total)


@torch.inference_mode()
def measure(
    net: UNet2DModel,
    explained: UNet2DModel,
    scheduler_config: dict[str, Any],
    images: Images,
    part: str,
    settings: GroundTruth,
    seed: int,
) -> dict[str, np.ndarray]:
    """Return each image's ``loss`` under ``net`` and its ``shift`` from ``explained``, means over levels and draws, float64 (Q,).

    Args:
        net: The other network, in evaluation mode, on the device to use.
        explained: The explained one, likewise.
        scheduler_config: Config of the scheduler that both were trained with; its ``prediction_type`` says what the target is.
        images: The images; label-conditional nets are told their labels.
        part: Name of the set, which with an image's id addresses its noise.
        settings: Levels and draws.
        seed: Root seed.

    Raises:
        ConfigError: if there are not so many levels.
        ArtifactError: if an image lacks the label that the networks need, or a number is none.
    """
    classes = classes_of(net)
    labels = images.labels if classes is not None and len(images) else None
    task = Pixels(images.pixels, DDPMScheduler.from_config(scheduler_config), labels, classes or 0)
    device = next(net.parameters()).device
    at = timesteps(settings, scheduler_config["num_train_timesteps"])
    found = {target: np.zeros(len(images)) for target in TARGETS}
    for start in range(0, len(images), BATCH):
        of = slice(start, start + BATCH)
        rows, ids = torch.arange(len(images))[of], images.ids[of]
        unmirrored = torch.zeros(len(rows), dtype=torch.bool)
        for t in at:
            for draw in range(settings.draws):
                noise = gaussian(seed, f"truth {draw} {part}", ids, t, task.images.shape[1:])
                batch = task.noised(
                    rows, torch.full_like(rows, t), noise, unmirrored, task.labels_of(rows)
                ).to(device)
                prediction, before = task.predict(net, batch), task.predict(explained, batch)
                for target, other in (("loss", batch.target), ("shift", before)):
                    found[target][of] += (
                        (prediction - other).square().mean(dim=(1, 2, 3)).cpu().numpy()
                    )
    for target, values in found.items():
        values /= len(at) * settings.draws
        if not np.isfinite(values).all():
            raise ArtifactError(f"the {target} of an image of the {part} part is no number")
    return found
