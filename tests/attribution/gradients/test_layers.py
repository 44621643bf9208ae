"""Gradients of single images against automatic differentiation, finite differences and known
answers."""

from typing import get_args

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from afterimage.attribution.gradients.layers import Factors, Layers, dense
from afterimage.attribution.gradients.readouts import READOUTS
from afterimage.config import ConfigError, Model
from afterimage.config.attribution import Readout
from afterimage.diffusion.model import build_unet
from afterimage.diffusion.router import TimestepRouter

SCALARS = {
    "mean": lambda f, target, probe: f.mean(),
    "l1": lambda f, target, probe: f.abs().mean(),
    "square": lambda f, target, probe: f.square().mean(),
    "loss": lambda f, target, probe: (f - target).square().mean(),
    "probe": lambda f, target, probe: (probe * f).sum(),
}
"""What each readout reads out of one image's prediction."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hooks(
    layers: Layers, forward, target, probe, names=tuple(SCALARS)
) -> dict[str, torch.Tensor]:
    with layers.recorded() as tape:
        prediction = forward()
    fixed = prediction.detach()
    cotangents = [probe if name == "probe" else READOUTS[name](fixed, target) for name in names]
    return {name: dense(gradient) for name, gradient in tape.gradients(prediction, cotangents)}


def by_vmap(
    net: nn.Module, inputs: tuple, target, probe, names=tuple(SCALARS)
) -> dict[str, torch.Tensor]:
    weights = {name: weight.detach() for name, weight in net.named_parameters()}

    def readout(weights, name, target, probe, *inputs):
        prediction = functional_call(net, weights, tuple(each[None] for each in inputs))
        prediction = prediction if isinstance(prediction, torch.Tensor) else prediction.sample
        return SCALARS[name](prediction[0], target, probe)

    found = []
    for name in names:
        one = lambda *data, name=name: grad(readout)(weights, name, *data)  # noqa: E731
        with sdpa_kernel(SDPBackend.MATH):
            found.append(vmap(one)(target, probe, *inputs))
    return {name: torch.stack([each[name].flatten(1) for each in found], 1) for name in weights}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert gradient.shape == wanted[name].shape, name
        torch.testing.assert_close(
            gradient,
            wanted[name],
            rtol=1e-5,
            atol=1e-12,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def padded(net: UNet2DModel) -> UNet2DModel:
    """The same with diffusers' other downsampling, which pads two sides before its convolution."""
    return UNet2DModel.from_config(
        {**net.config, "downsample_padding": 0, "resnet_time_scale_shift": "scale_shift"}
    )


@pytest.mark.parametrize("kind", ["plain", "conditional", "rau_net", "padded"])
def test_every_gradient_is_that_of_automatic_differentiation(kind, tiny_net):
    net = padded(tiny_net("plain", 3)).eval() if kind == "padded" else tiny_net(kind, 3)
    net = net.double()
    x, target, probe = (normal(3, 3, 8, 8, seed=seed) for seed in range(3))
    inputs = (x, torch.tensor([0, 400, 999])) + (
        (torch.tensor([2, 9, 2]),) if kind == "conditional" else ()
    )
    found = by_hooks(Layers(net), lambda: net(*inputs).sample, target, probe.sign())
    assert set(found) == {name for name, _ in net.named_parameters()}
    same(found, by_vmap(net, inputs, target, probe.sign()))


def test_gradients_of_attention_to_texts_are_those_of_automatic_differentiation():
    model = Model(channels=[8, 16], attention=[False, True], layers_per_block=1, norm_groups=4)
    net = build_unet(model, (8, 8, 3), seed=1, text_width=6).double().eval()
    x, target, probe = (normal(3, 3, 8, 8, seed=seed) for seed in range(3))
    inputs = (x, torch.tensor([0, 400, 999]), normal(3, 5, 6, seed=3))
    found = by_hooks(Layers(net), lambda: net(*inputs).sample, target, probe.sign())
    assert any(name.endswith("attn2.to_v.weight") for name in found)
    same(found, by_vmap(net, inputs, target, probe.sign()))


