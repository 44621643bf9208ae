"""Two networks that share the timesteps, and plain training with blocks: what is drawn, what is
spent, what is kept."""

import os
import signal
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from hypothesis import given
from hypothesis import strategies as st

from afterimage import artifacts, cli
from afterimage.config import ConfigError, Loyal, Model, TransferBlocks
from afterimage.diffusion.model import build_unet, save_pipeline
from afterimage.diffusion.rau_net import RAUNet
from afterimage.diffusion.router import TimestepRouter
from afterimage.diffusion.sample import load_denoiser
from afterimage.methods import baseline, loyal
from afterimage.training.learner import Learner

BLOCKS = {"groups": [2], "variant": "trained_random"}
LOYAL = {
    "method": "loyal",
    "condition": "none",
    "switch_timestep": 500,
    "budget": "matched_total",
    "rau_net": BLOCKS,
}
FROZEN = {"groups": [1], "variant": "frozen_fixed"}


def weights(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def settings(**keys) -> Loyal:
    return Loyal.model_validate(
        {"method": "loyal", "switch_timestep": 500, "budget": "matched_total"} | keys
    )


# ---- timesteps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0, 3), (3, 5), (997, 1000)])
def test_timesteps_come_from_their_range_and_reach_its_ends(low, high, tmp_path, make_job):
    """Loyal known answer 7: 10^5 draws, none outside, both boundary values among them."""
    task = make_job(tmp_path).task
    rows = np.zeros(100_000, np.int64)
    drawn = task.batch(rows, torch.Generator().manual_seed(0), timesteps=(low, high)).timesteps
    assert drawn.unique().tolist() == list(range(low, high))


def test_the_whole_range_is_what_is_drawn_without_one(tmp_path, make_job):
    task = make_job(tmp_path).task
    rows = np.arange(13)
    one = task.batch(rows, torch.Generator().manual_seed(0))
    other = task.batch(rows, torch.Generator().manual_seed(0), timesteps=(0, 1000))
    assert torch.equal(one.timesteps, other.timesteps)
    assert torch.equal(one.noisy, other.noisy)


@pytest.mark.parametrize(
    ("tau", "ranges"),
    [(300, {"front": (0, 300), "tail": (300, 1000)}), (1000, {"front": (0, 1000)})],
)
def test_each_network_is_shown_its_own_timesteps_only(tau, ranges, tmp_path, make_job, monkeypatch):
    job = make_job(tmp_path, arm=LOYAL | {"switch_timestep": tau}, updates=20, batch_size=16)
    seen: dict[str, list[int]] = {}
    original = job.task.losses

    def losses(net, batch):
        seen.setdefault("tail" if isinstance(net, RAUNet) else "front", []).extend(
            batch.timesteps.tolist()
        )
        return original(net, batch)

    monkeypatch.setattr(job.task, "losses", losses)
    loyal.train(job)
    assert seen.keys() == ranges.keys()
    for name, (low, high) in ranges.items():
        assert low <= min(seen[name]) < low + (high - low) / 4
        assert high - (high - low) / 4 < max(seen[name]) < high


# ---- budget --------------------------------------------------------------------------------------


@given(updates=st.integers(2, 10**6), tau=st.integers(0, 1000))
def test_matched_total_spends_the_budget_in_proportion_to_the_timesteps(updates, tau):
    """Loyal known answer 11."""
    try:
        shares = loyal.budgets(updates, settings(switch_timestep=tau), 1000)
    except ConfigError:
        assert updates * min(tau, 1000 - tau) / 1000 <= 0.5
        return
    assert sum(shares.values()) == updates
    assert abs(shares["front"] - updates * tau / 1000) <= 0.5


@pytest.mark.parametrize(
    ("tau", "expected"), [(0, (0, 7)), (1, (7, 7)), (500, (7, 7)), (1000, (7, 0))]
)
def test_literal_gives_the_whole_budget_to_each_network_with_timesteps(tau, expected):
    """Loyal known answer 11. This is the published reading, and the default."""
    arm = Loyal(method="loyal", switch_timestep=tau)
    assert tuple(loyal.budgets(7, arm, 1000).values()) == expected


def test_a_budget_that_leaves_a_network_untrained_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"7 updates, shared at switch_timestep = 20 of 1000, leaves none for the front "
        r"network",
    ):
        loyal.budgets(7, settings(switch_timestep=20), 1000)


