"""Information transfer blocks: which skip tensors they change, what is trained and kept of them,
and what each variant does."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError, Diffusion, Model, TransferBlocks
from afterimage.diffusion.model import build_scheduler, build_unet, load_weights, save_pipeline
from afterimage.diffusion.rau_net import VARIANTS, RAUNet, Transfer, redraw
from afterimage.diffusion.sample import load_denoiser

TINY = Model(channels=[8, 16], attention=[False, True], layers_per_block=1, norm_groups=4)
EVEN = Model(channels=[8, 8], attention=[False, False], layers_per_block=2, norm_groups=4)
TRAINED = [variant for variant in VARIANTS if variant.startswith("trained") or "silu" in variant]
FROZEN = ["frozen_fixed", "frozen_redrawn"]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def build(
    variant: str = "trained_random", groups=(1, 2), model: Model = TINY, seed: int = 1, **settings
) -> UNet2DModel:
    blocks = TransferBlocks(groups=list(groups), variant=variant, **settings)
    return build_unet(model, (8, 8, 1), seed=seed, blocks=blocks)


def block_weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: value for name, value in net.state_dict().items() if name.startswith("transfers.")
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )


# ---- registration --------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", TRAINED)
def test_every_block_is_known_to_torch_and_learns(variant):
    """RAU-Net known answer 1. In the authors' code, whose blocks stand in a tuple, each of these
    assertions fails."""
    net = build(variant)
    names = {name for name, _ in net.named_parameters() if name.startswith("transfers.")}
    assert {name.split(".")[1] for name in names} == {"1", "2", "3"}
    assert names == set(block_weights(net))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    before = {name: value.clone() for name, value in block_weights(net).items()}
    net(noise(2, 1, 8, 8), torch.tensor([3, 700])).sample.square().mean().backward()
    optimizer.step()
    for name, weight in net.named_parameters():
        if name in names:
            assert weight.grad is not None, name
            assert weight.grad.abs().sum() > 0, name
            assert not torch.equal(weight, before[name]), name


@pytest.mark.parametrize("variant", FROZEN)
def test_frozen_blocks_are_stored_but_get_no_gradient(variant):
    net = build(variant)
    assert len(block_weights(net)) == 6
    net(noise(2, 1, 8, 8), 3).sample.square().mean().backward()
    assert all(
        not weight.requires_grad and weight.grad is None for weight in net.transfers.parameters()
    )
    assert all(
        weight.grad is not None
        for name, weight in net.named_parameters()
        if not name.startswith("transfers.")
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_other_weights_are_those_of_the_net_without_blocks(variant):
    plain = build_unet(TINY, (8, 8, 1), seed=1).state_dict()
    net = build(variant, groups=[2]).state_dict()
    assert equal(
        plain, {name: value for name, value in net.items() if not name.startswith("transfers.")}
    )


def test_a_copy_has_blocks_of_its_own():
    """A moving average of the weights is a deep copy: a hook that held on to the original would use
    its blocks."""
    net = build()
    x, copied = noise(1, 1, 8, 8), copy.deepcopy(net)
    before = net(x, 5).sample
    assert torch.equal(copied(x, 5).sample, before)
    with torch.no_grad():
        for weight in copied.transfers.parameters():
            weight.zero_()
    assert torch.equal(net(x, 5).sample, before)
    assert not torch.equal(copied(x, 5).sample, before)


def test_stable_diffusion_gets_five_convolutions():
    """RAU-Net known answer 2: groups 3 and 4 of a net with the widths of Stable Diffusion 2.1 are
    its skip tensors 7 to 11."""
    with torch.device("meta"):
        net = RAUNet(
            transfer_groups=[3, 4],
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            down_block_types=("DownBlock2D",) * 4,
            up_block_types=("UpBlock2D",) * 4,
            add_attention=False,
        )
    assert list(net.transfers) == ["7", "8", "9", "10", "11"]
    assert sum(weight.numel() for weight in net.transfers.parameters()) == 73_734_400


@given(groups=st.sets(st.integers(0, 3)), layers=st.integers(1, 2), k=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_number_of_weights_is_that_of_the_formula(groups, layers, k):
    """RAU-Net known answer 2: sum of k (9 C^2 + C) over the skip tensors of the groups."""
    widths = [4, 8, 12]
    model = Model(channels=widths, attention=[False] * 3, layers_per_block=layers, norm_groups=4)
    with torch.device("meta"):
        net = build("k_conv_silu", groups, model, convolutions=k)
    skips = [(0, widths[0])] + [
        (g, c) for g, c in enumerate(widths, 1) for _ in range(layers + (g < 3))
    ]
    expected = sum(k * (9 * c * c + c) for g, c in skips if g in groups)
    assert sum(value.numel() for value in block_weights(net).values()) == expected


# ---- which tensor --------------------------------------------------------------------------------

LEVELS = {
    "plain": ("DownBlock2D", "UpBlock2D"),
    "attention": ("AttnDownBlock2D", "AttnUpBlock2D"),
    "residual sampling": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
    "skip": ("SkipDownBlock2D", "SkipUpBlock2D"),
}


def of_levels(kind: str, groups) -> RAUNet:
    down, up = LEVELS[kind]
    torch.manual_seed(0)
    return RAUNet(
        transfer_groups=groups,
        sample_size=16,
        block_out_channels=(16, 24, 32),
        layers_per_block=2,
        down_block_types=(down,) * 3,
        up_block_types=(up,) * 3,
        norm_num_groups=4,
        add_attention=False,
    ).eval()


def watch(net: UNet2DModel) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the skip tensors that the encoder makes, in its order, and the inputs of the decoder's
    residual blocks, in theirs."""
    made, taken, removed = [], [], []
    removed.append(
        net.conv_in.register_forward_hook(lambda module, inputs, output: made.append(output))
    )
    for level in net.down_blocks:
        removed.append(
            level.register_forward_hook(lambda module, inputs, output: made.extend(output[1]))
        )
    for level in net.up_blocks:
        for resnet in level.resnets:
            removed.append(
                resnet.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
            )
    with torch.no_grad():
        net(noise(1, 3, 16, 16), 7)
    for hook in removed:
        hook.remove()
    return made, taken


