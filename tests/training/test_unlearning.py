"""What the unlearning methods share: the two sides, wrong labels, a base to start from, and the
sets as the command line has them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from afterimage import artifacts, cli
from afterimage.artifacts import ArtifactError
from afterimage.diffusion.model import load_weights, save_pipeline
from afterimage.diffusion.noising import Pixels
from afterimage.methods import baseline, erasediff, find, gradient_ascent
from afterimage.methods.unlearning import Sides, gradients, loss_of, seed_dropout, wrong_labels
from afterimage.training.learner import Learner, NonFiniteError, plain

ASCENT = {"method": "gradient_ascent"}
ERASE = {"method": "erasediff"}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def sides(unlearner, tmp_path):
    return Sides(unlearner(tmp_path / "state", ASCENT, label_dropout=0.5))


def test_each_side_passes_over_its_own_images_without_replacement(sides):
    for side, wanted in sides.rows.items():
        assert len(wanted) % 4  # so that batches span epochs
        rows = np.concatenate([sides.batch(side, s).rows.numpy() for s in range(len(wanted))])
        assert len(rows) == 4 * len(wanted)
        assert (np.bincount(rows, minlength=40)[wanted] == 4).all()
    assert sorted([*sides.rows["forget"], *sides.rows["remain"]]) == list(range(40))


def test_timesteps_and_noise_of_the_two_sides_are_unrelated(sides):
    forget, remain = sides.batch("forget", 3), sides.batch("remain", 3)
    assert not torch.equal(forget.timesteps, remain.timesteps)
    assert (forget.target - remain.target).abs().min() > 0


def test_keeping_the_labels_changes_nothing_else(sides):
    dropped, kept = sides.batch("remain", 1), sides.batch("remain", 1, keep_labels=True)
    for name in ("rows", "noisy", "timesteps", "target"):
        assert torch.equal(getattr(dropped, name), getattr(kept, name))
    assert (dropped.condition["class_labels"] == 10).any()
    assert torch.equal(kept.condition["class_labels"], sides.task.labels[kept.rows])


@pytest.mark.parametrize(
    ("forgotten", "side"), [(np.zeros(40, bool), "forget"), (np.ones(40, bool), "remain")]
)
def test_a_side_without_images_is_refused(forgotten, side, unlearner, tmp_path):
    with pytest.raises(ArtifactError, match=f"40 training images hold none to {side}"):
        Sides(unlearner(tmp_path / "state", ASCENT, forgotten=forgotten))


@pytest.mark.parametrize("own", range(10))
def test_wrong_labels_are_uniform_over_the_other_labels(own):
    """EraseDiff invariant 7, for every class: the right label is never drawn, and each other one at
    its rate."""
    generator = torch.Generator().manual_seed(own)
    drawn = torch.bincount(wrong_labels(torch.full((9000,), own), 10, generator), minlength=10)
    assert drawn[own] == 0
    others = drawn[torch.arange(10) != own]
    assert (others - 1000).abs().max() < 4.5 * (9000 * (1 / 9) * (8 / 9)) ** 0.5


def test_one_draw_gives_a_class_one_wrong_label_and_all_of_them_in_turn():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([3, 3, 7, 3])
    drawn = torch.stack([wrong_labels(labels, 10, generator, one_draw=True) for _ in range(300)])
    assert (drawn[:, [1, 3]] == drawn[:, :1]).all()
    assert (drawn != labels).all()
    assert set(drawn[:, 0].tolist()) == set(range(10)) - {3}
    assert set(drawn[:, 2].tolist()) == set(range(10)) - {7}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_loss_without_a_gradient_is_the_loss_with_one(accumulation, unlearner, tmp_path):
    job = unlearner(tmp_path / "state", ASCENT, dropout=0.3, accumulation=accumulation)
    learner, sides = Learner(job.net, job.train, job.accelerator), Sides(job)
    batch = sides.batch("forget", 0)
    seed_dropout(sides, 0, "forget")
    expected = learner.gradient(batch, plain(job.task))
    before = gradients(learner.net)
    seed_dropout(sides, 0, "forget")
    assert loss_of(learner, job.task, batch) == expected
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(learner.net), strict=True))
    seed_dropout(sides, 0, "remain")
    assert loss_of(learner, job.task, batch) != expected
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        loss_of(learner, job.task, dataclasses.replace(batch, target=batch.target * float("nan")))


def test_gradients_are_copies_of_those_that_there_are(unlearner, tmp_path):
    job = unlearner(tmp_path / "state", ASCENT)
    frozen = job.net.conv_in
    frozen.requires_grad_(False)
    learner = Learner(job.net, job.train, job.accelerator)
    learner.gradient(Sides(job).batch("forget", 0), plain(job.task))
    found = gradients(job.net)
    assert len(found) == len(list(job.net.parameters())) - len(list(frozen.parameters()))
    kept = [gradient.clone() for gradient in found]
    for weight in job.net.parameters():
        if weight.grad is not None:
            weight.grad.zero_()
    assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))


@pytest.mark.parametrize(
    ("module", "arm"),
    [
        (erasediff, ERASE | {"barrier": "fixed", "weight": 0.0}),
        (gradient_ascent, ASCENT | {"remain": 1.0}),
    ],
    ids=["erasediff", "gradient_ascent"],
)
def test_without_a_push_it_is_fine_tuning_on_the_rest_step_for_step(
    module, arm, unlearner, make_job, digits, tmp_path, curves
):
    """EraseDiff invariant 6: lambda = 0."""
    job = unlearner(tmp_path / "a", arm, dropout=0.2, log_every=1)
    found = module.train(job)

    plain_job = make_job(
        tmp_path / "b", "label", images=40, dropout=0.2, base=job.base, log_every=1
    )
    rest = digits[1][:40] != 0
    task = Pixels(
        digits[0][:40][rest], job.scheduler, digits[1][:40][rest], 10, job.train.label_dropout
    )
    tuned = baseline.train(dataclasses.replace(plain_job, task=task, path=(*job.path, "remain")))
    for mine, other in ((found.raw, tuned.raw), (found.average, tuned.average)):
        assert all(
            torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters(), strict=True)
        )
    assert [
        r for r in curves(job.store.curves) if r["name"] in ("loss", "grad_norm", "learning_rate")
    ] == curves(plain_job.store.curves)


@pytest.mark.parametrize("module", [erasediff, gradient_ascent])
def test_weights_and_their_average_start_at_the_base(module, unlearner, tmp_path):
    method = module.__name__.rpartition(".")[2]
    assert find(method) is module
    job = unlearner(tmp_path / "state", {"method": method}, updates=1, learning_rate=1e-12, ema=0.5)
    result = module.train(job)
    start = unlearner(tmp_path / "other", {"method": method}).net
    assert not torch.equal(start.conv_in.weight, result.raw.conv_in.weight)
    load_weights(start, job.base)
    for net in (result.raw, result.average):
        for a, b in zip(start.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def extraction_store(folder, sources):
    """Write what the extraction attack leaves: these sources extracted from the first of two
    generations, with the calibrated threshold only; source 3 from the second."""
    resolved = {
        "step": "attack/extraction",
        "arm": "first",
        "replicate": 0,
        "seed": 1,
        "settings": {"anchor": "training"},
    }
    shown = np.concatenate([sources, np.full(len(sources), 3)])
    table = pd.DataFrame({"nearest_source": shown, "flagged_training_calibrated": True})
    for name in ("training_fixed", "candidate_fixed", "candidate_calibrated"):
        table[f"flagged_{name}"] = False
    with artifacts.step(resolved, folder, {}, ("afterimage.seeds",)) as step:
        table.to_parquet(step.folder / "pairs.parquet", index=False)


@pytest.mark.parametrize(
    "forget",
    [{"label": 0}, {"ids": [1]}, {"extracted_from": "first"}],
    ids=lambda one: next(iter(one)),
)
@pytest.mark.parametrize(
    ("condition", "arm"),
    [
        ("none", ASCENT),
        ("none", ERASE | {"target": "uniform"}),
        ("label", ERASE | {"barrier": "gap"}),
    ],
    ids=["gradient_ascent", "erasediff-uniform", "erasediff-relabel"],
)
def test_from_the_command_line_each_kind_of_set_is_forgotten(
    condition, arm, forget, study, tmp_path
):
    """Thirteen rows, of which 2 i and 2 i + 1 show digit i: each kind names digit 0, i.e. rows 0
    and 1."""
    assert cli.main(study({"condition": condition}, out="base", updates=1)) == 0
    own = {"base": "first", "forget": "wanted", "condition": condition} | arm
    command = [*study(own, forget={"wanted": forget}, updates=2), "--base", str(tmp_path / "base")]
    if "extracted_from" in forget:
        assert cli.main(command) == 2
        extraction_store(tmp_path / "attack", [0])
        command += ["--extraction", str(tmp_path / "attack")]
    assert cli.main(command) == 0
    table = pd.read_parquet(tmp_path / "out" / "members.parquet")
    assert table.index[table["forgotten"]].tolist() == [0, 1]
    assert table["trained"].all()
    facts = artifacts.read_run(tmp_path / "out")["facts"]
    assert facts["images_seen"] == 4 * facts["backward_passes"]
    before, after = (load_file(tmp_path / out / "pipeline" / WEIGHTS) for out in ("base", "out"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


# ---- a base with blocks that do not learn --------------------------------------------------------


@pytest.mark.parametrize(
    "arm",
    [
        {"method": "salun", "saliency_samples": 8},
        {
            "method": "selective_amnesia",
            "fisher_samples": 4,
            "fisher_timesteps": 6,
            "replay_images": 30,
        },
    ],
    ids=lambda arm: arm["method"],
)
def test_frozen_blocks_of_the_base_stay_frozen(arm, make_job, digits, tmp_path):
    blocks = {"rau_net": {"groups": [1], "variant": "frozen_fixed"}}
    base = make_job(
        tmp_path / "base-state", condition="label", images=40, arm={"method": "baseline"} | blocks
    )
    save_pipeline(base.net, base.scheduler, tmp_path / "base")
    arm = arm | blocks | {"base": "base", "forget": "zeros"}
    forgotten = digits[1][:40] == 0
    job = make_job(
        tmp_path / "state",
        condition="label",
        images=40,
        arm=arm,
        base=tmp_path / "base",
        forgotten=forgotten,
        updates=2,
    )
    find(arm["method"]).train(job)
    before = base.net.state_dict()
    for name, value in job.net.state_dict().items():
        if name.startswith("transfers."):
            assert torch.equal(value, before[name])
    assert not torch.equal(job.net.conv_in.weight, base.net.conv_in.weight)
