"""IET-AGC: sharding, averaging, skipping, budgets, tables, and the same bits however the run is cut
in time or over processes.

Golden losses are in ``tests/golden/iet_agc.json``; see ``test_golden.py`` for how to write them
anew.
"""

import dataclasses
import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from afterimage import artifacts, cli
from afterimage.config import Diffusion, IetAgc
from afterimage.diffusion.model import build_scheduler, save_pipeline
from afterimage.diffusion.noising import Batch
from afterimage.diffusion.sample import load_denoiser
from afterimage.methods import baseline
from afterimage.methods.iet_agc import train
from afterimage.methods.iet_agc.train import Ensemble, Shard, steps_per_round, weighted_mean
from afterimage.training import distributed
from afterimage.training.learner import Learner
from afterimage.training.loop import DivergedError

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def make(make_job):
    """Return ``make_job`` for an IET-AGC arm: ``arm`` lies over two shards and two rounds,
    ``timesteps`` over T = 1000."""

    def job_of(state: Path, arm: dict | None = None, timesteps: int = 1000, **rest):
        own = {"method": "iet_agc", "shards": 2, "rounds": 2} | (arm or {})
        job = make_job(state, arm=own, **({"updates": 12} | rest))
        scheduler = build_scheduler(Diffusion(timesteps=timesteps))
        job.task.scheduler = scheduler
        return dataclasses.replace(job, scheduler=scheduler)

    return job_of


@pytest.fixture
def stop_after(monkeypatch):
    """Return a function that has the process stop itself in local step ``s`` (from 0), once."""
    original = Ensemble.update

    def arrange(s: int) -> None:
        def update(self, at):
            if at == s:
                monkeypatch.setattr(Ensemble, "update", original)
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, at)

        monkeypatch.setattr(Ensemble, "update", update)

    return arrange


def states(net: torch.nn.Module) -> list[torch.Tensor]:
    return list(net.state_dict().values())


def assert_same(a, b) -> None:
    for one, other in ((a.raw, b.raw), (a.average, b.average)):
        assert all(torch.equal(x, y) for x, y in zip(states(one), states(other), strict=True))


def step(ensemble: Ensemble, times: int = 1, start: int = 0) -> None:
    for s in range(start, start + times):
        ensemble.update(s)


def copies(shard: Shard) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in shard.tensors().items()}


# ---- one shard without a threshold is the baseline -----------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "variant"),
    [
        (1, {}),
        (7, {"condition": "label", "flips": True, "dropout": 0.2}),
        (2, {"accumulation": 2, "warmup": 4, "weight_decay": 0.1}),
    ],
)
def test_one_shard_without_threshold_is_the_baseline_bit_for_bit(
    rounds, variant, tmp_path, make, make_job, curves
):
    """IET-AGC invariant 1, and 2: the mask is all ones though the bank fills."""
    plain = make_job(tmp_path / "plain", updates=14, **variant)
    job = make(
        tmp_path / "one", {"shards": 1, "rounds": rounds, "agc_threshold": 0}, updates=14, **variant
    )
    found, expected = train.train(job), baseline.train(plain)
    assert_same(found, expected)
    assert curves(job.store.curves) == curves(plain.store.curves)
    assert found.spent == expected.spent
    assert not found.tables["skips_by_timestep"]["skipped"].to_numpy().any()


# ---- states kept on the way ----------------------------------------------------------------------


def kept(job, state, folder) -> dict[str, torch.Tensor]:
    return load_denoiser(job.kept / state / folder)[0].state_dict()


