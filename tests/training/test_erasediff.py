"""EraseDiff: the direction in closed form, the targets, the inner steps, and the training that they
make together."""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from afterimage import config
from afterimage.config import ConfigError, EraseDiff
from afterimage.diffusion.model import load_weights
from afterimage.methods import erasediff
from afterimage.methods.erasediff import Inner, Targets, antithetic, direction
from afterimage.methods.unlearning import Sides, gradients, loss_of, seed_dropout
from afterimage.training.learner import Learner, plain
from afterimage.training.loop import DivergedError

GOLDEN = Path(__file__).parent.parent / "golden" / "erasediff.json"


def settings(barrier: str, eta: float = 0.1, **more) -> EraseDiff:
    return EraseDiff(
        method="erasediff", base="base", forget="zeros", barrier=barrier, eta=eta, **more
    )


def solve(r, q, barrier: str, eta: float = 0.1, gap: float = 0.0):
    """Return lambda, delta and the barrier for two vectors."""
    r, q = np.array(r, float), np.array(q, float)
    products = (torch.tensor(value, dtype=torch.float64) for value in (r @ r, q @ r, q @ q))
    found = direction(*products, settings(barrier, eta), gap)
    weight = found.weight.item()
    return weight, r + weight * q, None if found.barrier is None else found.barrier.item()


# ---- the direction -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("r", "q", "paper", "delta", "product", "released"),
    [
        ((1, 0), (0, 1), 0.1, (1, 0.1), 0.1, 0.1),
        ((1, 0), (-1, 0), 1.1, (-0.1, 0), 0.1, 1.1),
        ((1, 0), (1, 0), 0, (1, 0), 1.0, 0),
        ((1, 1), (-2, 0), 0.6, (-0.2, 1), 0.4, 0.1 + 1 / 2**0.5),
    ],
)
def test_known_answers(r, q, paper, delta, product, released):
    """The theorem's rule and the released one, which differ in the last row."""
    weight, found, _ = solve(r, q, "gradnorm")
    assert weight == pytest.approx(paper)
    assert found == pytest.approx(delta)
    assert np.dot(q, found) == pytest.approx(product)
    weight, found, barrier = solve(r, q, "cosine")
    assert weight == pytest.approx(released)
    assert found == pytest.approx(np.add(r, np.multiply(released, q)))
    assert barrier is None


def test_released_rule_overshoots_where_the_paper_meets_its_barrier():
    assert solve((1, 1), (-2, 0), "cosine")[1] == pytest.approx((-0.61421, 1), abs=1e-5)
    assert np.dot((-2, 0), solve((1, 1), (-2, 0), "cosine")[1]) == pytest.approx(1.22843, abs=1e-5)


@pytest.mark.parametrize("barrier", ["gradnorm", "gap", "cosine", "fixed"])
def test_where_there_is_nothing_to_forget_the_rest_decides(barrier):
    weight, delta, _ = solve((1, -2), (0, 0), barrier, gap=3.0)
    assert weight == (0.1 if barrier == "fixed" else 0)
    assert delta == pytest.approx((1, -2))


@pytest.mark.parametrize(
    ("barrier", "weight"),
    [("gradnorm", 0.1), ("gap", 0.1 * 3 / 8), ("cosine", 0.1), ("fixed", 0.1)],
)
def test_where_the_rest_is_at_its_optimum_the_barrier_decides(barrier, weight):
    """With r = 0 a fixed weight of 1 is pure forgetting (invariant 6)."""
    found, delta, _ = solve((0, 0), (2, -2), barrier, gap=3.0)
    assert found == pytest.approx(weight)
    assert delta == pytest.approx((2 * weight, -2 * weight))
    products = torch.tensor([0.0, 0.0, 8.0], dtype=torch.float64)
    pure = direction(*products, settings("fixed", weight=1.0))
    assert pure.weight.item() * np.array((2, -2)) == pytest.approx((2, -2))


vectors = st.integers(1, 6).flatmap(
    lambda d: st.tuples(*[arrays(float, d, elements=st.floats(-3, 3, width=16))] * 2)
)


