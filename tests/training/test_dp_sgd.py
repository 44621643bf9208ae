"""DP-SGD: each image's own gradient, clipping, noise, Poisson sampling, what is spent, and that it
resumes bit for bit."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from afterimage import config
from afterimage.config import ConfigError
from afterimage.methods import dp_sgd
from afterimage.methods.dp_sgd import (
    ORDERS,
    Losses,
    PrivateLearner,
    epsilon_of,
    noise_for,
    poisson,
    sample_gradients,
)
from afterimage.training.learner import Learner, NonFiniteError
from afterimage.training.loop import DivergedError

ARM = {"method": "dp_sgd", "noise_multiplier": 1.0}


@pytest.fixture
def private(make_job, tmp_path):
    """Return a function that builds a job, its learner and one batch of the given rows."""

    def make(rows, noise: float = 0.0, clip: float = 1.0, **settings):
        job = make_job(tmp_path, condition="label", arm=ARM, **settings)
        learner = PrivateLearner(job, noise, clip)
        return (
            job,
            learner,
            job.task.batch(np.array(rows, np.int64), torch.Generator().manual_seed(3)),
        )

    return make


def gradient_of(learner: PrivateLearner, batch, seed: int = 0) -> torch.Tensor:
    """Return the private gradient, flat."""
    learner.private_gradient(batch, torch.Generator().manual_seed(seed))
    return torch.cat([weight.grad.flatten() for weight in learner.net.parameters()])


def one_by_one(job, batch) -> torch.Tensor:
    """Return each sample's gradient by a network call and a backward pass of its own, (B,
    weights)."""
    found = []
    for i in range(len(batch)):
        job.net.zero_grad()
        job.task.losses(job.net, batch[i : i + 1]).mean().backward()
        found.append(torch.cat([weight.grad.flatten() for weight in job.net.parameters()]))
    job.net.zero_grad()
    return torch.stack(found)


# ---- per-sample gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("condition", ["none", "label"])
def test_gradient_of_each_sample_is_that_of_the_sample_alone(condition, make_job, tmp_path):
    """Attention, group norms, time and label embeddings, and the convolutions behind an attention
    block, layer by layer."""
    job = make_job(tmp_path, condition=condition, arm=ARM)
    batch = job.task.batch(np.arange(5), torch.Generator().manual_seed(0))
    found, losses = sample_gradients(Losses(job.net, job.task), batch)
    flat = torch.cat([gradient.flatten(1) for gradient in found], 1)
    expected = one_by_one(job, batch)
    assert losses.tolist() == pytest.approx(job.task.losses(job.net, batch).tolist(), rel=1e-5)
    at = 0
    for name, weight in job.net.named_parameters():
        part = slice(at, at := at + weight.numel())
        torch.testing.assert_close(flat[:, part], expected[:, part], rtol=1e-3, atol=1e-6, msg=name)


def test_samples_do_not_mix_even_through_a_layer_that_would(make_job, tmp_path):
    """A batch norm sees one image at a time, so that what another image is changes nothing."""
    job = make_job(tmp_path, arm=ARM)

    class Mixing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm2d(1, track_running_stats=False)

        def forward(self, x, t, return_dict):
            return (self.norm(x),)

    losses = Losses(Mixing(), job.task)
    batch = job.task.batch(np.arange(4), torch.Generator().manual_seed(0))
    other = replace(batch, noisy=torch.cat([batch.noisy[:1], 5 * batch.noisy[1:]]))
    assert sample_gradients(losses, batch)[0][0][0].equal(sample_gradients(losses, other)[0][0][0])


def test_dropout_is_drawn_per_sample_from_the_seed(make_job, tmp_path):
    job = make_job(tmp_path, arm=ARM, dropout=0.5)
    batch = job.task.batch(np.array([1, 1]), torch.Generator().manual_seed(0))
    batch = replace(
        batch,
        noisy=batch.noisy[[0, 0]],
        timesteps=batch.timesteps[[0, 0]],
        target=batch.target[[0, 0]],
    )
    losses = Losses(job.net, job.task)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(sample_gradients(losses, batch)[1].tolist())
    assert values[0][0] != values[0][1]
    assert values[0] == values[1] != values[2]


# ---- clipping and noise --------------------------------------------------------------------------


class Slope(torch.nn.Module):
    """Predicts a * noisy[0, 0] + b * noisy[0, 1] everywhere, so that gradients can be had by
    hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x, t, return_dict):
        return ((x[:, :, 0, :2] * self.weights).sum(-1)[:, :, None, None].expand(x.shape),)


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (
            1.0,
            (0.6 + 0.3, 0.8 - 0.4),
        ),  # (3, 4) of norm 5 becomes (0.6, 0.8); (0.3, -0.4) of norm 0.5 stays
        (0.25, (0.25 * (0.6 + 0.6), 0.25 * (0.8 - 0.8))),
        (100.0, (3.3, 3.6)),
    ],
)
def test_clipping_by_hand(clip, expected, make_job, tmp_path):
    """With prediction 0 and target -1/2 a sample's gradient is its first two values; the divisor is
    the expected batch size."""
    job = replace(make_job(tmp_path, arm=ARM, batch_size=4), net=Slope())
    batch = job.task.batch(np.arange(2), torch.Generator().manual_seed(0))
    noisy = torch.zeros_like(batch.noisy)
    noisy[:, 0, 0, :2] = torch.tensor([[3.0, 4.0], [0.3, -0.4]])
    batch = replace(batch, noisy=noisy, target=torch.full_like(batch.target, -0.5))
    found = gradient_of(PrivateLearner(job, 0.0, clip), batch)
    assert found.tolist() == pytest.approx([value / 4 for value in expected], rel=1e-4, abs=1e-6)


