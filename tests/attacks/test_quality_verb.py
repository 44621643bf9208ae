import argparse
import json
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from afterimage import artifacts, config, scratch
from afterimage.artifacts import ArtifactError
from afterimage.attacks import calibration, quality
from afterimage.config import ConfigError
from afterimage.diffusion.prompts import prompted
from afterimage.images import Images
from afterimage.metrics import classifier, similarity, spaces

STATISTICS = config.Statistics(bootstrap=60)
PIXELS = config.Quality(features="pixels", kid_subsets=10, kid_subset_size=50)
SMALL = config.Classifier(channels=[4], features=4, epochs=1)
MEASURES = ("FD", "KID", "KID_sd", "precision", "recall", "density", "coverage")


def by_class(space):
    """The names of the metrics that need classes."""
    return {f"FD_balanced[{space}]", "class_share_tv[classifier]", "missing_classes[classifier]"}


UNLABELLED = dict.fromkeys(
    by_class("pixels"), "needs a classifier, which is trained for its own feature space alone"
)


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
    """Both halves are the same pictures, those of the control brighter by 20: its Fréchet distance
    is the shift's, squared."""
    seed, base = 5, digits.pixels[:60] // 2
    calibrates = calibration.halves(120, seed)
    pixels = np.empty((120, 8, 8, 1), np.uint8)
    pixels[calibrates], pixels[~calibrates] = base, base + 20
    table, reasons = quality.against_holdout(
        Images.of(base), Images.of(pixels), PIXELS, STATISTICS, seed
    )
    assert reasons == UNLABELLED
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
    measured = by_class("classifier") | {f"{name}[classifier]" for name in MEASURES}
    assert set(numbers(table, "holdout").index) == measured
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
    classes = by_class(space) if left and space == "classifier" else set()
    for of in ("generations", "holdout"):
        assert set(numbers(table, of).index) == classes | {f"{name}[{space}]" for name in left}
    unclassified = {} if classes or not left else UNLABELLED
    assert unclassified.items() <= reasons.items()
    small = {metric: reason for metric, reason in reasons.items() if metric not in unclassified}
    absent = {f"{name}[{space}]" for name in MEASURES if name not in left}
    assert set(small) == absent | (set() if left else by_class(space))
    assert np.isfinite(table["value"].to_numpy(float)).all()
    for reason in small.values():
        assert f"{generations} generations" in reason
        assert f"{held_out // 2} + {held_out - held_out // 2} held-out images" in reason
        assert "quality." not in reason


@pytest.mark.parametrize("labels", [None, np.full(60, 7)])
def test_without_two_classes_the_plain_distance_stays_and_the_reason_is_said(
    digits, monkeypatch, labels
):
    monkeypatch.setattr(config, "Classifier", lambda: SMALL)
    holdout = Images.of(digits.pixels[:60], labels=labels)
    settings = config.Quality(kid_subsets=5)
    table, reasons = quality.against_holdout(
        digits.take(np.arange(90, 130)), holdout, settings, STATISTICS, 0
    )
    assert set(numbers(table, "generations").index) == {f"{name}[classifier]" for name in MEASURES}
    assert reasons == dict.fromkeys(
        by_class("classifier"),
        "needs held-out images with labels of two classes or more (--label-column holdout=NAME)",
    )


def halves_of_darkness(pixels):
    """A classifier: 1 for an image that is brighter than half."""
    return (pixels.mean(axis=(1, 2, 3)) > 127).astype(int)


def test_numbers_of_classes_are_those_of_the_table():
    """Reference: dark and bright half and half. Generations: one dark image in four, then none."""
    rng = np.random.default_rng(0)

    def images(dark, bright):
        levels = np.repeat([40, 200], [dark, bright])[:, None, None, None]
        return Images.of((levels + rng.integers(0, 30, (dark + bright, 4, 4, 1))).astype(np.uint8))

    reference, arguments = images(100, 100), (PIXELS, STATISTICS, 0, spaces.pixels)
    skewed, bright = (
        numbers(
            quality.measure(
                images(*counts), reference, *arguments, halves_of_darkness, holdout=images(50, 50)
            ),
            "generations",
        )["value"]
        for counts in ((25, 75), (0, 100))
    )
    assert skewed["class_share_tv[classifier]"] == 0.25
    assert skewed["missing_classes[classifier]"] == 0
    assert skewed["FD_balanced[pixels]"] < 0.05 * skewed["FD[pixels]"]
    assert bright["class_share_tv[classifier]"] == 0.5
    assert bright["missing_classes[classifier]"] == 1
    assert bright["FD_balanced[pixels]"] == pytest.approx(bright["FD[pixels]"], rel=1e-9)


def blurred(pixels, share):
    """Each image mixed with a blurred one: the kernel (1, 2, 1) / 4 in both directions."""
    values = pixels.astype(float)
    for axis in (1, 2):
        before, after = (np.roll(values, step, axis) for step in (1, -1))
        values = (before + 2 * values + after) / 4
    return np.rint((1 - share) * pixels + share * values).astype(np.uint8)