class Odd(nn.Module):
    """Layers as the U-Nets do not use them: strides, dilation, a rectangular kernel, several
    embeddings per image, in-place."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.conv = nn.Conv2d(
            2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False
        )
        self.norm = nn.GroupNorm(2, 4)
        self.act = nn.ELU(inplace=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        state = self.act(self.conv(x))  # changes the convolution's output after the fact
        return self.out(self.norm(state).flatten(2).mT + self.table(words).sum(1, keepdim=True))


def test_any_stride_dilation_and_number_of_places():
    net = Odd().double()
    inputs = (
        normal(4, 2, 6, 7),
        torch.randint(5, (4, 3), generator=torch.Generator().manual_seed(0)),
    )
    prediction = net(*inputs)
    target, probe = normal(*prediction.shape, seed=1), normal(*prediction.shape, seed=2).sign()
    same(
        by_hooks(Layers(net), lambda: net(*inputs), target, probe),
        by_vmap(net, inputs, target, probe),
    )


def test_readouts_are_those_of_the_config_and_their_gradients_are_finite_differences():
    """DAS known answer 10, in float64 on two layers."""
    assert {*READOUTS, "probe"} == set(SCALARS) == set(get_args(Readout))
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 3)
    ).double()
    x, target = normal(3, 2, 6, 6), normal(3, 2, 4, 4, seed=1)
    probe = normal(3, 2, 4, 4, seed=2).sign()
    found = by_hooks(Layers(net), lambda: net(x), target, probe)
    step = 1e-6
    for name, weight in net.named_parameters():
        direction = normal(*weight.shape, seed=3)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                moved = functional_call(net, {name: weight + sign * step * direction}, (x,))
            each = zip(moved, target, probe, strict=True)
            values.append(
                torch.stack(
                    [torch.stack([read(*one) for read in SCALARS.values()]) for one in each]
                )
            )
        torch.testing.assert_close(
            found[name] @ direction.flatten(),
            (values[0] - values[1]) / (2 * step),
            rtol=1e-6,
            atol=1e-8,
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_readout_moves_the_last_bias_alike_for_all_images(channels, tiny_net):
    """DAS known answer 10: the gradient is 1 / C per channel, 1/3 for RGB."""
    net = tiny_net("plain", channels)
    x = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    found = by_hooks(
        Layers(net, ["conv_out.bias"]),
        lambda: net(x, torch.tensor([0, 1, 500, 999])).sample,
        x,
        x,
        ["mean"],
    )
    torch.testing.assert_close(found["conv_out.bias"], torch.full((4, 1, channels), 1 / channels))


def test_a_subset_of_the_parameters_has_the_same_gradients(tiny_net):
    net = tiny_net().double()
    x, t = normal(2, 1, 8, 8), torch.tensor([3, 300])
    everything = by_hooks(Layers(net), lambda: net(x, t).sample, x, x)
    layers = Layers(net, ["up_blocks.*.conv1.weight", "conv_in.bias"])
    some = by_hooks(layers, lambda: net(x, t).sample, x, x)
    assert set(some) == {
        name
        for name in everything
        if name == "conv_in.bias" or (name[:2] == "up" and "conv1.weight" in name)
    }
    assert list(layers.shapes) == [name for name, _ in net.named_parameters() if name in some]
    same(some, {name: everything[name] for name in some})


def test_parameters_that_training_leaves_alone_do_not_count(tiny_net):
    net = tiny_net("rau_net")
    net.transfers.requires_grad_(False)
    assert set(Layers(net).shapes) == {
        name for name, _ in net.named_parameters() if not name.startswith("transfers")
    }
    with pytest.raises(ConfigError, match=r"'transfers\.\*' matches no trained parameter"):
        Layers(net, ["*", "transfers.*"])


def test_the_network_that_a_router_did_not_ask_has_no_gradient(tiny_net):
    net = TimestepRouter(tiny_net(), tiny_net("rau_net"), 500)
    x = torch.zeros(2, 1, 8, 8)
    found = by_hooks(Layers(net), lambda: net(x, torch.tensor([3, 4])).sample, x, x)
    assert set(found) == {f"front.{name}" for name, _ in net.front.named_parameters()}


def test_nothing_is_left_behind(tiny_net):
    net = tiny_net()
    x = torch.zeros(2, 1, 8, 8)
    by_hooks(Layers(net), lambda: net(x, 3).sample, x, x)
    assert all(weight.requires_grad and weight.grad is None for weight in net.parameters())
    assert not any(layer._forward_hooks for layer in net.modules())
    with pytest.raises(RuntimeError, match="inside"), Layers(net).recorded():
        raise RuntimeError("inside")
    assert not any(layer._forward_hooks for layer in net.modules())


def test_factors_multiply_out_to_the_weight_gradient():
    inputs, outputs = normal(2, 5, 3), normal(2, 4, 5, 6, seed=1)
    wanted = torch.einsum("bli,brlo->broi", inputs, outputs).flatten(2)
    torch.testing.assert_close(Factors(inputs, outputs).dense(), wanted)


class Twice(nn.Module):
    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer or nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(x).tanh())


class Folded(Twice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(0, 1)).view_as(x)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            nn.Sequential(nn.RMSNorm(3)),
            r"0\.weight has no per-image gradient.* RMSNorm.*supported are Linear, Conv2d, "
            "GroupNorm, LayerNorm, Embedding",
        ),
        (
            nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)),
            r"0\.weight has no per-image gradient.*groups=2",
        ),
        (
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
            r"0\.weight has no per-image gradient.*circular",
        ),
        (
            nn.Sequential(nn.Conv2d(4, 4, 3, padding="same")),
            r"0\.weight has no per-image gradient.*same",
        ),
    ],
)
def test_a_layer_that_is_not_known_is_refused_by_name(net, message):
    with pytest.raises(ConfigError, match=message):
        Layers(net)


def test_a_pattern_spares_layers_that_are_not_known():
    assert list(Layers(nn.Sequential(nn.RMSNorm(3), nn.Linear(3, 2)), ["1.*"]).shapes) == [
        "1.weight",
        "1.bias",
    ]


def test_weights_that_two_layers_share_are_refused():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    with pytest.raises(
        ConfigError, match=r"0\.weight has no per-image gradient.*also belongs to 1"
    ):
        Layers(net)


@pytest.mark.parametrize("kind", ["linear", "conv", "norm"])
def test_the_gradient_of_a_layer_that_is_called_twice_is_that_of_both_calls(kind):
    layer, shape = {
        "linear": (nn.Linear(3, 3), (4, 5, 3)),
        "conv": (nn.Conv2d(2, 2, 3, padding=1), (4, 2, 6, 6)),
        "norm": (nn.LayerNorm([5, 3]), (4, 5, 3)),
    }[kind]
    net = Twice(layer).double()
    x, target, probe = (normal(*shape, seed=seed) for seed in range(3))
    for weight in net.parameters():
        nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    found = by_hooks(Layers(net), lambda: net(x), target, probe)
    same(found, by_vmap(net, (x,), target, probe))


def test_a_layer_that_does_not_see_one_row_per_image_is_refused():
    net, x = Folded(), torch.zeros(2, 4, 3)
    with Layers(net).recorded() as tape:
        prediction = net(x)
    with pytest.raises(ConfigError, match=r"layer\.weight .*given 8 rows for 2 images"):
        list(tape.gradients(prediction, [x]))


@pytest.mark.parametrize("pattern", ["nothing.*", "Conv_in.*"])
def test_a_pattern_without_a_match_is_refused(pattern, tiny_net):
    with pytest.raises(
        ConfigError,
        match=rf"'{pattern[:-1]}\*' matches no trained parameter.*from conv_in.weight to "
        "conv_out.bias",
    ):
        Layers(tiny_net(), [pattern])