@pytest.mark.parametrize("kind", LEVELS)
def test_a_block_changes_the_input_of_one_residual_block_of_the_decoder(kind):
    """RAU-Net known answer 5: a block of zeros at index i empties that skip and no other; the
    decoder takes skips last in, first out."""
    plain = of_levels(kind, [])
    made, _ = watch(plain)
    groups = [0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert [group for group, _ in plain.skips()] == groups
    assert [skip.shape[1] for skip in made] == [channels for _, channels in plain.skips()]
    for index, group in enumerate(groups):
        net = of_levels(kind, [group])
        with torch.no_grad():
            for name, block in net.transfers.items():
                for weight in block.parameters():
                    weight.zero_()
                if name != str(index):
                    nn.init.dirac_(block.convolutions[0].weight)
        _, taken = watch(net)
        for place, joined in enumerate(taken):
            skip = made[len(made) - 1 - place]
            arrived = joined[:, -skip.shape[1] :]
            expected = torch.zeros_like(skip) if len(made) - 1 - place == index else skip
            assert torch.equal(arrived, expected), (index, place)


# ---- what the variants do ------------------------------------------------------------------------


@given(
    groups=st.sets(st.integers(0, 2), min_size=1), t=st.integers(0, 999), seed=st.integers(0, 99)
)
@settings(max_examples=15, deadline=None)
def test_trained_identity_starts_as_the_net_without_blocks(groups, t, seed):
    """RAU-Net known answer 3, to the last bit."""
    plain = build_unet(TINY, (8, 8, 1), seed=seed)
    with torch.no_grad():
        assert torch.equal(
            build("trained_identity", groups, seed=seed)(noise(2, 1, 8, 8), t).sample,
            plain(noise(2, 1, 8, 8), t).sample,
        )


@pytest.mark.parametrize("blocks", [{"groups": [1, 2], "variant": "none"}, {"groups": []}])
def test_without_blocks_it_is_the_plain_network(blocks):
    """RAU-Net known answer 4: of diffusers' own class, so that its pipeline opens without this
    package."""
    net = build_unet(TINY, (8, 8, 1), seed=1, blocks=TransferBlocks.model_validate(blocks))
    plain = build_unet(TINY, (8, 8, 1), seed=1)
    assert type(net) is UNet2DModel
    assert net.config == plain.config
    assert equal(net.state_dict(), plain.state_dict())


def test_a_random_convolution_leaves_nothing_of_its_input():
    """Measured on the default start: RMS shrinks to about 0.56 and the correlation with the input
    is nearly 0."""
    torch.manual_seed(0)
    block = Transfer(64, "trained_random", 1)
    skip = noise(8, 64, 16, 16)
    with torch.no_grad():
        out = block(skip, skip)
    assert out.square().mean().sqrt().item() == pytest.approx(0.56, abs=0.03)
    assert abs(torch.corrcoef(torch.stack([out.flatten(), skip.flatten()]))[0, 1].item()) < 0.02


@pytest.mark.parametrize("k", [1, 3])
def test_activations_follow_each_convolution(k):
    block = build("k_conv_silu", convolutions=k).transfers["3"]
    skip = noise(2, 16, 4, 4)
    expected = skip
    for convolution in block.convolutions:
        expected = nn.functional.silu(convolution(expected))
    assert len(block.convolutions) == k
    assert torch.equal(block(skip, skip), expected)
    assert len(build("conv_silu", convolutions=k).transfers["3"].convolutions) == 1


@pytest.mark.parametrize("side", [1, 4, 5])
def test_maxpool_keeps_the_largest_of_each_window(side):
    skip = noise(2, 3, side, side)
    expected = torch.zeros_like(skip)
    for top in range(0, side, 2):
        for left in range(0, side, 2):
            window = (..., slice(top, top + 2), slice(left, left + 2))
            expected[window] = torch.where(
                skip[window] == skip[window].amax((-2, -1), keepdim=True), skip[window], 0
            )
    block = build("maxpool").transfers["3"]
    assert torch.equal(block(skip, skip), expected)
    assert (expected != 0).sum() == 2 * 3 * ((side + 1) // 2) ** 2
    assert not list(block.parameters())


def test_maxpool_keeps_one_of_equal_values():
    skip = torch.ones(1, 1, 4, 4)
    assert build("maxpool").transfers["3"](skip, skip).sum() == 4


def test_maxpool_passes_gradients_to_what_it_keeps_under_deterministic_algorithms():
    skip = torch.tensor([[[[1.0, 4.0], [3.0, 2.0]]]], requires_grad=True)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        build("maxpool").transfers["3"](skip, skip).sum().backward()
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(skip.grad, torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]))


