"""The network of a stored pipeline: built from its config, and filled from safetensors.

Weights that are missing, unknown, of another shape, quantised or not finite are errors: diffusers'
own ``from_pretrained`` leaves missing ones at their random initial values, with a warning.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError, safe_open

from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.diffusion.model import classes_of
from afterimage.diffusion.rau_net import RAUNet, RAUNetCondition
from afterimage.diffusion.router import TimestepRouter, UNet
from afterimage.diffusion.stored_files import (
    BAD_CONFIG,
    OWN_CODE,
    POINTER,
    WHAT_OPENS,
    first_line,
    listed,
    read_json,
    short,
)

NETWORKS: dict[str, type[UNet]] = {
    kind.__name__: kind for kind in (UNet2DModel, RAUNet, TimestepRouter)
}


def networks(texts: bool) -> dict[str, type[UNet]]:
    """Return the networks that can be opened, by class name; with ``texts``, as for a study's own
    results, also those that are conditioned on texts."""
    of_texts = (UNet2DConditionModel, RAUNetCondition) if texts else ()
    return NETWORKS | {kind.__name__: kind for kind in of_texts}


WEIGHTS = "diffusion_pytorch_model.safetensors"
SHARDS = f"{WEIGHTS}.index.json"

AVERAGING = {
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
}
"""Keys that diffusers' ``EMAModel`` leaves in the config of averaged weights."""


Size = tuple[int, int]
"""Height and width of an image."""


def predicts_variance(net: UNet2DModel) -> bool:
    """Return whether the network has twice as many output as input channels: the prediction,
    followed by a variance."""
    return net.config["out_channels"] == 2 * net.config["in_channels"]


def read_network(
    folder: Path, index_class: str | None, name: str, texts: bool = False
) -> tuple[UNet2DModel, str]:
    """Build the network of a folder and load its weights.

    Args:
        folder: Folder with ``config.json`` and the weights.
        index_class: The class in the pipeline's index, if there is one.
        name: Name of the pipeline in messages.
        texts: Whether a network may be conditioned on texts.

    Returns:
        The network (float32, on the CPU) and the sha256 of its weights.

    Raises:
        ArtifactError: if the network is not supported, or the weights do not fit it exactly.
    """
    config = read_json(folder / "config.json", name)
    kind = str(config.get("_class_name", index_class))
    known = networks(texts)
    if kind not in known or (index_class is not None and kind != index_class):
        raise ArtifactError(
            f"{name}: {short(folder / 'config.json')} is that of a {kind}; {WHAT_OPENS}; {OWN_CODE}"
        )
    if config.get("class_embed_type") is not None:
        raise ArtifactError(
            f"{name}: its network's class_embed_type is {config['class_embed_type']!r}; allowed "
            f"are networks without labels, and labels by num_class_embeds; {OWN_CODE}"
        )

    # Build the network.
    state, sha256 = weights_of(folder, name)
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights, all of which are replaced
            settings = {key: value for key, value in config.items() if key not in AVERAGING}
            net = cast(UNet2DModel, known[kind].from_config(settings))
    except (*BAD_CONFIG, ConfigError) as error:
        raise ArtifactError(
            f"{name}: no {kind} can be built from {folder.name}/config.json: {first_line(error)}"
        ) from error

    fill(net, state, folder, name)
    return net, sha256


def fill(net: ModelMixin, state: OrderedDict[str, torch.Tensor], folder: Path, name: str) -> None:
    """Load stored weights, which must fit exactly.

    Args:
        net: The network.
        state: Name -> tensor; names of earlier versions of diffusers are replaced.
        folder: Where they were stored, for messages.
        name: Name of the pipeline in messages.

    Raises:
        ArtifactError: if one is missing, unknown, of another shape, quantised or not finite.
    """
    net._fix_state_dict_keys_on_load(state)
    expected = net.state_dict()
    missing, foreign = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or foreign:
        differences = "; ".join(
            f"{what} {listed(names)}"
            for what, names in (("missing are", missing), ("not known are", foreign))
            if names
        )
        raise ArtifactError(
            f"{name}: the weights in {folder.name}/ are not those of the network in its "
            f"config.json: {differences}"
        )
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise ArtifactError(
                f"{name}: {folder.name}/config.json and the weights disagree: {key} is "
                f"{tuple(tensor.shape)} where {tuple(expected[key].shape)} is needed"
            )
        if tensor.is_floating_point() != expected[key].is_floating_point():
            raise ArtifactError(
                f"{name}: the weights in {folder.name}/ are quantised ({key} is {tensor.dtype}); "
                "allowed are floats"
            )
        if not torch.isfinite(tensor.float()).all():
            raise ArtifactError(
                f"{name}: the weights in {folder.name}/ are not finite: {key} has NaN or infinite "
                "values, and nothing can be sampled from it; open an earlier state of the training"
            )
    net.load_state_dict(state)


