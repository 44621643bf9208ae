import copy
import json
import logging
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.upsampling import Upsample2D

from afterimage.config import Diffusion, Model, TransferBlocks
from afterimage.diffusion import cpu
from afterimage.diffusion.model import build_scheduler, build_unet, save_pipeline
from afterimage.diffusion.router import TimestepRouter

MODEL = {"channels": [8, 16], "attention": [False, True], "layers_per_block": 1, "norm_groups": 4}
SIDES = {"square": (8, 8, 1), "oblong": (4, 12, 3)}


def nets(kind: str, shape: tuple[int, int, int]) -> torch.nn.Module:
    """Return a float64 network of some kind, its weights drawn anew so that none is zero."""
    model = Model.model_validate(
        MODEL | ({"time_embedding": "scale_shift"} if kind == "scale_shift" else {})
    )
    blocks = TransferBlocks(groups=[1, 2], variant="trained_random") if kind == "rau_net" else None
    classes = 3 if kind == "conditional" else None
    net = build_unet(model, shape, classes, seed=1, blocks=blocks)
    if kind == "router":
        net = TimestepRouter(net, build_unet(model, shape, seed=2), 500)
    generator = torch.Generator().manual_seed(3)
    for weight in net.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return net.double()


def results(net: torch.nn.Module, kind: str, shape: tuple[int, int, int]) -> list[torch.Tensor]:
    """Return output, and gradients of a random linear function of it for the input and all weights."""
    generator = torch.Generator().manual_seed(4)
    height, width, channels = shape
    x = torch.randn(
        6, channels, height, width, dtype=torch.float64, generator=generator
    ).requires_grad_()
    times = torch.tensor([0, 3, 499, 500, 900, 999])
    labels = torch.tensor([0, 1, 2, 3, 0, 1]) if kind == "conditional" else None
    out = net(x, times, labels, return_dict=False)[0]
    weighting = torch.randn(out.shape, dtype=torch.float64, generator=generator)
    return [out, *torch.autograd.grad((out * weighting).sum(), [x, *net.parameters()])]


