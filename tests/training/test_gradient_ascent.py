"""Gradient ascent: the objective, its cost, and resuming bit for bit."""

import pytest
import torch

from afterimage.diffusion.model import load_weights
from afterimage.methods import gradient_ascent
from afterimage.methods.unlearning import Sides
from afterimage.training.loop import DivergedError


def arm(remain: float) -> dict:
    return {"method": "gradient_ascent", "remain": remain}


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gradient_is_that_of_the_objective_and_both_losses_are_recorded(
    beta, unlearner, series, tmp_path
):
    job = unlearner(tmp_path / "state", arm(beta), updates=1, clip=None, log_every=1)
    net, sides = unlearner(tmp_path / "other", arm(beta)).net, Sides(job)
    load_weights(net, job.base)
    remain, forget = (
        job.task.losses(net, sides.batch(side, 0)).mean() for side in ("remain", "forget")
    )
    (beta * remain - (1 - beta) * forget).backward()
    gradient_ascent.train(job)
    for a, b in zip(net.parameters(), job.net.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    found = series(job.store.curves)
    assert found["loss"] == pytest.approx([remain.item()], rel=1e-5)
    assert found["forget_loss"] == pytest.approx([forget.item()], rel=1e-5)


@pytest.mark.parametrize(("beta", "backward"), [(0.0, 7), (0.5, 14), (1.0, 7)])
def test_a_side_without_weight_costs_no_backward_pass(
    beta, backward, unlearner, tmp_path, monkeypatch
):
    job = unlearner(tmp_path / "state", arm(beta))
    calls = []
    original = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: (calls.append(1), original(loss)))
    result = gradient_ascent.train(job)
    assert len(calls) == result.spent.backward_passes == backward
    assert result.facts["forward_only_passes"] == 14 - backward
    assert (result.spent.updates, result.spent.updates_per_model) == (7, 7)
    assert result.spent.images_seen == result.spent.kept_samples == 4 * backward


def test_it_stops_with_the_last_good_state_when_it_diverges(unlearner, tmp_path, monkeypatch):
    job = unlearner(tmp_path / "state", arm(0.0))
    original = job.task.losses
    monkeypatch.setattr(
        job.task,
        "losses",
        lambda net, batch: (
            original(net, batch) * (1.0 if job.store.load() is None else float("inf"))
        ),
    )
    with pytest.raises(
        DivergedError,
        match=r"at update 4 the loss is inf; the last good state is .*update-00000003",
    ):
        gradient_ascent.train(job)


def test_stopped_after_any_update_it_ends_with_the_same_bits(
    unlearner, tmp_path, same_bits_after_stops
):
    def job(folder: str):
        return unlearner(tmp_path / folder, arm(0.4), dropout=0.2, updates=5)

    same_bits_after_stops(gradient_ascent.train, job, range(4))


def test_first_losses_are_those_on_record(unlearner, series, tmp_path, golden):
    job = unlearner(
        tmp_path / "state", arm(0.5), updates=20, batch_size=8, log_every=1, learning_rate=1e-4
    )
    gradient_ascent.train(job)
    golden(
        "gradient_ascent",
        {name: series(job.store.curves)[name] for name in ("loss", "forget_loss")},
    )
