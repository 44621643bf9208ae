"""ESD: the target, what it is made at, which weights follow it."""

from dataclasses import replace

import pytest
import torch

from afterimage.config import Sample
from afterimage.diffusion.model import load_weights, null_of
from afterimage.diffusion.sample import denoise
from afterimage.methods import esd
from afterimage.methods.esd import Erasing, guided_away
from afterimage.methods.unlearning import Sides

TEXT = "encoder_hidden_states"
ARM = {"method": "esd", "steps": 3, "inputs": "noised"}


@pytest.fixture
def erasing(unlearner, tmp_path):
    """Return a function that builds a run and its batches, with the base as both networks."""

    def make(condition="label", **arm):
        job = unlearner(tmp_path / "batches", ARM | arm, condition)
        load_weights(job.net, job.base)
        job.net.eval()
        return job, Erasing(job, job.net, job.net)

    return make


def own_and_null(job, rows):
    """Return the conditions of forgotten images, and those without."""
    if job.task.texts is None:
        return (
            {"class_labels": torch.zeros(len(rows), dtype=torch.int64)},
            {"class_labels": torch.full((len(rows),), 10)},
        )
    texts = job.task.texts[0]
    return (
        {TEXT: torch.stack([texts.embedding("zero")] * len(rows))},
        {TEXT: torch.stack([texts.null] * len(rows))},
    )


def test_target_by_hand(unlearner, tmp_path):
    job = unlearner(tmp_path, ARM)
    conditional, unconditional = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 2.0])
    for start, eta, wanted in (
        ("empty", 1.0, [-1.0, 5.0]),
        ("empty", 0.0, [1.0, 2.0]),
        ("condition", 2.0, [-1.0, 5.0]),
        ("condition", 0.0, [3.0, -1.0]),
    ):
        arm = job.arm.model_copy(update={"guided_from": start, "negative_guidance": eta})
        assert guided_away(conditional, unconditional, arm).tolist() == wanted


@pytest.mark.parametrize("condition", ["label", "text"])
@pytest.mark.parametrize("inputs", ["noised", "current"])
def test_targets_are_the_base_s_predictions_for_the_forgotten_and_for_none(
    inputs, condition, erasing
):
    job, batches = erasing(condition, inputs=inputs, negative_guidance=1.5)
    batch = batches.batch(2)
    own, null = own_and_null(job, batch.rows)
    assert job.forgotten[batch.rows].all()
    for name, given in own.items():
        assert torch.equal(batch.condition[name], given)
    with torch.no_grad():
        predictions = [
            job.task.predict(job.net, replace(batch, condition=given)) for given in (own, null)
        ]
    wanted = predictions[1] - 1.5 * (predictions[0] - predictions[1])
    torch.testing.assert_close(batch.target, wanted)
    assert (predictions[0] - predictions[1]).abs().max() > 1e-4


def test_noised_inputs_are_forgotten_images(erasing):
    job, batches = erasing()
    batch, noised = batches.batch(1), Sides(job, ("forget",)).batch("forget", 1)
    assert torch.equal(batch.noisy, noised.noisy)
    assert torch.equal(batch.timesteps, noised.timesteps)


@pytest.mark.parametrize("condition", ["label", "text"])
def test_inputs_are_drawn_by_guided_ddim_up_to_a_random_step(condition, erasing):
    """Against sampling with as many steps, cut off by a scheduler of the test's own."""
    job, batches = erasing(condition, inputs="initial")
    steps = [batches.step(s) for s in range(60)]
    assert set(steps) == {0, 1, 2}
    s = steps.index(2)
    batch = batches.batch(s)
    assert set(batch.timesteps.tolist()) == {int(batches.timesteps[2])}
    own, null = own_and_null(job, batch.rows)
    x = torch.randn(
        batch.noisy.shape, generator=esd.seeds.torch_rng(job.seed, *job.path, "start", s)
    )
    scheduler = esd.DDIMScheduler.from_config(dict(job.scheduler.config))
    scheduler.set_timesteps(3)
    with torch.no_grad():
        for t in scheduler.timesteps[:2]:
            conditional, unconditional = (
                job.net(x, t, return_dict=False, **given)[0] for given in (own, null)
            )
            guided = unconditional + 3 * (conditional - unconditional)
            x = scheduler.step(guided, t, x, return_dict=False)[0]
    torch.testing.assert_close(batch.noisy, x, rtol=1e-4, atol=1e-4)
    first = batches.batch(steps.index(0))
    assert set(first.timesteps.tolist()) == {int(batches.timesteps[0])}
    assert first.noisy.std() == pytest.approx(1, abs=0.2)


