"""The network and the forward process, and that diffusers opens what is stored."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline

from afterimage.config import ConfigError, Diffusion, Model
from afterimage.diffusion.model import build_scheduler, build_unet, classes_of, save_pipeline

TINY = Model(channels=[8, 16], attention=[False, True], layers_per_block=1, norm_groups=4)


def test_default_study_has_the_net_that_its_header_promises(params):
    net = build_unet(Model.model_validate(params["model"]), (8, 8, 1))
    assert net.num_parameters() == 176_849


@pytest.mark.parametrize("shape", [(8, 8, 1), (12, 20, 3), (6, 10, 1)])
def test_any_side_that_can_be_halved_is_taken(shape):
    net = build_unet(TINY, shape)
    height, width, channels = shape
    x = torch.randn(2, channels, height, width)
    assert net(x, torch.tensor([0, 999])).sample.shape == x.shape


def test_a_side_that_cannot_be_halved_is_refused_with_the_sizes():
    model = Model(channels=[8, 8, 8], attention=[False] * 3, norm_groups=4)
    with pytest.raises(ConfigError, match=r"3 levels.*multiples of 4; the images are 28 x 30"):
        build_unet(model, (28, 30, 1))


def test_a_middle_block_that_attention_does_not_fit_is_refused():
    model = Model(channels=[8, 12], attention=[True, False], norm_groups=4)
    with pytest.raises(ConfigError, match="width 12 is not a multiple of attention_head_dim = 8"):
        build_unet(model, (8, 8, 1))


def test_no_attention_means_none_anywhere():
    model = Model(channels=[8, 16], attention=[False, False], norm_groups=4)
    assert not any(
        "attentions" in name for name, _ in build_unet(model, (8, 8, 1)).named_parameters()
    )


def test_initial_weights_follow_the_seed_and_leave_the_global_state():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, two, three = (build_unet(TINY, (8, 8, 1), seed=seed).conv_in.weight for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_betas_are_the_published_ones():
    linear = build_scheduler(Diffusion(schedule="linear")).betas
    torch.testing.assert_close(
        linear[[0, 500, 999]], torch.tensor([1e-4, 1e-4 + (0.02 - 1e-4) * 500 / 999, 0.02])
    )
    t = np.arange(1001) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    cosine = np.minimum(1 - f[1:] / f[:-1], 0.999)
    np.testing.assert_allclose(
        build_scheduler(Diffusion(schedule="cosine")).betas.numpy(), cosine, rtol=1e-4
    )
    roots = np.linspace(np.sqrt(0.00085), np.sqrt(0.012), 1000)  # Rombach et al., v1-inference.yaml
    np.testing.assert_allclose(
        build_scheduler(Diffusion(schedule="scaled_linear")).betas.numpy(), roots**2, rtol=1e-4
    )


def test_diffusers_opens_and_samples_what_is_stored(tmp_path):
    net = build_unet(TINY, (8, 12, 3), seed=4)
    save_pipeline(
        net,
        build_scheduler(Diffusion(prediction="v_prediction", schedule="cosine")),
        tmp_path / "p",
    )
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "p")
    pipeline.set_progress_bar_config(disable=True)
    assert torch.equal(pipeline.unet.conv_in.weight, net.conv_in.weight)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    images = pipeline(
        batch_size=2,
        num_inference_steps=3,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert images.shape == (2, 8, 12, 3)
    assert images.std() > 0
    suffixes = {path.suffix for path in (tmp_path / "p").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_diffusers_opens_a_conditional_net_but_cannot_sample_it(tmp_path):
    """What the module's docstring says about label-conditional pipelines."""
    net = build_unet(TINY, (8, 8, 1), classes=10)
    assert classes_of(net) == 10
    assert classes_of(build_unet(TINY, (8, 8, 1))) is None
    save_pipeline(net, build_scheduler(Diffusion()), tmp_path / "p")
    assert (
        json.loads((tmp_path / "p" / "unet" / "config.json").read_text())["num_class_embeds"] == 11
    )
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "p")
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="class_labels should be provided"):
        pipeline(num_inference_steps=1)
    null = torch.tensor([10, 10])
    assert pipeline.unet(torch.randn(2, 1, 8, 8), 5, class_labels=null).sample.shape == (2, 1, 8, 8)
