"""What a GPU computes is what the processor does, up to rounding."""

import copy

import faiss
import numpy as np
import pytest
import torch

from afterimage import artifacts, config
from afterimage.attacks import dori, losses
from afterimage.config import Diffusion, Model, Sample
from afterimage.diffusion.model import build_scheduler, build_unet
from afterimage.diffusion.noising import Pixels, levels
from afterimage.diffusion.router import TimestepRouter
from afterimage.diffusion.sample import generate
from afterimage.methods import dp_sgd, find
from afterimage.methods.iet_agc import train as iet_agc
from afterimage.metrics.neighbours import Gallery
from afterimage.training.ahead import Ahead
from afterimage.training.determinism import same_bits
from afterimage.training.learner import Learner, plain
from afterimage.training.order import Order

from .conftest import UNLEARNERS

pytestmark = pytest.mark.gpu
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SETTINGS = Model(channels=[16, 32], attention=[False, True], layers_per_block=1, norm_groups=4)


@pytest.fixture
def net():
    return build_unet(SETTINGS, (8, 8, 1), seed=3).eval()


@pytest.fixture
def task(digits):
    return Pixels(digits[0][:32], build_scheduler(Diffusion()))


def on(device: torch.device, net: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(net).to(device)


def test_an_update_has_the_same_gradient(net, task):
    gradients = {}
    for device in (CPU, GPU):
        own = on(device, net)
        batch = task.batch(np.arange(32), torch.Generator().manual_seed(1)).to(device)
        task.losses(own, batch).mean().backward()
        gradients[device] = torch.cat([p.grad.flatten().cpu() for p in own.parameters()])
    cpu, gpu = gradients[CPU], gradients[GPU]
    assert torch.nn.functional.cosine_similarity(cpu, gpu, dim=0) > 0.9999
    assert float((cpu - gpu).norm() / cpu.norm()) < 1e-3


@pytest.fixture
def waiting_is_an_error():
    """torch raises an error where the processor would wait for the device, from the call of what
    this returns to the end of the test."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


AGC = {"method": "iet_agc", "shards": 1, "rounds": 1, "agc_threshold": 0.9}


@pytest.mark.parametrize(
    "settings",
    [{}, {"precision": "bf16"}, {"precision": "fp16"}, {"arm": AGC}],
    ids=["fp32", "bf16", "fp16", "agc"],
)
def test_an_update_waits_for_nothing(settings, make_job, tmp_path, waiting_is_an_error):
    job = make_job(tmp_path, "text", images=40, **settings)
    if "arm" in settings:
        update = iet_agc.Ensemble(job).update
    else:
        learner = Learner(job.net, job.train, job.accelerator)
        order = Order(job.seed, job.path, len(job.task), job.train.batch_size)
        batches = Ahead(
            lambda s: job.task.batch(order.rows(s), order.generator(s)), job.accelerator.device
        )

        def update(s):
            return learner.update(s, batches(s), plain(job.task))

    update(0)
    waiting_is_an_error()
    assert update(1)["loss"].device.type == "cuda"


@pytest.mark.parametrize("name", [name for name in UNLEARNERS if name != "esd, sampled"])
def test_an_update_of_an_unlearner_waits_for_nothing(
    name, unlearner, tmp_path, update_of, waiting_is_an_error
):
    """Its batches are made ahead, too."""
    arm = UNLEARNERS[name]
    update = update_of(find(arm["method"]).train, unlearner(tmp_path, arm))
    update(0)
    waiting_is_an_error()
    assert update(1)["loss"].device.type == "cuda"


def test_a_private_update_waits_for_nothing(make_job, tmp_path, update_of, waiting_is_an_error):
    arm = {"method": "dp_sgd", "noise_multiplier": 1.0}
    update = update_of(dp_sgd.train, make_job(tmp_path, arm=arm))
    update(0)
    waiting_is_an_error()
    assert update(1)["loss"].device.type == "cuda"


@pytest.mark.parametrize("name", UNLEARNERS)
def test_an_unlearner_ends_at_the_same_weights(name, unlearner, tmp_path, monkeypatch):
    """With batches made ahead in pinned memory, as with those that are made when they are asked
    for."""
    arm = UNLEARNERS[name]
    train = find(arm["method"]).train
    found = train(unlearner(tmp_path / "ahead", arm, updates=4)).raw
    monkeypatch.setattr(Ahead, "__call__", lambda batches, s: batches._make(s))
    expected = train(unlearner(tmp_path / "asked", arm, updates=4)).raw
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("t", [100, 900])
def test_a_router_chooses_without_waiting(t, net, waiting_is_an_error):
    router = on(GPU, TimestepRouter(net, copy.deepcopy(net), 500))
    x = torch.zeros((4, 1, 8, 8), device=GPU)
    router(x, torch.tensor(t))
    waiting_is_an_error()
    assert router(x, torch.tensor(t)).sample.device.type == "cuda"


def test_an_arm_may_leave_out_determinism():
    before = torch.get_deterministic_debug_mode()
    try:
        torch.set_deterministic_debug_mode("default")
        same_bits(deterministic=False)
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_deterministic_debug_mode(before)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_generations_are_the_same_pictures(sampler, net, task):
    """Noise comes from generators on the processor, whatever the device."""
    sample = Sample(images=16, steps=20, sampler=sampler)
    scheduler = dict(task.scheduler.config)
    one, other = (
        generate(on(device, net), scheduler, np.arange(16), sample, 5) for device in (CPU, GPU)
    )
    assert np.abs(one.astype(int) - other.astype(int)).max() <= 2


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("switch", ["channels_last", "compile"])
def test_a_network_that_is_laid_out_otherwise_draws_the_same_pictures(switch, sampler, net, task):
    plain = Sample(images=16, steps=20, sampler=sampler)
    scheduler = dict(task.scheduler.config)
    one, other = (
        generate(on(GPU, net), scheduler, np.arange(16), sample, 5)
        for sample in (plain, plain.model_copy(update={switch: True}))
    )
    assert np.abs(one.astype(int) - other.astype(int)).max() <= 2


def test_losses_of_images_are_the_same(net, task):
    at = levels(4, 1000)
    one, other = (
        losses.measure(on(device, net), task, np.arange(32), "train", at, 2, 0)
        for device in (CPU, GPU)
    )
    np.testing.assert_allclose(one, other, rtol=1e-3)


def test_embeddings_of_images_are_found_in_the_same_place(digits):
    texts = build_unet(SETTINGS, (8, 8, 1), seed=4, text_width=12).eval()
    task = Pixels(digits[0][:4], build_scheduler(Diffusion()))
    settings = config.Forgetting(embedding_updates=5)
    one, other = (
        dori.optimised(on(device, texts), task, np.arange(4), torch.zeros((3, 12)), settings, 0)
        for device in (CPU, GPU)
    )
    assert other.device == CPU
    torch.testing.assert_close(one, other, rtol=0, atol=1e-2)


def test_neighbours_are_the_same_to_the_last_bit(digits, monkeypatch):
    """Proposals come from the GPU, and exact differences decide."""
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this faiss has no GPU index: make LOCK=envs/gpu.lock setup")
    pixels = digits[0]
    found = Gallery(pixels[:1500]).nearest(pixels[1500:], 50)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    again = Gallery(pixels[:1500]).nearest(pixels[1500:], 50)
    assert (found.rows == again.rows).all()
    assert (found.distances == again.distances).all()


def test_a_study_runs_on_it(empty):
    """From raw data to the pages; trainings and drawings say where they ran."""
    empty.snakemake("--", "all")
    for store in ("train/baseline/rep0", "sample/baseline/rep0"):
        facts = artifacts.read_run(empty.results / store)["facts"]
        assert facts["device"].startswith("cuda")
    assert empty.run("afterimage", "verify").returncode == 0
