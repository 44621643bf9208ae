"""``afterimage attribution counterfactual``: what is taken out, and what becomes of the generation
then."""

import argparse
import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

from afterimage import artifacts, config
from afterimage.artifacts import ArtifactError
from afterimage.attribution.judges import counterfactual, retraining_effect
from afterimage.attribution.judges.counterfactual import images_to_remove
from afterimage.attribution.replicate import root_seed
from afterimage.config import ConfigError, GroundTruth
from afterimage.diffusion import sample
from afterimage.diffusion.sample import load_denoiser
from afterimage.images import Images, load_images
from afterimage.methods import run as training
from afterimage.metrics import classifier
from afterimage.plan.resolved import resolve
from afterimage.training.job import stream_path
from afterimage.training.learner import Learner

TRAIN = {
    "updates": 5,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "ema": 0.8,
    "checkpoint_every": 2,
    "log_every": 2,
}
MODEL = {"channels": [8], "attention": [False], "layers_per_block": 1, "norm_groups": 4}
SAMPLE = {"images": 3, "sampler": "ddim", "steps": 3, "batch_size": 1}
N = 13
SCORES = np.random.default_rng(0).normal(size=(3, N)).astype(np.float32)


def parsed(module, **given: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.arguments(parser)
    return parser.parse_args(
        [text for name, path in given.items() for text in (f"--{name}", str(path))]
    )


@pytest.fixture
def study(params, tmp_path):
    """Return a function that trains the arm, draws its sample and gives the arguments of a job: 13
    digits, 3 taken out."""

    def make(
        job: str,
        weights: str = "ema",
        condition: str = "none",
        remove: int = 3,
        replicate: int = 0,
    ) -> argparse.Namespace:
        params.update(
            model=MODEL,
            train=TRAIN,
            sample=SAMPLE | {"weights": weights},
            arms={"plain": {"method": "baseline", "condition": condition}},
            forget={},
            loyal_selection=None,
            attribution={
                "arm": "plain",
                "checkpoints": 1,
                "attributors": ["pixel_l2", "trak"],
                "ground_truth": {"timesteps": 3},
            }
            | {
                "queries": {"generated": 3},
                "counterfactual": {"queries": 2, "remove": remove, "attributors": ["trak"]},
            },
        )
        parsed_study = config.parse(params)
        steps = {
            "train": ("plain", replicate, None),
            "sample": ("plain", replicate, None),
            "attribution/counterfactual": (None, replicate, job),
        }
        files = {}
        for step, address in steps.items():
            files[step] = tmp_path / f"{step.replace('/', '-')}-{job.replace('/', '-')}.json"
            files[step].write_text(json.dumps(resolve(parsed_study, step, *address)))
        inputs, arm, drawn = tmp_path / "inputs", tmp_path / "arm", tmp_path / "drawn"
        if not inputs.exists():
            digits = load_digits()
            pixels = np.round(digits.images[:N] * 255 / 16).astype(np.uint8)[..., None]
            with artifacts.step({"step": "data"}, inputs, {}, ("afterimage.seeds",)) as step:
                Images.of(pixels, np.arange(N) + 100, digits.target[:N]).save(
                    step.folder / "train.npz"
                )
                save_file(
                    {"trak/generated": SCORES, "pixel_l2/generated": -SCORES},
                    step.folder / "scores.safetensors",
                )
                torch.manual_seed(0)
                about = classifier.Description("labels", [0, 1], 1, [4], 8, [0.5], [0.3])
                classifier.save(step.folder, classifier.Network(about), about)
            given = {
                "train": inputs / "train.npz",
                "config": files["train"],
                "state": tmp_path / "arm.state",
                "out": arm,
            }
            training.run(parsed(training, **given))
            sample.run(parsed(sample, model=arm, config=files["sample"], out=drawn))
            with artifacts.step(
                {"step": "queries"}, tmp_path / "queries", {}, ("afterimage.seeds",)
            ) as step:
                load_images(drawn / "images.npz").save(step.folder / "generated.npz")
        given = {
            "train": inputs / "train.npz",
            "members": arm / "members.parquet",
            "queries": tmp_path / "queries",
        }
        given |= {
            "model": arm,
            "scores": inputs,
            "classifier": inputs,
            "config": files["attribution/counterfactual"],
        }
        return parsed(
            counterfactual, **given, state=tmp_path / "state", out=tmp_path / job.replace("/", "-")
        )

    return make


@pytest.fixture
def jobs(monkeypatch) -> list:
    """The training runs that are made from now on."""
    seen: list = []
    original = counterfactual.baseline.train
    monkeypatch.setattr(
        counterfactual.baseline, "train", lambda job: seen.append(job) or original(job)
    )
    return seen


def done(args: argparse.Namespace) -> tuple[pd.DataFrame, Images]:
    counterfactual.run(args)
    return pd.read_csv(args.out / "changes.csv"), load_images(args.out / "regenerated.npz")


# ---- what is taken out ---------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float64, (3, N), elements=st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0])),
    st.integers(0, 2),
    st.integers(1, N),
)
def test_the_first_images_of_the_ranking_are_taken_out(scores, query, count):
    """Those and no others; among equal scores the earlier image goes first. Other queries' scores
    do not matter."""
    removed = images_to_remove("trak", query, count, scores, N, 1)
    ranking = sorted(range(N), key=lambda i: (-scores[query, i], i))
    assert set(np.flatnonzero(removed)) == set(ranking[:count])