@pytest.mark.parametrize("shape", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("kind", ["plain", "conditional", "scale_shift", "rau_net", "router"])
def test_outputs_and_gradients_are_those_of_diffusers(kind, shape):
    net = nets(kind, shape)
    cheap = copy.deepcopy(net)
    cpu.use_cheap_layers(cheap)
    for plain, ours in zip(results(net, kind, shape), results(cheap, kind, shape), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch", [3, 64])  # diffusers lays larger batches out anew
def test_dropout_draws_the_masks_that_it_draws_in_diffusers_layers(batch):
    net = build_unet(Model.model_validate(MODEL | {"dropout": 0.3}), (8, 8, 1), seed=1)
    net.double().train()
    cheap = copy.deepcopy(net)
    cpu.use_cheap_layers(cheap)
    x = torch.randn(batch, 1, 8, 8, dtype=torch.float64)
    outputs = []
    for own in (net, cheap):
        torch.manual_seed(2)
        outputs.append(own(x, torch.arange(batch)).sample)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-12)


def test_diffusers_has_nothing_to_warn_of(caplog):
    net = build_unet(Model.model_validate(MODEL), (8, 8, 1))
    cpu.use_cheap_layers(net)
    log = logging.getLogger("diffusers.models.attention_processor")
    log.addHandler(caplog.handler)
    try:
        net(torch.zeros(1, 1, 8, 8), torch.tensor([1]))
    finally:
        log.removeHandler(caplog.handler)
    assert not caplog.records


def test_every_layer_with_a_cheaper_form_gets_it():
    net = build_unet(Model.model_validate(MODEL), (8, 8, 1))
    cpu.use_cheap_layers(net)
    processors = [type(part.processor) for part in net.modules() if isinstance(part, Attention)]
    assert processors == [cpu.PlainAttention] * 4  # one going down, one in the middle, two going up
    assert sum(isinstance(part, cpu.DoublingConvolution) for part in net.modules()) == 1
    pointwise = [
        part
        for part in net.modules()
        if isinstance(part, torch.nn.Conv2d) and part.kernel_size == (1, 1)
    ]
    assert len(pointwise) == 5
    assert all(type(part) is cpu.PointwiseConvolution for part in pointwise)


def test_attention_over_many_pixels_stays_with_torchs_kernel(monkeypatch):
    net = build_unet(
        Model.model_validate(MODEL | {"attention": [True, True]}), (16, 16, 1)
    ).double()
    x, t = torch.randn(2, 1, 16, 16, dtype=torch.float64), torch.tensor([1, 900])
    plain = net(x, t).sample
    cpu.use_cheap_layers(net)
    pixels = []
    original = torch.nn.functional.scaled_dot_product_attention

    def noting(query, *rest, **named):
        pixels.append(query.shape[2])
        return original(query, *rest, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    torch.testing.assert_close(net(x, t).sample, plain, rtol=1e-10, atol=1e-12)
    assert set(pixels) == {256}  # 8 x 8 is few


@pytest.mark.parametrize("what", ["mask", "other states", "three axes"])
def test_attention_to_anything_but_the_image_is_left_to_torch(what):
    attention = Attention(
        8, heads=2, dim_head=4, norm_num_groups=2, residual_connection=True
    ).double()
    x = torch.randn(3, 8, 2, 2, dtype=torch.float64)
    mask = torch.tensor([0.0, -1e4, 0.0, 0.0], dtype=torch.float64).expand(3, 1, 4)
    inputs = {
        "mask": {"hidden_states": x, "attention_mask": mask},
        "other states": {
            "hidden_states": x,
            "encoder_hidden_states": torch.randn(3, 5, 8, dtype=torch.float64),
        },
        "three axes": {"hidden_states": x.flatten(2).mT},
    }[what]
    wanted = attention(**inputs)
    cpu.use_cheap_layers(torch.nn.Sequential(attention))
    assert type(attention.processor) is cpu.PlainAttention
    assert torch.equal(attention(**inputs), wanted)


@pytest.mark.parametrize("sides", [(1, 1), (3, 5), (4, 4)])
def test_doubling_is_upsampling_and_a_convolution(sides):
    layer = Upsample2D(3, use_conv=True, out_channels=2).double()
    x = torch.randn(2, 3, *sides, dtype=torch.float64)
    wanted = layer(x)
    odd = layer(x, output_size=[2 * side + 1 for side in sides])
    layer.__class__ = cpu.DoublingConvolution
    torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(layer(x, output_size=[2 * side + 1 for side in sides]), odd)


def test_layers_of_another_kind_are_left_alone():
    net = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
    ).double()
    x, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([1, 900])
    plain = net(x, t).sample
    cpu.use_cheap_layers(net)
    assert not any(isinstance(part, cpu.DoublingConvolution) for part in net.modules())
    torch.testing.assert_close(net(x, t).sample, plain, rtol=1e-10, atol=1e-12)


def test_an_autoencoder_is_computed_right_too():
    net = AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).double()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    plain = net(x).sample
    cpu.use_cheap_layers(net)
    torch.testing.assert_close(net(x).sample, plain, rtol=1e-10, atol=1e-12)


OPENED = """
import sys, torch
from diffusers import DDPMPipeline
pipeline = DDPMPipeline.from_pretrained(sys.argv[1])
assert "afterimage" not in sys.modules
assert type(pipeline.unet).__module__.startswith("diffusers."), type(pipeline.unet)
print(pipeline.unet(torch.ones(2, 1, 8, 8), torch.tensor([1, 900])).sample.detach().flatten().tolist())
"""


@torch.no_grad()
def test_diffusers_opens_what_was_saved_without_this_package(tmp_path):
    net = build_unet(Model.model_validate(MODEL), (8, 8, 1), seed=1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cpu.use_cheap_layers(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    save_pipeline(net, build_scheduler(Diffusion()), tmp_path / "pipeline")
    command = [sys.executable, "-c", OPENED, str(tmp_path / "pipeline")]
    theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ours = net(torch.ones(2, 1, 8, 8), torch.tensor([1, 900])).sample.flatten()
    torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-4, atol=1e-5)
