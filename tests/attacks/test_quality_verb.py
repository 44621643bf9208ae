import argparse
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from afterimage import artifacts, config
from afterimage.artifacts import ArtifactError, Images
from afterimage.attacks import quality
from afterimage.metrics import classifier, spaces

STATISTICS = config.Statistics(bootstrap=60)
PIXELS = config.Quality(features="pixels", kid_subsets=10, kid_subset_size=50)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    rows = np.random.default_rng(0).permutation(len(data.target))
    return Images.of(np.rint(data.images[rows] / 16 * 255).astype(np.uint8)[..., None], labels=data.target[rows])


def numbers(table, of):
    return table[table["of"] == of].set_index("metric")


def test_real_images_beat_noise_and_one_class_covers_little(digits):
    reference, holdout = digits.take(np.arange(300)), digits.take(np.arange(300, 600))
    noise = Images.of(np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8))
    ones = digits.take(np.flatnonzero(digits.labels == 1)[:150])
    by = {
        name: quality.measure(images, reference, PIXELS, STATISTICS, 0, spaces.pixels, holdout=holdout)
        for name, images in (("noise", noise), ("ones", ones))
    }
    floor, noisy, single = (
        numbers(*of) for of in ((by["noise"], "holdout"), (by["noise"], "generations"), (by["ones"], "generations"))
    )
    for metric in ("FD[pixels]", "KID[pixels]"):
        assert floor.loc[metric, "high"] < min(noisy.loc[metric, "low"], single.loc[metric, "low"])
    assert noisy.loc["precision[pixels]", "value"] == 0
    assert single.loc["coverage[pixels]", "high"] < floor.loc["coverage[pixels]", "low"]
    pd.testing.assert_frame_equal(floor, numbers(by["ones"], "holdout"))


def test_intervals_hold_their_values(digits):
    table = quality.measure(digits.take(np.arange(100)), digits.take(np.arange(100, 300)), PIXELS, STATISTICS, 0, spaces.pixels)
    table = table[table["metric"] != "KID_sd[pixels]"]
    assert len(table) == 6
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert (table["low"] < table["high"]).all()


def test_shapes_must_agree(digits):
    with pytest.raises(ArtifactError, match=r"generations have shape \(4, 4, 1\)"):
        quality.measure(Images.of(digits.pixels[:, :4, :4]), digits, PIXELS, STATISTICS, 0, spaces.pixels)


def test_the_verb_in_the_classifier_space(digits, tmp_path):
    split = tmp_path / "split"
    split.mkdir()
    parts = {"reference": np.arange(200), "holdout": np.arange(200, 350), "images": np.arange(350, 500)}
    for name, rows in parts.items():
        digits.take(rows).save(split / f"{name}.npz")
    outputs = {f"{name}.npz": artifacts.sha256(split / f"{name}.npz") for name in parts}
    artifacts.write_json(split / "run.json", {"outputs": outputs})

    def resolved(step, settings):
        path = tmp_path / f"{step.replace('/', '_')}.json"
        artifacts.write_json(path, {"step": step, "arm": None, "replicate": None, "seed": 1, "settings": settings})
        return path

    small = config.Classifier(channels=[8], features=8, epochs=2).model_dump()
    network = tmp_path / "classifier"
    classifier.run(argparse.Namespace(reference=split / "reference.npz", config=resolved(classifier.STEP, small), out=network))
    settings = config.Quality(kid_subsets=5, kid_subset_size=50).model_dump() | {"statistics": STATISTICS.model_dump()}
    arguments = argparse.Namespace(
        samples=split / "images.npz",
        reference=split / "reference.npz",
        holdout=split / "holdout.npz",
        classifier=network,
        config=resolved(quality.STEP, settings),
        out=tmp_path / "out",
    )
    quality.run(arguments)
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert table.columns.tolist() == ["metric", "of", "value", "low", "high"]
    names = {"FD", "KID", "KID_sd", "precision", "recall", "density", "coverage"}
    assert set(numbers(table, "generations").index) == {f"{name}[classifier]" for name in names}
    assert set(numbers(table, "holdout").index) == set(numbers(table, "generations").index)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    metrics = {row["name"]: row["value"] for row in map(json.loads, lines)}
    assert metrics["FD[classifier] of holdout"] == numbers(table, "holdout").loc["FD[classifier]", "value"]
