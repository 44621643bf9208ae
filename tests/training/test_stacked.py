"""Several networks trained at once are the networks that would be trained one by one."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from afterimage.config import ConfigError
from afterimage.diffusion.noising import Pixels
from afterimage.methods import baseline
from afterimage.training import stacked
from afterimage.training.learner import Learner, NonFiniteError, plain
from afterimage.training.stacked import Stack, StackLearner, in_turn


class Exact(Pixels):
    """Pixels in float64 from the noised images on."""

    def batch(self, *args, **kwargs):
        batch = super().batch(*args, **kwargs)
        return replace(batch, noisy=batch.noisy.double(), target=batch.target.double())

    def losses(self, net, batch):
        predicted = net(batch.noisy, batch.timesteps, return_dict=False, **batch.condition)[0]
        return (predicted - batch.target).square().mean(dim=(1, 2, 3))


@pytest.fixture
def bundle(make_job, digits, tmp_path):
    """Return a function that makes three jobs of different images, order and initial weights, with
    one store or one each."""

    def make(
        name: str,
        together: bool,
        task=Pixels,
        condition: str = "none",
        arm: dict | None = None,
        **train,
    ):
        jobs = []
        for j in range(3):
            job = make_job(
                tmp_path / name / ("" if together else str(j)), condition, arm=arm, **train
            )
            rows = np.arange(4 * j, 4 * j + 11)
            labels = digits[1][rows] if condition == "label" else None
            images = task(
                digits[0][rows], job.scheduler, labels, 10, job.train.label_dropout, flips=True
            )
            jobs.append(
                replace(
                    job, path=("stack", j), net=job.build(job.arm.rau_net, f"init {j}"), task=images
                )
            )
        return jobs

    return make


def weights(net) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in net.parameters()]


VARIANTS = {
    "clipped, warm-up, weight decay": {"clip": 0.05, "warmup": 4, "weight_decay": 0.1},
    "labels, accumulation, no clipping": {
        "condition": "label",
        "label_dropout": 0.3,
        "accumulation": 2,
        "clip": None,
    },
    "transfer blocks": {"arm": {"rau_net": {"groups": [1], "variant": "frozen_fixed"}}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stack_of_three_is_three_single_trainings(variant, bundle, monkeypatch):
    """Ten updates in float64, where the order of summation does not show."""
    options = {"task": Exact, "updates": 10, "checkpoint_every": 10} | VARIANTS[variant]
    monkeypatch.setattr(
        baseline, "Learner", lambda net, *rest, **named: Learner(net.double(), *rest, **named)
    )
    alone = [baseline.train(job) for job in bundle("alone", False, **options)]
    jobs = bundle("together", True, **options)
    start = [weights(job.net.double()) for job in jobs]
    together = stacked.train(jobs)
    assert len(together) == 3
    for one, other, before in zip(alone, together, start, strict=True):
        assert one.spent == other.spent
        for kind in ("raw", "average"):
            nets = getattr(one, kind), getattr(other, kind)
            assert nets[0].state_dict().keys() == nets[1].state_dict().keys()
            for a, b in zip(*map(weights, nets), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
        moved = max((a - b).abs().max() for a, b in zip(before, weights(one.raw), strict=True))
        assert moved > 1e-3


def test_every_network_is_clipped_by_its_own_norm(bundle):
    """One network with a hundred times the gradient does not slow the others down."""
    jobs = bundle("clipped", True, clip=0.01)
    batches = [
        job.task.batch(np.arange(4), torch.Generator().manual_seed(j)) for j, job in enumerate(jobs)
    ]
    batches[1] = replace(batches[1], target=100 * batches[1].target)
    learner = StackLearner([job.net for job in jobs], jobs[0].train, jobs[0].accelerator)
    learner.gradient(in_turn(batches), plain(jobs[0].task))
    squares = sum(weight.grad.flatten(1).square().sum(dim=1) for weight in learner.net.parameters())
    torch.testing.assert_close(squares.sqrt(), torch.full((3,), 0.01), rtol=1e-3, atol=0)


def test_loss_and_norm_are_means_over_the_networks(bundle):
    jobs = bundle("means", True)
    batches = [
        job.task.batch(np.arange(4), torch.Generator().manual_seed(j)) for j, job in enumerate(jobs)
    ]
    learner = StackLearner([job.net for job in jobs], jobs[0].train, jobs[0].accelerator)
    singles = [Learner(copy.deepcopy(job.net), job.train, job.accelerator) for job in jobs]
    found = learner.update(0, in_turn(batches), plain(jobs[0].task))
    alone = [
        one.update(0, batch, plain(jobs[0].task))
        for one, batch in zip(singles, batches, strict=True)
    ]
    expected = {name: np.mean([values[name] for values in alone]) for name in alone[0]}
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_network_that_diverges_stops_all_before_their_weights_move(bundle):
    jobs = bundle("diverged", True)
    batches = [
        job.task.batch(np.arange(4), torch.Generator().manual_seed(j)) for j, job in enumerate(jobs)
    ]
    batches[2] = replace(batches[2], target=batches[2].target * torch.nan)
    learner = StackLearner([job.net for job in jobs], jobs[0].train, jobs[0].accelerator)
    before = weights(learner.net)
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        learner.update(0, in_turn(batches), plain(jobs[0].task))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(learner.net), strict=True))


def test_stopped_and_started_again_a_stack_ends_with_the_same_bits(bundle, stop_at, curves):
    jobs = bundle("whole", True)
    whole = stacked.train(jobs)
    for s in (1, 2, 4):
        stop_at(s)
        with pytest.raises(SystemExit) as left:
            stacked.train(bundle(f"stopped {s}", True))
        assert left.value.code == 75
        again = bundle(f"stopped {s}", True)
        resumed = stacked.train(again)
        assert resumed[0].progress.resumed_at == [s + 1]
        for one, other in zip(whole, resumed, strict=True):
            for kind in ("raw", "average"):
                pairs = zip(weights(getattr(one, kind)), weights(getattr(other, kind)), strict=True)
                assert all(torch.equal(a, b) for a, b in pairs)
        assert curves(again[0].store.curves) == curves(jobs[0].store.curves)


def test_dropout_is_refused(make_job, tmp_path):
    job = make_job(tmp_path, dropout=0.1)
    with pytest.raises(ConfigError, match=r"model\.dropout = 0"):
        Stack([job.net, job.net])