def test_again_takes_nothing_out():
    removed = images_to_remove("again", 0, 5, None, N, 1)
    assert (removed.shape, removed.dtype, removed.sum()) == ((N,), bool, 0)


def test_random_images_follow_the_seed_and_the_query():
    drawn = [
        tuple(images_to_remove("random", query, 4, None, 30, seed))
        for query in range(3)
        for seed in range(3)
    ]
    assert [sum(one) for one in drawn] == [4] * 9
    assert len(set(drawn)) == 9
    assert drawn[0] == tuple(images_to_remove("random", 0, 4, None, 30, 0))
    often = np.mean(
        [images_to_remove("random", query, 4, None, 30, 7) for query in range(600)], axis=0
    )
    assert abs(often - 4 / 30).max() < 5 * np.sqrt(4 / 30 * 26 / 30 / 600)


# ---- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "condition", "replicate"),
    [("ema", "none", 0), ("raw", "label", 0), ("ema", "none", 2)],
)
def test_a_removal_of_nothing_gives_the_arm_and_its_generation_back(
    weights, condition, replicate, study, monkeypatch
):
    """Bit for bit: the same initial weights, order, noise and length. All changes are then 0, and
    the loss is the arm's."""
    args = study("random/1", weights, condition, replicate=replicate)
    monkeypatch.setattr(counterfactual, "images_to_remove", lambda *_: np.zeros(N, bool))
    table, pictures = done(args)
    query = load_images(args.queries / "generated.npz").take(np.array([1]))
    assert np.array_equal(pictures.pixels, query.pixels)
    assert (pictures.ids.tolist(), pictures.labels.tolist()) == (
        query.ids.tolist(),
        query.labels.tolist(),
    )
    assert np.ptp(query.pixels.astype(int)) > 50
    net, scheduler = load_denoiser(args.members.parent / {"ema": "pipeline", "raw": "raw"}[weights])
    seed = json.loads(args.config.read_text())["seed"]
    seed = root_seed(seed, replicate)
    measured = retraining_effect.measure_effects(
        net, net, scheduler, query, "generated", GroundTruth(timesteps=3), seed
    )
    assert table.to_dict("records") == [
        {
            "choice": "random",
            "query": 1,
            "removed": 0,
            "l2": 0,
            "cosine": pytest.approx(1, abs=1e-6),
            "loss": pytest.approx(measured["loss"][0], rel=1e-6),
            "shift": pytest.approx(0, abs=1e-10),
        }
    ]