def test_drop_puts_the_decoders_own_state_in_place_of_the_skip():
    net = build("drop", groups=[1], model=EVEN).eval()
    taken = []
    for level in net.up_blocks:
        for resnet in level.resnets:
            resnet.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    net(noise(1, 1, 8, 8), 7)
    halves = [joined.chunk(2, dim=1) for joined in taken]
    assert [torch.equal(hidden, skip) for hidden, skip in halves] == [
        False,
        False,
        True,
        True,
        True,
        False,
    ]
    assert not list(net.transfers.parameters())


def test_drop_is_refused_where_the_channels_differ():
    with pytest.raises(
        ConfigError, match=r"drop.*group 1: the decoder's state has 16 channels where skip 1.*has 8"
    ):
        build("drop", groups=[1])


def test_what_there_is_not_is_refused():
    with pytest.raises(ConfigError, match=r"groups = \[2, 3\]: the network has groups 0 to 2"):
        build(groups=[2, 3])
    with pytest.raises(
        ConfigError, match=r"variant = 'conv': allowed are trained_random, .*, drop"
    ):
        RAUNet(transfer_groups=[1], transfer_variant="conv")


# ---- stored and opened ---------------------------------------------------------------------------


def stored(net: nn.Module, folder) -> str:
    save_pipeline(net, build_scheduler(Diffusion()), folder)
    return str(folder)


def config_of(net: RAUNet) -> dict:
    return {key: value for key, value in json.loads(net.to_json_string()).items() if key[0] != "_"}


