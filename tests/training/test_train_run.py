"""``afterimage train run``, from the command line's arguments to the store."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from afterimage import artifacts, cli, provenance
from afterimage.config import Match, Train
from afterimage.data.members import members
from afterimage.images import Images, load_images
from afterimage.methods import run
from afterimage.training.job import budget

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_store_is_whole_and_says_what_was_done(study, tmp_path, capsys, curves):
    command = study()
    assert cli.main(command) == 0
    run = artifacts.check_store(tmp_path / "out")
    names = {name.split("/")[0] for name in run["outputs"]}
    assert names == {"pipeline", "raw", "members.parquet", "metrics.jsonl"}
    facts = run["facts"]
    assert (facts["updates"], facts["images_seen"], facts["training_images"]) == (7, 28, 13)
    assert facts["resumed_at"] == []
    assert facts["parameters"] == sum(
        t.numel() for t in load_file(tmp_path / "out" / "raw" / WEIGHTS).values()
    )
    assert {row["name"] for row in curves(tmp_path / "out" / "metrics.jsonl")} == {
        "loss",
        "grad_norm",
        "learning_rate",
    }
    assert list((tmp_path / "state").iterdir()) == []
    assert "update 7 of 7: loss" in capsys.readouterr().err
    assert (
        not list(tmp_path.rglob("*.pt"))
        + list(tmp_path.rglob("*.bin"))
        + list(tmp_path.rglob("*.pkl"))
    )


def test_same_command_same_bytes(study, tmp_path):
    for out in ("one", "two"):
        cli.main(study(out=out))
    one, two = (artifacts.read_run(tmp_path / out)["outputs"] for out in ("one", "two"))
    one.pop("metrics.jsonl"), two.pop("metrics.jsonl")
    assert one == two


@pytest.mark.parametrize(
    ("deterministic", "gpu", "restricted"),
    [(True, True, True), (False, True, False), (True, False, True), (False, False, True)],
)
def test_only_on_a_gpu_may_an_arm_leave_out_determinism(
    deterministic, gpu, restricted, study, tmp_path, monkeypatch
):
    modes = []
    monkeypatch.setattr(torch, "set_deterministic_debug_mode", modes.append)
    monkeypatch.setattr(run, "same_bits", partial(on_a_gpu, run.same_bits, gpu, monkeypatch))
    cli.main(study({"train": {"deterministic": deterministic}}))
    assert artifacts.read_run(tmp_path / "out")
    assert modes == (["error"] if restricted else [])


def on_a_gpu(function, gpu, monkeypatch, *args):
    """Call a function while torch says whether there is a GPU."""
    with monkeypatch.context() as patched:
        patched.setattr(torch.accelerator, "is_available", lambda: gpu)
        function(*args)


def test_averaged_and_last_weights_differ_unless_there_is_no_average(study, tmp_path):
    cli.main(study(out="averaged"))
    cli.main(study(out="last", ema=0.0))
    for out, equal in (("averaged", False), ("last", True)):
        pipeline, raw = (load_file(tmp_path / out / part / WEIGHTS) for part in ("pipeline", "raw"))
        assert all(torch.equal(pipeline[name], raw[name]) for name in raw) == equal


def test_averaged_weights_are_in_pipeline_and_the_last_in_raw(study, tmp_path):
    """The average lags behind: it is nearer to where training started. In states that are kept
    under way, too."""
    cli.main(study(out="start", updates=1, learning_rate=1e-12))
    command = study(learning_rate=1e-2)
    resolved = json.loads((tmp_path / "out.json").read_text())
    resolved["settings"]["states"] = {"state1": 0.5}
    (tmp_path / "out.json").write_text(json.dumps(resolved))
    cli.main(command)
    start = load_file(tmp_path / "start" / "raw" / WEIGHTS)

    def moved(folder: str) -> float:
        found = load_file(tmp_path / "out" / folder / WEIGHTS)
        return sum((found[name] - start[name]).square().sum().item() for name in start)

    assert 0 < 1.5 * moved("pipeline") < moved("raw")
    assert 0 < 1.5 * moved("states/state1/pipeline") < moved("states/state1/raw")
    assert moved("states/state1/raw") < moved("raw")


@pytest.fixture
def replicates(study, tmp_path):
    """Return a function that trains two replicates of an arm, and gives the folders of their
    results."""

    def train(arm: dict | None = None, *flags: str, **settings) -> tuple[Path, Path]:
        for k in (0, 1):
            command = study(arm, out=f"rep{k}", **settings)
            resolved = json.loads((tmp_path / f"rep{k}.json").read_text())
            (tmp_path / f"rep{k}.json").write_text(json.dumps(resolved | {"replicate": k}))
            assert cli.main([*command, *flags]) == 0
        return tmp_path / "rep0", tmp_path / "rep1"

    return train


def test_replicates_start_from_different_weights(replicates):
    one, other = (
        load_file(out / "raw" / WEIGHTS) for out in replicates(updates=1, learning_rate=1e-12)
    )
    assert not torch.allclose(one["conv_in.weight"], other["conv_in.weight"], atol=1e-3)


def test_replicates_have_different_order_and_noise_from_one_start(
    replicates, study, tmp_path, series
):
    cli.main(study(out="base"))
    folders = replicates(
        {"base": "first"}, "--base", str(tmp_path / "base"), learning_rate=1e-12, log_every=1
    )
    one, other = (series(out / "metrics.jsonl")["loss"] for out in folders)
    assert len(set(one + other)) == 14


def test_replicates_are_trained_on_different_parts(replicates):
    one, other = (
        pd.read_parquet(out / "members.parquet")["trained"]
        for out in replicates({"fraction": 0.5}, updates=1)
    )
    assert (one != other).any()


def test_fraction_takes_whole_sources(study, tmp_path):
    cli.main(study({"fraction": 0.5}))
    table = pd.read_parquet(tmp_path / "out" / "members.parquet")
    assert list(table.columns) == ["id", "source", "trained", "forgotten"]
    assert table.groupby("source")["trained"].nunique().eq(1).all()
    assert table.groupby("source")["trained"].first().sum() == round(0.5 * 7)
    assert (
        artifacts.read_run(tmp_path / "out")["facts"]["training_images"] == table["trained"].sum()
    )


def test_members_are_drawn_evenly_and_by_the_generator_alone():
    images = Images.of(np.zeros((40, 4, 4, 1), np.uint8), sources=np.arange(40) % 20)
    draws = np.array([members(images, 0.5, np.random.default_rng(seed)) for seed in range(400)])
    assert (draws.sum(1) == 20).all()
    assert np.array_equal(draws[:, :20], draws[:, 20:])
    assert np.abs(draws.mean(0) - 0.5).max() < 4.5 * 0.5 / 20
    assert np.array_equal(draws[3], members(images, 0.5, np.random.default_rng(3)))
    assert members(images, 1.0, np.random.default_rng(0)).all()


def test_base_is_where_training_starts(study, tmp_path):
    cli.main(study(out="base"))
    command = study({"base": "first"}, updates=1, learning_rate=1e-12, ema=0.0)
    assert cli.main([*command, "--base", str(tmp_path / "base")]) == 0
    start, end = (
        load_file(tmp_path / "base" / "pipeline" / WEIGHTS),
        load_file(tmp_path / "out" / "raw" / WEIGHTS),
    )
    for name in start:
        torch.testing.assert_close(start[name], end[name], rtol=0, atol=1e-10)


def test_a_changed_base_is_refused(study, tmp_path, capsys):
    cli.main(study(out="base"))
    file = tmp_path / "base" / "pipeline" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-8])
    assert cli.main([*study({"base": "first"}), "--base", str(tmp_path / "base")]) == 2
    assert "truncated or changed" in capsys.readouterr().err


def test_a_base_of_another_architecture_is_refused_by_name(study, tmp_path, capsys):
    cli.main(study(out="base"))
    command = study({"base": "first"})
    file = tmp_path / "out.json"
    resolved = json.loads(file.read_text())
    resolved["settings"]["model"]["layers_per_block"] = 2
    file.write_text(json.dumps(resolved))
    assert cli.main([*command, "--base", str(tmp_path / "base")]) == 2
    assert "layers_per_block was 1, is now 2" in capsys.readouterr().err


def test_base_and_its_folder_go_together(study, tmp_path, capsys):
    assert cli.main([*study(), "--base", str(tmp_path)]) == 2
    assert cli.main(study({"base": "first"})) == 2
    assert "give both or neither" in capsys.readouterr().err


def test_label_conditional_net_has_a_null_label(study, tmp_path):
    cli.main(study({"condition": "label"}))
    config = json.loads((tmp_path / "out" / "pipeline" / "unet" / "config.json").read_text())
    labels = load_images(tmp_path / "split" / "train.npz").labels
    assert config["num_class_embeds"] == labels.max() + 2


def test_other_training_images_do_not_continue_the_old_run(study, tmp_path, stop_at):
    """The state is addressed by the inputs' contents too, not by the config alone."""
    command = study()
    stop_at(2)
    with pytest.raises(SystemExit):
        cli.main(command)
    assert not (tmp_path / "out").exists()
    with artifacts.step(
        artifacts.read_run(tmp_path / "split")["config"],
        tmp_path / "split2",
        {},
        ("afterimage.seeds",),
    ) as step:
        load_images(tmp_path / "split" / "train.npz").take(np.arange(12)).save(
            step.folder / "train.npz"
        )
    artifacts.replace_folder(tmp_path / "split2", tmp_path / "split")
    assert cli.main(command) == 0
    assert artifacts.read_run(tmp_path / "out")["facts"]["resumed_at"] == []