def test_a_state_of_one_shard_is_that_of_the_baseline(tmp_path, make, make_job):
    shares = {"early": 0.3, "late": 0.8}
    plain = dataclasses.replace(make_job(tmp_path / "plain", updates=10), states=shares)
    job = make(tmp_path / "one", {"shards": 1, "rounds": 2, "agc_threshold": 0}, updates=10)
    job = dataclasses.replace(job, states=shares)
    train.train(job)
    baseline.train(plain)
    for state in shares:
        for folder in ("pipeline", "raw"):
            found, expected = (kept(each, state, folder) for each in (job, plain))
            assert all(torch.equal(found[name], value) for name, value in expected.items())
    early, late = (kept(job, state, "raw") for state in shares)
    assert not all(torch.equal(early[name], value) for name, value in late.items())


def test_a_state_within_a_round_is_what_an_averaging_would_leave(tmp_path, make, monkeypatch):
    """And it changes nothing: the shards train on as they are."""
    arm = {"shards": 3, "rounds": 2, "agc_threshold": 0.5}
    plain = make(tmp_path / "plain", arm, updates=24)
    job = dataclasses.replace(make(tmp_path / "kept", arm, updates=24), states={"within": 0.75})
    expected = {}
    update = Ensemble.update

    def watched(self, s):
        values = update(self, s)
        if self.job is job and s == 5:  # of 8 local steps
            shards = [copies(shard) for shard in self.own.values()]
            expected.update(train.weighted_mean(shards, self.sizes))
        return values

    monkeypatch.setattr(Ensemble, "update", watched)
    assert_same(train.train(job), train.train(plain))
    for folder, prefix in (("raw", "net."), ("pipeline", "average.module.")):
        found = kept(job, "within", folder)
        assert all(torch.equal(value, expected[f"{prefix}{name}"]) for name, value in found.items())


# ---- anti-gradient control -----------------------------------------------------------------------


def lone_shard(job) -> Shard:
    return Shard(job, 0, np.arange(len(job.task)))


def first_batch(shard: Shard) -> Batch:
    return shard.job.task.batch(shard.rows[shard.order.rows(0)], shard.order.generator(0))


