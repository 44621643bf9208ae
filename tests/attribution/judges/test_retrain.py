"""``afterimage attribution retrain``, from the command line's arguments to the losses under
retrained networks."""

import argparse
import json
import os
import signal
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from afterimage import artifacts, config
from afterimage.attribution.judges import retrain, subsets
from afterimage.attribution.replicate import root_seed
from afterimage.config import ConfigError, Model
from afterimage.diffusion.model import build_scheduler, build_unet, save_pipeline
from afterimage.diffusion.start import start
from afterimage.images import Images, load_images
from afterimage.plan.resolved import resolve
from afterimage.training.learner import Learner

TRAIN = {
    "updates": 8,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "ema": 0.8,
    "checkpoint_every": 2,
    "log_every": 2,
}
MODEL = {"channels": [8, 16], "attention": [False, True], "layers_per_block": 1, "norm_groups": 4}


@pytest.fixture
def command(params, tmp_path):
    """Return a function that writes the inputs of a job and gives its arguments: 4 subsets of 13
    digits, 2 seeds, 2 networks."""

    def make(
        out: str = "out",
        job: int = 0,
        arm: dict | None = None,
        train: dict | None = None,
        replicate: int = 0,
        **attribution,
    ):
        own = {
            "arm": "plain",
            "subsets": 4,
            "seeds": 2,
            "networks_per_job": 2,
            "ground_truth": {"timesteps": 3},
        }
        network = attribution.pop("model", {})
        params.update(
            model=network if "kind" in network else MODEL | network,
            train=TRAIN | (train or {}),
            arms={"plain": {"method": "baseline"} | (arm or {})},
            forget={},
            loyal_selection=None,
            attribution=own | attribution,
        )
        study = config.parse(params)
        model = tmp_path / "model" / study.condition_of("plain")
        if not model.exists():
            build = {"seed": 3, "classes": 3 if study.condition_of("plain") == "label" else None}
            net, scheduler = (
                start(study.model, (8, 8, 1), **build),
                build_scheduler(study.diffusion),
            )
            with artifacts.step({"step": "train"}, model, {}, ("afterimage.seeds",)) as step:
                for weights in ("pipeline", "raw"):
                    save_pipeline(net, scheduler, step.folder / weights)
        resolved = resolve(study, "attribution/retrain", None, replicate, str(job))
        (tmp_path / f"{out}.json").write_text(json.dumps(resolved))
        return arguments(tmp_path, model, out)

    digits = load_digits()
    pixels = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]
    images = Images.of(pixels[:22], np.arange(22) + 100, digits.target[:22] % 3)
    trained = np.arange(22) % 7 < 4
    empty = {"step": "data/split", "arm": None, "replicate": None, "seed": 1, "settings": {}}
    with artifacts.step(empty, tmp_path / "inputs", {}, ("afterimage.seeds",)) as step:
        images.save(step.folder / "train.npz")
        pd.DataFrame({"id": images.ids, "trained": trained}).to_parquet(
            step.folder / "members.parquet"
        )
        Images.of(pixels[30:33], labels=np.arange(3)).save(step.folder / "holdout.npz")
        Images.of(pixels[40:42], labels=np.arange(2)).save(step.folder / "generated.npz")
        Images.of(pixels[:0]).save(step.folder / "extracted.npz")
    return make


def arguments(folder: Path, model: Path, out: str) -> argparse.Namespace:
    inputs = folder / "inputs"
    parser = argparse.ArgumentParser()
    retrain.arguments(parser)
    given = {
        "model": model,
        "train": inputs / "train.npz",
        "members": inputs / "members.parquet",
        "queries": inputs,
    }
    given |= {"config": folder / f"{out}.json", "state": folder / "state", "out": folder / out}
    return parser.parse_args(
        [text for name, path in given.items() for text in (f"--{name}", str(path))]
    )


def losses_of(args: argparse.Namespace) -> dict[str, np.ndarray]:
    with np.load(args.out / "losses.npz", allow_pickle=False) as found:
        return dict(found)


def stop_in_update(monkeypatch, n: int) -> None:
    """Have the process send itself SIGTERM in its ``n``-th update from now (from 0), once."""
    original, calls = Learner.update, []

    def update(self, *args):
        calls.append(1)
        if len(calls) == n + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(Learner, "update", update)


def curves(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["name"] != "images_per_second"]


