"""Loss gradients of a generation along its own sampling, for Journey-TRAK (Georgiev et al. 2023).

At each step of the sampler the network implies an estimate of the final image (x_0). The gradient
is that of the denoising loss of this estimate at the step's timestep, with new noise. A feature is
the mean over T evenly spaced sampler steps. It is defined for generations only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from afterimage.attribution.gradients.compute import project_gradients
from afterimage.attribution.replicate import root_seed
from afterimage.config import Features, Sample
from afterimage.diffusion.denoising import task_of
from afterimage.diffusion.model import classes_of
from afterimage.diffusion.pixels import to_uint8
from afterimage.diffusion.sample import generate
from afterimage.diffusion.texts import Texts, embedded_captions
from afterimage.images import Images


def final_image_estimates(
    net: UNet2DModel,
    scheduler_config: dict[str, Any],
    images: Images,
    settings: Sample,
    seed: int,
    replicate: int,
    texts: Texts | None = None,
) -> dict[int, np.ndarray]:
    """Return timestep -> estimates of the final images of generations, uint8 (n, H, W, C).

    The generations are sampled again. With guidance, the estimate is that of the prediction for the
    image's label.

    Args:
        net: The network, on the device to use.
        scheduler_config: Config of the scheduler that it was trained with.
        images: Generations of the network; their ids seed their initial noise.
        settings: How they were sampled.
        seed: Root seed of the study.
        replicate: Replicate of the network.
        texts: Embeddings of the generations' prompts, for a network that is conditioned on texts.
    """
    scheduler = DDIMScheduler.from_config(scheduler_config)
    scheduler.set_timesteps(settings.steps)
    labels = images.labels if classes_of(net) is not None else None
    # With guidance, one forward pass predicts with labels (first half) and without them.
    conditional = labels is not None or texts is not None
    guided = conditional and settings.guidance not in (0, 1)
    estimates: dict[int, list[np.ndarray]] = {}

    def record(
        net: torch.nn.Module, args: tuple[Any, ...], output: tuple[torch.Tensor, ...]
    ) -> None:
        x, t = args
        state, prediction = (values.chunk(2)[0] if guided else values for values in (x, output[0]))
        estimate = scheduler.step(prediction, t, state).pred_original_sample
        estimates.setdefault(int(t), []).append(to_uint8(estimate))

    handle = net.register_forward_hook(record)
    try:
        prompts = embedded_captions(texts, images)
        eager = settings.model_copy(update={"compile": False})  # a hook is not to be compiled
        generate(net, scheduler_config, images.ids, eager, seed, replicate, labels, prompts)
    finally:
        handle.remove()
    return {t: np.concatenate(batches) for t, batches in estimates.items()}


def project_journey_gradients(
    net: UNet2DModel,
    scheduler_config: dict[str, Any],
    images: Images,
    image_set: str,
    settings: Features,
    sampling: Sample,
    seed: int,
    replicate: int,
    texts: Texts | None = None,
) -> np.ndarray:
    """Return the projected loss gradients of generations along their sampling, float32 (n, k).

    Args:
        net: As in ``final_image_estimates``.
        scheduler_config: As in ``final_image_estimates``.
        images: As in ``final_image_estimates``.
        image_set: Name of the set of images, as in ``project_gradients``.
        settings: How features are computed; T is at most the number of sampler steps.
        sampling: How the generations were sampled.
        seed: As in ``final_image_estimates``.
        replicate: As in ``final_image_estimates``.
        texts: As in ``final_image_estimates``.
    """
    estimates = final_image_estimates(
        net, scheduler_config, images, sampling, seed, replicate, texts
    )
    count = min(settings.timesteps, len(estimates))
    steps = [list(estimates)[number * len(estimates) // count] for number in range(count)]
    gradients = []
    for t in steps:
        state = replace(images, pixels=estimates[t])
        projected = project_gradients(
            net,
            task_of(net, scheduler_config, state, texts),
            state.ids,
            image_set,
            settings,
            ["loss"],
            root_seed(seed, replicate),
            timesteps=[t],
        )
        gradients.append(projected.features["loss"])
    return np.stack(gradients).mean(axis=0)