@pytest.mark.parametrize("accumulation", [1, 4])
def test_loss_and_gradient_are_those_of_the_kept_samples_alone(accumulation, tmp_path, make):
    """IET-AGC invariant 6; with T = 4 timesteps repeat, and micro-batches are all judged by the
    bank as it was before."""
    job = make(
        tmp_path, {"shards": 1}, timesteps=4, batch_size=8, accumulation=accumulation, clip=None
    )
    shard, fresh = lone_shard(job), lone_shard(job)
    batch = first_batch(shard)
    losses = job.task.losses(fresh.learner.net, batch)
    limit = torch.sort(losses.detach())[0][3:5].mean()
    shard.bank.level.fill_(2 * limit)
    kept = losses.detach() >= limit
    assert kept.sum() == 4
    assert len(set(batch.timesteps.tolist())) < 8
    values = shard.update(0)
    losses[kept].mean().backward()
    assert values["loss"] == pytest.approx(losses[kept].mean().item(), rel=1e-5)
    assert values["skipped"] == 0.5
    for one, other in zip(
        shard.learner.net.parameters(), fresh.learner.net.parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    expected = lone_shard(job).bank
    expected.level.fill_(2 * limit)
    expected.update(batch.timesteps, losses.detach())
    torch.testing.assert_close(shard.bank.level, expected.level)


@pytest.mark.parametrize("policy", ["step", "skip"])
def test_a_batch_skipped_as_a_whole_has_loss_and_gradient_zero(policy, tmp_path, make):
    """IET-AGC invariant 3. ``step`` moves by momentum, ``skip`` leaves weights, moments and average
    alone; the bank learns."""
    job = make(tmp_path, {"shards": 1, "agc_threshold": 1e9, "on_all_skipped": policy}, timesteps=2)
    shard = lone_shard(job)
    shard.update(0)
    shard.bank.level.fill_(1.0)
    before = copies(shard)
    values = shard.update(1)
    assert (values["loss"], values["grad_norm"], values["skipped"]) == (0, 0, 1)
    assert all(not p.grad.any() for p in shard.learner.net.parameters())
    after = shard.tensors()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    counters = {"bank", "by_image", "by_timestep"}
    assert moved == (counters | {"net", "average", "optimizer"} if policy == "step" else counters)


@pytest.mark.parametrize("policy", ["step", "skip"])
def test_a_batch_skipped_in_part_is_learned_from_whatever_the_policy(policy, tmp_path, make):
    """``on_all_skipped`` is about batches of which nothing is left."""
    job = make(
        tmp_path, {"shards": 1, "on_all_skipped": policy}, timesteps=4, batch_size=8, clip=None
    )
    shard = lone_shard(job)
    losses = job.task.losses(shard.learner.net, first_batch(shard)).detach()
    shard.bank.level.fill_(2 * torch.sort(losses)[0][6:].mean())  # all but one are below half of it
    before = copies(shard)
    values = shard.update(0)
    assert values["skipped"] == 7 / 8
    assert values["grad_norm"] > 0
    after = shard.tensors()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved >= {"net", "average"}


def test_nothing_is_skipped_in_the_first_batch_and_much_later(tmp_path, make):
    """IET-AGC invariant 4."""
    job = make(tmp_path, {"agc_threshold": 1.0}, timesteps=2, updates=40, log_every=1)
    found = train.train(job)
    shares = [json.loads(line) for line in job.store.curves.read_text().splitlines()]
    shares = [row["value"] for row in shares if row["name"] == "skipped"]
    assert (
        shares[0] < 0.5
    )  # repeats of a timestep within the batch do not count, those of the other shard do not either
    assert max(shares) > 0.3
    assert found.spent.kept_samples < found.spent.images_seen


@pytest.mark.parametrize("accumulation", [1, 2])
def test_random_skipping_skips_as_many_of_a_batch_and_others(accumulation, tmp_path, make):
    """Two shards in one state, for one step: the bank does not tell them apart afterwards, the
    skipped images do."""
    settings = {"timesteps": 4, "batch_size": 8, "accumulation": accumulation, "clip": None}
    shards = {}
    for skipping in ("loss", "random"):
        job = make(tmp_path / skipping, {"shards": 1, "skipping": skipping}, **settings)
        shards[skipping] = lone_shard(job)
    losses = job.task.losses(shards["loss"].learner.net, first_batch(shards["loss"])).detach()
    for shard in shards.values():
        shard.bank.level.fill_(2 * torch.sort(losses)[0][2:4].mean())
    values = {skipping: shard.update(0) for skipping, shard in shards.items()}
    assert values["loss"]["skipped"] == values["random"]["skipped"] == 3 / 8
    one, other = shards["loss"], shards["random"]
    assert torch.equal(one.bank.level, other.bank.level)
    assert one.by_image[1].sum() == other.by_image[1].sum() == 3
    assert not torch.equal(one.by_image[1], other.by_image[1])


def test_random_skipping_spares_no_loss_and_repeats_itself(tmp_path, make):
    """The skipped samples' mean loss is the batch's, over many batches of one state; the rule's is
    far below. The same update draws the same samples."""
    ranks = {"loss": [], "random": []}
    for skipping, found in ranks.items():
        job = make(tmp_path / skipping, {"shards": 1, "skipping": skipping}, images=16)
        shard = lone_shard(job)
        shard.learner.step = lambda s, unless: {"grad_norm": 0.0, "learning_rate": 0.0}
        masks = []
        for s in (*range(60), 0):
            rows = shard.rows[shard.order.rows(s)]
            batch = job.task.batch(rows, shard.order.generator(s))
            losses = job.task.losses(shard.learner.net, batch).detach()
            shard.bank.level.fill_(2 * losses.sort()[0][1:3].mean())
            shard.by_image.zero_()
            shard.update(s)
            skipped = torch.from_numpy(np.isin(rows, np.flatnonzero(shard.by_image[1])))
            masks.append(skipped.tolist())
            assert skipped.sum() == 2
            found += losses.argsort().argsort()[skipped].tolist()
        assert masks[0] == masks[-1]
        assert len({tuple(mask) for mask in masks}) == 6  # all pairs of places in a batch of four
    assert set(ranks["loss"]) == {0, 1}
    assert np.mean(ranks["random"]) == pytest.approx(1.5, abs=0.3)  # 3.5 standard errors


def test_skips_are_put_down_to_the_right_images(tmp_path, make, monkeypatch):
    """Two images whose loss is made small are skipped once the bank knows, and no other."""
    job = make(tmp_path, {"shards": 2, "sharding": "contiguous"}, timesteps=2, updates=40)
    original, low = job.task.losses, torch.tensor([2, 9])

    def losses(net, batch):
        found = original(net, batch)
        return found / found.detach() * torch.where(torch.isin(batch.rows, low), 1e-6, 1.0)

    monkeypatch.setattr(job.task, "losses", losses)
    found = train.train(job)
    images, timesteps = (
        found.tables[f"skips_by_{what}"].to_pandas() for what in ("image", "timestep")
    )
    assert list(images.columns) == ["row", "seen", "skipped", "shard"]
    assert list(timesteps.columns) == ["timestep", "seen", "skipped"]
    assert list(images.row) == list(range(13))
    assert list(timesteps.timestep) == [0, 1]
    assert images.seen.sum() == timesteps.seen.sum() == found.spent.images_seen == 160
    assert images.skipped.sum() == timesteps.skipped.sum() == 160 - found.spent.kept_samples
    assert set(images.row[images.skipped > 0]) == {2, 9}
    assert (images.skipped / images.seen)[[2, 9]].min() > 0.5
    assert images.groupby("shard").seen.agg(lambda seen: seen.max() - seen.min()).max() <= 1
    assert images.shard.tolist() == [0] * 7 + [1] * 6


# ---- averaging -----------------------------------------------------------------------------------


def test_mean_of_sizes_one_and_three():
    """IET-AGC invariant 8."""
    nothing, four = (
        {"x": torch.tensor(value), "n": torch.tensor(int(value))} for value in (0.0, 4.0)
    )
    found = weighted_mean([nothing, four], [1, 3])
    assert found["x"].item() == 3
    assert found["n"].item() == 0
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "x": torch.float32,
        "n": torch.int64,
    }