def test_networks_are_retrained_from_the_stored_one_if_the_arm_was(command, tmp_path):
    """After next to no training all of them are the explained network still."""
    build_unet(Model(**MODEL), (8, 8, 1), seed=5).save_pretrained(tmp_path / "unet")
    block = {"kind": "stored", "path": str(tmp_path / "unet")}
    for stacked in (False, True):
        args = command(f"{stacked}", model=block, stacked=stacked, train={"learning_rate": 1e-12})
        retrain.run(args)
        assert np.abs(losses_of(args)["holdout/shift"]).max() < 1e-8
        assert "unet" in artifacts.read_run(args.out)["inputs"]
    drawn = command("drawn", train={"learning_rate": 1e-12})
    retrain.run(drawn)
    assert losses_of(drawn)["holdout/shift"].min() > 1e-3


def test_store_is_whole_and_says_what_was_done(command, tmp_path):
    """13 images, of which 6 are kept: 8 updates on all are ceil(8 * 6 / 13) = 4 on a subset."""
    args = command(job=1)
    retrain.run(args)
    run = artifacts.check_store(args.out)
    assert set(run["outputs"]) == {"losses.npz", "metrics.jsonl"}
    found = losses_of(args)
    assert {name: (values.dtype, values.shape) for name, values in found.items()} == {
        "subset": (np.int64, (2,)),
        "seed": (np.int64, (2,)),
        **{f"holdout/{target}": (np.float64, (2, 3)) for target in ("loss", "shift")},
        **{f"generated/{target}": (np.float64, (2, 2)) for target in ("loss", "shift")},
        **{f"extracted/{target}": (np.float64, (2, 0)) for target in ("loss", "shift")},
    }
    assert (found["subset"].tolist(), found["seed"].tolist()) == ([2, 3], [0, 0])
    facts = run["facts"]
    assert (facts["networks"], facts["updates_per_model"], facts["updates"]) == (2, 4, 8)
    assert (facts["training_images"], facts["images_seen"], facts["timesteps"]) == (
        6,
        32,
        [166, 500, 833],
    )
    assert {row["step"] for row in curves(args.out)} == {2, 4}
    assert {row["name"] for row in curves(args.out)} == {"loss", "grad_norm", "learning_rate"}
    assert not list((tmp_path / "state").iterdir())


def test_all_jobs_together_have_every_network_once():
    found = [retrain.networks_of_job(5, 3, 4, job) for job in range(4)]
    assert [len(networks) for networks in found] == [4, 4, 4, 3]
    assert [*chain(*found)] == [(subset, seed) for seed in range(3) for subset in range(5)]
    for job in (4, -1):
        with pytest.raises(ConfigError, match="4 jobs"):
            retrain.networks_of_job(5, 3, 4, job)


def test_a_bundle_is_its_networks_one_by_one(command):
    """How networks are put into jobs changes no bit of their losses."""
    pair, second = command("pair"), command("second", job=1, networks_per_job=1)
    for args in (pair, second):
        retrain.run(args)
    for kind in ("holdout/loss", "generated/loss", "generated/shift"):
        assert np.array_equal(losses_of(pair)[kind][1], losses_of(second)[kind][0])


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_stacked_networks_have_the_losses_of_those_trained_one_by_one(weights, command, params):
    params["sample"]["weights"] = weights
    alone, together = command("alone"), command("together", stacked=True)
    for args in (alone, together):
        retrain.run(args)
    for kind in ("holdout/loss", "generated/loss", "generated/shift"):
        one, other = losses_of(alone)[kind], losses_of(together)[kind]
        assert one == pytest.approx(other, rel=1e-4)
        assert np.ptp(one, axis=0).min() > 1e-3
    for a, b in zip(curves(alone.out), curves(together.out), strict=True):
        assert (a["step"], a["name"], a["value"]) == (
            b["step"],
            b["name"],
            pytest.approx(b["value"], rel=1e-3),
        )


@pytest.mark.parametrize("stacked", [False, True])
def test_stopped_anywhere_and_started_again_it_leaves_the_same_losses(
    stacked, command, monkeypatch
):
    """One by one: within the first network, in the first update of the second, and later. Stacked:
    in the middle."""
    whole = command("whole", stacked=stacked)
    retrain.run(whole)
    stops = {1: [[2]]} if stacked else {1: [[2], []], 4: [[4], [1]], 6: [[4], [3]]}
    for n, resumed_at in stops.items():
        args = command(f"stopped{n}", stacked=stacked)
        with monkeypatch.context() as patch:
            stop_in_update(patch, n)
            with pytest.raises(SystemExit) as left:
                retrain.run(args)
        assert left.value.code == 75
        assert not args.out.exists()
        retrain.run(args)
        assert artifacts.read_run(args.out)["facts"]["resumed_at"] == resumed_at
        assert all(
            np.array_equal(values, losses_of(whole)[name])
            for name, values in losses_of(args).items()
        )
        assert curves(args.out) == curves(whole.out)


