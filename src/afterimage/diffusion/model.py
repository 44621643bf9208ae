"""The network and its forward process: diffusers' ``UNet2DModel`` and ``DDPMScheduler``, built from
the study.

Ho et al. 2020 (linear betas, the U-Net) and Nichol & Dhariwal 2021 (cosine betas). Trained models
are stored as diffusers pipeline folders, so that ``DDPMPipeline.from_pretrained(folder)`` opens
every one of them: a plain ``UNet2DModel`` without this package, one with information transfer
blocks (``rau_net``) or two networks in one (``router``) after ``import afterimage``.

An unconditional net is sampled by that pipeline as is. A label-conditional net
(``num_class_embeds`` = classes + 1, the last index being the null label of classifier-free
guidance, named in its config) can only be *opened* by it: ``__call__`` passes no ``class_labels``,
without which ``UNet2DModel`` raises ``ValueError``. Call ``pipeline.unet(x, t,
class_labels=labels)`` in a loop over ``pipeline.scheduler``, or use ``afterimage sample draw``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage import artifacts
from afterimage.artifacts import ArtifactError, difference
from afterimage.config import ConfigError, Diffusion, Model, TransferBlocks
from afterimage.diffusion.lora import fused, has_adapters, save_adapters, with_own_adapters
from afterimage.diffusion.rau_net import RAUNet, RAUNetCondition, Transfers
from afterimage.diffusion.router import NETS, NULL, TimestepRouter, UNet

FROZEN = {
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
}
"""Part of a text-to-image pipeline that no training changes -> its library and class."""
ABSENT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that such a pipeline may have, and a study's do not."""


def build_unet(
    model: Model,
    shape: tuple[int, int, int],
    classes: int | None = None,
    seed: int = 0,
    blocks: TransferBlocks | None = None,
    text_width: int | None = None,
) -> UNet:
    """Return a freshly initialised U-Net for images of ``shape``.

    Args:
        model: The study's ``model`` block.
        shape: Height, width and channels of one image.
        classes: Number of labels of a conditional net; its label ``classes`` is the null label.
            None builds an unconditional net.
        seed: Seed of the initial weights, which are the same with and without blocks. The global
            random state is restored.
        blocks: Information transfer blocks in the skip connections (``rau_net``); without blocks
            the net is a plain ``UNet2DModel``.
        text_width: Size of the token embeddings of a net that is conditioned on texts, a
            ``UNet2DConditionModel`` with cross-attention wherever another has self-attention.

    Raises:
        ConfigError: if the image sides cannot be halved once per level after the first; if the
            attention of the middle block, present as soon as any level has attention, does not fit
            its width; or if blocks do not fit the network.
    """
    # Check that the architecture fits the images.
    height, width, channels = shape
    halvings = 2 ** (len(model.channels) - 1)
    if height % halvings or width % halvings:
        raise ConfigError(
            f"model.channels has {len(model.channels)} levels, which need image sides that are "
            f"multiples of {halvings}; the images are {height} x {width}"
        )
    if any(model.attention) and model.channels[-1] % model.attention_head_dim:
        raise ConfigError(
            f"model.channels: the middle block has attention, but its width {model.channels[-1]} "
            f"is not a multiple of attention_head_dim = {model.attention_head_dim}"
        )

    # Build it.
    settings = _of_blocks(blocks)
    kind: type[UNet]
    attending = "Attn"
    if text_width is None:
        kind = RAUNet if settings else UNet2DModel
        settings |= {
            "add_attention": any(model.attention),
            "attention_head_dim": model.attention_head_dim,
        }
    else:
        kind, attending = RAUNetCondition if settings else UNet2DConditionModel, "CrossAttn"
        settings |= {
            "cross_attention_dim": text_width,
            # diffusers' name for the number of heads in this network
            "attention_head_dim": tuple(
                max(1, width // model.attention_head_dim) for width in model.channels
            ),
        }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = kind(
            sample_size=height if height == width else (height, width),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(model.channels),
            down_block_types=tuple(
                f"{attending}DownBlock2D" if on else "DownBlock2D" for on in model.attention
            ),
            up_block_types=tuple(
                f"{attending}UpBlock2D" if on else "UpBlock2D" for on in reversed(model.attention)
            ),
            layers_per_block=model.layers_per_block,
            norm_num_groups=model.norm_groups,
            dropout=model.dropout,
            resnet_time_scale_shift={"add": "default", "scale_shift": "scale_shift"}[
                model.time_embedding
            ],
            num_class_embeds=None if classes is None else classes + 1,
            **settings,
        )
    if classes is not None:
        mark_null(net)
    return net


def unet_of(config: Mapping[str, Any], blocks: TransferBlocks | None = None) -> UNet:
    """Return a U-Net with random weights from the config of a plain one, with information transfer
    blocks in it or without."""
    settings = _of_blocks(blocks)
    name = str(config["_class_name"])
    if settings:
        name = {"UNet2DModel": "RAUNet", "UNet2DConditionModel": "RAUNetCondition"}[name]
    return cast(UNet, NETS[name].from_config({**config, **settings, "_class_name": name}))


def _of_blocks(blocks: TransferBlocks | None) -> dict[str, Any]:
    """Return the keywords of a U-Net with blocks; empty without."""
    if blocks is None or blocks.placed is None:
        return {}
    return {f"transfer_{key}": value for key, value in blocks.model_dump().items()}


def build_scheduler(diffusion: Diffusion, latents: bool = False) -> DDPMScheduler:
    """Return the forward process.

    Sampling with it clips the predicted image to [-1, 1], but no latents, whose steps are one
    timestep later, as ``StableDiffusionPipeline`` requires.
    """
    return DDPMScheduler(
        **diffusion.scheduler,
        clip_sample=not latents,
        clip_sample_range=1.0,
        steps_offset=int(latents),
    )


def reads_texts(unet: UNet) -> bool:
    """Return whether a network is conditioned on texts."""
    return unet.config.get("cross_attention_dim") is not None


def shape_of(unet: UNet) -> tuple[int, int, int]:
    """Return height, width and channels of what a network denoises."""
    size = unet.config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return height, width, unet.config["in_channels"]


def classes_of(unet: UNet) -> int | None:
    """Return the number of labels of a conditional net, excluding the null label; None for an
    unconditional net.

    In a network without a named null label (see ``null_of``) every embedding is a label.
    """
    embeddings = unet.config["num_class_embeds"]
    return None if embeddings is None else embeddings - (null_of(unet) is not None)


def null_of(unet: UNet) -> int | None:
    """Return the null label, which networks of this package name in their config; None if none is
    named."""
    return unet.config.get(NULL)


def mark_null(unet: UNet) -> None:
    """Record in a network's config, and so in its stored pipeline, that its last embedding is the
    null label."""
    unet.register_to_config(**{NULL: unet.config["num_class_embeds"] - 1})


def save_pipeline(
    unet: torch.nn.Module,
    scheduler: DDPMScheduler,
    folder: Path,
    frozen: Mapping[str, Path] | None = None,
) -> None:
    """Write a diffusers pipeline folder: JSON and safetensors only. A network with adapters is
    stored with these added to its weights; they are stored beside it, too.

    Args:
        unet: The network.
        scheduler: The forward process.
        folder: Folder to write.
        frozen: Part (the keys of ``FROZEN``) -> its stored folder, for a network of latents: a
            ``StableDiffusionPipeline`` is written. Its parts that no training changes are linked,
            so that many trainings store them once.
    """
    if has_adapters(unet):
        save_adapters(unet, folder)
        unet = fused(unet)
    if not frozen:
        pipeline = DDPMPipeline(unet, scheduler)  # type: ignore[arg-type]
        pipeline.save_pretrained(folder, safe_serialization=True)
        return
    net: Any = unet
    net.save_pretrained(folder / "unet", safe_serialization=True)
    scheduler.save_pretrained(folder / "scheduler")
    for part, stored in frozen.items():
        artifacts.link(stored, folder / part)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "unet": [type(net).__module__.partition(".")[0], type(net).__name__],
        "scheduler": ["diffusers", type(scheduler).__name__],
        **{part: list(FROZEN[part]) for part in frozen},
        **{part: [None, None] for part in ABSENT},
        "requires_safety_checker": False,
    }
    artifacts.write_json(folder / "model_index.json", index)