@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=5
    ),
    sizes=st.lists(st.integers(1, 60_000), min_size=1, max_size=12),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_mean_of_equal_states_has_their_bits(values, sizes, dtype):
    """IET-AGC invariant 8: K identical models stay as they are, and the weights sum to 1."""
    state = {"a.b": torch.tensor(values, dtype=dtype)}
    found = weighted_mean([state] * len(sizes), sizes)["a.b"]
    if dtype == torch.float32:
        assert torch.equal(found, state["a.b"])
    else:
        torch.testing.assert_close(found, state["a.b"], rtol=1e-14, atol=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_step_of_sgd_averaged_is_one_step_on_all_images(optimizer, tmp_path, make, monkeypatch):
    """IET-AGC invariant 9: holds for plain SGD on equal shards and full batches, and must not for
    Adam."""
    if optimizer == "sgd":
        monkeypatch.setattr(
            torch.optim, "AdamW", lambda weights, lr, **_: torch.optim.SGD(weights, lr=lr)
        )
    arm = {"rounds": 1, "agc_threshold": 0}
    job = make(tmp_path, arm, images=12, batch_size=6, clip=None, ema=0.0, learning_rate=0.01)
    ensemble, whole = Ensemble(job), Learner(job.net, job.train, job.accelerator)
    parts = [first_batch(shard) for shard in ensemble.own.values()]
    assert sorted(torch.cat([part.rows for part in parts]).tolist()) == list(range(12))
    union = Batch(
        *(
            torch.cat([getattr(p, f) for p in parts])
            for f in ("rows", "noisy", "timesteps", "target")
        ),
        condition={},
    )
    ensemble.update(0)
    ensemble.average(1)
    whole.update(0, union, lambda net, batch: (job.task.losses(net, batch), torch.ones(len(batch))))
    off = max(
        (a - b).abs().max().item()
        for a, b in zip(states(ensemble.own[0].learner.net), states(whole.net), strict=True)
    )
    assert off < 1e-6 if optimizer == "sgd" else off > 1e-4


@pytest.mark.parametrize("policy", ["keep", "reset", "average"])
@pytest.mark.parametrize("scope", ["shard", "global"])
def test_averaging_replaces_what_it_should_and_nothing_else(policy, scope, tmp_path, make):
    arm = {"optimizer_sync": policy, "bank_scope": scope}
    ensemble = Ensemble(make(tmp_path, arm, timesteps=3))
    assert ensemble.sizes == [7, 6]
    step(ensemble, 3)
    before = {k: copies(shard) for k, shard in ensemble.own.items()}
    mean = weighted_mean(before.values(), [7, 6])
    ensemble.average(1)
    averaged = (
        {"net", "average"}
        | ({"optimizer"} if policy == "average" else set())
        | ({"bank"} if scope == "global" else set())
    )
    for k, shard in ensemble.own.items():
        for name, tensor in shard.tensors().items():
            kind = name.split(".")[0]
            if kind in averaged:
                assert torch.equal(tensor, mean[name])
            elif kind in ("by_image", "by_timestep") or (kind == "optimizer" and policy == "reset"):
                assert not tensor.any()
            else:
                assert torch.equal(tensor, before[k][name])
    for name in (
        "net.conv_in.weight",
        "average.module.conv_in.weight",
        "optimizer.0.exp_avg",
        "bank",
    ):
        assert not torch.equal(before[0][name], before[1][name])


def test_reset_moments_are_those_of_a_new_optimiser(tmp_path, make):
    ensemble = Ensemble(make(tmp_path, {"optimizer_sync": "reset", "agc_threshold": 0}))
    step(ensemble, 3)
    ensemble.average(1)
    shard = ensemble.own[0]
    fresh = Shard(ensemble.job, 0, shard.rows)
    fresh.learner.net.load_state_dict(shard.learner.net.state_dict())
    shard.update(3)
    fresh.update(3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(states(shard.learner.net), states(fresh.learner.net), strict=True)
    )


def test_all_shards_end_with_the_same_weights_and_training_moved_them(tmp_path, make):
    job = make(tmp_path, {"shards": 3, "rounds": 1})
    start = [tensor.clone() for tensor in states(job.net)]
    found = train.train(job)
    assert all(torch.equal(a, b) for a, b in zip(start, states(job.net), strict=True))
    assert not torch.equal(start[0], states(found.raw)[0])
    assert not torch.equal(states(found.raw)[0], states(found.average)[0])


# ---- budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("updates", "budget", "steps"),
    [
        (40, "total", 5),
        (47, "total", 5),
        (3, "total", 1),
        (40, "per_model", 20),
        (1, "per_model", 1),
    ],
)
def test_steps_per_round(updates, budget, steps):
    assert (
        steps_per_round(updates, IetAgc(method="iet_agc", shards=4, rounds=2, budget=budget))
        == steps
    )


