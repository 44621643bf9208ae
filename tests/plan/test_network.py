"""Counts of networks against torch's own, and against a layer counted by hand."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from afterimage.config import Classifier, Model, TransferBlocks
from afterimage.diffusion.model import build_unet
from afterimage.metrics import classifier
from afterimage.plan.cost import network

DIGITS = {"channels": [16, 32], "attention": [False, True], "layers_per_block": 1}
DEEP = {
    "channels": [8, 16, 16],
    "attention": [True, False, True],
    "layers_per_block": 2,
    "attention_head_dim": 4,
}
SCALED = {
    "channels": [8, 8],
    "attention": [False, False],
    "norm_groups": 4,
    "time_embedding": "scale_shift",
}


def counted(net: torch.nn.Module, *inputs: torch.Tensor) -> tuple[int, int]:
    """Return torch's count of FLOP and of weights."""
    with FlopCounterMode(display=False) as flop, torch.no_grad():
        net.to("meta")(
            *(tensor.to("meta") for tensor in inputs)
        )  # there attention's products are counted, too
    return flop.get_total_flops(), sum(weight.numel() for weight in net.parameters())


def image(height: int, width: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, channels, height, width), torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize("settings", [DIGITS, DEEP, SCALED])
@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 8, 3)])
def test_unet_is_counted_as_torch_counts_it(settings, shape):
    model = Model(**settings)
    found = network.unet(model, *shape)
    assert (found.flop, found.parameters) == counted(build_unet(model, shape), *image(*shape))


@pytest.mark.parametrize(
    "blocks",
    [
        {"groups": [1, 2]},
        {"groups": [0, 3], "variant": "k_conv_silu", "convolutions": 3},
        {"groups": [2], "variant": "maxpool"},
        {"groups": [1, 2, 3], "variant": "none"},
    ],
)
def test_transfer_blocks_are_counted(blocks):
    model, chosen = Model(**DEEP), TransferBlocks(**blocks)
    found = network.unet(model, 8, 8, 3, chosen)
    assert (found.flop, found.parameters) == counted(
        build_unet(model, (8, 8, 3), blocks=chosen), *image(8, 8, 3)
    )


def test_unet_of_the_cifar_studies():
    """Ho et al. 2020 give 35.7 M weights."""
    model = Model(
        channels=[128, 256, 256, 256],
        attention=[False, True, False, False],
        attention_head_dim=256,
        norm_groups=32,
        dropout=0.1,
    )
    found = network.unet(model, 32, 32, 3)
    assert (found.flop, found.parameters) == counted(
        build_unet(model, (32, 32, 3)), *image(32, 32, 3)
    )
    assert found.parameters == 35_746_307
    assert found.flop == pytest.approx(12.44e9, rel=1e-3)


def test_one_convolution_by_hand():
    """3 x 3 from 5 to 7 channels at 4 x 4 places: 16 x 7 results, each of 45 products and as many
    sums."""
    count = network._Count()
    count.convolution(5, 7, 4 * 4)
    assert count.flop == 2 * 16 * 7 * 45
    assert count.parameters == 7 * 45 + 7


def test_twice_the_side_is_four_times_the_convolutions():
    model = Model(channels=[8, 8], attention=[False, False], norm_groups=4)
    small, large = network.unet(model, 8, 8, 1), network.unet(model, 16, 16, 1)
    fixed = sum(2 * inside * 8 for inside in [32] * (2 * 2 + 2 + 2 * 3)) + 2 * (
        8 * 32 + 32 * 32
    )  # what takes the timestep
    assert large.flop - fixed == 4 * (small.flop - fixed)
    assert large.parameters == small.parameters


@pytest.mark.parametrize("settings", [DIGITS, DEEP])
def test_kept_activations_are_about_those_that_autograd_keeps(settings):
    model = Model(**settings)
    net = build_unet(model, (8, 8, 3))
    weights = {weight.untyped_storage().data_ptr() for weight in net.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    batch = 16
    with saved_tensors_hooks(note, lambda tensor: tensor):
        prediction = net(torch.randn(batch, 3, 8, 8), torch.zeros(batch, dtype=torch.int64)).sample
    assert prediction.requires_grad
    assert network.unet(model, 8, 8, 3).values == pytest.approx(
        sum(kept.values()) / batch, rel=0.25
    )


@pytest.mark.parametrize("side", [8, 11])
def test_classifier_is_counted_as_torch_counts_it(side):
    settings = Classifier(channels=[4, 8], features=6)
    net = classifier.Network(
        classifier.Description("labels", list(range(5)), 3, [4, 8], 6, [0.5] * 3, [0.5] * 3)
    )
    found = network.classifier(settings, side, side, 3, classes=5)
    assert (found.flop, found.parameters) == counted(net, torch.zeros(1, 3, side, side))
