"""A U-Net's updates on a CPU: cheaper forms of its layers, and memory that is kept.

The small networks of a study that runs without a GPU spend half of an update on work around the
convolutions. Three kinds of layer have a cheaper form that is the same function of the same
weights, so that outputs and gradients differ by rounding only:

- attention over few pixels by plain matrix products: torch's fused kernel is made for long
  sequences, its backward pass above all;
- 1x1 convolutions of a shortcut by matrix products, without oneDNN's reordering of what goes in
  and comes out;
- the 3x3 convolution behind a doubling of the image as one transposed 4x4 convolution of the
  small image, with sums of its weights: 16 products for each input pixel and pair of channels in
  the place of 36.

Names of weights, config and class of the network stay, and so does its stored pipeline.

Tried, and no faster: the ``channels_last`` layout (what the convolutions gain, torch's group norm
over few channels loses), group norm and SiLU as one ``autograd.Function``, one product for query,
key and value. ``benchmarks/update.py`` measures what is here.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional

FEW = 64
"""Pixels up to which attention by plain products is no slower; over 256 it takes twice as long."""


class PlainAttention(AttnProcessor2_0):
    """Self-attention of an image with its group norm and residual, by plain matrix products."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,  # diffusers warns of every argument that is not named
    ) -> torch.Tensor:
        """Return the state after attention, (B, C, H, W).

        Larger images, and attention to anything but the image itself, are left to torch's kernel.
        """
        beside = (encoder_hidden_states, attention_mask)
        batch, channels, *sides = hidden_states.shape
        pixels, heads = math.prod(sides), attn.heads
        if len(sides) != 2 or pixels > FEW or any(tensor is not None for tensor in beside):
            return super().__call__(attn, hidden_states, *beside, temb)
        assert attn.group_norm is not None
        assert attn.to_out is not None
        normed = attn.group_norm(hidden_states).flatten(2).mT.reshape(-1, channels)

        def by_head(layer: nn.Module) -> torch.Tensor:
            split = layer(normed).view(batch, pixels, heads, -1).transpose(1, 2)
            return split.reshape(batch * heads, pixels, -1)

        query, key, value = by_head(attn.to_q), by_head(attn.to_k), by_head(attn.to_v)
        weights = torch.bmm(query * query.shape[-1] ** -0.5, key.mT).softmax(-1)
        mixed = torch.bmm(weights, value).view(batch, heads, pixels, -1).transpose(1, 2)
        for layer in attn.to_out:  # a linear layer and its dropout
            mixed = layer(mixed.reshape(-1, channels))
        # Of two layouts a sum takes the first, and dropout draws its mask in the order of memory:
        # with the operands in diffusers' order the masks are diffusers' too.
        return mixed.view(batch, pixels, channels).mT.reshape(hidden_states.shape) + hidden_states


class PointwiseConvolution(nn.Conv2d):
    """A 1x1 convolution with a bias, by one matrix product per image."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # the name is torch's
        """Return what ``Conv2d`` does, (B, C', H, W)."""
        assert self.bias is not None
        weight = self.weight.flatten(1).expand(len(input), -1, -1)
        product = torch.baddbmm(self.bias[:, None], weight, input.flatten(2))
        return product.unflatten(2, input.shape[2:])


class DoublingConvolution(Upsample2D):
    """Nearest-neighbour doubling and a 3x3 convolution, as a transposed convolution of stride 2.

    Along one side, with weights (a, b, c), output 2i is a x[i-1] + (b + c) x[i] and output 2i + 1
    is (a + b) x[i] + c x[i+1].
    """

    def forward(
        self, hidden_states: torch.Tensor, output_size: int | None = None, **rest: Any
    ) -> torch.Tensor:
        """Return what ``Upsample2D`` does, (B, C', 2H, 2W); ``output_size`` is left to it."""
        if output_size is not None:
            return super().forward(hidden_states, output_size, **rest)
        convolution = cast(nn.Conv2d, self.conv)
        weight = convolution.weight
        sums = weight.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
        doubled = (sums @ weight @ sums.T).transpose(0, 1)
        return functional.conv_transpose2d(
            hidden_states, doubled, convolution.bias, stride=2, padding=1
        )


def use_cheap_layers(net: nn.Module) -> None:
    """Compute the layers of ``net`` that have a cheaper form in it; all others stay as they are."""
    for module in net.modules():
        if isinstance(module, Attention) and _is_plain(module):
            module.set_processor(cast(AttnProcessor, PlainAttention()))
        elif type(module) is Upsample2D and _doubles(module):
            module.__class__ = DoublingConvolution
        elif isinstance(module, ResnetBlock2D) and _is_pointwise(module.conv_shortcut):
            module.conv_shortcut.__class__ = PointwiseConvolution


def _is_plain(attention: Attention) -> bool:
    """Tell whether an attention is as in ``UNet2DModel``: of an image, behind a group norm."""
    return (
        type(attention.processor) is AttnProcessor2_0
        and attention.group_norm is not None
        and attention.residual_connection
        and attention.rescale_output_factor == 1
        and (attention.spatial_norm, attention.norm_q, attention.norm_k) == (None, None, None)
    )


def _is_pointwise(layer: nn.Module | None) -> bool:
    """Tell whether a shortcut is a 1x1 convolution with a bias."""
    return type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.bias is not None


def _doubles(layer: Upsample2D) -> bool:
    """Tell whether a layer is a doubling and a 3x3 convolution, and nothing else."""
    convolution = getattr(layer, "conv", None)
    return (
        layer.interpolate
        and layer.norm is None
        and isinstance(convolution, nn.Conv2d)
        and (convolution.kernel_size, convolution.padding) == ((3, 3), (1, 1))
    )


def keep_freed_memory() -> None:
    """Have the C library keep freed memory, as it does by itself once a large block was freed.

    glibc takes blocks over a threshold from the system, which clears them page by page, and gives
    them back, anew in every update. The threshold rises to the size of the largest such block that
    was freed, up to 32 MiB, and twice as much is then kept. Elsewhere this does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