@pytest.mark.parametrize(("budget", "updates", "each"), [("total", 12, 6), ("per_model", 24, 12)])
def test_what_was_spent_is_counted_over_all_shards(budget, updates, each, tmp_path, make):
    found = train.train(make(tmp_path, {"budget": budget}))
    assert (found.spent.updates, found.spent.updates_per_model, found.spent.images_seen) == (
        updates,
        each,
        4 * updates,
    )
    assert found.facts == {
        "shard_sizes": [7, 6],
        "steps_per_round": each // 2,
        "budget_updates": 12,
    }


def test_a_budget_that_does_not_divide_is_rounded_down_to_whole_rounds(tmp_path, make):
    found = train.train(make(tmp_path, updates=None, epochs=5))
    assert (found.facts["budget_updates"], found.facts["steps_per_round"], found.spent.updates) == (
        17,
        4,
        16,
    )


# ---- where it starts -----------------------------------------------------------------------------


def test_fine_tuning_starts_every_shard_and_its_average_at_the_base(tmp_path, make):
    base = make(tmp_path / "base")
    torch.nn.init.normal_(base.net.conv_in.weight)
    save_pipeline(base.net, base.scheduler, tmp_path / "pipeline")
    found = train.train(make(tmp_path / "tuned", base=tmp_path / "pipeline", learning_rate=1e-12))
    for net in (found.raw, found.average):
        for one, other in zip(states(net), states(base.net), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_more_shards_than_images_are_refused(tmp_path, make):
    with pytest.raises(
        train.ConfigError, match="shards = 14: 1 of them get none of the 13 training images"
    ):
        train.train(make(tmp_path, {"shards": 14}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"agc_threshold": 0, "augment_below": 1.5},
            "augment_below = 1.5 goes by skipped samples, but agc_threshold = 0",
        ),
        (
            {"agc_threshold": 0, "redistribute_above": 0.5},
            "redistribute_above = 0.5 goes by skipped samples",
        ),
        (
            {"shards": 1, "redistribute_above": 0.5},
            "redistribute_above = 0.5 needs shards to move images between",
        ),
        (
            {"agc_threshold": 0, "skipping": "random"},
            "skipping = 'random' skips as many samples as the rule, but agc_threshold = 0",
        ),
        (
            {"skipping": "random", "augment_below": 1.5},
            "augment_below = 1.5 goes by the samples that the rule skips",
        ),
        (
            {"skipping": "random", "redistribute_above": 0.5},
            "redistribute_above = 0.5 goes by the samples that the rule skips",
        ),
        (
            {"sharding": "by_source", "redistribute_above": 0.5},
            "redistribute_above = 0.5 moves single images",
        ),
    ],
)
def test_options_that_could_have_no_effect_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        IetAgc.model_validate({"method": "iet_agc"} | settings)