@pytest.mark.parametrize(
    ("tau", "budget", "front", "tail"),
    [(500, "matched_total", 4, 4), (250, "matched_total", 2, 6), (250, "literal", 8, 8)],
)
def test_what_was_spent_is_recorded(tau, budget, front, tail, tmp_path, make_job):
    """Loyal known answer 11: updates and images seen, in all and by network."""
    result = loyal.train(
        make_job(tmp_path, arm=LOYAL | {"switch_timestep": tau, "budget": budget}, updates=8)
    )
    seen = 4 * (front + tail)
    assert asdict(result.spent) == {
        "updates": front + tail,
        "updates_per_model": max(front, tail),
        "images_seen": seen,
        "kept_samples": seen,
        "backward_passes": front + tail,
    }
    assert result.facts == {
        "updates_front": front,
        "updates_tail": tail,
        "images_seen_front": 4 * front,
        "images_seen_tail": 4 * tail,
    }


# ---- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "front", "tail"),
    [
        ({}, UNet2DModel, RAUNet),
        ({"blocks_in": "front"}, RAUNet, UNet2DModel),
        ({"blocks_in": "both"}, RAUNet, RAUNet),
        ({"rau_net": None}, UNet2DModel, UNet2DModel),
    ],
)
def test_the_networks_that_were_asked_for_get_blocks(arm, front, tail, tmp_path, make_job):
    result = loyal.train(make_job(tmp_path, arm=LOYAL | arm, updates=2))
    for router in (result.raw, result.average):
        assert (type(router.front), type(router.tail), router.switch_timestep) == (front, tail, 500)


def test_both_networks_start_alike_and_blocks_apart(tmp_path, make_job, monkeypatch):
    starts = []
    monkeypatch.setattr(
        Learner,
        "update",
        lambda self, s, batch, objective: (
            starts.append((self.net, weights(self.net))) or {"loss": 0.0}
        ),
    )
    loyal.train(make_job(tmp_path, arm=LOYAL, updates=2))
    (front, one), (tail, other) = starts
    assert front is not tail
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert {name.split(".")[0] for name in other.keys() - one.keys()} == {"transfers"}


@pytest.mark.parametrize(("tau", "idle", "busy"), [(0, "front", "tail"), (1000, "tail", "front")])
def test_a_network_without_timesteps_stays_as_it_was(tau, idle, busy, tmp_path, make_job):
    job = make_job(tmp_path, arm=LOYAL | {"switch_timestep": tau})
    result = loyal.train(job)
    blocks = job.arm.rau_net if idle == "tail" else None
    assert equal(getattr(result.raw, idle), job.build(blocks, "init"))
    assert equal(getattr(result.average, idle), job.build(blocks, "init"))
    assert not equal(
        getattr(result.raw, busy), job.build(None if idle == "tail" else job.arm.rau_net, "init")
    )


def test_a_whole_range_network_is_the_baseline_with_another_order(tmp_path, make_job):
    """With tau = T nothing but the address of its random streams sets the front network apart from
    plain training."""
    job = make_job(tmp_path / "loyal", arm=LOYAL | {"switch_timestep": 1000, "rau_net": None})
    result = loyal.train(job)
    plain = make_job(tmp_path / "plain")
    plain = type(plain)(
        **{**vars(plain), "path": (*plain.path, "front"), "net": plain.build(None, "init")}
    )
    assert equal(result.raw.front, baseline.train(plain).raw)


# ---- starting from another arm -------------------------------------------------------------------


def no_updates(monkeypatch) -> None:
    monkeypatch.setattr(Learner, "update", lambda self, s, batch, objective: {"loss": 0.0})


def test_both_networks_start_from_a_single_base(tmp_path, make_job, monkeypatch):
    base = make_job(tmp_path / "base").build(None, "another")
    save_pipeline(base, make_job(tmp_path / "base").scheduler, tmp_path / "pipeline")
    no_updates(monkeypatch)
    job = make_job(tmp_path / "loyal", arm=LOYAL | {"base": "plain"}, base=tmp_path / "pipeline")
    result = loyal.train(job)
    assert equal(result.raw.front, base)
    tail, start = result.raw.tail.state_dict(), job.build(job.arm.rau_net, "init").state_dict()
    for name, value in tail.items():
        assert torch.equal(
            value, start[name] if name.startswith("transfers.") else base.state_dict()[name]
        )


