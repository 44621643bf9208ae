"""Which weights of a stored network are trained (Gandikota et al., ICCV 2023, section 4 and the
released code), and which linear layers LoRA adapts.

The names of the released code stand for Stable Diffusion's own network; in diffusers' they are:

- ``cross_attention`` (there ``xattn``): the layers ``attn2``, query, key, value and output of
  cross-attention;
- ``noxattn``: all but these, the time embedding (``time_embedding``) and the output layers
  (``conv_norm_out``, ``conv_out``).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from afterimage.config.unet import Trainable

CROSS_ATTENTION = "attn2."
NOT_ATTENTION = ("time_embedding.", "conv_norm_out.", "conv_out.")
"""What ``noxattn`` leaves out, too."""
ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")
"""Linear layers of every attention that diffusers' train_text_to_image_lora adapts."""


def is_trained(name: str, trainable: Trainable) -> bool:
    """Return whether the weight of a plain U-Net with this name is trained."""
    if trainable == "full":
        return True
    crosses = f".{CROSS_ATTENTION}" in name
    return (
        crosses
        if trainable == "cross_attention"
        else not (crosses or name.startswith(NOT_ATTENTION))
    )


def hold_others(net: nn.Module, trainable: Trainable) -> None:
    """Freeze the weights of a U-Net that are not trained; blocks of a RAU-Net stay as they are.

    A frozen weight gets no gradient, and so no moments, and no step.
    """
    for name, weight in net.named_parameters():
        if not name.startswith("transfers.") and not is_trained(name, trainable):
            weight.requires_grad_(False)


def adapted(net: nn.Module) -> Iterator[nn.Linear]:
    """Yield the linear layers that LoRA adapts."""
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(tuple(f".{end}" for end in ADAPTED)):
            yield layer


def trained(net: nn.Module) -> int:
    """Return how many weights are trained."""
    return sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