def load_weights(unet: UNet, pipeline: Path) -> None:
    """Fill ``unet`` with the weights of a stored pipeline of the same architecture.

    Both networks of a router are filled from a single network, or each from its counterpart
    (``fill``).

    Raises:
        ArtifactError: naming the settings in which the two architectures differ.
    """
    kind = (NETS | {"TimestepRouter": TimestepRouter})[
        UNet2DModel.load_config(pipeline, subfolder="unet")["_class_name"]
    ]
    stored = kind.from_pretrained(pipeline, subfolder="unet", use_safetensors=True)
    if isinstance(unet, TimestepRouter):
        front, tail = (
            (stored.front, stored.tail) if isinstance(stored, TimestepRouter) else (stored, stored)
        )
        fill(unet.front, front, pipeline)
        fill(unet.tail, tail, pipeline)
    else:
        fill(unet, stored, pipeline)


def fill(unet: UNet, stored: UNet, folder: Path) -> None:
    """Fill ``unet`` with the weights of another network of the same architecture.

    A network with information transfer blocks can be filled from one without: its blocks keep
    their weights. So do ``frozen_redrawn`` blocks, which loading never restores, and adapters.

    Args:
        unet: The network to fill.
        stored: The other one, without adapters.
        folder: Where it was stored, for messages.

    Raises:
        ArtifactError: naming the settings in which the two architectures differ.
    """
    adds_blocks = isinstance(unet, Transfers) and not isinstance(stored, Transfers)
    ours, theirs = (
        {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in net.config.items()
            if not key.startswith("_") and not (adds_blocks and key.startswith("transfer_"))
        }
        for net in (unet, stored)
    )
    if ours != theirs:
        raise ArtifactError(f"{folder} holds another architecture: {difference(theirs, ours)}")
    weights = stored.state_dict()
    if adds_blocks or ours.get("transfer_variant") == "frozen_redrawn":
        weights |= {
            name: value
            for name, value in unet.state_dict().items()
            if name.startswith("transfers.")
        }
    unet.load_state_dict(with_own_adapters(unet, weights) if has_adapters(unet) else weights)
