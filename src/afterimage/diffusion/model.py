"""The network and its forward process: diffusers' ``UNet2DModel`` and ``DDPMScheduler``, built from the study.

Ho et al. 2020 (linear betas, the U-Net) and Nichol & Dhariwal 2021 (cosine betas). Trained models are stored as diffusers
pipeline folders, so that ``DDPMPipeline.from_pretrained(folder)`` opens every one of them without this package.

A net without a condition is sampled by that pipeline as it is. A label-conditional net (``num_class_embeds`` = classes + 1, the
last index being the null label of classifier-free guidance) is only *opened* by it: ``DDPMPipeline.__call__`` passes no
``class_labels``, without which ``UNet2DModel`` raises ``ValueError``. Call ``pipeline.unet(x, t, class_labels=labels)`` in a
loop over ``pipeline.scheduler``, or use ``afterimage sample draw``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage.artifacts import ArtifactError, difference
from afterimage.config import ConfigError, Diffusion, Model


def build_unet(model: Model, shape: tuple[int, int, int], classes: int | None = None, seed: int = 0) -> UNet2DModel:
    """Return a freshly initialised U-Net for images of ``shape``.

    Args:
        model: The study's ``model`` block.
        shape: Height, width and channels of one image.
        classes: Number of labels of a conditional net; its label ``classes`` is the null label. None builds one without labels.
        seed: Seed of the initial weights. The global random state is left as it was.

    Raises:
        ConfigError: if the image sides cannot be halved once per level but the first, or the attention of the middle block,
            which is there as soon as any level has attention, does not fit its width.
    """
    height, width, channels = shape
    halvings = 2 ** (len(model.channels) - 1)
    if height % halvings or width % halvings:
        raise ConfigError(
            f"model.channels has {len(model.channels)} levels, which need image sides that are multiples of {halvings}; "
            f"the images are {height} x {width}"
        )
    if any(model.attention) and model.channels[-1] % model.attention_head_dim:
        raise ConfigError(
            f"model.channels: the middle block has attention, but its width {model.channels[-1]} is not a multiple of "
            f"attention_head_dim = {model.attention_head_dim}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return UNet2DModel(
            sample_size=height if height == width else (height, width),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(model.channels),
            down_block_types=tuple("AttnDownBlock2D" if on else "DownBlock2D" for on in model.attention),
            up_block_types=tuple("AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(model.attention)),
            add_attention=any(model.attention),
            layers_per_block=model.layers_per_block,
            attention_head_dim=model.attention_head_dim,
            norm_num_groups=model.norm_groups,
            dropout=model.dropout,
            num_class_embeds=None if classes is None else classes + 1,
        )


def build_scheduler(diffusion: Diffusion) -> DDPMScheduler:
    """Return the forward process; sampling with it clips the predicted image to [-1, 1]."""
    return DDPMScheduler(
        num_train_timesteps=diffusion.timesteps,
        beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[diffusion.schedule],
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=diffusion.prediction,
        clip_sample=True,
        clip_sample_range=1.0,
    )


def classes_of(unet: UNet2DModel) -> int | None:
    """Return the number of labels of a conditional net, the null label not counted; None for one without labels."""
    embeddings = unet.config["num_class_embeds"]
    return None if embeddings is None else embeddings - 1


def save_pipeline(unet: UNet2DModel, scheduler: DDPMScheduler, folder: Path) -> None:
    """Write a diffusers pipeline folder: JSON and safetensors only."""
    DDPMPipeline(unet, scheduler).save_pretrained(folder, safe_serialization=True)  # type: ignore[arg-type]


def load_weights(unet: UNet2DModel, pipeline: Path) -> None:
    """Fill ``unet`` with the weights of a stored pipeline of the same architecture.

    Raises:
        ArtifactError: naming the settings in which the two architectures differ.
    """
    stored = UNet2DModel.from_pretrained(pipeline, subfolder="unet", use_safetensors=True)
    ours, theirs = (
        {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in net.config.items()
            if not key.startswith("_")
        }
        for net in (unet, stored)
    )
    if ours != theirs:
        raise ArtifactError(f"{pipeline} holds another architecture: {difference(theirs, ours)}")
    unet.load_state_dict(stored.state_dict())
