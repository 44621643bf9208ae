"""How an update is computed: precision, layout, checkpointing of activations, compiled or not."""

import importlib.util
import shutil

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMPipeline
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from afterimage.diffusion.model import save_pipeline
from afterimage.methods import baseline, dp_sgd, find
from afterimage.methods.iet_agc import train as iet_agc
from afterimage.training import learner as learner_module
from afterimage.training.learner import Learner, NonFiniteError, plain
from afterimage.training.loop import DivergedError
from afterimage.training.order import Order

from .conftest import UNLEARNERS


def batch_of(job):
    order = Order(job.seed, job.path, len(job.task), job.train.batch_size)
    return job.task.batch(order.rows(0), order.generator(0))


def gradient(job) -> torch.Tensor:
    """Return the gradient of the first batch, unscaled."""
    learner = Learner(job.net, job.train, job.accelerator)
    learner.gradient(batch_of(job), plain(job.task))
    AcceleratorState._reset_state(reset_partial_state=True)  # it forgets its precision
    learner.scaler.unscale_(learner.optimizer)
    return torch.cat([p.grad.flatten() for p in learner.net.parameters()])


@pytest.mark.parametrize(
    ("changed", "within"),
    [
        ({"gradient_checkpointing": True}, 0),
        ({"channels_last": True}, 1e-5),
        ({"precision": "fp16"}, 0.02),
        ({"precision": "bf16"}, 0.1),
    ],
    ids=str,
)
@pytest.mark.parametrize("condition", ["none", "text"])
def test_the_gradient_is_that_of_plain_arithmetic(changed, within, condition, make_job, tmp_path):
    expected = gradient(make_job(tmp_path / "plain", condition, batch_size=8))
    found = gradient(make_job(tmp_path / "changed", condition, batch_size=8, **changed))
    assert float((found - expected).norm() / expected.norm()) <= within
    if "precision" in changed:
        assert not torch.equal(found, expected)


@pytest.mark.parametrize("condition", ["none", "text"])
def test_checkpointing_keeps_less_for_the_backward_pass(condition, make_job, tmp_path):
    kept = {}
    for on in (False, True):
        job = make_job(tmp_path / str(on), condition, batch_size=8, gradient_checkpointing=on)
        learner, sizes = Learner(job.net, job.train, job.accelerator), []
        weights = {weight.data_ptr() for weight in learner.net.parameters()}

        def keep(tensor, weights=weights, sizes=sizes):
            if tensor.data_ptr() not in weights:
                sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            job.task.losses(learner.net, batch_of(job)).sum()
        kept[on] = sum(sizes)
    assert kept[True] < 0.6 * kept[False]


def test_weights_with_channels_last_are_stored_as_all_others(make_job, tmp_path):
    """Their pipeline opens without the project's code, and their state resumes."""
    job = make_job(tmp_path / "state", channels_last=True)
    trained = baseline.train(job)
    convolution = trained.raw.conv_in.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    save_pipeline(trained.raw, job.scheduler, tmp_path / "pipeline")
    opened = DDPMPipeline.from_pretrained(tmp_path / "pipeline").unet
    assert torch.equal(opened.conv_in.weight, convolution)
    assert all(weight.is_contiguous() for weight in opened.parameters())