def test_all_steps_are_the_whole_sampling(erasing):
    job, _ = erasing()
    settings = Sample(images=1, sampler="ddim", steps=3, guidance=1.0)
    start = torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    given = [job.net, dict(job.scheduler.config), start, [torch.Generator()] * 4, settings]
    given += [torch.zeros(4, dtype=torch.int64), null_of(job.net)]
    assert torch.equal(denoise(*given), denoise(*given, until=3))
    assert not torch.equal(denoise(*given), denoise(*given, until=2))


def test_the_network_in_training_draws_as_published_and_the_base_in_the_later_code(
    unlearner, tmp_path
):
    noisy = {}
    for inputs in ("current", "initial"):
        job = unlearner(tmp_path / inputs, ARM | {"inputs": inputs})
        load_weights(job.net, job.base)
        other = unlearner(tmp_path / "untrained", ARM).net
        batches = Erasing(job, other.eval(), job.net.eval())
        s = next(s for s in range(60) if batches.step(s) == 2)
        noisy[inputs] = batches.batch(s).noisy
        if inputs == "current":
            batches.current = job.net
            assert not torch.equal(noisy[inputs], batches.batch(s).noisy)
            swapped = batches.batch(s).noisy
    assert torch.equal(swapped, noisy["initial"])


# ---- the updates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", ["label", "text"])
def test_without_guidance_the_base_is_the_fixed_point(condition, unlearner, tmp_path, series):
    """eta = 0: from the condition's own prediction the loss is zero at the start; from the
    unconditional one it is what the two predictions differ by."""
    losses = {}
    for start in ("condition", "empty"):
        arm = ARM | {"negative_guidance": 0.0, "guided_from": start}
        job = unlearner(tmp_path / start, arm, condition, updates=1, log_every=1)
        esd.train(job)
        losses[start] = series(job.store.curves)["loss"][0]
    assert losses["condition"] < 1e-10
    assert losses["empty"] > 1e-6


def chooses(trainable: str, name: str) -> bool:
    crossing = "attn2" in name
    other = crossing or name.startswith(("time_embedding", "conv_norm_out", "conv_out"))
    return {"full": True, "cross_attention": crossing, "noxattn": not other}[trainable]


@pytest.mark.parametrize("trainable", ["full", "noxattn", "cross_attention"])
def test_only_the_chosen_weights_move_even_under_weight_decay(trainable, unlearner, tmp_path):
    arm = ARM | {"trainable": trainable}
    job = unlearner(tmp_path / "state", arm, "text", weight_decay=0.5, updates=2)
    base = unlearner(tmp_path / "other", arm, "text").net
    load_weights(base, job.base)
    result = esd.train(job)
    start, moved = base.state_dict(), 0
    for net in (result.raw, result.average):
        for name, value in net.named_parameters():
            chosen = chooses(trainable, name)
            if not chosen:
                assert torch.equal(value, start[name]), name
            moved += int(chosen and not torch.equal(value, start[name]))
    count = sum(value.numel() for name, value in start.items() if chooses(trainable, name))
    assert result.facts["trained_weights"] == count
    assert moved > 0.9 * 2 * sum(1 for value in result.raw.parameters() if value.requires_grad)


def test_what_it_costs(unlearner, tmp_path):
    job = unlearner(tmp_path, ARM | {"inputs": "current"})
    result = esd.train(job)
    batches = Erasing(job, job.net, job.net)
    assert result.spent.backward_passes == result.spent.updates == 7
    steps = sum(batches.step(s) for s in range(7))
    assert steps > 0
    assert result.facts["forward_only_passes"] == 2 * 7 + 2 * steps


@pytest.mark.parametrize("inputs", ["noised", "current"])
def test_stopped_after_any_update_it_ends_with_the_same_bits(
    inputs, unlearner, tmp_path, same_bits_after_stops
):
    def job(folder: str):
        arm = ARM | {"inputs": inputs, "trainable": "cross_attention"}
        return unlearner(tmp_path / folder, arm, "text", dropout=0.2, updates=3)

    same_bits_after_stops(esd.train, job, range(1, 2))


def test_first_losses_are_those_on_record(unlearner, series, tmp_path, golden):
    found = {}
    for condition in ("label", "text"):
        arm = ARM | {"inputs": "current"}
        settings = {"updates": 10, "batch_size": 8, "log_every": 1, "learning_rate": 1e-4}
        job = unlearner(tmp_path / condition, arm, condition, **settings)
        esd.train(job)
        found[condition] = series(job.store.curves)["loss"]
    golden("esd", found, rel=1e-4)