@pytest.fixture
def one_thread():
    """Sums come in one order, wherever in memory the weights lie."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stored_network_is_the_same_again(variant, tmp_path):
    net = build(variant, groups=[2], convolutions=3)
    folder = stored(net, tmp_path / "p")
    assert json.loads((tmp_path / "p" / "model_index.json").read_text())["unet"] == [
        "afterimage",
        "RAUNet",
    ]
    again = DDPMPipeline.from_pretrained(folder).unet
    assert type(again) is RAUNet
    assert config_of(again) == config_of(net)
    assert [w.requires_grad for w in again.parameters()] == [
        w.requires_grad for w in net.parameters()
    ]
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True)
    )
    x = noise(2, 1, 8, 8)
    assert torch.equal(
        again(x, 5).sample, net.eval()(x, 5).sample
    )  # as pipelines are opened: without dropout's copies


def test_every_setting_of_the_network_survives(tmp_path):
    net = build_unet(
        Model(
            channels=[8, 16],
            attention=[True, False],
            layers_per_block=2,
            norm_groups=2,
            dropout=0.25,
        ),
        (8, 12, 3),
        classes=5,
        blocks=TransferBlocks(groups=[0]),
    )
    again = DDPMPipeline.from_pretrained(stored(net, tmp_path / "p")).unet
    assert config_of(again) == config_of(net)
    assert (
        config_of(again).items()
        >= {"num_class_embeds": 6, "dropout": 0.25, "layers_per_block": 2}.items()
    )


def test_importing_the_package_is_light():
    """Yet it is all that diffusers needs to open what it stored; see the routers' test in a new
    process."""
    code = (
        "import sys, afterimage; print(sorted({'torch', 'diffusers', 'numpy'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
    import afterimage

    assert afterimage.RAUNet is RAUNet
    with pytest.raises(AttributeError, match="'afterimage' has no attribute 'RUANet'"):
        afterimage.RUANet  # noqa: B018


def test_redrawn_blocks_follow_from_the_seed_of_the_loading(tmp_path):
    net = build("frozen_redrawn")
    folder = stored(net, tmp_path / "p")
    state = torch.random.get_rng_state()
    one, same, other = (load_denoiser(folder, seed)[0] for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert equal(one.state_dict(), same.state_dict())
    for a, b in ((one, net), (one, other)):
        assert not any(
            torch.equal(value, block_weights(b)[name]) for name, value in block_weights(a).items()
        )
        assert torch.equal(a.conv_in.weight, b.conv_in.weight)


@pytest.mark.parametrize(
    "variant", [variant for variant in VARIANTS if variant != "frozen_redrawn"]
)
def test_other_blocks_are_never_redrawn(variant):
    net = build(variant, groups=[2])
    before = copy.deepcopy(net.state_dict())
    redraw(net, 3)
    assert equal(net.state_dict(), before)


# ---- starting from another network ---------------------------------------------------------------


def test_a_base_without_blocks_fills_all_but_the_blocks(tmp_path):
    base, net = build_unet(TINY, (8, 8, 1), seed=7), build(seed=1)
    own = copy.deepcopy(block_weights(net))
    stored(base, tmp_path / "p")
    load_weights(net, tmp_path / "p")
    assert equal(block_weights(net), own)
    assert equal(
        base.state_dict(),
        {k: v for k, v in net.state_dict().items() if not k.startswith("transfers.")},
    )


def test_a_base_with_the_same_blocks_fills_them_too(tmp_path):
    base, net = build(seed=7), build(seed=1)
    stored(base, tmp_path / "p")
    load_weights(net, tmp_path / "p")
    assert equal(net.state_dict(), base.state_dict())


def test_no_loading_brings_redrawn_blocks_back(tmp_path):
    base, net = build("frozen_redrawn", seed=7), build("frozen_redrawn", seed=1)
    own = copy.deepcopy(block_weights(net))
    stored(base, tmp_path / "p")
    load_weights(net, tmp_path / "p")
    assert equal(block_weights(net), own)
    assert torch.equal(net.conv_in.weight, base.conv_in.weight)


@pytest.mark.parametrize(
    ("base", "net", "words"),
    [
        (
            lambda: build(),
            lambda: build_unet(TINY, (8, 8, 1)),
            r"transfer_groups was \[1, 2\], is now '\(absent\)'",
        ),
        (
            lambda: build(groups=[1]),
            lambda: build(groups=[2]),
            r"transfer_groups was \[1\], is now \[2\]",
        ),
        (
            lambda: build("drop", [2]),
            lambda: build("maxpool", [2]),
            "transfer_variant was 'drop', is now 'maxpool'",
        ),
        (lambda: build_unet(EVEN, (8, 8, 1)), lambda: build(), "layers_per_block was 2, is now 1"),
    ],
)
def test_another_architecture_is_refused(base, net, words, tmp_path):
    stored(base(), tmp_path / "p")
    with pytest.raises(ArtifactError, match=words):
        load_weights(net(), tmp_path / "p")