@given(vectors, st.sampled_from(["gradnorm", "gap"]), st.floats(0, 2), st.floats(-1, 2))
def test_direction_solves_the_quadratic_program(pair, barrier, eta, gap):
    """Invariant 1: the conditions of Karush, Kuhn and Tucker, and the answer of a general
    solver."""
    r, q = pair
    assume(q @ q > 1e-2)
    weight, delta, a = solve(r, q, barrier, eta, gap)
    assert a == pytest.approx(eta * (q @ q if barrier == "gradnorm" else max(gap, 0.0)))
    tolerance = 1e-9 * (1 + abs(q @ r) + a)
    assert weight >= 0
    assert q @ delta >= a - tolerance
    assert abs(weight * (q @ delta - a)) <= tolerance * (1 + weight)
    if q @ r >= a:
        assert weight <= tolerance
    solved = minimize(
        lambda d: 0.5 * (d - r) @ (d - r),
        r,
        jac=lambda d: d - r,
        constraints={"type": "ineq", "fun": lambda d: q @ d - a, "jac": lambda d: q},
        method="SLSQP",
        options={"ftol": 1e-12},
    )
    assert solved.success
    np.testing.assert_allclose(delta, solved.x, atol=1e-5)


@given(vectors, st.floats(0.01, 100), st.floats(0, 2))
def test_projection_does_not_see_the_scale_of_q_and_the_push_follows_it(pair, scale, eta):
    """Invariant 2, where lambda is active for both: delta = (r - <q, r> q / |q|^2) + eta q."""
    r, q = pair
    assume(q @ q > 1e-2)
    if q @ r > 0:
        r = -r
    for s in (1.0, scale):
        push = solve(r, s * q, "gradnorm", eta)[1] - eta * s * q
        np.testing.assert_allclose(push, r - (q @ r) / (q @ q) * q, atol=1e-8 * (1 + s))


@given(vectors, st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0, 2))
def test_released_weight_sees_angles_only(pair, s, t, eta):
    """Invariant 2: lambda of the cosine rule is the same for s r and t q."""
    r, q = pair
    assume(q @ q > 1e-2)
    assert solve(s * r, t * q, "cosine", eta)[0] == pytest.approx(
        solve(r, q, "cosine", eta)[0], abs=1e-9
    )


def descend(eta: float, steps: int) -> tuple[np.ndarray, list[float]]:
    theta, losses = np.array([1.2, 0.7]), []
    for _ in range(steps):
        losses.append(theta @ theta)
        theta = theta - 0.01 * solve(2 * (theta - (1, 0)), 2 * theta, "gradnorm", eta)[1]
    return theta, losses


def test_quadratic_toy_runs_to_the_optimum_of_forgetting():
    """Known answer 11: L_r = |theta - (1, 0)|^2, L_f = |theta|^2, from (1.2, 0.7) with steps of
    0.01."""
    theta, losses = descend(0.1, 4000)
    assert theta == pytest.approx((0.0004, 0), abs=5e-5)
    assert losses[501] == pytest.approx(0.199, abs=1e-3)
    assert (np.diff(losses) < 0).all()


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_quadratic_toy_hovers_about_that_optimum_with_a_strong_barrier(eta):
    """Known answer 11: within about a step of it, and no longer monotone."""
    theta, losses = descend(eta, 4000)
    assert theta == pytest.approx((0, 0), abs=0.021)
    assert losses[-1] < 5e-4
    assert max(np.diff(losses)) > 0


# ---- the targets ---------------------------------------------------------------------------------


def targets_of(unlearner, folder, target: str, rau_net: dict | None = None, **options):
    """Return a job, its targets from the base's network, and its sides."""
    job = unlearner(
        folder, {"method": "erasediff", "target": target, "rau_net": rau_net}, **options
    )
    load_weights(job.net, job.base)
    return job, Targets(job, job.net), Sides(job)


def test_relabelled_target_is_the_prediction_for_another_label(unlearner, tmp_path):
    """Invariant 7: without a gradient, without any dropout, for a label drawn per sample that is
    never the right one."""
    job, targets, sides = targets_of(
        unlearner,
        tmp_path / "state",
        "relabel",
        dropout=0.5,
        label_dropout=0.5,
        batch_size=64,
        forgotten=np.arange(40) < 20,
    )
    batch = targets.of(targets.drawn(sides, 3))
    assert not batch.target.requires_grad
    assert torch.equal(batch.condition["class_labels"], job.task.labels[batch.rows])
    plain_batch = sides.batch("forget", 3)
    for name in ("rows", "noisy", "timesteps"):
        assert torch.equal(getattr(batch, name), getattr(plain_batch, name))
    job.net.eval()
    with torch.no_grad():
        each = torch.stack(
            [
                job.task.predict(
                    job.net, replace(batch, condition={"class_labels": torch.full((64,), c)})
                )
                for c in range(10)
            ]
        )
    distance = (each - batch.target).abs().amax(dim=(2, 3, 4))
    used = distance.argmin(0)
    assert distance.amin(0).max() < 1e-5
    assert (used != batch.condition["class_labels"]).all()
    assert len(set(used.tolist())) == 10
    assert targets.of(targets.drawn(sides, 3)).target.equal(batch.target)


