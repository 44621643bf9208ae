"""How an update is computed: precision, layout, checkpointing of activations, compiled or not."""

import importlib.util

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMPipeline
from torch import nn

from afterimage.diffusion.model import save_pipeline
from afterimage.methods import baseline
from afterimage.training.learner import Learner, NonFiniteError, plain
from afterimage.training.order import Order


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


def test_a_compiled_network_learns_the_same(make_job, tmp_path, monkeypatch):
    compiled = []
    original = nn.Module.compile

    def compile_(self, *args, **named):
        compiled.append(type(self).__name__)
        return original(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_)
    expected = baseline.train(make_job(tmp_path / "plain"))
    found = baseline.train(make_job(tmp_path / "compiled", compile=True))
    assert compiled == ["UNet2DModel"]
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