def test_each_network_sees_its_own_subset_alone(command, monkeypatch):
    """Of the images that the arm trained on; with another order and other noise for every seed."""
    jobs = []
    original = retrain.baseline.train
    monkeypatch.setattr(retrain.baseline, "train", lambda job: jobs.append(job) or original(job))
    args = command(networks_per_job=8, train={"updates": 1})
    retrain.run(args)
    images = load_images(args.train)
    images = images.take(pd.read_parquet(args.members)["trained"].to_numpy())
    masks = subsets.masks(images.labels, 0.5, 4, jobs[0].seed)
    for number, job in enumerate(jobs):
        expected = images.pixels[masks[number % 4]].transpose(0, 3, 1, 2)
        assert np.array_equal(job.task.images.numpy(), expected)
    assert len({job.path for job in jobs}) == 8
    assert len({job.net.conv_in.weight.sum().item() for job in jobs}) == 8


def test_replicates_retrain_on_their_own_subsets_with_their_own_numbers(command, monkeypatch):
    """The first on what the study's seed says."""
    runs = []
    original = retrain.baseline.train
    monkeypatch.setattr(retrain.baseline, "train", lambda job: runs.append(job) or original(job))
    losses = []
    for replicate in (0, 1):
        args = command(f"rep{replicate}", replicate=replicate, train={"updates": 1})
        retrain.run(args)
        losses.append(losses_of(args))
    seed = json.loads(args.config.read_text())["seed"]
    roots = [seed, root_seed(seed, 1)]
    labels = load_images(args.train).labels[pd.read_parquet(args.members)["trained"].to_numpy()]
    for root, pair in zip(roots, (runs[:2], runs[2:]), strict=True):
        assert {run.seed for run in pair} == {root}
        for run, kept in zip(pair, subsets.masks(labels, 0.5, 4, root), strict=False):
            images = load_images(args.train).take(pd.read_parquet(args.members)["trained"])
            expected = images.pixels[kept].transpose(0, 3, 1, 2)
            assert np.array_equal(run.task.images.numpy(), expected)
    assert [run.path for run in runs[:2]] == [run.path for run in runs[2:]]
    weights = [run.net.conv_in.weight.sum().item() for run in runs]
    assert len(set(weights)) == 4
    assert not np.isin(losses[0]["holdout/loss"], losses[1]["holdout/loss"]).any()


def test_labels_are_told_to_conditional_networks_and_epochs_are_those_of_the_arm(command):
    """One epoch of 13 images is 4 batches, and one of 6 is 2."""
    args = command(
        arm={"condition": "label"}, networks_per_job=1, train={"updates": None, "epochs": 1}
    )
    retrain.run(args)
    assert np.isfinite(losses_of(args)["holdout/loss"]).all()
    assert artifacts.read_run(args.out)["facts"]["updates_per_model"] == 2


def test_members_of_another_training_set_are_refused(command, tmp_path):
    args = command()
    images = load_images(args.train)
    with artifacts.step(
        artifacts.read_run(tmp_path / "inputs")["config"],
        tmp_path / "other",
        {},
        ("afterimage.seeds",),
    ) as step:
        pd.DataFrame({"id": images.ids + 1, "trained": True}).to_parquet(
            step.folder / "members.parquet"
        )
    args.members = tmp_path / "other" / "members.parquet"
    with pytest.raises(artifacts.ArtifactError, match="does not list the images"):
        retrain.run(args)


def change(args: argparse.Namespace, *path: str, value: object) -> None:
    resolved = json.loads(args.config.read_text())
    at = resolved["settings"]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    args.config.write_text(json.dumps(resolved))


def test_what_cannot_be_retrained_or_measured_is_refused(command):
    args = command()
    change(args, "arm", "base", value="other")
    with pytest.raises(ConfigError, match=r"attribution\.arm: .* base = 'other'"):
        retrain.run(args)
    args = command()
    change(args, "arm", "dual_fusion", value={"image": 0.1, "caption": 0.5})
    with pytest.raises(ConfigError, match=r"dual_fusion = .* but --others is None"):
        retrain.run(args)
    args = command()
    change(args, "attribution", "ground_truth", "timesteps", value=1001)
    with pytest.raises(ConfigError, match=r"ground_truth\.timesteps = 1001"):
        retrain.run(args)
    args = command(stacked=True)
    change(args, "model", "dropout", value=0.1)
    with pytest.raises(ConfigError, match=r"model\.dropout = 0"):
        retrain.run(args)