def test_with_the_right_label_there_is_nothing_to_forget(unlearner, tmp_path, monkeypatch):
    """Invariant 7: c_m = c_f, no dropout: the loss is zero.

    Up to rounding: the target comes from the network without its layers of dropout, which copy what
    they are given even at a rate of 0, and products of matrices with other strides may round
    otherwise.
    """
    job, targets, sides = targets_of(unlearner, tmp_path / "state", "relabel")
    wrong = Learner(job.net, job.train, job.accelerator).gradient(
        targets.of(targets.drawn(sides, 0)), plain(job.task)
    )
    assert wrong > 1e-6
    monkeypatch.setattr(
        erasediff, "wrong_labels", lambda labels, classes, generator, one_draw: labels
    )
    learner = Learner(job.net, job.train, job.accelerator)
    assert learner.gradient(targets.of(targets.drawn(sides, 0)), plain(job.task)) < 1e-10
    assert max(gradient.abs().max() for gradient in gradients(job.net)) < 1e-5


@pytest.mark.parametrize("own", range(10))
def test_released_relabelling_draws_one_wrong_label_for_a_class(own, unlearner, digits, tmp_path):
    """Invariant 7, for every class: the released code's labels 1 to 9 would be wrong for all
    classes but the first."""
    _, targets, sides = targets_of(
        unlearner,
        tmp_path / "state",
        "released_relabel",
        forgotten=digits[1][:40] == own,
        label_dropout=0.0,
    )
    conditions = [
        targets.condition(sides.batch("forget", i), torch.Generator().manual_seed(i))
        for i in range(100)
    ]
    drawn = [condition["class_labels"].tolist() for condition in conditions]
    assert all(len(set(labels)) == 1 for labels in drawn)
    assert {labels[0] for labels in drawn} == set(range(10)) - {own}


def test_released_relabelling_drops_labels_and_units_on_both_sides(unlearner, tmp_path):
    """Each of prediction and target loses its label at the asked rate, independently; the network's
    dropout is on."""
    _, targets, sides = targets_of(
        unlearner,
        tmp_path / "state",
        "released_relabel",
        dropout=0.5,
        label_dropout=0.4,
        batch_size=500,
    )
    batch = targets.of(targets.drawn(sides, 0))
    wrong = targets.condition(batch, torch.Generator().manual_seed(0))
    here, there = (given["class_labels"] == 10 for given in (batch.condition, wrong))
    for dropped, share in ((here, 0.4), (there, 0.4), (here & there, 0.16)):
        assert dropped.float().mean() == pytest.approx(
            share, abs=4 * (share * (1 - share) / 500) ** 0.5
        )
    again = targets.predict(replace(batch, condition=wrong))
    assert not torch.equal(targets.predict(replace(batch, condition=wrong)), again)
    assert torch.equal(targets.of(targets.drawn(sides, 0)).target, batch.target)


def test_relabelling_needs_two_labels(unlearner, tmp_path):
    job = unlearner(tmp_path / "state", {"method": "erasediff"}, condition="none")
    with pytest.raises(
        ConfigError, match=r"target = 'relabel' needs at least 2 labels; the network knows 0"
    ):
        Targets(job, job.net)


@pytest.mark.parametrize("condition", ["none", "label"])
@pytest.mark.parametrize("target", ["uniform", "released_uniform"])
def test_uniform_target_and_what_corrupts_the_images(target, condition, unlearner, tmp_path):
    """Invariant 8: mean 1/2 and variance 1/12; the images are corrupted by Gaussian noise, or by
    the same tensor as released."""
    job, targets, sides = targets_of(
        unlearner, tmp_path / "state", target, condition=condition, batch_size=200
    )
    batch = targets.of(targets.drawn(sides, 1))
    count = batch.target.numel()
    assert batch.target.min() >= 0
    assert batch.target.max() < 1
    assert batch.target.mean().item() == pytest.approx(1 / 2, abs=4 * (1 / 12 / count) ** 0.5)
    assert batch.target.var().item() == pytest.approx(1 / 12, abs=4 * (1 / 180 / count) ** 0.5)

    clean = job.task.images[batch.rows].float() / 127.5 - 1
    noise = sides.batch("forget", 1).target if target == "uniform" else batch.target
    expected = job.scheduler.add_noise(clean, noise, batch.timesteps)
    torch.testing.assert_close(batch.noisy, expected, rtol=0, atol=1e-5)
    if condition == "label":
        assert torch.equal(batch.condition["class_labels"], job.task.labels[batch.rows]) == (
            target == "uniform"
        )