@pytest.fixture
def three_levels(make_job, tmp_path):
    """Return a function that builds a run of plain fine-tuning on a network of three levels, with
    or without blocks; it starts from one and the same base."""
    model = Model(channels=[8, 8, 16], attention=[False] * 3, layers_per_block=1, norm_groups=4)
    trained = build_unet(model, (8, 8, 1), seed=9)
    save_pipeline(trained, make_job(tmp_path / "base").scheduler, tmp_path / "pipeline")

    def make(name, rau_net=None):
        blocks = None if rau_net is None else TransferBlocks.model_validate(rau_net)
        arm = {"base": "plain"}
        job = make_job(tmp_path / name, arm=arm, base=tmp_path / "pipeline", log_every=1)
        return replace(job, net=build_unet(model, (8, 8, 1), seed=2, blocks=blocks))

    return make


@pytest.mark.parametrize("groups", [[2, 3], [0, 1]], ids=["deepest", "shallow"])
def test_identity_blocks_in_a_trained_network_change_nothing_at_first(groups, three_levels, series):
    """The first loss has plain fine-tuning's bits; what follows is another training. Random blocks
    (the paper's) hurt at once."""
    losses = {}
    for variant in ("without", "none", "trained_identity", "trained_random"):
        blocks = None if variant == "without" else {"groups": groups, "variant": variant}
        job = three_levels(variant, blocks)
        result = baseline.train(job)
        losses[variant] = series(job.store.curves)["loss"]
        blocks = [name for name in weights(result.raw) if name.startswith("transfers.")]
        assert bool(blocks) == variant.startswith("trained")
    plain, none, identity, random = losses.values()
    assert none == plain
    assert identity[0] == plain[0]
    assert identity[1:] != plain[1:]
    assert abs(random[0] - plain[0]) > 1e-4


def test_each_network_starts_from_its_own_where_the_base_has_two(tmp_path, make_job, monkeypatch):
    first = make_job(tmp_path / "base", arm=LOYAL)
    save_pipeline(loyal.train(first).average, first.scheduler, tmp_path / "pipeline")
    base, _ = load_denoiser(tmp_path / "pipeline")
    no_updates(monkeypatch)
    result = loyal.train(
        make_job(tmp_path / "again", arm=LOYAL | {"base": "loyal"}, base=tmp_path / "pipeline")
    )
    assert equal(result.raw, base)


# ---- stopped and started again -------------------------------------------------------------------


@pytest.fixture
def stop_after(monkeypatch):
    """Return a function that has the process send itself SIGTERM in its n-th call of
    ``Learner.update`` from now (from 1)."""
    original = Learner.update

    def arrange(calls: int) -> None:
        count = 0

        def update(self, s, batch, objective):
            nonlocal count
            count += 1
            if count == calls:
                monkeypatch.setattr(Learner, "update", original)
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, s, batch, objective)

        monkeypatch.setattr(Learner, "update", update)

    return arrange


