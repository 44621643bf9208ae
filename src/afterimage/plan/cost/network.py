"""The work, the weights and the memory of a network, counted from the study's settings alone.

The counts are those that torch would give (``torch.utils.flop_counter``, ``numel``): the tests hold
the two together. They are done again here because the workflow asks for them whenever it plans, and
importing torch would take longer than the plan.
"""

from __future__ import annotations

from typing import NamedTuple

from afterimage.config import Classifier, Model, TransferBlocks


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


class _Count:
    """Adds up layers as they are met."""

    def __init__(self) -> None:
        self.flop = self.parameters = self.values = 0

    def convolution(
        self, inside: int, outside: int, pixels: int, kernel: int = 3, bias: bool = True
    ) -> None:
        """Add a convolution that gives ``pixels`` places, each from all its ``inside`` channels."""
        weights = inside * outside * kernel**2
        self.flop += 2 * weights * pixels
        self.parameters += weights + bias * outside

    def linear(self, inside: int, outside: int, places: int = 1) -> None:
        self.convolution(inside, outside, places, kernel=1)

    def norm(self, channels: int) -> None:
        self.parameters += 2 * channels

    def result(self) -> Network:
        return Network(self.flop, self.parameters, self.values)


class _UNet(_Count):
    """The parts of diffusers' ``UNet2DModel``."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.time = 4 * model.channels[0]
        self.scales = 2 if model.time_embedding == "scale_shift" else 1

    def residual(self, inside: int, outside: int, pixels: int) -> None:
        """Norm, SiLU, convolution, the timestep, norm, SiLU, convolution, and a 1x1 convolution
        where the width changes."""
        self.norm(inside)
        self.convolution(inside, outside, pixels)
        self.linear(self.time, self.scales * outside)
        self.norm(outside)
        self.convolution(outside, outside, pixels)
        if inside != outside:
            self.convolution(inside, outside, pixels, kernel=1)
        self.values += (
            3 * (inside + outside) * pixels
        )  # what goes into each norm, SiLU and convolution

    def attention(self, channels: int, pixels: int) -> None:
        """Norm, queries, keys, values, their two products, and a linear layer."""
        self.norm(channels)
        for _ in range(4):
            self.linear(channels, channels, pixels)
        self.flop += 4 * pixels**2 * channels
        self.values += 7 * channels * pixels


def unet(
    model: Model, height: int, width: int, channels: int, blocks: TransferBlocks | None = None
) -> Network:
    """Return the counts of ``diffusion.model.build_unet`` without labels.

    Args:
        model: The study's ``model`` block.
        height: Pixels of one image.
        width: The same.
        channels: Colours.
        blocks: Information transfer blocks in the skip connections.
    """
    count = _UNet(model)
    widths, deepest = model.channels, len(model.channels) - 1
    pixels = [(height >> level) * (width >> level) for level in range(len(widths))]
    count.linear(widths[0], count.time)
    count.linear(count.time, count.time)
    count.convolution(channels, widths[0], pixels[0])
    skips = [
        (0, widths[0], pixels[0])
    ]  # group, channels and pixels of every tensor that the decoder takes
    state = widths[0]
    for level, (own, attends) in enumerate(zip(widths, model.attention, strict=True)):
        for _ in range(model.layers_per_block):
            count.residual(state, own, pixels[level])
            if attends:
                count.attention(own, pixels[level])
            skips.append((level + 1, own, pixels[level]))
            state = own
        if level < deepest:
            count.convolution(own, own, pixels[level + 1])
            count.values += own * pixels[level]
            skips.append((level + 1, own, pixels[level + 1]))
    count.residual(state, state, pixels[-1])
    if any(model.attention):
        count.attention(state, pixels[-1])
    count.residual(state, state, pixels[-1])
    for group, own, places in skips:
        if blocks is not None and group in blocks.groups:
            for _ in range(
                {"k_conv_silu": blocks.convolutions, "maxpool": 0, "drop": 0, "none": 0}.get(
                    blocks.variant, 1
                )
            ):
                count.convolution(own, own, places)
                count.values += own * places
    for level in range(deepest, -1, -1):
        own = widths[level]
        for _ in range(model.layers_per_block + 1):
            count.residual(state + skips.pop()[1], own, pixels[level])
            if model.attention[level]:
                count.attention(own, pixels[level])
            state = own
        if level:
            count.convolution(own, own, pixels[level - 1])
            count.values += own * pixels[level - 1]
    count.norm(state)
    count.convolution(state, channels, pixels[0])
    count.values += 3 * state * pixels[0]
    return count.result()


def classifier(
    settings: Classifier, height: int, width: int, channels: int, classes: int
) -> Network:
    """Return the counts of ``metrics.classifier.Network`` for ``classes`` labels."""
    count, inside = _Count(), channels
    for own in settings.channels:
        for _ in range(2):
            count.convolution(inside, own, height * width, bias=False)
            count.norm(own)
            count.values += (inside + 2 * own) * height * width
            inside = own
        height, width = -(-height // 2), -(-width // 2)
    count.linear(inside, settings.features)
    count.linear(settings.features, classes)
    return count.result()