@pytest.mark.parametrize("target", ["uniform", "released_uniform"])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_uniform_noise_is_refused_for_networks_that_do_not_predict_noise(
    target, prediction, params
):
    params["diffusion"]["prediction"] = prediction
    params.update(forget={"zeros": {"label": 0}}, loyal_selection=None)
    params["arms"] = {
        "first": {"method": "baseline"},
        "erased": {"method": "erasediff", "base": "first", "forget": "zeros", "target": target},
    }
    with pytest.raises(
        ConfigError,
        match=f"arms.erased: target = '{target}' .* diffusion.prediction = '{prediction}'",
    ):
        config.parse(params)


@pytest.mark.parametrize("network", ["current", "initial"])
def test_relabelled_targets_come_from_the_network_that_the_arm_names(
    network, unlearner, tmp_path, monkeypatch
):
    job = unlearner(
        tmp_path / "state", {"method": "erasediff", "target_network": network}, updates=3
    )
    seen, original = [], job.task.predict

    def predict(net, batch):
        if not net.training:
            seen.append(net.conv_in.weight.detach().clone())
        return original(net, batch)

    monkeypatch.setattr(job.task, "predict", predict)
    erasediff.train(job)
    assert len(seen) == 3
    base = unlearner(tmp_path / "other", {"method": "erasediff"}).net
    load_weights(base, job.base)
    assert [torch.equal(weight, base.conv_in.weight) for weight in seen] == [True] + 2 * [
        network == "initial"
    ]


# ---- the inner steps -----------------------------------------------------------------------------


def states(result) -> list[torch.Tensor]:
    return [*result.raw.state_dict().values(), *result.average.state_dict().values()]


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(states(one), states(other), strict=True))


def test_inner_steps_change_nothing_but_the_gap_under_the_barrier_of_the_theorem(
    unlearner, tmp_path, curves
):
    """Invariant 3: the same bits for every K, run or skipped; by default they are skipped."""
    results, found = [], []
    for k, log_gap in ((0, True), (1, True), (5, True), (5, False)):
        arm = {
            "method": "erasediff",
            "inner_updates": k,
            "inner_learning_rate": 1e-2,
            "log_gap": log_gap,
        }
        job = unlearner(tmp_path / f"{k}-{log_gap}", arm, dropout=0.2, updates=4, log_every=1)
        results.append(erasediff.train(job))
        assert results[-1].facts["inner_updates"] == 4 * k * log_gap
        rows = curves(job.store.curves)
        assert any(row["name"] == "gap" for row in rows) == log_gap
        found.append([row for row in rows if row["name"] != "gap"])
    assert all(same(results[0], other) for other in results[1:])
    assert all(rows == found[0] for rows in found[1:])


def test_inner_steps_matter_where_the_barrier_is_the_gap(unlearner, tmp_path):
    """Invariant 3, the other half."""
    results = []
    for k in (0, 1, 5):
        arm = {
            "method": "erasediff",
            "barrier": "gap",
            "eta": 1.0,
            "inner_updates": k,
            "inner_learning_rate": 2e-3,
        }
        results.append(erasediff.train(unlearner(tmp_path / str(k), arm, updates=4)))
    assert not any(
        same(*pair)
        for pair in ((results[0], results[1]), (results[1], results[2]), (results[0], results[2]))
    )


class OneBatch:
    """Targets that always give the same batch."""

    def __init__(self, batch) -> None:
        self.one = batch

    def drawn(self, sides, i, retime=None):
        return i

    def of(self, draw):
        return self.one


