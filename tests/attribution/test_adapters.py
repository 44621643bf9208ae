"""Attribution of adapters: the network with them in layers of their own, and their gradients."""

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from afterimage import config
from afterimage.attribution.features import of_adapters
from afterimage.attribution.gradients.layers import Layers, dense
from afterimage.config import Diffusion, Model, StoredModel
from afterimage.diffusion.model import build_scheduler, build_unet, save_pipeline
from afterimage.diffusion.start import start, with_adapters

pytest.importorskip("peft")


@pytest.fixture
def stored(tmp_path):
    """A stored network's block, and a pipeline that a training of its adapters has left."""
    base = build_unet(Model(channels=[8, 16], attention=[True, True]), (4, 4, 4), text_width=16)
    base.save_pretrained(tmp_path / "unet")
    model = StoredModel(kind="stored", path=str(tmp_path / "unet"), lora={"rank": 2, "alpha": 4})
    net = start(model, (4, 4, 4), seed=3, text_width=16)
    generator = torch.Generator().manual_seed(0)
    for name, weight in net.named_parameters():
        if "lora_" in name:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    save_pipeline(net, build_scheduler(Diffusion()), tmp_path / "pipeline")
    return model, tmp_path / "pipeline"


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, 4, 4, 4), generator=generator)
    return x, torch.tensor(5), torch.randn((2, 3, 16), generator=generator)


def predicted(net, given):
    x, t, texts = given
    return net(x, t, encoder_hidden_states=texts, return_dict=False)[0]


def test_a_network_with_adapters_is_the_stored_result(stored, given):
    """Which has them added to its weights, with their scale."""
    model, pipeline = stored
    adapted = with_adapters(model, pipeline).eval()
    result = UNet2DConditionModel.from_pretrained(pipeline / "unet").eval()
    base = UNet2DConditionModel.from_pretrained(model.path).eval()
    torch.testing.assert_close(predicted(adapted, given), predicted(result, given))
    assert not torch.allclose(predicted(adapted, given), predicted(base, given), atol=1e-2)


def test_gradients_are_those_of_the_adapters_alone(stored, given):
    model, pipeline = stored
    net = with_adapters(model, pipeline).eval()
    layers = Layers(net, of_adapters(config.Features()).parameters)
    assert layers.shapes
    assert all(".lora_A." in name or ".lora_B." in name for name in layers.shapes)
    with layers.recorded() as tape:
        prediction = predicted(net, given)
    cotangent = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(2))
    found = tape.gradients(prediction, [cotangent])
    expected = torch.autograd.grad(
        (predicted(net, given) * cotangent).sum(),
        [weight for name, weight in net.named_parameters() if name in layers.shapes],
    )
    names = [name for name, _ in net.named_parameters() if name in layers.shapes]
    by_name = dict(found)
    for name, gradient in zip(names, expected, strict=True):
        total = dense(by_name[name]).sum(dim=(0, 1)).view_as(gradient)
        torch.testing.assert_close(total, gradient, rtol=1e-3, atol=1e-5)


def test_chosen_parameters_are_among_the_adapters():
    chosen = config.Features(parameters=["up_blocks.*", "mid_block.attentions.0.bias"])
    assert of_adapters(chosen).parameters == ["up_blocks.*lora_*"]
    assert of_adapters(config.Features()).parameters == ["*lora_*"]
