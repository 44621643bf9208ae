"""The work, the weights and the memory of U-Nets, counted by torch on the meta device.

Counting imports torch, which takes seconds. So every count is kept, in
``$XDG_CACHE_HOME/afterimage/networks`` (``~/.cache`` unless set), under the hash of all that it
follows from: the network's settings, the code that builds it, and the versions of torch and
diffusers. Planning a study whose networks were counted before imports no torch. Where nothing can
be kept each process counts for itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

from afterimage import artifacts, meta_device, provenance
from afterimage.config import AnyModel, Model, StoredModel, TransferBlocks

BUILDER = "afterimage.diffusion.model"


class Network(NamedTuple):
    """One network, and one image that goes through it.

    Attributes:
        flop: Of a forward pass, two for each multiplication and addition; those of convolutions,
            linear layers and attention. A backward pass has twice as many where all weights are
            trained.
        parameters: Weights.
        values: Activations that a forward pass keeps for its backward pass.
        trained: Weights that a training changes, adapters included.
        checkpointed: Activations that are there at once with gradient checkpointing (Chen et al.
            2016), as diffusers does it: what goes into each block, and what the largest keeps while
            it is computed again.
    """

    flop: int
    parameters: int
    values: int
    trained: int
    checkpointed: int


def unet(
    model: AnyModel,
    height: int,
    width: int,
    channels: int,
    blocks: TransferBlocks | None = None,
    text: tuple[int, int] | None = None,
) -> Network:
    """Return the counts of ``diffusion.start.start`` without labels.

    Args:
        model: The study's ``model`` block.
        height: Pixels of one image; sides are rounded up to such as the levels can halve.
        width: The same.
        channels: Colours.
        blocks: Information transfer blocks in the skip connections.
        text: Tokens of a text and the size of their embeddings; None without texts.

    Raises:
        ConfigError: for settings that make no network.
    """
    halvings = 2 ** (len(model.channels) - 1)
    settings: dict[str, Any] = {
        "kind": "unet",
        "model": model.model_dump(mode="json"),
        "shape": [-(-side // halvings) * halvings for side in (height, width)] + [channels],
        "blocks": blocks.model_dump(mode="json") if blocks else None,
        "text": text,
    }
    if isinstance(model, StoredModel):
        known = model.described is not None
        fitting = {} if known else {"in_channels": channels, "out_channels": channels}
        if text is not None and not known:
            fitting["cross_attention_dim"] = text[1]
        del settings["model"]
        settings |= {
            "kind": "stored unet",
            "config": {**model.architecture, **fitting, "num_class_embeds": None},
            "trainable": model.trainable,
            "rank": model.lora and model.lora.rank,
        }
    return _known(json.dumps(settings, sort_keys=True))


def autoencoder(settings: dict[str, Any], height: int, width: int, channels: int) -> Network:
    """Return the counts of an ``AutoencoderKL``, through which one image goes and comes back.

    Args:
        settings: Its config.
        height: Pixels of one image.
        width: The same.
        channels: Colours.
    """
    described = {"kind": "autoencoder", "config": settings, "shape": [height, width, channels]}
    return _known(json.dumps(described, sort_keys=True))


@cache
def _known(settings: str) -> Network:
    """Return the kept counts of a network; count it, and keep that, if there are none."""
    versions = [version("torch"), version("diffusers"), provenance.fingerprint(BUILDER)]
    key = hashlib.sha256("\n".join([settings, *versions]).encode()).hexdigest()
    folder = artifacts.user_cache("networks")
    if folder is None:
        return _count(json.loads(settings))
    file = folder / f"{key}.json"
    try:
        return Network(*map(int, json.loads(file.read_text())))
    except (OSError, ValueError, TypeError):  # never counted, or a damaged file
        counts = _count(json.loads(settings))
    with suppress(OSError):  # a home that nobody may write to
        artifacts.write_atomically(file, json.dumps(counts).encode())
    return counts


def _count(settings: dict[str, Any]) -> Network:
    """Build a network without memory for its weights, and count what one image does in it."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks
    from torch.nn.functional import scaled_dot_product_attention
    from torch.overrides import TorchFunctionMode
    from torch.utils.flop_counter import FlopCounterMode

    meta_device.import_kernels()
    with torch.device("meta"):
        make = {"unet": _unet, "stored unet": _stored_unet, "autoencoder": _autoencoder}
        net, arguments, adapters = make[settings["kind"]](settings)
    weights = {weight.untyped_storage()._cdata for weight in net.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}
    largest = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    def values() -> int:
        return sum(storage.nbytes() for storage in kept.values()) // torch.float32.itemsize

    class FusedAttention(TorchFunctionMode):
        """Keeps of attention what fused kernels keep; the meta device keeps every weight."""

        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is not scaled_dot_product_attention:
                return function(*args, **(kwargs or {}))
            with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
                result = function(*args, **(kwargs or {}))
            for tensor in (*args[:3], result):
                keep(tensor)
            return result

    hooks = saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as flop, hooks, FusedAttention():
        net(**arguments)
    everything = values()

    def block(function: Callable[..., Any], *inputs: Any) -> Any:
        """Run a block whose activations are not kept, but for what goes into it."""
        nonlocal kept, largest
        for tensor in inputs:
            if isinstance(tensor, torch.Tensor):
                keep(tensor)
        before, kept = kept, {}
        result = function(*inputs)
        largest, kept = max(largest, values()), before
        return result

    checkpointed = 0
    if settings["kind"] != "autoencoder":
        kept.clear()
        net.enable_gradient_checkpointing(block)
        with hooks, FusedAttention():
            net(**arguments)
        checkpointed = values() + largest
    return Network(
        flop.get_total_flops(),
        sum(weight.numel() for weight in net.parameters()),
        everything,
        adapters or sum(weight.numel() for weight in net.parameters() if weight.requires_grad),
        checkpointed,
    )


