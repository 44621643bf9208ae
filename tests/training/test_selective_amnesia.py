"""Selective Amnesia: the Fisher information in closed form, the penalty, the surrogate, the replay,
and the whole run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from afterimage import config
from afterimage.config import ConfigError, Diffusion, Sample
from afterimage.diffusion.model import build_scheduler, load_weights
from afterimage.diffusion.sample import generate
from afterimage.methods import selective_amnesia
from afterimage.methods.selective_amnesia import drawn, elastic, fisher, likelihoods, surrogate
from afterimage.methods.unlearning import Sides

ARM = {
    "method": "selective_amnesia",
    "fisher_samples": 4,
    "fisher_timesteps": 6,
    "replay_images": 30,
}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(selective_amnesia, "STEPS", 3)


# ---- Fisher information --------------------------------------------------------------------------


def test_fisher_information_of_a_linear_model_by_hand():
    """Of image i the negative log-likelihood is sum_k (w x_k - y_k)^2, its gradient sum_k 2 (w x_k
    - y_k) x_k."""
    weight = torch.tensor([2.0, -1.0], requires_grad=True)
    images = [[((1.0, 0.0), 1.0), ((0.0, 1.0), 1.0)], [((1.0, 1.0), 0.0), ((1.0, 1.0), 3.0)]]
    losses = (((weight @ torch.tensor(x) - y) ** 2 for x, y in image) for image in images)
    # image 1: 2 (2 - 1) (1, 0) + 2 (-1 - 1) (0, 1) = (2, -4); image 2: (2 (1 - 0) + 2 (1 - 3)) (1,
    # 1) = (-2, -2)
    assert fisher([weight], losses)[0].tolist() == [(4 + 4) / 2, (16 + 4) / 2]


def test_fisher_information_is_the_expected_one_where_the_model_is_right():
    """y = w x + noise of variance v, negative log-likelihood (y - w x)^2 / (2 v): F = E x^2 / v."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 2, generator=generator) * torch.tensor([1.0, 3.0])
    y = x @ torch.tensor([0.5, -2.0]) + math.sqrt(0.25) * torch.randn(4000, generator=generator)
    weight = torch.tensor([0.5, -2.0], requires_grad=True)
    found = fisher([weight], ([(y[i] - weight @ x[i]) ** 2 / (2 * 0.25)] for i in range(4000)))[0]
    assert found.numpy() == pytest.approx([1 / 0.25, 9 / 0.25], rel=0.1)


def at_base(unlearner, folder, arm=ARM, **settings):
    job = unlearner(folder, arm, **settings)
    load_weights(job.net, job.base)
    job.net.eval()
    return job


def test_likelihood_sums_over_values_and_stands_for_all_timesteps(unlearner, tmp_path):
    """With 6 of 1,000 levels each counts 1000 / 6 times; the mean loss over 64 values counts 64
    times."""
    job = at_base(unlearner, tmp_path)
    seen = []
    original = job.task.losses
    job.task.losses = lambda net, batch: seen.append(batch) or original(net, batch)
    found = [sum(summands) for summands in likelihoods(job)]
    assert len(found) == 4
    assert [len(batch) for batch in seen] == [4, 2] * 4
    assert torch.cat([batch.timesteps for batch in seen[:2]]).tolist() == [
        83,
        250,
        416,
        583,
        750,
        916,
    ]
    for i, total in enumerate(found):
        parts = seen[2 * i : 2 * i + 2]
        assert len({int(row) for batch in parts for row in batch.rows}) == 1
        assert all(
            batch.condition["class_labels"].equal(job.task.labels_of(batch.rows)) for batch in parts
        )
        expected = 64 * 1000 / 6 * sum(original(job.net, batch).sum() for batch in parts)
        assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert len({int(batch.rows[0]) for batch in seen}) == 4, "images are drawn without replacement"


def test_all_timesteps_are_taken_once_each(unlearner, tmp_path):
    job = at_base(
        unlearner, tmp_path, ARM | {"fisher_timesteps": None, "fisher_samples": 1}, batch_size=500
    )
    seen = []
    job.task.losses = lambda net, batch: seen.append(batch.timesteps) or torch.zeros(len(batch))
    for summands in likelihoods(job):
        list(summands)
    assert torch.cat(seen).tolist() == list(range(1000))


