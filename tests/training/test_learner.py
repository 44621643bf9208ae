"""One optimiser step: warm-up, clipping, the moving average, accumulation, weights."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from afterimage.config import Train
from afterimage.training.learner import Learner, NonFiniteError, learning_rate, plain
from afterimage.training.order import Order


def settings(**train) -> Train:
    return Train.model_validate({"updates": 1, "batch_size": 8, "clip": None} | train)


def test_learning_rate_rises_linearly_from_zero():
    warm = settings(warmup=4, learning_rate=0.2)
    assert [learning_rate(warm, s) for s in range(6)] == pytest.approx(
        [0, 0.05, 0.1, 0.15, 0.2, 0.2]
    )
    assert learning_rate(settings(learning_rate=0.2), 0) == 0.2


def test_the_learning_rate_falls_as_a_half_cosine():
    falling = settings(learning_rate=0.2, warmup=0.2, decay="cosine")
    rates = [learning_rate(falling, s, 10) for s in range(11)]
    assert rates[:3] == pytest.approx([0, 0.1, 0.2])
    assert rates[6] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0, abs=1e-12)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    halved = [learning_rate(falling, s, 5) for s in range(6)]
    assert halved == pytest.approx(rates[::2])


def batch_of(job):
    order = Order(job.seed, job.path, len(job.task), job.train.batch_size)
    return job.task.batch(order.rows(0), order.generator(0))


def test_first_update_of_a_warm_up_changes_nothing(tmp_path, make_job):
    job = make_job(tmp_path, warmup=5)
    learner = Learner(job.net, job.train, job.accelerator)
    before = [p.clone() for p in job.net.parameters()]
    learner.update(0, batch_of(job), plain(job.task))
    assert all(torch.equal(a, b) for a, b in zip(before, job.net.parameters(), strict=True))


class One(nn.Module):
    """A single weight, to follow by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_average_follows_its_recursion_from_the_initial_weights(decay, make_job, tmp_path):
    learner = Learner(One(), settings(ema=decay, learning_rate=0.1), Accelerator())
    batch = batch_of(make_job(tmp_path, batch_size=8))
    expected, average = [], 1.0
    for s in range(5):
        learner.update(
            s, batch, lambda net, part: (net.weight.expand(len(part)) ** 2, torch.ones(len(part)))
        )
        average = decay * average + (1 - decay) * learner.net.weight.item()
        expected.append(average)
        assert learner.average.module.weight.item() == pytest.approx(average, rel=1e-6)
    assert expected[-1] < 1
    if decay == 0:
        assert torch.equal(learner.average.module.weight, learner.net.weight)


def gradients(job, parts: int, weights=None):
    """Return loss, norm and gradients of one update worked off in ``parts``."""
    chosen = job.train.model_copy(update={"accumulation": parts})
    learner = Learner(job.net, chosen, job.accelerator)

    def objective(net, batch):
        losses = job.task.losses(net, batch)
        return losses, torch.ones_like(losses) if weights is None else weights[batch.rows]

    logs = learner.update(0, batch_of(job), objective)
    return logs, [p.grad.clone() for p in learner.net.parameters()]


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_is_the_full_batch(parts, tmp_path, make_job):
    whole, expected = gradients(make_job(tmp_path, batch_size=8, clip=None), 1)
    cut, found = gradients(make_job(tmp_path, batch_size=8, clip=None), parts)
    assert cut == pytest.approx(whole, rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 4])
def test_samples_of_weight_zero_are_as_if_they_were_not_there(parts, tmp_path, make_job):
    job = make_job(tmp_path, batch_size=8, clip=None)
    rows = batch_of(job).rows
    kept = rows[[0, 3, 6]]
    weights = torch.isin(torch.arange(13), kept).float()
    logs, found = gradients(job, parts, weights)

    fresh = make_job(tmp_path, batch_size=8, clip=None)
    full = batch_of(fresh)
    losses = fresh.task.losses(fresh.net, full)[torch.isin(full.rows, kept)]
    losses.mean().backward()
    assert len(losses) == 3
    assert logs["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    for a, p in zip(found, fresh.net.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-6)


def test_an_update_without_any_weight_has_loss_and_gradient_zero(tmp_path, make_job):
    logs, found = gradients(make_job(tmp_path, batch_size=8), 2, torch.zeros(13))
    assert logs["loss"] == 0
    assert logs["grad_norm"] == 0
    assert all(not grad.any() for grad in found)


def test_gradient_is_clipped_and_its_norm_before_is_reported(tmp_path, make_job):
    free, expected = gradients(make_job(tmp_path, batch_size=8, clip=None), 1)
    limit = free["grad_norm"] / 3
    held, found = gradients(make_job(tmp_path, batch_size=8, clip=limit), 1)
    assert held["grad_norm"] == pytest.approx(free["grad_norm"], rel=1e-6)
    assert math.sqrt(sum(float(g.square().sum()) for g in found)) == pytest.approx(limit, rel=1e-4)
    torch.testing.assert_close(found[0], expected[0] / 3, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_leaves_the_weights_alone(value, tmp_path, make_job):
    learner = Learner(One(), settings(), Accelerator())
    batch = batch_of(make_job(tmp_path, batch_size=8))
    with pytest.raises(NonFiniteError, match="the loss is"):
        learner.update(
            0,
            batch,
            lambda net, part: (net.weight.expand(len(part)) * value, torch.ones(len(part))),
        )
    assert learner.net.weight.item() == 1.0


def test_a_gradient_that_is_no_number_leaves_the_weights_alone(tmp_path, make_job):
    learner = Learner(One(), settings(), Accelerator())
    batch = batch_of(make_job(tmp_path, batch_size=8))

    def root_at_zero(net, part):
        return (
            (net.weight - 1).abs().sqrt().expand(len(part)),
            torch.ones(len(part)),
        )

    with pytest.raises(NonFiniteError, match="gradient norm is nan"):
        learner.update(0, batch, root_at_zero)
    assert learner.net.weight.item() == 1.0


def test_state_comes_back_whole(tmp_path, make_job):
    job, other = make_job(tmp_path, batch_size=8), make_job(tmp_path, batch_size=8)
    learner = Learner(job.net, job.train, job.accelerator)
    for s in range(3):
        learner.update(s, batch_of(job), plain(job.task))
    torch.nn.init.zeros_(other.net.conv_in.weight)
    twin = Learner(other.net, other.train, other.accelerator)
    twin.load({name: tensor.clone() for name, tensor in learner.tensors().items()})
    assert twin.tensors().keys() == learner.tensors().keys()
    assert all(
        torch.equal(twin.tensors()[name], tensor) for name, tensor in learner.tensors().items()
    )
    assert np.isclose(
        *(one.update(3, batch_of(job), plain(job.task))["loss"] for one in (learner, twin)),
        rtol=0,
        atol=0,
    )
