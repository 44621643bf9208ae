"""RAU-Net (LoyalDiffusion, Li et al. 2024): a U-Net with information transfer blocks in selected
skip connections.

A block sits between a tensor of the encoder and the residual block of the decoder that receives it.
A U-Net of diffusers concatenates its skip tensors in order (that of ``conv_in``, then for each
level those of every residual block and of the downsampler) and the decoder takes them last in,
first out: the j-th residual block of the decoder gets skip N - 1 - j, as the second half of its input. A hook
that runs before that residual block applies the transfer block; diffusers' own ``forward`` stays
unchanged, whatever the types of the levels. Group 0 is the skip of ``conv_in`` and group g the
skips of the g-th level: in Stable Diffusion 2.1 groups 3 and 4 are the paper's SC3 and SC4, its
skip tensors 7 to 11.

The authors' code keeps its blocks in a tuple, which torch does not look into: they were never
trained, never saved, and initialised again whenever the network was built for sampling. Here blocks
are ``transfers``, a registered ``ModuleDict`` by skip index, and that behaviour has names:
``frozen_fixed`` (never trained, but saved) and ``frozen_redrawn`` (see ``redraw``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast, get_args

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch.nn import functional

from afterimage.config import ConfigError
from afterimage.config.arm import Variant

VARIANTS = tuple(variant for variant in get_args(Variant) if variant != "none")


class Transfers:
    """What a U-Net with blocks has beside the plain U-Net that it extends; everything else,
    including the initial weights, is that of the same network without blocks.

    Args:
        transfer_groups: Skip groups with a block; every tensor of a group has its own.
        transfer_variant: One of ``VARIANTS``, see ``config.TransferBlocks``.
        transfer_convolutions: k, with variant ``k_conv_silu``.
        unet: The keywords of the plain U-Net.

    Attributes:
        transfers: Skip index -> block.

    Raises:
        ConfigError: for unknown groups or variants, or a group that ``drop`` does not fit.
    """

    up_blocks: nn.ModuleList
    config: FrozenDict
    register_to_config: Callable[..., None]

    def __init__(
        self,
        *,
        transfer_groups: Sequence[int] = (),
        transfer_variant: str = "trained_random",
        transfer_convolutions: int = 2,
        **unet: Any,
    ) -> None:
        if transfer_variant not in VARIANTS:
            raise ConfigError(
                f"rau_net.variant = {transfer_variant!r}: allowed are {', '.join(VARIANTS)}"
            )
        super().__init__(**unet)
        self.register_to_config(
            transfer_groups=sorted(set(transfer_groups)),
            transfer_variant=transfer_variant,
            transfer_convolutions=transfer_convolutions,
        )
        skips = self.skips()
        groups = {group for group, _ in skips}
        if not groups.issuperset(transfer_groups):
            raise ConfigError(
                f"rau_net.groups = {list(transfer_groups)}: the network has groups 0 to "
                f"{max(groups)}"
            )
        decoder = [
            resnet for level in self.up_blocks for resnet in cast(nn.ModuleList, level.resnets)
        ]
        self.transfers = nn.ModuleDict()
        for (index, (group, channels)), resnet in zip(
            enumerate(skips), reversed(decoder), strict=True
        ):
            if group not in transfer_groups:
                continue
            hidden = cast(int, resnet.in_channels) - channels
            if transfer_variant == "drop" and hidden != channels:
                raise ConfigError(
                    f"rau_net.variant = 'drop' does not fit group {group}: the decoder's state "
                    f"has {hidden} channels where skip {index}, whose place it would take, has "
                    f"{channels}"
                )
            block = Transfer(channels, transfer_variant, transfer_convolutions)
            self.transfers[str(index)] = block
            resnet.register_forward_pre_hook(block.between)
        self.transfers.requires_grad_(not transfer_variant.startswith("frozen"))

    def skips(self) -> list[tuple[int, int]]:
        """Return group and number of channels of every skip tensor, in the order in which the
        encoder produces them."""
        widths, layers = self.config["block_out_channels"], self.config["layers_per_block"]
        counts = [layers] * len(widths) if isinstance(layers, int) else layers
        skips = [(0, widths[0])]
        for group, (width, count) in enumerate(zip(widths, counts, strict=True), start=1):
            downsamplers = int(group < len(widths))  # in all levels but the last
            skips += [(group, width)] * (count + downsamplers)
        return skips

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """Include the keywords of the plain U-Net, which ``__init__`` passes on: diffusers restores
        only the keys named here."""
        classes = [kind for kind in input_class.__mro__ if issubclass(kind, ConfigMixin)]
        keys = {name for kind in classes for name in inspect.signature(kind.__init__).parameters}
        return keys - {"unet"}


class RAUNet(Transfers, UNet2DModel):  # type: ignore[misc]
    """A ``UNet2DModel`` with blocks."""

    __module__ = "afterimage"  # what stored pipelines name; ``afterimage.__getattr__`` finds it


class RAUNetCondition(Transfers, UNet2DConditionModel):  # type: ignore[misc]
    """A ``UNet2DConditionModel`` with blocks: the paper's, which is conditioned on texts."""

    __module__ = "afterimage"