def test_blur_is_seen_and_class_shares_are_not(digits):
    """Sharp images of other class shares: further than slight blur, but for the balanced distance."""
    reference, rest = digits.take(np.arange(700)), digits.take(np.arange(700, 1797))
    model = LinearDiscriminantAnalysis().fit(spaces.pixels(reference.pixels), reference.labels)
    of_class = (np.flatnonzero(rest.labels == label) for label in range(10))
    counts = (95, 80, 64, 48, 32, 24, 20, 16, 12, 9)
    skewed = np.concatenate([rows[:count] for rows, count in zip(of_class, counts, strict=True)])
    even = rest.pixels[:400]
    sets = [rest.pixels[skewed], *(blurred(even, share) for share in (0, 0.2, 0.4, 1))]
    tables = [
        numbers(
            quality.measure(
                Images.of(pixels),
                reference,
                PIXELS,
                STATISTICS,
                0,
                spaces.pixels,
                lambda images: model.predict(spaces.pixels(images)),
            ),
            "generations",
        )
        for pixels in sets
    ]
    plain, level = (
        [table.loc[f"{metric}[pixels]"] for table in tables] for metric in ("FD", "FD_balanced")
    )
    for sharper, softer in pairwise(level[1:]):
        assert sharper.high < softer.low
    assert plain[0].low > plain[2].high
    assert level[0].value < level[2].low


def test_images_too_small_for_a_classifier_are_a_reason(digits):
    small = Images.of(digits.pixels[:60, :4, 1:7])
    table, reasons = quality.against_holdout(small, small, config.Quality(), STATISTICS, 0)
    assert table.empty
    assert set(reasons) == by_class("classifier") | {f"{name}[classifier]" for name in MEASURES}
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


def measured(images, tmp_path):
    """Run the verb with a classifier of its own, and return the table."""
    split = tmp_path / "split"
    split.mkdir()
    parts = {
        "reference": np.arange(200),
        "holdout": np.arange(200, 350),
        "images": np.arange(350, 500),
    }
    parts["train"] = np.arange(300, 400)
    for name, rows in parts.items():
        images.take(rows).save(split / f"{name}.npz")
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
        members=[split / "members.parquet"],
        reference=split / "reference.npz",
        holdout=split / "holdout.npz",
        classifier=network,
        config=resolved(quality.STEP, settings),
        out=tmp_path / "out",
    )
    quality.run(arguments)
    return pd.read_csv(tmp_path / "out" / "results.csv")


def test_the_verb_in_the_classifier_space(digits, tmp_path):
    table = measured(digits, tmp_path)
    assert table.columns.tolist() == ["metric", "of", "value", "low", "high"]
    copying = {f"{name}[pixels]" for name in ("R", "similarity", "similar")}
    assert (
        set(numbers(table, "generations").index)
        == by_class("classifier") | {f"{name}[classifier]" for name in MEASURES} | copying
    )
    assert set(numbers(table, "holdout").index) == set(numbers(table, "generations").index)
    assert set(numbers(table, "training").index) == copying
    # 50 of the 150 images are trained rows; the other 50 rows of the training part are not the
    # arm's, and do not count.
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


def test_the_verb_without_labels_measures_all_but_classes(digits, tmp_path):
    """In the space of a classifier that tells rotations apart."""
    table = measured(Images.of(digits.pixels), tmp_path)
    copying = {f"{name}[pixels]" for name in ("R", "similarity", "similar")}
    for of in ("generations", "holdout"):
        found = numbers(table, of)
        assert set(found.index) == {f"{name}[classifier]" for name in MEASURES} | copying
        assert np.isfinite(found["value"].to_numpy(float)).all()
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["facts"]
    assert facts["classes"] == "none: no labels to learn"
    description = json.loads((tmp_path / "classifier" / "classifier.json").read_text())
    assert description["task"] == "rotations"


def test_replication_score_stands_beside_its_floor_and_the_background(digits):
    """Copies score 1; held-out images what digits of this kind do by themselves, as training images
    do among each other."""
    train, holdout = digits.take(np.arange(100)), digits.take(np.arange(100, 300))
    reference = digits.take(np.arange(300, 500))
    near = quality.similar_space(PIXELS, Path("no classifier"), reference)
    table = quality.replication(train, train, PIXELS, STATISTICS, 0, near, holdout)
    r = {of: numbers(table, of).loc["R[pixels]"] for of in ("generations", "holdout", "training")}
    assert r["generations"].value == pytest.approx(1)
    assert r["holdout"].low <= r["holdout"].value <= r["holdout"].high < 1
    assert r["training"].value < 1
    assert numbers(table, "generations").loc["similar[pixels]", "value"] == 1