@pytest.mark.parametrize(
    ("job", "removed"),
    [
        ("trak/1", set(np.argsort(-SCORES[1])[:3])),
        ("pixel_l2/0", set(np.argsort(SCORES[0])[:3])),
        ("random/0", None),
    ],
)
def test_the_network_is_trained_without_what_is_taken_out(job, removed, study, jobs):
    """From the arm's own initial weights, for as many epochs: ceil(5 * 10 / 13) updates. The store
    is whole."""
    args = study(job)
    arm = jobs.pop()
    table, pictures = done(args)
    (run,) = jobs
    seed = json.loads(args.config.read_text())["seed"]
    if removed is None:
        removed = set(np.flatnonzero(images_to_remove("random", 0, 3, None, N, seed)))
    kept = sorted(set(range(N)) - removed)
    images = load_images(args.train)
    assert np.array_equal(run.task.images.numpy(), images.pixels[kept].transpose(0, 3, 1, 2))
    assert (run.seed, run.path, run.updates) == (arm.seed, stream_path(arm.arm, 0), 4)
    choice, number = job.split("/")
    assert table[["choice", "query", "removed"]].to_numpy().tolist() == [[choice, int(number), 3]]
    assert not np.array_equal(
        pictures.pixels[0], load_images(args.queries / "generated.npz").pixels[int(number)]
    )
    store = artifacts.check_store(args.out)
    assert set(store["outputs"]) == {"changes.csv", "regenerated.npz"}
    assert (store["facts"]["removed"], store["facts"]["updates"]) == (3, 4)
    assert ("scores" in store["inputs"]) == (choice != "random")
    assert not list(args.state.iterdir())


def test_again_makes_every_query_anew_with_other_random_numbers(study, jobs):
    """It needs no scores. The measures of the pictures are those of the pictures that it leaves."""
    args = study("again")
    arm = jobs.pop()
    args.scores = args.scores / "nowhere"
    table, pictures = done(args)
    (run,) = jobs
    assert run.path == ("attribution", "counterfactual", "again")
    assert (len(run.task), run.updates) == (N, 5)
    assert np.array_equal(run.task.images, arm.task.images)
    assert table[["choice", "query", "removed"]].to_numpy().tolist() == [
        ["again", 0, 0],
        ["again", 1, 0],
    ]
    queries = load_images(args.queries / "generated.npz").take(np.arange(2))
    assert pictures.ids.tolist() == queries.ids.tolist()
    difference = (pictures.pixels.astype(float) - queries.pixels) / 255
    assert table["l2"].tolist() == pytest.approx(
        np.sqrt(np.square(difference).mean(axis=(1, 2, 3))).tolist()
    )
    assert table["l2"].min() > 0.01
    before, after = (
        classifier.embed(args.classifier, images.pixels) for images in (queries, pictures)
    )
    cosine = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(before, after, strict=True)]
    assert table["cosine"].tolist() == pytest.approx(cosine, rel=1e-5)
    assert np.isfinite(table["loss"]).all()
    assert len(set(table["loss"])) == 2
    assert table["shift"].min() > 0


@pytest.mark.parametrize("job", ["trak/0", "random/1", "again"])
def test_another_replicate_is_explained_with_its_own_numbers(job, study, jobs):
    """What is drawn is drawn for it; the network starts from that replicate's weights."""
    args = study(job, replicate=2)
    arm = jobs.pop()
    done(args)
    (run,) = jobs
    seed = json.loads(args.config.read_text())["seed"]
    assert arm.path == stream_path(arm.arm, 2)
    again = job == "again"
    assert (run.seed, run.path) == (
        (root_seed(seed, 2), ("attribution", "counterfactual", "again"))
        if again
        else (arm.seed, arm.path)
    )
    if job == "random/1":
        removed = images_to_remove("random", 1, 3, None, N, root_seed(seed, 2))
        kept = load_images(args.train).pixels[~removed].transpose(0, 3, 1, 2)
        assert np.array_equal(run.task.images.numpy(), kept)


def test_stopped_and_started_again_it_leaves_the_same_store(study, monkeypatch):
    args = study("trak/1")
    table, pictures = done(args)
    args.out = args.out.with_name("stopped")
    original, calls = Learner.update, []

    def update(self, *given):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *given)

    monkeypatch.setattr(Learner, "update", update)
    with pytest.raises(SystemExit) as left:
        counterfactual.run(args)
    assert left.value.code == 75
    assert not args.out.exists()
    again, later = done(args)
    assert len(calls) == 4
    assert again.equals(table)
    assert np.array_equal(later.pixels, pictures.pixels)


def test_some_images_must_be_left(study):
    args = study("trak/1", remove=N)
    with pytest.raises(
        ConfigError, match=r"counterfactual\.remove = 13: some of the 13 training images"
    ):
        counterfactual.run(args)
    assert not args.out.exists()


def test_scores_that_changed_since_they_were_written_are_refused(study):
    args = study("trak/1")
    save_file({"trak/generated": -SCORES}, args.scores / "scores.safetensors")
    with pytest.raises(ArtifactError, match=r"scores\.safetensors is not the file"):
        counterfactual.run(args)
    assert not args.out.exists()