def test_gap_is_what_the_inner_steps_gain(unlearner, tmp_path):
    """Invariant 4: g >= 0 when the steps descend the loss of the very batch that they are judged
    on."""
    gained, moved = [], []
    for k in (1, 4, 8):
        job, targets, sides = targets_of(unlearner, tmp_path / str(k), "relabel", batch_size=8)
        job = replace(
            job, arm=job.arm.model_copy(update={"inner_updates": k, "inner_learning_rate": 1e-4})
        )
        learner = Learner(job.net, job.train, job.accelerator)
        batch = targets.of(targets.drawn(sides, 0))
        minimum = Inner(job, OneBatch(batch)).descend(learner, 0)
        gained.append(loss_of(learner, job.task, batch) - loss_of(minimum, job.task, batch))
        pairs = zip(minimum.net.parameters(), learner.net.parameters(), strict=True)
        moved.append(max((a - b).abs().max().item() for a, b in pairs))
    assert 0 < gained[0] < gained[1] < gained[2]
    assert moved[0] == pytest.approx(
        1e-4, rel=1e-2
    )  # Adam's first step has the size of its learning rate


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gap_without_inner_steps_is_zero(accumulation, unlearner, series, tmp_path):
    """Invariant 4: exactly, for the value is taken on the same batch, noise and dropout as the
    loss."""
    arm = {"method": "erasediff", "barrier": "gap", "inner_updates": 0}
    job = unlearner(
        tmp_path / "state", arm, dropout=0.4, updates=3, log_every=1, accumulation=accumulation
    )
    erasediff.train(job)
    assert series(job.store.curves)["gap"] == [0.0, 0.0, 0.0]