def test_the_origin_of_similarities_is_the_mean_of_the_reference(digits, tmp_path):
    """Of pixels, whose rows are computed on demand, and of any other space."""
    reference, every = digits.take(np.arange(300, 500)), slice(None)
    near = quality.similar_space(PIXELS, tmp_path, reference)
    for features in (quality.centred(spaces.pixels, reference), lambda x: near(x)[every]):
        np.testing.assert_allclose(features(reference.pixels).mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(
            np.diff(features(digits.pixels[:2]), axis=0),
            np.diff(spaces.pixels(digits.pixels[:2]), axis=0),
        )


def test_the_replication_score_of_pixels_holds_a_part_of_the_images(monkeypatch):
    """Of images that take 8 MB, and eight times that in float64."""
    rng = np.random.default_rng(0)
    images = Images.of(rng.integers(0, 256, (680, 64, 64, 3), np.uint8))
    monkeypatch.setattr(scratch, "BLOCK", 2**20)
    monkeypatch.setattr(similarity, "_BYTES", 2**20)
    near = quality.similar_space(PIXELS, Path("no classifier"), images)
    parts = [images.take(np.arange(start, 680, 2)) for start in (0, 1)]
    tracemalloc.start()
    try:
        quality.replication(parts[0], parts[1], PIXELS, STATISTICS, 0, near, parts[0])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < images.pixels.nbytes


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_network_for_copies_can_be_the_space_of_the_replication_score(digits, tmp_path):
    """Its cosines as they are, not relative to the reference images."""
    file = tmp_path / "sscd.torchscript.pt"
    torch.jit.save(torch.jit.trace(Halves(), torch.zeros(2, 3, 320, 320)), file)
    keys = {
        "similarity": "sscd",
        "similarity_weights": str(file),
        "similarity_sha256": artifacts.sha256(file),
        "similarity_normalisation": "skew_320",
    }
    settings = config.Quality(**keys)
    train, holdout = digits.take(np.arange(70)), digits.take(np.arange(100, 140))
    near = quality.similar_space(settings, Path("no classifier"), digits)
    features = near(train.pixels)
    assert features.shape == (70, 2)
    assert features.dtype == np.float64
    # Left and right half of the squashed image, relative to ImageNet's mean; R, G and B alike.
    left = train.pixels[:, :, :4].mean(axis=(1, 2, 3)) / 255
    assert np.corrcoef(left, features[:, 0])[0, 1] > 0.99
    table = quality.replication(train, train, settings, STATISTICS, 0, near, holdout)
    assert numbers(table, "generations").loc["R[sscd]", "value"] == pytest.approx(1)
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(
        ArtifactError, match=r"quality.similarity_weights .* but quality.similarity_sha256 ="
    ):
        quality.similar_space(settings, Path("no classifier"), digits)


class Halves(torch.nn.Module):
    """The means of the left and the right half."""

    def forward(self, x):
        return x.reshape(x.shape[0], 3, 320, 2, 160).mean((1, 2, 4))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"similarity": "sscd"},
            "similarity = sscd needs similarity_weights .* and similarity_sha",
        ),
        (
            {"similarity": "clip", "similarity_weights": "a"},
            "needs similarity_weights .* and simil",
        ),
        ({"similarity_weights": "a"}, "similarity_weights is for similarity = sscd, clip, dinov2"),
    ],
)
def test_a_network_needs_its_file_and_checksum(keys, message):
    with pytest.raises(ValueError, match=message):
        config.Quality(**keys)


def captioned(images: Images, captions=None) -> Images:
    if captions is None:
        words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        captions = np.array([f"the digit {words[label]}" for label in images.labels])
    return Images.of(images.pixels, labels=images.labels, captions=captions)


def test_generations_are_asked_for_the_captions_of_their_prompts(digits, tmp_path):
    """Whatever the arm was drawn from: here all have the same prompt. Those that show what the
    training image of the prompt does are aligned as held-out images are, others by chance."""
    planted = captioned(digits.take(np.arange(300)))
    reference, holdout = (
        captioned(digits.take(np.arange(first, first + 600))) for first in (300, 900)
    )
    resolved = {"seed": 3, "replicate": 1}
    rows = prompted(300, 200, resolved)
    shown = captioned(Images.of(planted.pixels[rows]), np.full(200, "a digit"))
    measured = (PIXELS, STATISTICS, 3, spaces.pixels, holdout)
    asked = planted.captions[rows]
    value = {}
    for name, images in (("shown", shown), ("shuffled", shown.take(np.arange(200)[::-1]))):
        table = quality.aligned(images, asked, reference, *measured)
        value[name] = numbers(table, "generations").loc["text_alignment[pixels]"]
        real = numbers(table, "holdout").loc["text_alignment[pixels]"]
    assert real["low"] > 0.9
    assert value["shown"]["value"] == pytest.approx(real["value"], abs=0.03)
    assert value["shuffled"]["low"] < 0.55
    assert value["shuffled"]["value"] < value["shown"]["low"]


@pytest.mark.parametrize(
    ("prompts", "captions", "expected"),
    [("a cat", "a cat", True), ("", "a cat", False), ("a cat", "?!", False)],
)
def test_alignment_needs_prompts_and_words(digits, prompts, captions, expected):
    samples, reference = digits.take(np.arange(3)), digits.take(np.arange(3))
    pair = (
        captioned(images, np.full(3, text))
        for images, text in ((samples, prompts), (reference, captions))
    )
    assert quality.prompted_by_words(*pair) is expected