def test_without_noise_and_clipping_it_is_the_plain_gradient_times_the_share_of_the_expected_batch(
    private,
):
    """Five rows came where four were expected."""
    job, learner, batch = private([0, 3, 5, 7, 8], clip=1e6)
    found = gradient_of(learner, batch)
    plain = Learner(job.net, job.train, job.accelerator)
    loss = plain.gradient(
        batch, lambda net, part: (losses := job.task.losses(net, part), torch.ones_like(losses))
    )
    expected = torch.cat([weight.grad.flatten() for weight in job.net.parameters()])
    torch.testing.assert_close(found, expected * 5 / 4, rtol=1e-3, atol=1e-6)
    assert learner.private_gradient(batch, torch.Generator()) == pytest.approx(
        loss * 5 / 4, rel=1e-5
    )


def test_no_image_moves_the_gradient_by_more_than_its_share(private):
    """The sensitivity that the noise is made for: with one row more the sum changes by at most C,
    the gradient by C / B."""
    _, learner, batch = private([0, 3, 5, 7, 8], clip=0.2)
    with_it, without = gradient_of(learner, batch), gradient_of(learner, batch[1:])
    assert (with_it - without).norm() <= 0.2 / 4 * (1 + 1e-5)
    assert (with_it - without).norm() > 0.19 / 4, (
        "its own gradient is longer than C, so it is used up"
    )


