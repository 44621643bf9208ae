"""The router: which network gets which sample, and that diffusers samples with it, stores it and
opens it again."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from afterimage.artifacts import ArtifactError
from afterimage.config import Diffusion, Model, Sample, TransferBlocks
from afterimage.diffusion.model import (
    build_scheduler,
    build_unet,
    classes_of,
    load_weights,
    save_pipeline,
)
from afterimage.diffusion.rau_net import RAUNet
from afterimage.diffusion.router import TimestepRouter
from afterimage.diffusion.sample import denoise, generate, load_denoiser
from afterimage.seeds import torch_rng

TINY = Model(channels=[8, 16], attention=[False, True], layers_per_block=1, norm_groups=4)
T = 1000


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def net(seed: int, groups=(), classes: int | None = None, variant: str = "trained_random"):
    blocks = TransferBlocks(groups=list(groups), variant=variant)
    return build_unet(TINY, (8, 8, 1), classes, seed=seed, blocks=blocks).eval()


@pytest.fixture(scope="module")
def router() -> TimestepRouter:
    """A plain front and a tail with blocks, as published."""
    return TimestepRouter(net(1), net(2, groups=[2]), 500).eval()


@pytest.mark.parametrize(
    ("t", "part"), [(0, "front"), (499, "front"), (500, "tail"), (999, "tail")]
)
@pytest.mark.parametrize(
    "form", [int, torch.tensor, lambda t: torch.tensor([t]), lambda t: torch.tensor([t] * 3)]
)
def test_every_form_of_a_timestep_goes_to_its_network(router, t, part, form):
    """Router known answer 6: the front network where t < tau, the tail network where t >= tau;
    numbers, 0-d and 1-d tensors."""
    x = noise(3, 1, 8, 8)
    with torch.no_grad():
        expected = getattr(router, part)(x, t, return_dict=False)[0]
        assert torch.equal(router(x, form(t), return_dict=False)[0], expected)
        assert torch.equal(router(x, form(t)).sample, expected)


@pytest.mark.parametrize("form", [int, torch.tensor, lambda t: torch.tensor([t] * 3)])
@pytest.mark.parametrize(("t", "part"), [(499, "front"), (500, "tail")])
def test_the_choice_reads_nothing_from_the_device_of_the_images(t, part, form):
    """Nothing can be read from the device ``meta``, which has shapes alone."""
    router, called = TimestepRouter(net(1), net(2), 500).to("meta"), []
    for name in ("front", "tail"):
        getattr(router, name).register_forward_hook(lambda *_, name=name: called.append(name))
    assert router(noise(3, 1, 8, 8).to("meta"), form(t)).sample.shape == (3, 1, 8, 8)
    assert called == [part]


@pytest.mark.parametrize(("tau", "part"), [(0, "tail"), (T, "front")])
def test_at_the_ends_one_network_does_all(tau, part):
    """Router known answer 6: tau = 0 and tau = T."""
    router, x = TimestepRouter(net(1), net(2), tau), noise(2, 1, 8, 8)
    with torch.no_grad():
        for t in (0, 500, T - 1):
            assert torch.equal(router(x, t).sample, getattr(router, part)(x, t).sample)


@given(
    times=st.lists(st.integers(0, T - 1), min_size=1, max_size=5),
    classes=st.sampled_from([None, 3]),
)
@settings(max_examples=20, deadline=None)
def test_a_mixed_batch_is_the_samples_one_by_one(times, classes):
    """Router known answer 6, up to the rounding of another batch size."""
    router = TimestepRouter(
        net(1, classes=classes), net(2, groups=[0], classes=classes), 500
    ).eval()
    x = noise(len(times), 1, 8, 8)
    labels = None if classes is None else torch.arange(len(times)) % (classes + 1)
    with torch.no_grad():
        together = router(x, torch.tensor(times), labels).sample
        for i, t in enumerate(times):
            own = None if labels is None else labels[i : i + 1]
            expected = (router.front if t < 500 else router.tail)(x[i : i + 1], t, own).sample
            torch.testing.assert_close(together[i : i + 1], expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_a_mixed_batch_reach_both_networks():
    trained = TimestepRouter(net(1), net(2), 500)
    trained(noise(2, 1, 8, 8), torch.tensor([3, 700])).sample.square().sum().backward()
    assert all(weight.grad is not None for weight in trained.parameters())


class Recorder(nn.Module):
    """Notes the timesteps and batch sizes that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, int]] = []

    def __call__(self, x, t, class_labels=None, return_dict=True):
        self.calls.append((int(t[0]), len(x)))
        return (torch.zeros_like(x),)


def test_guidance_asks_one_network_for_both_branches():
    router = TimestepRouter(net(1, classes=3), net(2, classes=3), 500)
    front, tail = Recorder(), Recorder()
    router.front, router.tail = front, tail
    scheduler = dict(build_scheduler(Diffusion()).config)
    settings = Sample(images=2, steps=4, guidance=2.0)
    denoise(
        router,
        scheduler,
        noise(2, 1, 8, 8),
        [torch_rng(i) for i in range(2)],
        settings,
        torch.tensor([0, 2]),
        3,
    )
    assert tail.calls == [(750, 4), (500, 4)]
    assert front.calls == [(250, 4), (0, 4)]


