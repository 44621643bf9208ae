import argparse
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from afterimage import artifacts, config
from afterimage.artifacts import ArtifactError
from afterimage.attacks import calibration, quality
from afterimage.config import ConfigError
from afterimage.images import Images
from afterimage.metrics import classifier, spaces

STATISTICS = config.Statistics(bootstrap=60)
PIXELS = config.Quality(features="pixels", kid_subsets=10, kid_subset_size=50)
SMALL = config.Classifier(channels=[4], features=4, epochs=1)
MEASURES = ("FD", "KID", "KID_sd", "precision", "recall", "density", "coverage")


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    rows = np.random.default_rng(0).permutation(len(data.target))
    return Images.of(
        np.rint(data.images[rows] / 16 * 255).astype(np.uint8)[..., None], labels=data.target[rows]
    )


def numbers(table, of):
    return table[table["of"] == of].set_index("metric")


def test_real_images_beat_noise_and_one_class_covers_little(digits):
    reference, holdout = digits.take(np.arange(300)), digits.take(np.arange(300, 600))
    noise = Images.of(np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8))
    ones = digits.take(np.flatnonzero(digits.labels == 1)[:150])
    by = {
        name: quality.measure(
            images, reference, PIXELS, STATISTICS, 0, spaces.pixels, None, holdout=holdout
        )
        for name, images in (("noise", noise), ("ones", ones))
    }
    floor, noisy, single = (
        numbers(*of)
        for of in (
            (by["noise"], "holdout"),
            (by["noise"], "generations"),
            (by["ones"], "generations"),
        )
    )
    for metric in ("FD[pixels]", "KID[pixels]"):
        assert floor.loc[metric, "high"] < min(noisy.loc[metric, "low"], single.loc[metric, "low"])
    assert noisy.loc["precision[pixels]", "value"] == 0
    assert single.loc["coverage[pixels]", "high"] < floor.loc["coverage[pixels]", "low"]
    pd.testing.assert_frame_equal(floor, numbers(by["ones"], "holdout"))


def test_intervals_hold_their_values(digits):
    table = quality.measure(
        digits.take(np.arange(100)),
        digits.take(np.arange(100, 300)),
        PIXELS,
        STATISTICS,
        0,
        spaces.pixels,
        None,
    )
    table = table[table["metric"] != "KID_sd[pixels]"]
    assert len(table) == 6
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert (table["low"] < table["high"]).all()


def test_shapes_must_agree(digits):
    with pytest.raises(ArtifactError, match=r"generations have shape \(4, 4, 1\)"):
        quality.measure(
            Images.of(digits.pixels[:, :4, :4]), digits, PIXELS, STATISTICS, 0, spaces.pixels, None
        )


def test_the_floor_is_that_of_the_control_half(digits):
    """Both halves are the same pictures, those of the control brighter by 20: its Fréchet distance is the shift's, squared."""
    seed, base = 5, digits.pixels[:60] // 2
    calibrates = calibration.halves(120, seed)
    pixels = np.empty((120, 8, 8, 1), np.uint8)
    pixels[calibrates], pixels[~calibrates] = base, base + 20
    table, reasons = quality.against_holdout(
        Images.of(base), Images.of(pixels), PIXELS, STATISTICS, seed
    )
    assert reasons == {}
    floor, generations = numbers(table, "holdout"), numbers(table, "generations")
    assert floor.loc["FD[pixels]", "value"] == pytest.approx(64 * (20 / 255) ** 2)
    assert generations.loc["FD[pixels]", "value"] == pytest.approx(0, abs=1e-6)
    assert generations.loc["recall[pixels]", "value"] == 1
    expected = quality.measure(
        Images.of(base),
        Images.of(base),
        PIXELS,
        STATISTICS,
        seed,
        spaces.pixels,
        None,
        holdout=Images.of(base + 20),
    )
    pd.testing.assert_frame_equal(table, expected)