# ---- IET-AGC+ ------------------------------------------------------------------------------------


def test_images_skipped_too_often_in_a_round_change_shards(tmp_path, make):
    job = make(tmp_path, {"redistribute_above": 0.5, "sharding": "contiguous"})
    ensemble = Ensemble(job)
    counts = torch.tensor([[4, 4, 0, 4, 4, 4, 4], [3, 2, 0, 4, 0, 0, 1]])
    ensemble.own[0].by_image[:, :7] = counts
    ensemble.own[1].by_image[:, 7:] = counts[:, :6]
    step(ensemble, 1)
    for shard in ensemble.own.values():
        shard.by_image[0].clamp_(max=4)
    ensemble.average(1)
    before = np.repeat([0, 1], [7, 6])
    assert np.flatnonzero(ensemble.shard_of != before).tolist() == [0, 3, 7, 10]
    assert np.bincount(ensemble.shard_of).tolist() == ensemble.sizes
    rows = [shard.rows for shard in ensemble.own.values()]
    assert sorted(np.concatenate(rows)) == list(range(13))
    assert all((ensemble.shard_of[own] == k).all() for k, own in enumerate(rows))


def test_shards_stay_as_they_are_after_the_last_round(tmp_path, make):
    """The table of skips says in which shard an image was last."""
    ensemble = Ensemble(
        make(tmp_path, {"redistribute_above": 0.5, "sharding": "contiguous", "rounds": 2})
    )
    shards = [ensemble.shard_of.copy()]
    for r in (1, 2):
        step(ensemble, 1)
        for shard in ensemble.own.values():
            shard.by_image[:, shard.rows[:2]] = 4  # two images of each shard are always skipped
        ensemble.average(r)
        shards.append(ensemble.shard_of.copy())
    assert [(one != other).sum() for one, other in itertools.pairwise(shards)] == [4, 0]
    assert ensemble.tables()["skips_by_image"]["shard"].to_pylist() == shards[1].tolist()