def test_inner_steps_start_anew_and_leave_the_outer_state_alone(unlearner, tmp_path):
    """Invariant 5: weights, gradients, moments and average are bit-identical after; the inner steps
    have streams of their own."""
    job, targets, sides = targets_of(unlearner, tmp_path / "state", "relabel", dropout=0.3)
    job = replace(
        job, arm=job.arm.model_copy(update={"inner_updates": 3, "inner_learning_rate": 1e-2})
    )
    learner = Learner(job.net, job.train, job.accelerator)
    for s in range(2):
        seed_dropout(sides, s, "forget")
        learner.update(s, targets.of(targets.drawn(sides, s)), plain(job.task))
    before = {name: value.clone() for name, value in learner.tensors().items()}
    kept = gradients(learner.net)
    inner = Inner(job, targets)
    assert not torch.equal(inner.sides.batch("forget", 0).noisy, sides.batch("forget", 0).noisy)
    first = [weight.detach().clone() for weight in inner.descend(learner, 7).net.parameters()]
    inner.descend(learner, 8)
    again = list(inner.descend(learner, 7).net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(
        torch.equal(a, b) for a, b in zip(first[:1], learner.net.parameters(), strict=False)
    )
    after = learner.tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(torch.equal(a, b) for a, b in zip(kept, gradients(learner.net), strict=True))


# ---- options of the released code ----------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_antithetic_timesteps_are_mirrored_in_the_second_half(size):
    drawn = torch.randint(0, 1000, (size,), generator=torch.Generator().manual_seed(size))
    paired = antithetic(drawn, 1000)
    first = size // 2 + 1
    assert torch.equal(paired[:first], drawn[:first])
    assert torch.equal(paired[first:], 999 - drawn[: size - first])
    assert len(paired) == size


def seen_batches(unlearner, folder, monkeypatch, **arm) -> list:
    """Return the batches whose gradients a training of two updates takes, in order."""
    job = unlearner(folder, {"method": "erasediff", "target": "uniform"} | arm, updates=2)
    seen, original = [], Learner.gradient
    with monkeypatch.context() as patch:
        patch.setattr(
            Learner,
            "gradient",
            lambda self, batch, objective: (seen.append(batch), original(self, batch, objective))[
                1
            ],
        )
        erasediff.train(job)
    return seen


def test_antithetic_batches_differ_from_others_in_timesteps_alone(unlearner, tmp_path, monkeypatch):
    """On both sides and in the inner steps; images, noise and labels are those of the default."""
    inner = {"log_gap": True}
    plain = seen_batches(unlearner, tmp_path / "plain", monkeypatch, **inner)
    paired = seen_batches(unlearner, tmp_path / "pairs", monkeypatch, antithetic=True, **inner)
    assert len(plain) == len(paired) == 6
    for one, other in zip(plain, paired, strict=True):
        assert torch.equal(other.timesteps, antithetic(one.timesteps, 1000))
        assert torch.equal(other.timesteps[:1] + other.timesteps[3:], torch.tensor([999]))
        for name in ("rows", "target"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_the_forget_set_can_be_noised_at_the_timesteps_of_the_rest(
    unlearner, tmp_path, monkeypatch
):
    own = seen_batches(unlearner, tmp_path / "own", monkeypatch)
    same_t = seen_batches(unlearner, tmp_path / "remain", monkeypatch, forget_timesteps="remain")
    for forget, remain, alone in zip(same_t[::2], same_t[1::2], own[::2], strict=True):
        assert torch.equal(forget.timesteps, remain.timesteps)
        assert not torch.equal(alone.timesteps, remain.timesteps)
        assert torch.equal(forget.target, alone.target)
    assert all(torch.equal(a.noisy, b.noisy) for a, b in zip(own[1::2], same_t[1::2], strict=True))


def test_shared_adam_is_one_optimiser_whose_weights_are_put_back(unlearner, tmp_path):
    """Against a loop with one torch optimiser, as released: inner steps, weights back, outer
    step."""
    arm = {
        "method": "erasediff",
        "target": "uniform",
        "barrier": "fixed",
        "weight": 0.4,
        "inner_updates": 2,
        "inner_learning_rate": 2e-3,
        "inner_adam": "shared",
    }
    result = erasediff.train(unlearner(tmp_path / "state", arm, updates=3, clip=None))
    job = unlearner(tmp_path / "loop", arm, updates=3, clip=None)
    load_weights(job.net, job.base)
    learner, sides, targets = (
        Learner(job.net, job.train, job.accelerator),
        Sides(job),
        Targets(job, job.net),
    )
    net, own = learner.net, Sides(replace(job, path=(*job.path, "inner")))
    adam = torch.optim.AdamW(net.parameters(), weight_decay=0.0, fused=True)

    def gradient(batch):
        learner.gradient(batch, plain(job.task))
        return gradients(net)

    def step(gradient, rate):
        for weight, value in zip(net.parameters(), gradient, strict=True):
            weight.grad = value
        adam.param_groups[0]["lr"] = rate
        adam.step()

    for s in range(3):
        start = copy.deepcopy(net.state_dict())
        for i in (2 * s, 2 * s + 1):
            step(gradient(targets.of(targets.drawn(own, i))), 2e-3)
        net.load_state_dict(start)
        q, r = gradient(targets.of(targets.drawn(sides, s))), gradient(sides.batch("remain", s))
        weighted = torch._foreach_mul(q, torch.tensor(0.4))
        step(torch._foreach_add(r, weighted), job.train.learning_rate)
    pairs = zip(result.raw.parameters(), net.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert result.facts["inner_updates"] == 6
    assert result.spent.backward_passes == 12
    alone = unlearner(tmp_path / "own", arm | {"inner_adam": "own"}, updates=3, clip=None)
    assert not same(result, erasediff.train(alone))


def test_an_adam_is_shared_with_inner_steps_only():
    with pytest.raises(ValueError, match="inner_adam = 'shared' needs inner steps"):
        settings("gradnorm", inner_adam="shared", inner_updates=0)


# ---- the training --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["relabel", "uniform"])
def test_fixed_weight_gives_the_gradient_of_the_weighted_sum(target, unlearner, tmp_path):
    """Invariant 6: r + c q is the gradient of L_r + c L_f."""
    arm = {"method": "erasediff", "target": target, "barrier": "fixed", "weight": 0.7}
    job = unlearner(tmp_path / "state", arm, updates=1, clip=None)
    other, targets, sides = targets_of(unlearner, tmp_path / "other", target)
    loss = other.task.losses(other.net, sides.batch("remain", 0)).mean()
    loss = loss + 0.7 * other.task.losses(other.net, targets.of(targets.drawn(sides, 0))).mean()
    loss.backward()
    erasediff.train(job)
    for a, b in zip(job.net.parameters(), other.net.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_without_the_rest_it_is_pure_forgetting(unlearner, tmp_path, monkeypatch):
    """Invariant 6: L_r off and lambda 1."""
    job = unlearner(
        tmp_path / "state", {"method": "erasediff", "barrier": "fixed", "weight": 1.0}, updates=3
    )
    original, forgotten = job.task.losses, torch.from_numpy(job.forgotten)
    monkeypatch.setattr(
        job.task, "losses", lambda net, batch: original(net, batch) * forgotten[batch.rows]
    )
    found = erasediff.train(job)

    other, targets, sides = targets_of(unlearner, tmp_path / "other", "relabel")
    learner = Learner(other.net, other.train, other.accelerator)
    for s in range(3):
        learner.update(s, targets.of(targets.drawn(sides, s)), plain(other.task))
    assert all(
        torch.equal(a, b)
        for a, b in zip(found.raw.parameters(), learner.net.parameters(), strict=True)
    )


def run_curves(unlearner, series, folder, barrier: str, **arm) -> dict[str, np.ndarray]:
    job = unlearner(
        folder, {"method": "erasediff", "barrier": barrier} | arm, updates=5, log_every=1
    )
    erasediff.train(job)
    return {name: np.array(values) for name, values in series(job.store.curves).items()}


def test_curves_follow_the_rule_of_the_theorem(unlearner, series, tmp_path):
    found = run_curves(unlearner, series, tmp_path / "state", "gradnorm", eta=0.8)
    assert found.keys() >= {
        "loss",
        "forget_loss",
        "cosine",
        "descent_made",
        "grad_norm",
        "learning_rate",
    }
    assert "gap" not in found
    assert (found["descent_asked"] >= found["barrier"] * (1 - 1e-5)).all()
    active = found["lambda"] > 0
    assert active.any()
    assert found["descent_asked"][active] == pytest.approx(found["barrier"][active], rel=1e-4)
    assert (np.abs(found["cosine"]) <= 1).all()


def test_curves_follow_the_rule_of_the_gap(unlearner, series, tmp_path):
    found = run_curves(
        unlearner,
        series,
        tmp_path / "state",
        "gap",
        eta=0.3,
        inner_updates=2,
        inner_learning_rate=1e-3,
    )
    assert found["barrier"] == pytest.approx(0.3 * np.maximum(found["gap"], 0))
    assert (found["gap"] > 0).any()
    assert (found["descent_asked"] >= found["barrier"] - 1e-6).all()


def test_curves_follow_the_released_rules(unlearner, series, tmp_path):
    found = run_curves(unlearner, series, tmp_path / "cosine", "cosine", eta=0.4)
    assert found["lambda"] == pytest.approx(np.maximum(0, 0.4 - found["cosine"]))
    assert "barrier" not in found
    found = run_curves(unlearner, series, tmp_path / "fixed", "fixed", weight=0.25)
    assert found["lambda"].tolist() == [0.25] * 5


def test_recorded_products_are_those_of_the_gradient_and_the_step(unlearner, series, tmp_path):
    """descent_asked is <q, delta>, descent_made <q, theta_old - theta_new>, with q taken at the
    base."""
    job = unlearner(tmp_path / "state", {"method": "erasediff"}, updates=1, clip=None)
    other, targets, sides = targets_of(unlearner, tmp_path / "other", "relabel")
    old = copy.deepcopy(other.net)
    other.task.losses(other.net, targets.of(targets.drawn(sides, 0))).mean().backward()
    erasediff.train(job)
    asked = made = 0.0
    for q, before, after in zip(
        other.net.parameters(), old.parameters(), job.net.parameters(), strict=True
    ):
        asked += (q.grad * after.grad).sum().item()
        made += (q.grad * (before - after)).sum().item()
    found = series(job.store.curves)
    assert found["descent_asked"] == pytest.approx([asked], rel=1e-3)
    assert found["descent_made"] == pytest.approx([made], rel=1e-3)


def test_frozen_blocks_are_neither_moved_nor_counted(unlearner, series, tmp_path):
    """Invariant 12, with the inner steps at work: the barrier holds the norm of the trained
    weights' gradient alone."""
    blocks = {"groups": [1, 2], "variant": "frozen_fixed"}
    arm = {"method": "erasediff", "log_gap": True, "rau_net": blocks}
    job = unlearner(tmp_path / "state", arm, updates=2, log_every=1)
    other, targets, sides = targets_of(unlearner, tmp_path / "other", "relabel", blocks)
    start = copy.deepcopy(other.net.state_dict())
    other.task.losses(other.net, targets.of(targets.drawn(sides, 0))).mean().backward()
    assert len(gradients(other.net)) < len(list(other.net.parameters()))
    square = sum(gradient.square().sum().item() for gradient in gradients(other.net))
    erasediff.train(job)
    assert series(job.store.curves)["barrier"][0] == pytest.approx(0.1 * square, rel=1e-4)
    for name, value in job.net.state_dict().items():
        assert torch.equal(value, start[name]) == name.startswith("transfers."), name


@pytest.mark.parametrize(
    ("arm", "passes"),
    [
        ({}, 2),
        ({"barrier": "cosine", "target": "uniform"}, 2),
        ({"barrier": "fixed", "weight": 0.0}, 2),
        ({"barrier": "gap", "inner_updates": 3}, 5),
    ],
    ids=str,
)
def test_cost_is_two_backward_passes_and_the_inner_steps(
    arm, passes, unlearner, series, tmp_path, monkeypatch
):
    job = unlearner(tmp_path / "state", {"method": "erasediff"} | arm, log_every=1)
    backward, forward = [], []
    original, predict = torch.Tensor.backward, job.task.predict
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: (backward.append(1), original(loss)))
    monkeypatch.setattr(job.task, "predict", lambda *given: (forward.append(1), predict(*given))[1])
    result = erasediff.train(job)
    facts, spent = result.facts, result.spent
    assert len(backward) == spent.backward_passes == 7 * passes
    assert len(forward) == spent.backward_passes + facts["forward_only_passes"]
    assert facts["inner_updates"] == 7 * (passes - 2)
    assert facts["pushed_updates"] == sum(
        weight > 0 for weight in series(job.store.curves)["lambda"]
    )
    assert (spent.updates, spent.updates_per_model, spent.images_seen) == (7, 7, 4 * 7 * passes)
    assert spent.kept_samples == 4 * (7 + facts["pushed_updates"])


def test_a_forgetting_gradient_that_is_no_number_leaves_the_weights_alone(
    unlearner, tmp_path, monkeypatch
):
    """A rule that adapts would take it for lambda = 0."""
    job = unlearner(tmp_path / "state", {"method": "erasediff"})
    original, forgotten = job.task.losses, torch.from_numpy(job.forgotten)

    def losses(net, batch):
        root_at_zero = (
            (net.conv_in.weight - net.conv_in.weight).sum().sqrt()
            if forgotten[batch.rows].all()
            else 0
        )
        return original(net, batch) + root_at_zero

    monkeypatch.setattr(job.task, "losses", losses)
    with pytest.raises(
        DivergedError, match="at update 1 the norm of the forgetting gradient is nan"
    ):
        erasediff.train(job)
    base = unlearner(tmp_path / "other", {"method": "erasediff"}).net
    load_weights(base, job.base)
    assert all(
        torch.equal(a, b) for a, b in zip(base.parameters(), job.net.parameters(), strict=True)
    )


GAP = {
    "method": "erasediff",
    "barrier": "gap",
    "eta": 0.5,
    "inner_updates": 2,
    "inner_learning_rate": 1e-3,
}


@pytest.mark.parametrize(
    "options",
    [{}, {"inner_adam": "shared", "antithetic": True, "forget_timesteps": "remain"}],
    ids=["paper", "released"],
)
def test_stopped_in_the_inner_steps_or_after_them_it_ends_with_the_same_bits(
    options, unlearner, tmp_path, curves, stop_in_step
):
    """Two inner steps and one outer make an update: it is finished, saved, and gone on from."""
    arm = GAP | {"target": "released_relabel", "target_network": "initial"} | options

    def job(folder: str):
        return unlearner(tmp_path / folder, arm, dropout=0.2, updates=5)

    first = job("whole")
    whole = erasediff.train(first)
    for step in (0, 4, 8, 10):
        stop_in_step(step)
        stopped = job(str(step))
        with pytest.raises(SystemExit) as left:
            erasediff.train(stopped)
        assert left.value.code == 75
        assert stopped.store.load().update == step // 3 + 1
        other = job(str(step))
        again = erasediff.train(other)
        assert again.progress.resumed_at == [step // 3 + 1]
        assert same(whole, again)
        assert curves(other.store.curves) == curves(first.store.curves)
        assert again.spent == whole.spent
        assert again.facts == whole.facts


VARIANTS = {
    "paper": {"method": "erasediff"},
    "released": {"method": "erasediff", "target": "released_relabel", "barrier": "cosine"},
    "gap": GAP | {"target": "uniform"},
}


def test_first_losses_are_those_on_record(unlearner, series, tmp_path):
    found = {}
    for variant, arm in VARIANTS.items():
        job = unlearner(
            tmp_path / variant,
            arm,
            updates=20,
            batch_size=8,
            log_every=1,
            learning_rate=1e-4,
            dropout=0.1,
        )
        erasediff.train(job)
        found[variant] = {name: series(job.store.curves)[name] for name in ("loss", "forget_loss")}
    if os.environ.get("AFTERIMAGE_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=2) + "\n")
    for variant, curves in json.loads(GOLDEN.read_text()).items():
        for name, values in curves.items():
            assert found[variant][name] == pytest.approx(values, rel=1e-5), (variant, name)
