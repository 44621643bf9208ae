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
import os
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from afterimage import artifacts, meta_device, provenance
from afterimage.config import Model, TransferBlocks

BUILDER = "afterimage.diffusion.model"


class Network(NamedTuple):
    """One network, and one image that goes through it.

    Attributes:
        flop: Of a forward pass, two for each multiplication and addition; those of convolutions,
            linear layers and attention. A backward pass has twice as many.
        parameters: Weights.
        values: Activations that a forward pass keeps for its backward pass.
    """

    flop: int
    parameters: int
    values: int


def unet(
    model: Model,
    height: int,
    width: int,
    channels: int,
    blocks: TransferBlocks | None = None,
    text: tuple[int, int] | None = None,
) -> Network:
    """Return the counts of ``diffusion.model.build_unet`` without labels.

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
    settings = {
        "kind": "unet",
        "model": model.model_dump(mode="json"),
        "shape": [-(-side // halvings) * halvings for side in (height, width)] + [channels],
        "blocks": blocks.model_dump(mode="json") if blocks else None,
        "text": text,
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
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    file = home / "afterimage" / "networks" / f"{key}.json"
    try:
        return Network(*map(int, json.loads(file.read_text())))
    except (OSError, ValueError, TypeError):  # never counted, or a damaged file
        counts = _count(json.loads(settings))
    try:
        if home.is_absolute():
            artifacts.write_atomically(file, json.dumps(counts).encode())
    except OSError:  # a home that nobody may write to
        pass
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
        net, arguments = {"unet": _unet, "autoencoder": _autoencoder}[settings["kind"]](settings)
    weights = {weight.untyped_storage()._cdata for weight in net.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

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
    return Network(
        flop.get_total_flops(),
        sum(weight.numel() for weight in net.parameters()),
        sum(storage.nbytes() for storage in kept.values()) // torch.float32.itemsize,
    )


def _unet(settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a U-Net on torch's current device, and its arguments for one image."""
    import torch

    from afterimage.diffusion.model import build_unet
    from afterimage.diffusion.texts import TEXT

    height, width, channels = settings["shape"]
    blocks = settings["blocks"] and TransferBlocks(**settings["blocks"])
    image, condition, text_width = torch.zeros(1, channels, height, width), {}, None
    if settings["text"] is not None:
        tokens, text_width = settings["text"]
        condition = {TEXT: torch.zeros(1, tokens, text_width)}
    model = Model(**settings["model"])
    net = build_unet(model, (height, width, channels), blocks=blocks, text_width=text_width)
    return net, {"sample": image, "timestep": torch.zeros(1, dtype=torch.int64), **condition}


def _autoencoder(settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return an autoencoder on torch's current device, and its arguments for one image."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    height, width, channels = settings["shape"]
    image = torch.zeros(1, channels, height, width)
    return AutoencoderKL(**settings["config"]), {"sample": image}