class Transfer(nn.Module):
    """One information transfer block.

    Args:
        channels: Channels of the skip tensor, and of the output.
        variant: One of ``VARIANTS``.
        convolutions: k, with variant ``k_conv_silu``.
    """

    def __init__(self, channels: int, variant: str, convolutions: int) -> None:
        super().__init__()
        self.channels, self.variant = channels, variant
        count = {"k_conv_silu": convolutions, "maxpool": 0, "drop": 0}.get(variant, 1)
        stack = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count)]
        if variant == "trained_identity":
            nn.init.dirac_(stack[0].weight)
            nn.init.zeros_(cast(nn.Parameter, stack[0].bias))
        self.convolutions = nn.ModuleList(stack)

    def forward(self, hidden: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Return the tensor that replaces the skip tensor.

        Args:
            hidden: The decoder's state that is concatenated with it, (B, C', H, W).
            skip: (B, C, H, W).
        """
        if self.variant == "drop":
            return hidden
        if self.variant == "maxpool":
            return skip * _is_largest(skip)
        for convolution in self.convolutions:
            skip = convolution(skip)
            if self.variant.endswith("silu"):
                skip = functional.silu(skip)
        return skip

    def between(
        self, resnet: nn.Module, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        """Replace the skip tensor in the input of a residual block of the decoder: (state and skip
        tensor, concatenated along the channels; ...)."""
        joined, *rest = inputs
        hidden, skip = joined.split([joined.shape[1] - self.channels, self.channels], dim=1)
        return torch.cat([hidden, self(hidden, skip)], dim=1), *rest


@torch.no_grad()
def _is_largest(x: torch.Tensor) -> torch.Tensor:
    """Return 1 at the largest value of each 2x2 window (the first of equal values) and 0 elsewhere,
    with the shape of ``x``.

    x times this mask is max-unpooling of max-pooling, which torch cannot do under deterministic
    algorithms.
    """
    _, positions = functional.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
    return torch.zeros_like(x).flatten(2).scatter_(2, positions.flatten(2), 1).view_as(x)


def redraw(net: nn.Module, seed: int) -> None:
    """Reinitialise the ``frozen_redrawn`` blocks of ``net`` or of the networks inside it; other
    blocks keep their weights.

    The released sampling code gets different blocks at every loading, from an unseeded generator.
    Here ``sample.load_denoiser``, through which every sampling and attack opens a network, redraws
    them from a seed: equally unrelated to those of the training, but the same whenever a step is
    repeated. diffusers' own ``from_pretrained`` restores those of the training, which are stored.
    The global random state is restored.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for block in net.modules():
            if isinstance(block, Transfer) and block.variant == "frozen_redrawn":
                for convolution in block.convolutions:
                    cast(nn.Conv2d, convolution).reset_parameters()