VARIANTS = {
    "in the tail": {"arm": LOYAL},
    "literal, frozen blocks in both, dropout": {
        "arm": LOYAL | {"budget": "literal", "blocks_in": "both", "rau_net": FROZEN},
        "dropout": 0.2,
        "updates": 4,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_in_either_network_it_ends_with_the_same_bits(
    variant, tmp_path, make_job, stop_after, curves
):
    """Also right between the two, and after the first update of the second."""
    options = {"updates": 8} | VARIANTS[variant]
    job = make_job(tmp_path / "whole", **options)
    whole = loyal.train(job)
    assert whole.progress.update == 8
    for calls in (2, 4, 5, 7):
        stop_after(calls)
        with pytest.raises(SystemExit) as left:
            loyal.train(make_job(tmp_path / str(calls), **options))
        assert left.value.code == 75
        again = make_job(tmp_path / str(calls), **options)
        resumed = loyal.train(again)
        assert resumed.progress.resumed_at == [calls]
        assert equal(resumed.raw, whole.raw)
        assert equal(resumed.average, whole.average)
        assert curves(again.store.curves) == curves(job.store.curves)


@pytest.mark.parametrize("variant", ["trained_random", "frozen_redrawn", "maxpool"])
def test_plain_training_with_blocks_goes_on_with_the_same_bits(
    variant, tmp_path, make_job, stop_at
):
    arm = {"rau_net": {"groups": [2], "variant": variant}}
    whole = baseline.train(make_job(tmp_path / "whole", arm=arm))
    stop_at(3)
    with pytest.raises(SystemExit):
        baseline.train(make_job(tmp_path / "stopped", arm=arm))
    resumed = baseline.train(make_job(tmp_path / "stopped", arm=arm))
    assert equal(resumed.raw, whole.raw)
    assert equal(resumed.average, whole.average)


# ---- blocks in training --------------------------------------------------------------------------


def test_the_optimiser_and_the_average_hold_every_trained_block(tmp_path, make_job):
    """RAU-Net known answer 1: a block outside the optimiser's groups, or the average, is the
    released code's defect."""
    job = make_job(tmp_path, arm={"rau_net": BLOCKS}, ema=0.5)
    start = weights(job.net)
    learner = Learner(job.net, job.train, job.accelerator)
    optimised = {
        id(weight) for group in learner.optimizer.param_groups for weight in group["params"]
    }
    blocks = dict(job.net.transfers.named_parameters(prefix="transfers"))
    assert len(blocks) == 2
    assert optimised >= {id(weight) for weight in blocks.values()}
    result = baseline.train(make_job(tmp_path, arm={"rau_net": BLOCKS}, ema=0.5))
    for name in blocks:
        last, mean = result.raw.state_dict()[name], result.average.state_dict()[name]
        assert not torch.equal(last, start[name])
        assert not torch.equal(mean, start[name])
        assert not torch.equal(mean, last)


@pytest.mark.parametrize("variant", ["frozen_fixed", "frozen_redrawn"])
def test_frozen_blocks_neither_move_nor_drift_in_the_average(variant, tmp_path, make_job):
    job = make_job(
        tmp_path,
        arm={"rau_net": {"groups": [1, 2], "variant": variant}},
        weight_decay=0.1,
        accumulation=2,
    )
    start = weights(job.net)
    result = baseline.train(job)
    for name, value in start.items():
        for net in (result.raw, result.average):
            assert torch.equal(net.state_dict()[name], value) == name.startswith("transfers."), name


@given(st.data())
def test_both_networks_have_spent_the_same_share_at_any_time(data):
    updates = data.draw(st.integers(1, 200))
    front = data.draw(st.integers(0, updates))
    turns = [loyal.turn(s, front, updates) for s in range(updates)]
    for name, budget in (("front", front), ("tail", updates - front)):
        assert [step for net, step in turns if net == name] == list(range(budget))
    spent = np.cumsum([net == "front" for net, _ in turns])
    assert (np.abs(spent - np.arange(1, updates + 1) * front / updates) < 1).all()


# ---- golden --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method", "arm"),
    [
        ("rau_net", baseline, {"rau_net": {"groups": [1, 2]}}),
        ("loyal", loyal, LOYAL | {"condition": "label"}),
    ],
)
def test_first_losses_are_those_on_record(name, method, arm, tmp_path, make_job, series, golden):
    job = make_job(
        tmp_path,
        images=64,
        updates=20,
        batch_size=16,
        log_every=1,
        condition="label",
        flips=True,
        arm=arm,
    )
    method.train(job)
    found = series(job.store.curves)["loss"]
    assert len(found) == 20
    if name == "loyal":  # on record, the front network's losses come first
        found = [
            loss
            for net in ("front", "tail")
            for s, loss in enumerate(found)
            if loyal.turn(s, 10, 20)[0] == net
        ]
    golden(name, {"losses": found})


# ---- through the command -------------------------------------------------------------------------


def test_a_finished_run_is_a_pipeline_of_two_networks(study, tmp_path):
    command = study(LOYAL | {"switch_timestep": 600}, updates=5)
    assert cli.main(command) == 0
    run = artifacts.check_store(tmp_path / "out")
    assert (
        run["facts"].items()
        >= {"updates": 5, "updates_front": 3, "updates_tail": 2, "images_seen": 20}.items()
    )
    for folder in ("pipeline", "raw"):
        router, _ = load_denoiser(tmp_path / "out" / folder)
        assert isinstance(router, TimestepRouter)
        assert router.config["switch_timestep"] == 600
        assert run["facts"]["parameters"] == router.num_parameters()