def _unet(settings: dict[str, Any]) -> tuple[Any, dict[str, Any], int]:
    """Return a U-Net on torch's current device, its arguments for one image, and no adapters."""
    from afterimage.diffusion.model import build_unet

    height, width, channels = settings["shape"]
    blocks = settings["blocks"] and TransferBlocks(**settings["blocks"])
    text_width = settings["text"] and settings["text"][1]
    model = Model(**settings["model"])
    net = build_unet(model, (height, width, channels), blocks=blocks, text_width=text_width)
    return net, _arguments(channels, settings, text_width), 0


def _stored_unet(settings: dict[str, Any]) -> tuple[Any, dict[str, Any], int]:
    """Do the same for a stored U-Net; the last are the weights of its adapters.

    Adapters are not put into it, for which planning would need peft: the layers that have one
    stand for them, as their inputs are what is kept.
    """
    from afterimage.diffusion.model import unet_of
    from afterimage.diffusion.trainable import adapted, hold_others

    config, rank = settings["config"], settings["rank"]
    net = unet_of(config, settings["blocks"] and TransferBlocks(**settings["blocks"]))
    hold_others(net, settings["trainable"])
    layers = [] if rank is None else list(adapted(net))
    if layers:
        net.requires_grad_(False)
    for layer in layers:
        layer.weight.requires_grad_(True)
    adapters = sum(rank * (layer.in_features + layer.out_features) for layer in layers)
    width = config.get("cross_attention_dim")
    return net, _arguments(config["in_channels"], settings, width), adapters


def _arguments(channels: int, settings: dict[str, Any], text_width: int | None) -> dict[str, Any]:
    """Return the arguments of a U-Net for one image and, with texts, one text."""
    import torch

    from afterimage.diffusion.texts import TEXT

    height, width, _ = settings["shape"]
    image, tokens = torch.zeros(1, channels, height, width), (settings["text"] or [1])[0]
    condition = {} if text_width is None else {TEXT: torch.zeros(1, tokens, text_width)}
    return {"sample": image, "timestep": torch.zeros(1, dtype=torch.int64), **condition}


def _autoencoder(settings: dict[str, Any]) -> tuple[Any, dict[str, Any], int]:
    """Return an autoencoder on torch's current device, its arguments for one image, and no
    adapters."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    height, width, channels = settings["shape"]
    image = torch.zeros(1, channels, height, width)
    return AutoencoderKL(**settings["config"]), {"sample": image}, 0
