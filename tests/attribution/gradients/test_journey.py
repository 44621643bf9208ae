"""The gradients of a generation along its own sampling."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from afterimage import seeds
from afterimage.attribution.gradients import compute, journey
from afterimage.attribution.replicate import root_seed
from afterimage.config import Features, Model, Sample
from afterimage.diffusion.denoising import task_of
from afterimage.diffusion.model import build_unet
from afterimage.diffusion.sample import generate
from afterimage.diffusion.texts import Texts
from afterimage.images import Images

SAMPLING = {"images": 5, "steps": 4, "batch_size": 2}

REPLICATE = 2


@pytest.fixture
def generations(tiny_net, scheduler_config):
    """Return a function that samples five generations of a net."""

    def make(kind="plain", **settings):
        net = tiny_net(kind)
        labels = np.arange(5) % 10 if kind == "conditional" else None
        sampling = Sample(**SAMPLING | settings)
        ids = np.arange(5) + 7
        pixels = generate(net, scheduler_config, ids, sampling, 3, REPLICATE, labels)
        return net, Images.of(pixels, ids, labels), sampling

    return make


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_journey_ends_at_the_generation(generations, scheduler_config, sampler):
    """The last step's estimate of the final image is the image: neither sampler adds anything after
    it."""
    net, images, sampling = generations(sampler=sampler)
    found = journey.final_image_estimates(net, scheduler_config, images, sampling, 3, REPLICATE)
    assert list(found) == [750, 500, 250, 0]
    np.testing.assert_array_equal(found[0], images.pixels)
    assert (found[750] != images.pixels).any()


def test_with_texts_the_journey_ends_at_the_generation_for_its_prompt(scheduler_config):
    model = Model(channels=[8, 16], attention=[False, True], layers_per_block=1, norm_groups=4)
    net = build_unet(model, (8, 8, 1), seed=1, text_width=6).eval()
    rng = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, 5, 6, generator=rng)
    texts = Texts({"a three": 0, "a five": 1}, embeddings, torch.zeros(5, 6))
    prompts = np.array(["a five", "a three", "a five"])
    sampling = Sample(**SAMPLING | {"guidance": 2.0})
    ids = np.arange(3) + 7
    drawn = (net, scheduler_config, ids, sampling, 3, REPLICATE, None)
    images = Images.of(generate(*drawn, (texts, texts.rows(prompts))), ids, captions=prompts)
    described = journey.final_image_estimates(
        net, scheduler_config, images, sampling, 3, REPLICATE, texts
    )
    assert described[0].shape == images.pixels.shape
    swapped = Images.of(images.pixels, ids, captions=prompts[[1, 0, 1]])
    other = journey.final_image_estimates(
        net, scheduler_config, swapped, sampling, 3, REPLICATE, texts
    )
    assert all((described[t][row] != other[t][row]).any() for t in (750, 500) for row in range(3))


def test_the_first_estimate_is_read_off_the_noise_that_the_image_came_from(
    generations, scheduler_config
):
    net, images, sampling = generations("conditional", guidance=2.0)
    found = journey.final_image_estimates(net, scheduler_config, images, sampling, 3, REPLICATE)
    start = torch.stack(
        [
            torch.randn(1, 8, 8, generator=seeds.torch_rng(3, "sample", REPLICATE, i))
            for i in images.ids.tolist()
        ]
    )
    with torch.no_grad():
        prediction = net(start, 750, class_labels=torch.as_tensor(images.labels)).sample
    signal = DDIMScheduler.from_config(scheduler_config).alphas_cumprod[750]
    estimate = (start - (1 - signal).sqrt() * prediction) / signal.sqrt()
    pixels = ((estimate / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(
        found[750], pixels, atol=1
    )  # conditional and unconditional halves share one batch in sampling


def test_features_are_the_mean_over_the_states_and_leave_the_net_as_it_was(
    generations, scheduler_config
):
    net, images, sampling = generations()
    settings = Features(timesteps=2, dimension=16)
    made = journey.project_journey_gradients(
        net, scheduler_config, images, "generated", settings, sampling, 3, REPLICATE
    )
    estimates = journey.final_image_estimates(net, scheduler_config, images, sampling, 3, REPLICATE)
    each, seed = [], root_seed(3, REPLICATE)
    for t in (750, 250):
        state = Images.of(estimates[t], images.ids)
        one = compute.project_gradients(
            net,
            task_of(net, scheduler_config, state),
            state.ids,
            "generated",
            settings,
            ["loss"],
            seed,
            timesteps=[t],
        )
        each.append(one.features["loss"])
    np.testing.assert_allclose(made, np.mean(each, axis=0), rtol=1e-6)
    assert made.dtype == np.float32
    assert not net._forward_hooks


def test_more_timesteps_than_steps_take_every_step_once(generations, scheduler_config):
    net, images, sampling = generations()
    made = [
        journey.project_journey_gradients(
            net,
            scheduler_config,
            images,
            "generated",
            Features(timesteps=count, dimension=16),
            sampling,
            3,
            REPLICATE,
        )
        for count in (4, 9)
    ]
    np.testing.assert_array_equal(*made)