def test_two_equal_networks_sample_as_one():
    """Router known answer 6: front = tail, to the last bit, wherever the switch is."""
    single, scheduler = net(1), dict(build_scheduler(Diffusion()).config)
    settings = Sample(images=3, steps=6)
    expected = generate(single, scheduler, range(3), settings, seed=1)
    for tau in (0, 333, T):
        assert np.array_equal(
            generate(TimestepRouter(net(1), net(1), tau), scheduler, range(3), settings, seed=1),
            expected,
        )
    other = generate(TimestepRouter(net(1), net(2), 333), scheduler, range(3), settings, seed=1)
    assert not np.array_equal(other, expected)


def test_it_offers_what_samplers_ask_of_a_network():
    router = TimestepRouter(net(1, classes=4), net(2, groups=[1], classes=4), 500)
    assert (router.config["sample_size"], router.config.in_channels, classes_of(router)) == (
        8,
        1,
        4,
    )
    assert router.config["switch_timestep"] == 500
    assert router.device == torch.device("cpu")


@pytest.mark.parametrize("kind", [DDPMPipeline, DDIMPipeline])
def test_pipelines_of_diffusers_sample_with_it(router, kind):
    scheduler = build_scheduler(Diffusion())
    pipeline = kind(
        router, scheduler if kind is DDPMPipeline else DDIMScheduler.from_config(scheduler.config)
    )
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        batch_size=2,
        num_inference_steps=4,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images
    x = torch.randn((2, 1, 8, 8), generator=(generator := torch.Generator().manual_seed(0)))
    pipeline.scheduler.set_timesteps(4)
    for t in pipeline.scheduler.timesteps:
        with torch.no_grad():
            part = router.front if t < 500 else router.tail
            x = pipeline.scheduler.step(part(x, t).sample, t, x, generator=generator).prev_sample
    np.testing.assert_allclose(drawn[..., 0], (x[:, 0] / 2 + 0.5).clamp(0, 1).numpy(), atol=1e-6)


IN_A_NEW_PROCESS = """
import sys
import afterimage
import numpy as np
import torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)
x = torch.from_numpy(np.load("x.npy"))
for folder in sys.argv[1:]:
    np.save(f"{folder}.npy", DiffusionPipeline.from_pretrained(folder).unet(x, 700).sample.detach().numpy())
"""


def test_stored_networks_are_the_same_in_a_new_process(router, tmp_path):
    """RAU-Net known answer 1: bit for bit, opened by diffusers after ``import afterimage``
    alone."""
    np.save(tmp_path / "x.npy", noise(4, 1, 8, 8).numpy())
    nets = {
        "router": router,
        "rau_net": net(3, groups=[0, 1, 2]),
        "frozen": net(3, groups=[1], variant="frozen_fixed"),
    }
    for name, one in nets.items():
        save_pipeline(one, build_scheduler(Diffusion()), tmp_path / name)
    subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, *nets],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, one in nets.items():
        assert np.array_equal(
            np.load(tmp_path / f"{name}.npy"), one(noise(4, 1, 8, 8), 700).sample.detach().numpy()
        ), name
    torch.set_num_threads(before)


def test_a_stored_router_samples_as_it_did(router, tmp_path):
    save_pipeline(router, build_scheduler(Diffusion(schedule="cosine")), tmp_path / "p")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "p")
    assert type(pipeline) is DDPMPipeline
    pipeline.save_pretrained(tmp_path / "again")
    for folder in ("p", "again"):
        opened, scheduler = load_denoiser(tmp_path / folder)
        assert isinstance(opened, TimestepRouter)
        assert isinstance(opened.tail, RAUNet)
        assert not isinstance(opened.front, RAUNet)
        settings = Sample(images=4, steps=4)
        assert np.array_equal(
            generate(opened, scheduler, range(4), settings, seed=2),
            generate(router, scheduler, range(4), settings, seed=2),
        )


def test_redrawn_blocks_of_a_router_are_redrawn_too(tmp_path):
    save_pipeline(
        TimestepRouter(net(1), net(1, groups=[2], variant="frozen_redrawn"), 500),
        build_scheduler(Diffusion()),
        tmp_path / "p",
    )
    one, other = (load_denoiser(tmp_path / "p", seed)[0] for seed in (1, 2))
    differing = {
        name
        for name, value in one.state_dict().items()
        if not torch.equal(value, other.state_dict()[name])
    }
    assert differing == {
        "tail.transfers.3.convolutions.0.weight",
        "tail.transfers.3.convolutions.0.bias",
    }


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(
        torch.equal(value, theirs[name])
        for name, value in one.state_dict().items()
        if name in theirs
    )


def test_both_networks_are_filled_from_one_or_each_from_its_own(router, tmp_path):
    save_pipeline(net(7), build_scheduler(Diffusion()), tmp_path / "one")
    save_pipeline(router, build_scheduler(Diffusion()), tmp_path / "two")
    filled = TimestepRouter(net(8), net(8, groups=[2]), 250)
    load_weights(filled, tmp_path / "one")
    assert same(filled.front, net(7))
    assert same(filled.tail, net(7))
    load_weights(filled, tmp_path / "two")
    assert same(filled.front, router.front)
    assert same(filled.tail, router.tail)
    mirrored = TimestepRouter(net(8, groups=[2]), net(8), 500)
    with pytest.raises(ArtifactError, match="another architecture"):
        load_weights(mirrored, tmp_path / "two")