def test_the_classifier_learns_from_the_reference_half_alone(digits, monkeypatch):
    learnt = []

    def fit(images, settings, seed):
        learnt.append(images.pixels)
        return fitted(images, config.Classifier(channels=[4], features=4, epochs=1), seed)

    fitted = classifier.fit
    monkeypatch.setattr(classifier, "fit", fit)
    settings = config.Quality(kid_subsets=5, kid_subset_size=20)
    holdout = digits.take(np.arange(60))
    table, reasons = quality.against_holdout(
        digits.take(np.arange(60, 100)), holdout, settings, STATISTICS, 3
    )
    assert reasons == {}
    assert set(numbers(table, "holdout").index) == {f"{name}[classifier]" for name in MEASURES}
    assert len(learnt) == 1
    assert np.array_equal(learnt[0], holdout.pixels[calibration.halves(60, 3)])


@pytest.mark.parametrize(
    ("generations", "held_out", "left"),
    [
        (1, 60, ()),
        (4, 60, ("FD", "KID", "KID_sd")),
        (5, 60, ("FD", "KID", "KID_sd")),
        (6, 60, MEASURES),
        (20, 1, ()),
        (20, 2, ()),
        (20, 3, ()),
        (20, 4, ("FD", "KID", "KID_sd")),
        (20, 11, ("FD", "KID", "KID_sd")),
        (20, 12, MEASURES),
    ],
)
@pytest.mark.parametrize("space", ["pixels", "classifier"])
def test_small_sets_stop_nothing_and_the_reason_is_said(
    digits, monkeypatch, generations, held_out, left, space
):
    monkeypatch.setattr(config, "Classifier", lambda: SMALL)
    settings = config.Quality(features=space, kid_subsets=5)
    samples, holdout = (
        digits.take(np.arange(generations)),
        digits.take(np.arange(100, 100 + held_out)),
    )
    table, reasons = quality.against_holdout(samples, holdout, settings, STATISTICS, 0)
    assert table.columns.tolist() == quality.COLUMNS
    for of in ("generations", "holdout"):
        assert set(numbers(table, of).index) == {f"{name}[{space}]" for name in left}
    assert set(reasons) == {f"{name}[{space}]" for name in MEASURES if name not in left}
    assert np.isfinite(table["value"].to_numpy(float)).all()
    for reason in reasons.values():
        assert f"{generations} generations" in reason
        assert f"{held_out // 2} + {held_out - held_out // 2} held-out images" in reason
        assert "quality." not in reason


def test_images_too_small_for_a_classifier_are_a_reason(digits):
    small = Images.of(digits.pixels[:60, :4, 1:7])
    table, reasons = quality.against_holdout(small, small, config.Quality(), STATISTICS, 0)
    assert table.empty
    assert set(reasons) == {f"{name}[classifier]" for name in MEASURES}
    assert set(reasons.values()) == {"needs images of side 8 or more for its classifier, not 4 x 6"}


def test_a_classifier_that_diverges_is_a_reason(digits, monkeypatch):
    wild = config.Classifier(channels=[4], features=4, learning_rate=1e30, epochs=3)
    monkeypatch.setattr(config, "Classifier", lambda: wild)
    table, reasons = quality.against_holdout(digits, digits, config.Quality(), STATISTICS, 0)
    assert table.empty
    assert set(reasons.values()) == {
        "needs a classifier, whose training on the reference images diverged"
    }


def test_in_a_study_sizes_that_do_not_fit_are_an_error_by_key(digits):
    with pytest.raises(
        ConfigError,
        match=r"quality\.neighbours = 5 needs more than 5 images on each side, not 5 and 60",
    ):
        quality.measure(
            digits.take(np.arange(5)),
            digits.take(np.arange(60)),
            PIXELS,
            STATISTICS,
            0,
            spaces.pixels,
            None,
        )


