"""The network of ``--pipeline`` and its denoising of given images, for commands that need losses or
gradients: U-Nets of pixels, and latent networks with texts or labels."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.diffusion import pipelines
from afterimage.diffusion.denoising import task_of
from afterimage.diffusion.noising import Pixels
from afterimage.diffusion.pipelines import Opened
from afterimage.diffusion.stored_network import NETWORKS
from afterimage.images import Images
from afterimage.standalone import captions, drawing_flags, flags, stored_pipeline
from afterimage.standalone import images as image_sets
from afterimage.standalone.images import ImageSet

TEXT_FLAGS = ("variant", "lora", "truncate_prompts")
"""Flags that U-Nets of pixels do not take."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the network."""
    parser.add_argument(
        "--pipeline",
        metavar="DIR|ID",
        required=True,
        help="diffusers pipeline: of pixels, Stable Diffusion 1, 2 or XL, or DiT; or a trainer's "
        "checkpoint-N folder of a U-Net of pixels",
    )
    parser.add_argument(
        "--weights",
        choices=["ema", "raw"],
        help="averaged weights, or those of the last update, of a checkpoint that has both "
        "(default: ema)",
    )
    group = parser.add_argument_group("text-to-image and latent pipelines")
    drawing_flags.weight_flags(group)
    drawing_flags.truncation_flag(group)
    captions.arguments(group)
    group.add_argument("--device", help="e.g. cpu or cuda:1 (default: a GPU if there is one)")


def read(
    args: argparse.Namespace, names: Sequence[str]
) -> tuple[Opened | Any, dict[str, ImageSet]]:
    """Read sets of images, the first of them the training images, and open the network.

    Labels are required only if the network uses them; those of further sets then have the classes
    of the training images.

    Args:
        args: The command's arguments.
        names: Flags of the sets, without ``--``.

    Raises:
        ConfigError: naming the flag, if images or labels do not suit the network.
        ArtifactError: likewise, if something cannot be opened.
    """
    for name in names:
        image_sets.source_of(name, args)
    sets = {name: image_sets.read_set(name, args) for name in names}
    train = names[0]
    network = opened(args, sets[train].images)
    if network.classes is not None:
        sets = {name: image_sets.read_set(name, args, labels=True) for name in names}
        for name in names[1:]:
            sets[name] = image_sets.with_classes_of(sets[train], sets[name])
    for name, image_set in sets.items():
        check(network, name, image_set.images)
    return network, sets


def opened(args: argparse.Namespace, train: Images) -> Opened | Any:
    """Open the pipeline: as ``Opened``, or as ``conditional.Conditional``.

    Args:
        args: The command's arguments.
        train: The training images, whose size decides among the networks of a U-Net's checkpoint.

    Raises:
        ConfigError: naming the flag that does not fit.
        ArtifactError: naming ``--pipeline`` or ``--lora``.
    """
    try:
        hub = stored_pipeline.pinned(args.pipeline, args.revision)
        if hub is not None or (Path(args.pipeline) / stored_pipeline.INDEX).is_file():
            located = stored_pipeline.locate(args.pipeline, args.revision)
            parts = stored_pipeline.parts_of(located.index)
            if "vae" in parts or parts.get("unet", ("", ""))[1] not in NETWORKS:
                return _conditional(args, located)
        for flag in TEXT_FLAGS:
            if (value := getattr(args, flag)) is not None:
                raise ConfigError(
                    f"{flags.flag(flag)} = {value}: it is not for --pipeline {args.pipeline}, a "
                    "U-Net of pixels"
                )
        name = args.pipeline if hub is None else "@".join(hub)
        return pipelines.open_pipeline(name, args.weights, size=train.pixels.shape[1:3])
    except ArtifactError as error:
        if str(error).startswith("--"):
            raise
        raise ArtifactError(f"--pipeline: {error}") from error


def _conditional(args: argparse.Namespace, located: stored_pipeline.Located) -> Any:
    """Open another pipeline; transformers are imported for it alone."""
    if args.weights is not None:
        raise ConfigError(f"--weights = {args.weights}: it is for checkpoints of U-Nets of pixels")
    from afterimage.standalone import conditional

    return conditional.Conditional.of(args, located)


def task(
    network: Opened | Any, images: ImageSet, args: argparse.Namespace, mirrors: bool = False
) -> Pixels:
    """Return the denoising of a set of images by the network, with their labels or captions; with
    ``mirrors`` that of their mirror images, too.

    Raises:
        ConfigError: naming the flag, if the network takes texts and the images have no captions, or
            captions are too long.
    """
    if isinstance(network, Opened):
        return task_of(network.net, network.scheduler_config, images.images)
    texts = None
    if network.takes_text:
        texts = captions.of(images, args)
        if texts is None:
            raise ConfigError(
                f"--{images.name}: it has no captions ({captions.WHERE}), which the network takes"
            )
    return network.task(images.images, texts, bool(args.truncate_prompts), mirrors)


def settings(network: Opened | Any, args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the network for a record."""
    if isinstance(network, Opened):
        return {"weights": network.weights}
    lora = None if args.lora is None else str(args.lora)
    return {"variant": args.variant, "lora": lora, "truncate_prompts": args.truncate_prompts}


def check(network: Opened | Any, name: str, images: Images) -> None:
    """Check that the images and labels of a set suit the network.

    Raises:
        ConfigError: naming the flag.
    """
    if isinstance(network, Opened):
        shape = images.pixels.shape[1:]
        if shape != network.shape:
            actual, needed = ("x".join(map(str, sizes)) for sizes in (shape, network.shape))
            raise ConfigError(
                f"--{name}: images are {actual}, but {needed} is needed; --resize and --colour "
                "convert them"
            )
    else:
        network.check(name, images)
    low, high = images.labels.min(), images.labels.max()
    if network.classes is not None and (low < 0 or high >= network.classes):
        raise ConfigError(
            f"--{name}: labels go from {low} to {high} (-1: none), but the network knows 0 to "
            f"{network.classes - 1}; labels are the sub-folders of a folder, or the array "
            "labels of an .npz"
        )