def test_fisher_information_has_the_precision_of_the_training(unlearner, tmp_path):
    seen = {}
    for precision in ("fp32", "bf16"):
        job, types = at_base(unlearner, tmp_path / precision, precision=precision), set()
        job.net.conv_in.register_forward_hook(lambda _, x, out, types=types: types.add(out.dtype))
        seen[precision] = fisher(list(job.net.parameters()), likelihoods(job))
        assert types == {{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]}
        AcceleratorState._reset_state(reset_partial_state=True)  # it forgets its precision
    one, other = (torch.cat([part.flatten() for part in found]) for found in seen.values())
    assert other.dtype == torch.float32
    assert 0 < float((other - one).norm() / one.norm()) < 0.2


def test_fisher_information_does_not_depend_on_the_batch_size(unlearner, tmp_path):
    few, many = (at_base(unlearner, tmp_path, batch_size=size) for size in (2, 8))
    one, other = (fisher(list(job.net.parameters()), likelihoods(job)) for job in (few, many))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.max()) + 1e-6)
        assert (a >= 0).all()


# ---- penalty -------------------------------------------------------------------------------------


def test_penalty_and_its_gradient_are_those_of_autograd():
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 2), (4,)]
    weights = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    start, information = (
        [torch.rand(shape, generator=generator) for shape in shapes] for _ in range(2)
    )
    expected = sum(
        (0.7 * f * (w - a) ** 2).sum() for w, a, f in zip(weights, start, information, strict=True)
    )
    gradients = torch.autograd.grad(expected, weights)
    penalty, pull = elastic(weights, start, information, 0.7)
    assert penalty == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(pull, gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_penalty_is_zero_at_the_base():
    weights = [torch.randn(5)]
    penalty, pull = elastic(weights, [weights[0].clone()], [torch.rand(5)], 10.0)
    assert penalty == 0
    assert not pull[0].any()


# ---- surrogate and replay ------------------------------------------------------------------------


def test_surrogate_is_uniform_noise_under_the_forgotten_label(unlearner, tmp_path):
    job = unlearner(tmp_path, ARM, batch_size=256, label_dropout=0.5)
    clean = replace(
        job, scheduler=build_scheduler(Diffusion(prediction="sample"))
    )  # its target is the image
    batch = surrogate(clean, 3, 0)
    assert batch.target.shape == (256, 1, 8, 8)
    assert set(batch.condition["class_labels"].tolist()) == {3}
    values = batch.target.flatten()
    assert values.min() == -1
    assert values.max() == 1
    assert np.histogram(values, 8)[0] / len(values) == pytest.approx([1 / 8] * 8, abs=0.01)
    pairs = np.corrcoef(batch.target[:, 0].reshape(256, 64).T)
    assert np.abs(pairs[~np.eye(64, dtype=bool)]).mean() < 0.1
    assert not batch.target.equal(surrogate(clean, 3, 1).target)
    assert batch.target.equal(surrogate(clean, 3, 0).target)


def test_replay_is_what_the_base_draws_of_all_labels_but_not_what_is_sampled_later(
    unlearner, tmp_path
):
    job = at_base(unlearner, tmp_path)
    source = drawn(job, 0)
    assert source.labels.tolist() == list(range(10)) * 3
    assert source.forgotten.tolist() == ([True] + [False] * 9) * 3
    ids, settings = np.arange(30), Sample(images=30, steps=3)
    for seed, same in (
        (selective_amnesia.seeds.derive(job.seed, *job.path, "replay"), True),
        (job.seed, False),
    ):
        expected = generate(
            job.net, dict(job.scheduler.config), ids, settings, seed, labels=source.labels
        )
        assert np.array_equal(source.task.images.permute(0, 2, 3, 1).numpy(), expected) is same


@pytest.mark.parametrize("replay", ["generated", "training"])
def test_gradient_is_that_of_the_objective(replay, unlearner, series, tmp_path):
    """The first update is at the base, where the penalty is zero; the second is not."""
    arm = ARM | {"replay": replay, "ewc": 1e-3}
    settings = {"clip": None, "log_every": 1, "label_dropout": 0.5}
    job = unlearner(tmp_path / "state", arm, updates=2, **settings)
    base = at_base(unlearner, tmp_path / "base-net", arm, **settings)
    source = base if replay == "training" else drawn(base, 0)
    information = fisher(list(base.net.parameters()), likelihoods(source))
    once = unlearner(tmp_path / "once", arm, updates=1, **settings)
    selective_amnesia.train(once)
    remain = Sides(source).batch("remain", 1, keep_labels=True)
    assert not {0, 10} & set(remain.condition["class_labels"].tolist())
    net = once.net
    net.zero_grad()
    forget_loss = job.task.losses(net, surrogate(job, 0, 1)).mean()
    loss = job.task.losses(net, remain).mean()
    terms = zip(net.parameters(), base.net.parameters(), information, strict=True)
    penalty = 1e-3 / 64 * sum((f * (w - a.detach()) ** 2).sum() for w, a, f in terms)
    (forget_loss + loss + penalty).backward()
    selective_amnesia.train(job)
    for a, b in zip(net.parameters(), job.net.parameters(), strict=True):
        torch.testing.assert_close(
            b.grad, a.grad, rtol=1e-3, atol=1e-5 * float(a.grad.abs().max()) + 1e-7
        )
    found = series(job.store.curves)
    assert found["penalty"][0] == 0
    assert [found[name][1] for name in ("loss", "forget_loss", "penalty")] == pytest.approx(
        [loss.item(), forget_loss.item(), penalty.item()], rel=1e-4
    )
    assert penalty > 0


def test_the_more_penalty_the_less_the_weights_move_where_the_base_needs_them(unlearner, tmp_path):
    base = at_base(unlearner, tmp_path / "base-net")
    information = fisher(list(base.net.parameters()), likelihoods(drawn(base, 0)))
    moved = []
    for ewc in (0.0, 1e-3, 10.0):
        job = unlearner(tmp_path / str(ewc), ARM | {"ewc": ewc}, updates=10)
        selective_amnesia.train(job)
        moved.append(
            elastic(list(job.net.parameters()), list(base.net.parameters()), information, 1.0)[0]
        )
    assert moved[0] > moved[1] > moved[2]


def test_fisher_information_and_replay_leave_no_trace(unlearner, tmp_path):
    """Without penalty and update the network is the base's, in training mode."""
    job = at_base(unlearner, tmp_path)
    before = {name: value.clone() for name, value in job.net.state_dict().items()}
    state = torch.get_rng_state()
    fisher(list(job.net.parameters()), likelihoods(drawn(job, 0)))
    assert all(torch.equal(value, before[name]) for name, value in job.net.state_dict().items())
    assert all(weight.grad is None for weight in job.net.parameters())
    assert torch.equal(torch.get_rng_state(), state)


# ---- the run -------------------------------------------------------------------------------------


def test_what_it_costs(unlearner, tmp_path):
    result = selective_amnesia.train(unlearner(tmp_path, ARM))
    assert (result.spent.updates, result.spent.updates_per_model) == (7, 7)
    assert result.spent.images_seen == result.spent.kept_samples == 7 * 2 * 4
    assert result.spent.backward_passes == 14
    assert result.facts["setup_seconds"] > 0
    assert result.raw.training


@pytest.mark.parametrize("replay", ["generated", "training"])
def test_stopped_after_any_update_it_ends_with_the_same_bits(
    replay, unlearner, tmp_path, same_bits_after_stops
):
    def job(folder: str):
        return unlearner(tmp_path / folder, ARM | {"replay": replay}, dropout=0.2, updates=4)

    same_bits_after_stops(selective_amnesia.train, job, range(3))


def test_first_losses_are_those_on_record(unlearner, series, tmp_path, golden):
    job = unlearner(
        tmp_path, ARM | {"ewc": 1e-3}, updates=20, batch_size=8, log_every=1, learning_rate=1e-4
    )
    selective_amnesia.train(job)
    golden(
        "selective_amnesia",
        {name: series(job.store.curves)[name] for name in ("loss", "forget_loss", "penalty")},
        rel=1e-4,
    )


@pytest.mark.parametrize(
    ("base", "forget", "message"),
    [
        (
            {"condition": "label"},
            {"ids": [1]},
            r"method selective_amnesia forgets a class: forget\.some must be given by label",
        ),
        (
            {},
            {"label": 0},
            "method selective_amnesia needs labels or captions, but base = 'plain' was trained",
        ),
    ],
)
def test_what_is_no_class_of_a_conditional_network_is_refused(base, forget, message, params):
    params["arms"] = {
        "plain": {"method": "baseline"} | base,
        "forgetful": {"method": "selective_amnesia", "base": "plain", "forget": "some"},
    }
    params["forget"] = {"some": forget}
    with pytest.raises(ConfigError, match=message):
        config.parse(params)