def test_clipping_is_on_the_norm_over_all_weights_and_keeps_directions(private):
    job, learner, batch = private([0, 3, 5], clip=0.2)
    alone = one_by_one(job, batch)
    expected = (alone * (0.2 / alone.norm(dim=1)).clamp(max=1)[:, None]).sum(0) / 4
    torch.testing.assert_close(gradient_of(learner, batch), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rows", [[], [2, 4, 6]])
def test_noise_has_the_stated_deviation_whatever_the_batch(rows, private):
    """Standard deviation sigma C / B per weight, also where no row came."""
    _, learner, batch = private(rows, noise=1.5, clip=0.7)
    _, silent, _ = private(rows, noise=0.0, clip=0.7)
    noise = gradient_of(learner, batch) - gradient_of(silent, batch)
    assert noise.std().item() == pytest.approx(1.5 * 0.7 / 4, rel=0.02)
    assert abs(noise.mean().item()) < 4 * 1.5 * 0.7 / 4 / math.sqrt(len(noise))
    assert gradient_of(learner, batch, 0).equal(gradient_of(learner, batch, 0))
    assert not gradient_of(learner, batch, 0).equal(gradient_of(learner, batch, 1))


@pytest.mark.parametrize("rows", [[1, 2, 3], [0, 1, 2, 3, 4, 5, 6]])
def test_accumulation_is_the_whole_batch(rows, private):
    """Of any size: the pieces need not be equal."""
    _, whole, batch = private(rows, noise=1.0, clip=0.3)
    _, parts, _ = private(rows, noise=1.0, clip=0.3, accumulation=2)
    torch.testing.assert_close(
        gradient_of(whole, batch), gradient_of(parts, batch), rtol=1e-4, atol=1e-6
    )


def test_half_precision_changes_the_gradient_by_rounding_only(private):
    job, learner, batch = private([0, 3, 5], clip=1e6, precision="bf16")
    exact = one_by_one(job, batch).sum(0) / 4
    found = gradient_of(learner, batch)
    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_leaves_the_weights_alone(value, private):
    _, learner, batch = private([0, 3])
    before = [weight.clone() for weight in learner.net.parameters()]
    with pytest.raises(NonFiniteError, match="the loss is"):
        learner.private_gradient(replace(batch, target=batch.target * value), torch.Generator())
    assert all(torch.equal(a, b) for a, b in zip(before, learner.net.parameters(), strict=True))


# ---- accounting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "updates", "delta"), [(2.0, 1, 1e-5), (5.0, 100, 1e-3)])
def test_epsilon_without_sampling_is_that_of_the_gaussian_mechanism(sigma, updates, delta):
    """RDP of order a is T a / (2 sigma^2); conversion by Balle et al. 2020, theorem 21, at the best
    order."""
    orders = np.array(ORDERS)
    rdp = updates * orders / (2 * sigma**2)
    expected = (
        rdp - (np.log(delta) + np.log(orders)) / (orders - 1) + np.log((orders - 1) / orders)
    ).min()
    assert epsilon_of(sigma, 1.0, updates, delta) == pytest.approx(expected, rel=1e-6)


def test_epsilon_falls_with_noise_and_rises_with_updates_and_rate():
    by_noise = [epsilon_of(sigma, 0.1, 100, 1e-3) for sigma in (0.3, 0.7, 1.0, 2.0, 5.0)]
    assert by_noise == sorted(by_noise, reverse=True)
    by_updates = [epsilon_of(1.0, 0.1, updates, 1e-3) for updates in (1, 10, 100, 1000)]
    assert by_updates == sorted(by_updates)
    by_rate = [epsilon_of(1.0, rate, 100, 1e-3) for rate in (0.01, 0.1, 0.5, 1.0)]
    assert by_rate == sorted(by_rate)
    assert len({*by_noise, *by_updates, *by_rate}) == 5 + 4 + 4 - 2
    assert epsilon_of(0.0, 0.1, 1, 1e-3) == math.inf
    assert epsilon_of(1e6, 0.1, 1, 1e-3) == 0


@pytest.mark.parametrize("epsilon", [0.1, 8.0, 30.0])
def test_noise_for_an_epsilon_keeps_to_it_and_wastes_little(epsilon):
    sigma = noise_for(epsilon, 0.16, 500, 1 / 400)
    assert epsilon - 0.011 <= epsilon_of(sigma, 0.16, 500, 1 / 400) <= epsilon


def test_an_epsilon_that_no_noise_reaches_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"epsilon = 0\.003: with delta = 1e-05 the accountant can show no less than 0\.0035",
    ):
        noise_for(0.003, 0.16, 500, 1e-5)


# ---- the run -------------------------------------------------------------------------------------


def test_each_row_joins_each_batch_independently_with_the_same_chance():
    """1,000 updates of rate 4 / 13: shares, sizes and pairs are those of independent coins."""
    rate, joined = 4 / 13, np.zeros((1000, 13))
    for s in range(1000):
        joined[s, poisson(5, ("train", "test", 0), s, 13, rate)] = 1
    assert joined.mean(0) == pytest.approx([rate] * 13, abs=4 * math.sqrt(rate * (1 - rate) / 1000))
    assert joined.sum(1).var() == pytest.approx(13 * rate * (1 - rate), rel=0.2)
    pairs = np.corrcoef(joined.T)[~np.eye(13, dtype=bool)]
    assert np.abs(pairs).max() < 5 / math.sqrt(1000)


def test_run_records_what_it_spent(make_job, tmp_path, series):
    job = make_job(tmp_path, arm=ARM | {"delta": 0.01}, updates=12, log_every=1)
    result = dp_sgd.train(job)
    found = series(job.store.curves)
    assert sum(found["batch"]) == result.spent.images_seen == result.spent.kept_samples
    assert len(set(found["batch"])) > 2
    assert (result.spent.updates, result.spent.updates_per_model) == (12, 12)
    assert result.facts == {
        "epsilon": pytest.approx(epsilon_of(1.0, 4 / 13, 12, 0.01)),
        "delta": 0.01,
        "noise_multiplier": 1.0,
        "sampling_rate": 4 / 13,
        "accountant": "rdp",
    }


