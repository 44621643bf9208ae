"""LoRA (Hu et al., ICLR 2022) on a U-Net, by peft as in diffusers' train_text_to_image_lora.

Beside a frozen matrix W stands the adapter (alpha / rank) B A, with A drawn at random and B = 0, so
that training starts from the network as it is. What is stored has W + (alpha / rank) B A in the
place of W, and is a network like any other; the adapter alone is stored beside it, as
``pytorch_lora_weights.safetensors``, which ``load_lora_weights`` adds to the network that training
started from.

The moving average is that of A and of B. peft is imported late: it comes with the extra ``text``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from afterimage.config.unet import Lora
from afterimage.diffusion.trainable import ADAPTED

ADAPTERS = "pytorch_lora_weights.safetensors"
"""File of the adapters, beside the network that has them added."""
BASE = ".base_layer."
"""What the name of an adapted layer's own weight has that it has not without an adapter."""


def add_adapters(net: Any, lora: Lora, seed: int) -> None:
    """Freeze a network and put adapters into it. The global random state is restored.

    Args:
        net: A ``UNet2DConditionModel``.
        lora: Their rank and scale.
        seed: Of the matrices A.
    """
    from peft import LoraConfig

    net.requires_grad_(False)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.rank if lora.alpha is None else lora.alpha,  # type: ignore[arg-type]
        init_lora_weights="gaussian",
        target_modules=list(ADAPTED),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net.add_adapter(config)


def has_adapters(net: nn.Module) -> bool:
    """Return whether adapters are in a network."""
    return bool(getattr(net, "peft_config", None))


def with_own_adapters(
    net: nn.Module, weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the state of a network with adapters: its own, and beside them the weights of another
    network without."""
    own = net.state_dict()
    plain = {name.replace(BASE, "."): name for name in own if ".lora_" not in name}
    return own | {plain[name]: weight for name, weight in weights.items()}


def fused(net: Any) -> Any:
    """Return a network with the adapters added to its weights, without adapters; ``net`` keeps
    its own."""
    plain = copy.deepcopy(net)
    plain.fuse_lora()
    plain.unload_lora()
    return plain


def save_adapters(net: Any, folder: Path) -> None:
    """Write the adapters of a network, with their scale, into a folder."""
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    (config,) = net.peft_config.values()
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        str(folder),
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(net)),
        unet_lora_adapter_metadata=config.to_dict(),
    )