def near_threshold(tmp_path, make, **train):
    """Return a shard whose first batch has 2 samples below the limit, 3 near and 3 far above, and
    those losses."""
    job = make(tmp_path, {"shards": 1, "augment_below": 2.0}, batch_size=8, clip=None, **train)
    shard = lone_shard(job)
    batch = first_batch(shard)
    losses = job.task.losses(shard.learner.net, batch).detach()
    aimed = torch.tensor([0.5, 1.5, 3.0, 1.5, 0.5, 3.0, 1.5, 3.0])  # loss over limit
    assert len(set(batch.timesteps.tolist())) == 8
    shard.bank.level[batch.timesteps] = 2 * losses / aimed
    return shard, batch, losses, aimed


@pytest.mark.parametrize("accumulation", [1, 2])
def test_samples_just_above_the_limit_are_learned_from_as_augmented(accumulation, tmp_path, make):
    shard, batch, losses, aimed = near_threshold(tmp_path, make, accumulation=accumulation)
    fresh = lone_shard(shard.job).learner.net
    varied = shard._varied(0)
    assert torch.equal(varied.timesteps, batch.timesteps)
    assert torch.equal(varied.target, batch.target)
    assert not torch.equal(varied.noisy, batch.noisy)
    expected_bank = 0.8 * shard.bank.level[batch.timesteps] + (1 - 0.8) * losses
    values = shard.update(0)
    plain, changed = shard.job.task.losses(fresh, batch), shard.job.task.losses(fresh, varied)
    mixed = torch.where(aimed == 1.5, changed, plain)[aimed > 1].mean()
    mixed.backward()
    assert values["loss"] == pytest.approx(mixed.item(), rel=1e-5)
    assert (values["skipped"], values["augmented"]) == (2 / 8, 3 / 8)
    torch.testing.assert_close(shard.bank.level[batch.timesteps], expected_bank)
    for one, other in zip(shard.learner.net.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


# ---- the same bits -------------------------------------------------------------------------------

RESUMED = {
    "as released": {},
    "all averaged": {"bank_scope": "global", "optimizer_sync": "average", "sharding": "random"},
    "plus": {
        "optimizer_sync": "reset",
        "on_all_skipped": "skip",
        "redistribute_above": 0.3,
        "augment_below": 1.5,
    },
}


@pytest.mark.parametrize("variant", RESUMED)
def test_stopped_after_every_local_step_it_ends_with_the_same_bits(
    variant, tmp_path, make, stop_after, curves
):
    """IET-AGC invariant 11: two rounds of three local steps, stopped within a round and right at
    the averaging (s = 2)."""
    settings = {
        "arm": {"agc_threshold": 0.9, "bank_decay": 0.0} | RESUMED[variant],
        "timesteps": 3,
        "dropout": 0.1,
        "log_every": 4,
    }
    job = make(tmp_path / "whole", **settings)
    whole = train.train(job)
    assert whole.spent.kept_samples < whole.spent.images_seen
    for s in range(5):
        stop_after(s)
        with pytest.raises(SystemExit) as left:
            train.train(make(tmp_path / "stopped", **settings))
        assert left.value.code == 75
    again = make(tmp_path / "stopped", **settings)
    resumed = train.train(again)
    assert resumed.progress.resumed_at == [1, 2, 3, 4, 5]
    assert_same(whole, resumed)
    assert curves(again.store.curves) == curves(job.store.curves)
    for name, table in whole.tables.items():
        assert table.equals(resumed.tables[name])
    if variant == "plus":
        start = Ensemble(make(tmp_path / "start", **settings)).shard_of
        assert (whole.tables["skips_by_image"]["shard"].to_numpy() != start).any()


def test_divergence_names_the_shard(tmp_path, make, monkeypatch):
    job = make(tmp_path)
    original, broken = job.task.losses, Ensemble(job).own[1].rows

    def spoil(batch):
        return torch.where(torch.isin(batch.rows, torch.from_numpy(broken)), torch.nan, 1.0)

    monkeypatch.setattr(job.task, "losses", lambda net, batch: original(net, batch) * spoil(batch))
    with pytest.raises(
        DivergedError,
        match="at update 1 the loss or the gradient is not finite in shard 1; no state",
    ):
        train.train(job)


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one_and_take_up_each_others_states(
    tmp_path, study, curves, in_two_processes
):
    """A signal to the second process stops both after the same local step; the state is finished by
    two, and again by one."""
    arm = {
        "method": "iet_agc",
        "shards": 3,
        "rounds": 2,
        "agc_threshold": 0.9,
        "redistribute_above": 0.3,
        "augment_below": 1.5,
    }
    arm |= {"bank_scope": "global", "optimizer_sync": "average"}
    one, two, taken = (
        study(arm, out=out, updates=18, log_every=1) for out in ("one", "two", "taken")
    )
    first, second = in_two_processes(
        "afterimage.methods.iet_agc.train:Ensemble.update", [str(tmp_path / "kept"), *two]
    )
    assert "stopped by a signal to another process after update 4" in first
    assert "update" not in second
    assert cli.main(one) == 0
    shutil.copytree(tmp_path / "kept", tmp_path / "state", dirs_exist_ok=True)
    assert cli.main(taken) == 0
    runs = {out: artifacts.check_store(tmp_path / out) for out in ("one", "two", "taken")}
    assert [runs[out]["facts"]["processes"] for out in runs] == [1, 2, 1]
    assert [runs[out]["facts"]["resumed_at"] for out in runs] == [[], [4], [4]]
    for run in runs.values():
        run["outputs"].pop("metrics.jsonl")
    assert runs["one"]["outputs"] == runs["two"]["outputs"] == runs["taken"]["outputs"]
    assert {"tables/skips_by_image.parquet", "tables/skips_by_timestep.parquet"} < runs["one"][
        "outputs"
    ].keys()
    lines = [curves(tmp_path / out / "metrics.jsonl") for out in runs]
    assert lines[0] == lines[1] == lines[2]
    assert not list((tmp_path / "state").iterdir())


def test_copies_of_an_image_are_learned_in_one_shard_by_source(tmp_path, make):
    sources = np.array([0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    job = make(tmp_path, {"sharding": "by_source"}, sources=sources)
    shard = train.train(job).tables["skips_by_image"]["shard"].to_numpy()
    assert len(set(shard[:3])) == len(set(shard[3:5])) == 1
    assert sorted(np.bincount(shard)) == [6, 7]


def test_methods_that_train_in_one_process_say_so(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "count", lambda: 2)
    assert cli.main(study({"method": "dp_sgd", "noise_multiplier": 1.0})) == 2
    assert "started with 2 processes, but method dp_sgd trains in one" in capsys.readouterr().err
    monkeypatch.setattr(distributed, "count", lambda: 3)
    assert cli.main(study({"method": "iet_agc", "shards": 2, "rounds": 1}, updates=2)) == 2
    assert "started with 3 processes, but there are only shards = 2" in capsys.readouterr().err


def test_first_losses_are_those_on_record(make, tmp_path, series, golden):
    arm = {"shards": 2, "rounds": 4, "agc_threshold": 0.9}
    settings = {
        "images": 40,
        "updates": 40,
        "batch_size": 8,
        "log_every": 1,
        "condition": "label",
        "flips": True,
    }
    job = make(tmp_path, arm, timesteps=10, **settings)
    train.train(job)
    found = {name: series(job.store.curves)[name] for name in ("loss", "skipped")}
    assert len(found["loss"]) == 20
    assert found["skipped"] == golden("iet_agc", found)["skipped"]
