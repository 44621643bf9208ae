"""The gradient of a generation's loss along its own sampling, for Journey-TRAK (Georgiev et al. 2023).

At a state of the sampling the network has an estimate of the final image; what is differentiated is the denoising loss of that
estimate at the state's timestep, under fresh noise. A feature is the mean over T of the sampler's steps, evenly spread. Only
generations have a journey.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from afterimage.attribution.gradients import compute
from afterimage.config import Features, Sample
from afterimage.diffusion.model import classes_of
from afterimage.diffusion.sample import generate, to_uint8
from afterimage.images import Images


def estimates(
    net: UNet2DModel, scheduler_config: dict[str, Any], images: Images, settings: Sample, seed: int
) -> dict[int, np.ndarray]:
    """Sample generations again and return the estimate of each final image at every step, uint8 (n, H, W, C) by timestep.

    With guidance, the estimate is that of the prediction for the image's label.

    Args:
        net: The network, on the device to use.
        scheduler_config: Config of the scheduler that it was trained with.
        images: Generations of the first replicate; their ids name their noise.
        settings: How they were sampled.
        seed: Root seed.
    """
    scheduler = DDIMScheduler.from_config(scheduler_config)
    scheduler.set_timesteps(settings.steps)
    labels = images.labels if classes_of(net) is not None else None
    both = labels is not None and settings.guidance not in (
        0,
        1,
    )  # one pass then predicts with and without labels
    found: dict[int, list[np.ndarray]] = {}

    def note(net: torch.nn.Module, args: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        x, t = args
        state, prediction = (values.chunk(2)[0] if both else values for values in (x, output[0]))
        estimate = scheduler.step(prediction, t, state).pred_original_sample
        found.setdefault(int(t), []).append(to_uint8(estimate))

    handle = net.register_forward_hook(note)
    try:
        generate(net, scheduler_config, images.ids, settings, seed, labels=labels)
    finally:
        handle.remove()
    return {t: np.concatenate(batches) for t, batches in found.items()}


def features(
    net: UNet2DModel,
    scheduler_config: dict[str, Any],
    images: Images,
    part: str,
    settings: Features,
    sampling: Sample,
    seed: int,
) -> np.ndarray:
    """Return the projected gradients of generations along their sampling, float32 (n, k).

    Args:
        net: As in ``estimates``.
        scheduler_config: As in ``estimates``.
        images: As in ``estimates``.
        part: Name of the set, as in ``compute.features``.
        settings: How features are made; T is at most the number of the sampler's steps.
        sampling: How the generations were sampled.
        seed: Root seed.
    """
    journey = estimates(net, scheduler_config, images, sampling, seed)
    count = min(settings.timesteps, len(journey))
    steps = [list(journey)[at * len(journey) // count] for at in range(count)]
    made = []
    for t in steps:
        state = Images.of(journey[t], images.ids, images.labels)
        made.append(
            compute.features(
                net, scheduler_config, state, part, settings, ["loss"], seed, at=[t]
            ).features["loss"]
        )
    return np.stack(made).mean(axis=0)