def weights_of(folder: Path, name: str) -> tuple[OrderedDict[str, torch.Tensor], str]:
    """Return the stored tensors by name, and their hash."""
    files = [WEIGHTS]
    if not (folder / WEIGHTS).exists() and (folder / SHARDS).exists():
        shards = read_json(folder / SHARDS, name).get("weight_map")
        if not isinstance(shards, dict) or not all(
            isinstance(file, str) and "/" not in file for file in shards.values()
        ):
            raise ArtifactError(
                f"{name}: {folder.name}/{SHARDS} is damaged: it has no weight_map of file names"
            )
        files = sorted(set(shards.values()))
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for file in files:
        if not (folder / file).is_file():
            raise ArtifactError(f"{name}: there is no {folder.name}/{file}{_instead(folder)}")
        try:
            with (folder / file).open("rb") as stream:
                start = stream.read(len(POINTER))
            if start == POINTER:
                raise ArtifactError(
                    f"{name}: {folder.name}/{file} is a git-lfs pointer, not the weights; run `git "
                    "lfs pull`"
                )
            with safe_open(folder / file, "pt") as stored:
                for key in stored.keys():  # noqa: SIM118 -- not a dict
                    state[key] = stored.get_tensor(key)
        except (SafetensorError, OSError, ValueError) as error:
            raise ArtifactError(
                f"{name}: {folder.name}/{file} is damaged (truncated or changed): "
                f"{first_line(error)}"
            ) from error
    total = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return state, total.hexdigest()


def _instead(folder: Path) -> str:
    """Return a clause that names the weights that exist but are not read, and what to do."""
    files = sorted(
        path.name
        for path in folder.glob("*")
        if path.suffix in (".bin", ".safetensors", ".pt", ".ckpt")
    )
    variants = [file for file in files if file.endswith(".safetensors")]
    if variants:
        variant = variants[0].split(".")[1] if variants[0].count(".") > 1 else None
        how = (
            f"open it once by from_pretrained(..., variant={variant!r}) and"
            if variant
            else "rename them, or"
        )
        return f", but {listed(variants)}; {how} save it by save_pretrained"
    if files:
        return (
            f", but {listed(files)}, a pickle, which is never read; open it where you trust it and "
            "save it by save_pretrained(..., safe_serialization=True)"
        )
    return ", nor any other weights; fetch them, or copy the whole folder"


def check_network(
    net: UNet2DModel, size: Size | Callable[[], Size] | None, name: str, latents: bool = False
) -> None:
    """Check the images and labels of a network's config; set the image size if it has none.

    Args:
        net: The network.
        size: Height and width to set if the config's ``sample_size`` is null, or a function that
            returns them.
        name: Name of the pipeline in messages.
        latents: Whether the network denoises latents, which may have any number of channels.

    Raises:
        ArtifactError: if the channels, the size or the number of labels is not supported.
    """
    config = net.config
    channels, out = config["in_channels"], config["out_channels"]
    if channels not in (1, 3) and not latents:
        raise ArtifactError(
            f"{name}: its network has {channels} input channels; allowed are 1 (grey) and 3 (RGB)"
        )
    if out not in (channels, 2 * channels):
        raise ArtifactError(
            f"{name}: its network has {channels} input and {out} output channels; allowed are as "
            "many output channels as input channels, or twice as many (a learned variance)"
        )
    if classes_of(net) == 0:
        raise ArtifactError(
            f"{name}: its network has num_class_embeds = {config['num_class_embeds']}; at least "
            "one label is needed"
        )
    stored = config["sample_size"]
    if stored is None:
        if size is None:
            raise ArtifactError(
                f"{name}: its network's config has no sample_size (null), and there are no images "
                "to take it from"
            )
        stored = size() if callable(size) else size
    sides = (
        (stored, stored)
        if isinstance(stored, int)
        else tuple(stored)
        if isinstance(stored, list | tuple)
        else (stored,)
    )
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ArtifactError(
            f"{name}: its network's sample_size is {stored!r}; allowed are a side, or height and "
            "width, in pixels"
        )
    if config["sample_size"] is None:
        net.register_to_config(sample_size=sides)