def test_other_code_does_not_continue_the_old_run(study, tmp_path, stop_at, monkeypatch):
    command = study()
    stop_at(2)
    with pytest.raises(SystemExit):
        cli.main(command)
    monkeypatch.setattr(provenance, "fingerprint", lambda *entries: "another")
    assert cli.main(command) == 0
    assert artifacts.read_run(tmp_path / "out")["facts"]["resumed_at"] == []


def test_the_same_run_goes_on_and_leaves_no_state(study, tmp_path, stop_at):
    command = study()
    stop_at(2)
    with pytest.raises(SystemExit) as left:
        cli.main(command)
    assert left.value.code == 75
    assert cli.main(command) == 0
    assert artifacts.read_run(tmp_path / "out")["facts"]["resumed_at"] == [3]
    assert list((tmp_path / "state").iterdir()) == []


MATCHES = [
    ("updates", 400, 400),
    ("updates_per_model", 100, 100),
    ("kept_samples", 1001, 126),
    ("kept_samples", 1, 1),
    ("passes", 800, 800),
]


@pytest.mark.parametrize(("by", "spent", "expected"), MATCHES)
def test_a_matched_budget_is_what_the_other_arm_spent(by, spent, expected, tmp_path):
    fact = {"passes": "backward_passes"}.get(by, by)
    (tmp_path / "run.json").write_text(json.dumps({"facts": {fact: spent}}))
    train = Train.model_validate({"updates": 7, "batch_size": 8})
    assert budget(train, 13, Match(arm="other", by=by), tmp_path) == expected