def test_the_verb_in_the_classifier_space(digits, tmp_path):
    split = tmp_path / "split"
    split.mkdir()
    parts = {
        "reference": np.arange(200),
        "holdout": np.arange(200, 350),
        "images": np.arange(350, 500),
    }
    parts["train"] = np.arange(300, 400)
    for name, rows in parts.items():
        digits.take(rows).save(split / f"{name}.npz")
    outputs = {f"{name}.npz": artifacts.sha256(split / f"{name}.npz") for name in parts}
    members = pd.DataFrame({"id": np.arange(300, 400), "trained": np.arange(300, 400) >= 350})
    members.to_parquet(split / "members.parquet")
    outputs["members.parquet"] = artifacts.sha256(split / "members.parquet")
    artifacts.write_json(split / "run.json", {"outputs": outputs})

    def resolved(step, settings):
        path = tmp_path / f"{step.replace('/', '_')}.json"
        artifacts.write_json(
            path, {"step": step, "arm": None, "replicate": None, "seed": 1, "settings": settings}
        )
        return path

    small = config.Classifier(channels=[8], features=8, epochs=2).model_dump()
    network = tmp_path / "classifier"
    classifier.run(
        argparse.Namespace(
            reference=split / "reference.npz", config=resolved(classifier.STEP, small), out=network
        )
    )
    settings = config.Quality(kid_subsets=5, kid_subset_size=50).model_dump() | {
        "statistics": STATISTICS.model_dump()
    }
    arguments = argparse.Namespace(
        samples=split / "images.npz",
        train=split / "train.npz",
        members=split / "members.parquet",
        reference=split / "reference.npz",
        holdout=split / "holdout.npz",
        classifier=network,
        config=resolved(quality.STEP, settings),
        out=tmp_path / "out",
    )
    quality.run(arguments)
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert table.columns.tolist() == ["metric", "of", "value", "low", "high"]
    copying = {f"{name}[pixels]" for name in ("R", "similarity", "similar")}
    assert (
        set(numbers(table, "generations").index)
        == {f"{name}[classifier]" for name in MEASURES} | copying
    )
    assert set(numbers(table, "holdout").index) == set(numbers(table, "generations").index)
    assert set(numbers(table, "training").index) == copying
    # 50 of the 150 images are trained rows; the other 50 rows of the training part are not the arm's, and do not count.
    r = (
        numbers(table, "generations").loc["R[pixels]", "value"],
        numbers(table, "holdout").loc["R[pixels]", "value"],
    )
    assert r[1] < r[0] == pytest.approx(1)
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    metrics = {row["name"]: row["value"] for row in map(json.loads, lines)}
    assert (
        metrics["FD[classifier] of holdout"]
        == numbers(table, "holdout").loc["FD[classifier]", "value"]
    )


def test_replication_score_stands_beside_its_floor_and_the_background(digits):
    """Copies score 1; held-out images what digits of this kind do by themselves, as training images do among each other."""
    train, holdout = digits.take(np.arange(100)), digits.take(np.arange(100, 300))
    reference = digits.take(np.arange(300, 500))
    table = quality.replication(
        train, train, reference, PIXELS, STATISTICS, 0, spaces.pixels, holdout
    )
    r = {of: numbers(table, of).loc["R[pixels]"] for of in ("generations", "holdout", "training")}
    assert r["generations"].value == pytest.approx(1)
    assert r["holdout"].low <= r["holdout"].value <= r["holdout"].high < 1
    assert r["training"].value < 1
    assert numbers(table, "generations").loc["similar[pixels]", "value"] == 1


def test_the_origin_of_similarities_is_the_mean_of_the_reference(digits):
    reference = digits.take(np.arange(300, 500))
    features = quality.centred(spaces.pixels, reference)
    np.testing.assert_allclose(features(reference.pixels).mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(
        np.diff(features(digits.pixels[:2]), axis=0),
        np.diff(spaces.pixels(digits.pixels[:2]), axis=0),
    )
