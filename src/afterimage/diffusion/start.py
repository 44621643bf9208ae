"""The network that a training without a base starts from: with random weights, or a trained one
out of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.config import AnyModel, ConfigError, StoredModel, TransferBlocks
from afterimage.diffusion.lora import ADAPTERS, add_adapters
from afterimage.diffusion.model import build_unet, fill, mark_null, null_of, unet_of
from afterimage.diffusion.router import UNet
from afterimage.diffusion.stored_network import read_network
from afterimage.diffusion.trainable import hold_others, trained


def stored_input(model: AnyModel) -> dict[str, Path]:
    """Return what a training reads of a stored network: its folder, as the input ``unet``; empty
    for a network with random weights.

    Raises:
        ArtifactError: if the folder is not there, or a file of it has another checksum.
    """
    if not isinstance(model, StoredModel):
        return {}
    folder = model.folder
    if not folder.is_dir():
        raise ArtifactError(f"model.path = {model.path!r}: there is no such folder")
    artifacts.check_sums(folder, model.sha256, "model.sha256")
    return {"unet": folder}


def start(
    model: AnyModel,
    shape: tuple[int, int, int],
    classes: int | None = None,
    seed: int = 0,
    blocks: TransferBlocks | None = None,
    text_width: int | None = None,
) -> UNet:
    """Return the network for images of ``shape``; which of its weights are trained is what
    requires a gradient.

    Args:
        model: The study's ``model`` block.
        shape: Height, width and channels of one image or latent.
        classes: Number of labels of a conditional net; its label ``classes`` is the null label.
        seed: Of what is random: all weights, or the blocks or adapters in a stored network.
        blocks: Information transfer blocks in the skip connections (``rau_net``).
        text_width: Size of the token embeddings of a net that is conditioned on texts.

    Raises:
        ConfigError: if the network does not fit the images, labels or texts.
        ArtifactError: if the stored weights do not fit the stored config exactly.
    """
    if not isinstance(model, StoredModel):
        return build_unet(model, shape, classes, seed, blocks, text_width)

    # Read the network.
    name = f"model.path = {model.path!r}"
    net: UNet
    net, _ = read_network(model.folder, None, name, texts=True)
    _check(net, name, shape, classes, text_width)

    # Put blocks or adapters into it, and freeze what is not trained.
    if blocks is not None and blocks.placed is not None:
        plain = net
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            net = unet_of(plain.config, blocks)
        fill(net, plain, Path(model.path))
    height, width, _ = shape
    net.register_to_config(sample_size=height if height == width else (height, width))
    if classes is not None:
        mark_null(net)
    hold_others(net, model.trainable)
    if model.lora is not None:
        add_adapters(net, model.lora, seed)
    return net


def with_adapters(model: StoredModel, pipeline: Path) -> UNet:
    """Return a stored network with the adapters that a training with ``model.lora`` left beside its
    result, in layers of their own: the same function as the result's network.

    Args:
        model: The study's ``model`` block.
        pipeline: Folder of the result.

    Raises:
        ArtifactError: if the stored weights do not fit the stored config exactly.
    """
    net: Any
    net, _ = read_network(model.folder, None, f"model.path = {model.path!r}", texts=True)
    net.load_lora_adapter(str(pipeline), prefix="unet", weight_name=ADAPTERS)
    return net


def facts(model: AnyModel, net: Any) -> Mapping[str, int]:
    """Return what the record of a training says of a stored network, which its settings do not:
    levels, and weights that were trained; empty for a network with random weights."""
    if not isinstance(model, StoredModel):
        return {}
    return {"levels": len(net.config["block_out_channels"]), "trained_parameters": trained(net)}


def _check(
    net: UNet,
    name: str,
    shape: tuple[int, int, int],
    classes: int | None,
    text_width: int | None,
) -> None:
    """Compare a stored network with what it is trained on.

    Raises:
        ConfigError: naming what differs.
    """
    config = net.config
    height, width, channels = shape
    halvings = 2 ** (len(config["block_out_channels"]) - 1)
    if config["in_channels"] != channels or height % halvings or width % halvings:
        raise ConfigError(
            f"{name}: its network takes {config['in_channels']} channels and sides that are "
            f"multiples of {halvings}; what is denoised is {height} x {width} x {channels}"
        )
    labels = None if classes is None else classes + 1
    if config["num_class_embeds"] != labels or null_of(net) not in (None, classes):
        raise ConfigError(
            f"{name}: its network has num_class_embeds = {config['num_class_embeds']} and the null "
            f"label {null_of(net)}; needed are {labels} and {classes}, for the {classes or 0} "
            "labels of the training images and the null label"
        )
    if config.get("cross_attention_dim") != text_width:
        raise ConfigError(
            f"{name}: its network has cross_attention_dim = {config.get('cross_attention_dim')}; "
            f"the texts' embeddings have {text_width}"
        )