class Steep(nn.Module):
    """A weight whose gradient is 1000."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))


def steep(net, part):
    return (1000 * net.weight.half()).float().expand(len(part)), torch.ones(len(part))


def test_an_update_that_overflows_changes_nothing_but_the_factor(make_job, tmp_path):
    """Half precision ends at 65,504: 1000 times the factor fits from 64 on."""
    job = make_job(tmp_path, precision="fp16", clip=None, ema=0.5)
    learner, batch = Learner(Steep(), job.train, job.accelerator), batch_of(job)
    first = learner.scaler.get_scale()
    seen = []
    for s in range(14):
        before = learner.net.weight.item(), learner.average.module.weight.item()
        values = learner.update(s, batch, steep)
        after = learner.net.weight.item(), learner.average.module.weight.item()
        assert (before == after) == bool(values["overflow"])
        assert values["grad_norm"] == (0 if values["overflow"] else pytest.approx(1000, rel=1e-3))
        seen.append(values["overflow"])
    overflows = int(sum(seen))
    assert seen == [1.0] * overflows + [0.0] * (14 - overflows)
    assert learner.scaler.get_scale() == first / 2**overflows == 64
    again = Learner(Steep(), job.train, job.accelerator)
    again.load(learner.tensors())
    assert again.scaler.state_dict() == learner.scaler.state_dict()


def test_a_gradient_that_overflows_at_any_factor_is_an_error(make_job, tmp_path):
    job = make_job(tmp_path, precision="fp16")
    learner, batch = Learner(Steep(), job.train, job.accelerator), batch_of(job)

    def infinite(net, part):
        return (net.weight * 0).sqrt().expand(len(part)), torch.ones(len(part))

    for s in range(16):
        learner.update(s, batch, infinite)
    with pytest.raises(NonFiniteError, match="gradient norm"):
        learner.update(16, batch, infinite)
    assert learner.net.weight.item() == 1


def test_a_compiled_network_learns_the_same(make_job, tmp_path, compiled):
    expected = baseline.train(make_job(tmp_path / "plain"))
    found = baseline.train(make_job(tmp_path / "compiled", compile=True))
    assert compiled == ["UNet2DModel"]
    assert found.raw._compiled_call_impl is not None
    assert found.average._compiled_call_impl is None
    for one, other in zip(found.raw.parameters(), expected.raw.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert found.raw.state_dict().keys() == expected.raw.state_dict().keys()


def test_moments_of_eight_bits_learn_nearly_the_same(make_job, tmp_path):
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed: pip install '.[adam8bit]'")
    job = make_job(tmp_path / "eight", batch_size=8, optimizer="adamw_8bit")
    found = baseline.train(job)
    expected = baseline.train(make_job(tmp_path / "plain", batch_size=8))
    learner = Learner(job.net, job.train, job.accelerator)
    start = torch.cat([p.detach().flatten() for p in make_job(tmp_path / "start").net.parameters()])
    moves = [
        torch.cat([p.detach().flatten() for p in trained.raw.parameters()]) - start
        for trained in (found, expected)
    ]
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.97
    learner.update(0, batch_of(job), plain(job.task))
    large = [s for w, s in learner.optimizer.state.items() if w.numel() >= 4096]
    assert large
    assert all(state["state1"].dtype == torch.uint8 for state in large)


# ---- without waiting for the device --------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Counts the numbers that are read from tensors, for which a GPU would be waited for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def unseen(monkeypatch):
    """Return a function that has learners from then on compute as on a GPU."""
    return lambda: monkeypatch.setattr(learner_module, "waits", lambda device, settings: False)


AGC = {"method": "iet_agc", "shards": 1, "rounds": 1, "agc_threshold": 0.9}


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (baseline, {}),
        (baseline, {"clip": 0.1, "accumulation": 2}),
        (baseline, {"precision": "fp16"}),
        (iet_agc, {"arm": AGC, "images": 40}),
    ],
    ids=["plain", "clipped", "fp16", "agc"],
)
def test_it_learns_the_same_without_waiting(module, settings, make_job, tmp_path, unseen, curves):
    jobs = [make_job(tmp_path / name, updates=12, **settings) for name in ("waits", "goes on")]
    expected = module.train(jobs[0])
    unseen()
    found = module.train(jobs[1])
    for one, other in ((found.raw, expected.raw), (found.average, expected.average)):
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    told, wanted = (curves(job.store.curves) for job in jobs)
    assert [point["name"] for point in told] == [point["name"] for point in wanted]
    values = ([point["value"] for point in points] for points in (told, wanted))
    np.testing.assert_allclose(*values, rtol=1e-5)


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_update_that_is_not_to_be_made_changes_nothing(
    precision, waits, make_job, tmp_path, unseen
):
    if not waits:
        unseen()
    job = make_job(tmp_path, batch_size=8, precision=precision, clip=0.5, ema=0.5)
    learner, batch = Learner(job.net, job.train, job.accelerator), batch_of(job)
    moved = []
    for s, skip in enumerate([False, True, False, True, True]):
        before = {name: value.clone() for name, value in learner.tensors().items()}
        learner.gradient(batch, plain(job.task))
        numbers = learner.step(s, torch.tensor(skip))
        after = learner.tensors()
        moved.append(
            [
                name
                for name in after.keys() & before.keys() - {"scaler"}
                if not torch.equal(after[name], before[name])
            ]
        )
        assert (float(numbers["grad_norm"]) == 0) == skip
    assert [bool(names) for names in moved] == [True, False, True, False, False]


@pytest.mark.parametrize("arm", [{}, AGC], ids=["plain", "agc"])
def test_an_update_reads_nothing_from_the_device(arm, make_job, tmp_path, unseen):
    unseen()
    job = make_job(tmp_path, "text", arm=arm, accumulation=2)
    if arm:
        update = iet_agc.Ensemble(job).update
    else:
        learner = Learner(job.net, job.train, job.accelerator)
        batch = batch_of(job)

        def update(s):
            return learner.update(s, batch, plain(job.task))

    update(0)
    with Reads() as reads:
        update(1)
    assert reads.count == 0


@pytest.mark.parametrize("name", [name for name in UNLEARNERS if name != "esd, sampled"])
def test_an_update_that_combines_gradients_reads_nothing_from_the_device(
    name, unlearner, tmp_path, unseen, update_of
):
    arm = UNLEARNERS[name]
    train = find(arm["method"]).train
    expected = train(unlearner(tmp_path / "waits", arm, updates=6))
    unseen()
    update = update_of(train, unlearner(tmp_path / "goes on", arm, updates=6))
    update(0)
    with Reads() as reads:
        update(1)
    assert reads.count == 0
    found = train(unlearner(tmp_path / "once more", arm, updates=6))
    for mine, theirs in zip(found.raw.parameters(), expected.raw.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", [[0, 5, 7], []])
def test_a_private_update_reads_nothing_from_the_device(
    rows, make_job, tmp_path, unseen, update_of, monkeypatch
):
    """Nor does one whose batch is empty."""
    unseen()
    arm = {"method": "dp_sgd", "noise_multiplier": 1.0}
    job = make_job(tmp_path, arm=arm, accumulation=2)
    monkeypatch.setattr(dp_sgd, "poisson", lambda *_: np.array(rows, np.int64))
    update = update_of(dp_sgd.train, job)
    update(0)
    with Reads() as reads:
        numbers = update(1)
    assert reads.count == 0
    assert numbers["batch"] == len(rows)


@pytest.mark.parametrize("at", [3, 4])
def test_a_loss_that_is_not_finite_is_told_at_the_next_reading(
    at, make_job, tmp_path, unseen, monkeypatch
):
    """By its own number; no state is saved after it, and the weights are those before it."""
    unseen()
    job = make_job(tmp_path, updates=9, log_every=5, checkpoint_every=3)
    losses = type(job.task).losses
    seen, weights = [], []

    def broken(self, net, batch):
        seen.append(len(seen) + 1)
        weights.append(net.conv_in.weight.detach().clone())
        return losses(self, net, batch) + (torch.nan if seen[-1] == at else 0)  # finite gradients

    monkeypatch.setattr(type(job.task), "losses", broken)
    with pytest.raises(DivergedError, match=f"at update {at} the loss is nan") as error:
        baseline.train(job)
    if len(weights) > at:
        assert torch.equal(weights[at], weights[at - 1])
    saved = job.store.saved()
    assert [folder.name for folder in saved] == ([] if at == 3 else ["update-00000003"])
    assert ("no state" in str(error.value)) == (at == 3)


def test_an_overflow_at_any_factor_is_told_too(make_job, tmp_path, unseen):
    unseen()
    job = make_job(tmp_path, precision="fp16")
    learner, batch = Learner(Steep(), job.train, job.accelerator), batch_of(job)

    def infinite(net, part):
        return (net.weight * 0).sqrt().expand(len(part)), torch.ones(len(part))

    overflows = [float(learner.update(s, batch, infinite)["overflow"]) for s in range(18)]
    assert overflows[:16] == [1.0] * 16
    assert np.isnan(overflows[17])
    assert learner.net.weight.item() == 1


@pytest.mark.parametrize("settings", [{}, {"precision": "fp16"}], ids=str)
def test_a_run_that_does_not_wait_resumes_with_the_same_bits(
    settings, make_job, tmp_path, unseen, stop_at, curves
):
    """From a state that was written while it went on, too."""
    unseen()
    job = make_job(tmp_path / "whole", updates=9, **settings)
    whole = baseline.train(job)
    for s in (1, 4, 8):
        stop_at(s)
        with pytest.raises(SystemExit):
            baseline.train(make_job(tmp_path / str(s), updates=9, **settings))
        again = make_job(tmp_path / str(s), updates=9, **settings)
        if s == 4:  # the state of the signal is lost, that of update 3 is there
            shutil.rmtree(again.store.saved()[0])
        resumed = baseline.train(again)
        assert resumed.progress.resumed_at == [3 if s == 4 else s + 1]
        for one, other in ((whole.raw, resumed.raw), (whole.average, resumed.average)):
            for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
                assert torch.equal(mine, theirs)
        assert curves(again.store.curves) == curves(job.store.curves)