def test_budgets_of_its_own():
    assert budget(Train(updates=7, batch_size=8), 13, None, None) == 7
    assert budget(Train(epochs=3, batch_size=8), 13, None, None) == 5


def test_matched_arm_trains_as_long_as_the_other(study, tmp_path):
    cli.main(study(out="base", updates=3))
    command = study({"matched_to": {"arm": "other", "by": "updates"}})
    assert cli.main([*command, "--matched", str(tmp_path / "base")]) == 0
    run = artifacts.read_run(tmp_path / "out")
    assert run["facts"]["updates"] == 3
    assert run["inputs"]["matched"]["sha256"] == artifacts.sha256(tmp_path / "base" / "run.json")


def test_a_larger_batch_for_as_many_updates_is_matched_by_updates(study, tmp_path):
    """Plain training with K times the batch: equal to K shards in updates per network and in
    samples."""
    shards = {"method": "iet_agc", "shards": 2, "rounds": 1, "agc_threshold": 0}
    assert cli.main(study(shards, out="base", updates=6)) == 0
    large = {"matched_to": {"arm": "other", "by": "updates_per_model"}, "train": {"batch_size": 8}}
    assert cli.main([*study(large), "--matched", str(tmp_path / "base")]) == 0
    one, other = (artifacts.read_run(tmp_path / out)["facts"] for out in ("base", "out"))
    assert other["updates"] == other["updates_per_model"] == one["updates_per_model"] == 3
    assert other["images_seen"] == one["images_seen"] == 24
    assert (one["backward_passes"], other["backward_passes"]) == (6, 3)


def test_images_are_weighted_and_sharded_by_the_sources_of_the_training_set(study, tmp_path):
    """Thirteen rows of seven sources, six of them twice."""
    plain = study(out="plain")
    assert cli.main(plain) == 0
    assert cli.main(study({"weights": "inverse_copies"}, out="soft")) == 0
    plain, soft = (load_file(tmp_path / out / "raw" / WEIGHTS) for out in ("plain", "soft"))
    assert any(not torch.equal(value, soft[name]) for name, value in plain.items())
    arm = {"method": "iet_agc", "shards": 2, "rounds": 1, "sharding": "by_source"}
    assert cli.main(study(arm, out="shards", updates=4)) == 0
    shard = pd.read_parquet(tmp_path / "shards" / "tables" / "skips_by_image.parquet")["shard"]
    assert (shard[0:12:2].to_numpy() == shard[1:12:2].to_numpy()).all()
    assert sorted(shard.value_counts()) == [6, 7]


def test_trained_without_a_set_the_images_and_all_their_copies_are_left_out(study, tmp_path):
    cli.main(study({"without": "chosen"}, forget={"chosen": {"ids": [0, 5]}}))
    table = pd.read_parquet(tmp_path / "out" / "members.parquet")
    assert list(table["id"][table["forgotten"]]) == [0, 1, 4, 5]
    assert (table["trained"] == ~table["forgotten"]).all()
    assert artifacts.read_run(tmp_path / "out")["facts"]["training_images"] == 9


def test_a_class_that_is_left_out_still_has_its_place_in_the_network(study, tmp_path):
    """Otherwise the network without the highest class would be another one."""
    cli.main(study({"condition": "label"}, out="all"))
    cli.main(study({"condition": "label", "without": "last"}, forget={"last": {"label": 6}}))
    shapes = [
        {name: tensor.shape for name, tensor in load_file(tmp_path / out / "raw" / WEIGHTS).items()}
        for out in ("all", "out")
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("flag", ["matched", "extraction", "base"])
def test_a_store_that_the_arm_does_not_ask_for_is_refused(flag, study, tmp_path, capsys):
    assert cli.main([*study(), f"--{flag}", str(tmp_path)]) != 0
    assert f"--{flag} is" in capsys.readouterr().err