def test_every_update_has_noise_of_its_own(make_job, tmp_path, monkeypatch):
    """Noise so large that nothing else is left of the gradients: those of different updates, and of
    two seeds, do not correlate."""
    gradients = []
    original = PrivateLearner.private_gradient

    def noted(self, batch, noise):
        loss = original(self, batch, noise)
        gradients.append(torch.cat([weight.grad.flatten() for weight in self.net.parameters()]))
        return loss

    monkeypatch.setattr(PrivateLearner, "private_gradient", noted)
    arm = ARM | {"noise_multiplier": 1e6}
    dp_sgd.train(make_job(tmp_path / "one", arm=arm, updates=4))
    dp_sgd.train(replace(make_job(tmp_path / "other", arm=arm, updates=2), seed=6))
    assert len(gradients) == 6
    between = torch.corrcoef(torch.stack(gradients)) - torch.eye(6)
    assert between.abs().max() < 5 / math.sqrt(len(gradients[0]))


def test_run_for_an_epsilon_spends_it(make_job, tmp_path):
    result = dp_sgd.train(make_job(tmp_path, arm={"method": "dp_sgd", "epsilon": 5.0}, updates=5))
    assert result.facts["delta"] == 1 / 13
    assert 4.98 < result.facts["epsilon"] <= 5.0


def test_without_noise_there_is_no_epsilon(make_job, tmp_path):
    assert (
        dp_sgd.train(make_job(tmp_path, arm=ARM | {"noise_multiplier": 0.0}, updates=1)).facts[
            "epsilon"
        ]
        is None
    )


@pytest.mark.parametrize("variant", ["trained_random", "frozen_fixed", "maxpool"])
def test_transfer_blocks_train_privately_too_and_frozen_ones_stay(variant, make_job, tmp_path):
    job = make_job(
        tmp_path,
        condition="label",
        arm=ARM | {"rau_net": {"groups": [1], "variant": variant}},
        updates=2,
    )
    before = {name: value.clone() for name, value in job.net.state_dict().items()}
    batch = job.task.batch(np.arange(3), torch.Generator().manual_seed(0))
    found, _ = sample_gradients(Losses(job.net, job.task), batch)
    weights = [weight for weight in job.net.parameters() if weight.requires_grad]
    expected = torch.autograd.grad(job.task.losses(job.net, batch).sum(), weights)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.sum(0), b, rtol=1e-3, atol=1e-5)
    dp_sgd.train(job)
    for name, value in job.net.state_dict().items():
        assert torch.equal(value, before[name]) is (
            variant == "frozen_fixed" and name.startswith("transfers.")
        ), name


def test_a_batch_larger_than_the_training_set_is_refused(make_job, tmp_path):
    with pytest.raises(
        ConfigError, match=r"train\.batch_size = 16 is more than this arm's 13 training images"
    ):
        dp_sgd.train(make_job(tmp_path, arm=ARM, batch_size=16))


def test_a_base_is_refused(params):
    params["arms"] = {"plain": {"method": "baseline"}, "private": ARM | {"base": "plain"}}
    with pytest.raises(
        ConfigError,
        match=r"arms\.private: method dp_sgd counts the privacy of its own updates only: base = "
        r"'plain'",
    ):
        config.parse(params)


def test_divergence_names_the_update(make_job, tmp_path):
    job = make_job(tmp_path, arm=ARM)
    original, calls = job.task.losses, []
    job.task.losses = lambda net, batch: (
        calls.append(1) or original(net, batch) * (math.nan if len(calls) == 5 else 1)
    )
    with pytest.raises(
        DivergedError,
        match=r"at update 5 the loss is nan; the last good state is .*update-00000003",
    ):
        dp_sgd.train(job)


@pytest.mark.parametrize(
    "settings",
    [{"dropout": 0.2}, {"batch_size": 1, "accumulation": 1}],
    ids=["dropout", "empty batches"],
)
def test_stopped_after_any_update_it_ends_with_the_same_bits(
    settings, make_job, tmp_path, same_bits_after_stops
):
    def job(folder: str):
        return make_job(
            tmp_path / folder, condition="label", arm=ARM, **({"updates": 5} | settings)
        )

    same_bits_after_stops(dp_sgd.train, job, range(4))


def test_first_losses_are_those_on_record(make_job, tmp_path, series, golden):
    job = make_job(
        tmp_path, images=64, updates=20, batch_size=16, log_every=1, condition="label", arm=ARM
    )
    dp_sgd.train(job)
    golden("dp_sgd", {name: series(job.store.curves)[name] for name in ("loss", "batch")})
