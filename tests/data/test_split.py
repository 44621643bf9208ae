"""Splits and planted duplicates: disjoint parts, exact multiplicities, exchangeable twins."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from afterimage.artifacts import Images, load_images
from afterimage.cli import main
from afterimage.config import ConfigError
from afterimage.data import planting
from afterimage.data.split import split

SIDE = 4


def images(count: int, classes: int = 3, seed: int = 0, test: int = 0, first_id: int = 1000) -> Images:
    """Random images, the last ``test`` of them in the official test part; ids are not positions."""
    rng = np.random.default_rng(seed)
    return Images.of(
        rng.integers(0, 256, (count, SIDE, SIDE, 1), dtype=np.uint8),
        ids=first_id + 2 * np.arange(count),
        labels=rng.integers(classes, size=count),
        official_test=np.arange(count) >= count - test,
    )


def study(train, holdout, reference=None, official=False, plant=()):
    groups = [{"copies": c, "images": n, "perturbation": p} for c, n, p in plant]
    return {"split": {"train": train, "holdout": holdout, "reference": reference, "official": official}, "plant": groups}


@st.composite
def studies(draw):
    """A small study, a data set that is large enough for it, and a seed."""
    perturbation = st.none() | st.builds(
        lambda noise, brightness: {"noise": noise, "brightness": brightness}, st.floats(0.02, 0.2), st.floats(0, 0.2)
    )
    plant = draw(st.lists(st.tuples(st.integers(2, 5), st.integers(1, 4), perturbation), max_size=3))
    rows, planted = sum(c * n for c, n, _ in plant), sum(n for _, n, _ in plant)
    others, holdout, reference = draw(st.integers(2, 10)), draw(st.integers(2, 10)), draw(st.none() | st.integers(2, 10))
    official = draw(st.booleans())
    spare = draw(st.integers(0, 5))
    outside = holdout + (reference or 2) + spare
    source = images(
        others + 2 * planted + outside,
        classes=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 99)),
        test=outside if official else 0,
    )
    return source, study(rows + others, holdout, reference, official, plant), draw(st.integers(0, 2**40))


@hypothesis_settings(max_examples=60, deadline=None)
@given(studies())
def test_parts_are_disjoint_and_complete(drawn):
    source, settings, seed = drawn
    parts, index, manifest = split(source, settings, seed)
    planted = sum(group["images"] for group in settings["plant"])
    assert len(parts["train"]) == settings["split"]["train"]
    assert len(parts["holdout"]) == settings["split"]["holdout"]
    assert len(parts["twins"]) == planted
    in_use = sum(len(np.unique(part.sources)) for part in parts.values())
    if settings["split"]["reference"] is None and not settings["split"]["official"]:
        assert in_use == len(source)  # the reference takes all that are left
    elif settings["split"]["reference"] is not None:
        assert len(parts["reference"]) == settings["split"]["reference"]
    assert len(np.unique(np.concatenate([part.sources for part in parts.values()]))) == in_use
    assert len(index) == sum(map(len, parts.values()))
    assert manifest["distinct_training_sources"] == len(np.unique(parts["train"].sources))


@hypothesis_settings(max_examples=60, deadline=None)
@given(studies())
def test_every_row_is_its_source_and_controls_are_never_trained_on(drawn):
    source, settings, seed = drawn
    parts, index, _ = split(source, settings, seed)
    row_of = {number: row for row, number in enumerate(source.ids.tolist())}
    trained = {image.tobytes() for image in parts["train"].pixels}
    for name in ("holdout", "reference", "twins"):
        part = parts[name]
        rows = [row_of[number] for number in part.ids.tolist()]
        assert np.array_equal(part.ids, part.sources)
        assert np.array_equal(part.pixels, source.pixels[rows])
        assert np.array_equal(part.labels, source.labels[rows])
        assert not trained & {image.tobytes() for image in part.pixels}
    train = parts["train"]
    assert train.ids.tolist() == list(range(len(train)))
    assert np.array_equal(train.labels, source.labels[[row_of[number] for number in train.sources.tolist()]])
    for part in ("train", "holdout", "reference", "twin"):
        here = index[index["part"] == part]
        stored = parts["twins" if part == "twin" else part]
        assert here["id"].tolist() == stored.ids.tolist()
        assert here["source"].tolist() == stored.sources.tolist()
        assert here["label"].tolist() == stored.labels.tolist()


@hypothesis_settings(max_examples=60, deadline=None)
@given(studies())
def test_multiplicities_are_exact(drawn):
    source, settings, seed = drawn
    parts, index, manifest = split(source, settings, seed)
    times = pd.Series(parts["train"].sources).value_counts()
    promised = {number: g["copies"] for g in manifest["planted"] for number in g["sources"]}
    for number, count in times.items():
        assert count == promised.get(number, 1)
    assert set(promised) <= set(times.index)
    train = index[index["part"] == "train"]
    assert (train["copies"] == train["source"].map(times)).all()
    for _, rows in train.groupby("source"):
        assert sorted(rows["copy"]) == list(range(len(rows)))
    twins = index[index["part"] == "twin"]
    assert twins["id"].tolist() == [number for group in manifest["planted"] for number in group["twins"]]
    assert twins["twin_of"].tolist() == [number for group in manifest["planted"] for number in group["sources"]]
    assert twins["copies"].tolist() == [promised[number] for number in twins["twin_of"]]
    others = index[index["part"].isin(["holdout", "reference"])]
    assert (others[["copies", "copy"]] == 0).all(axis=None)
    assert (index.loc[index["part"] != "twin", "twin_of"] == -1).all()


@hypothesis_settings(max_examples=60, deadline=None)
@given(studies())
def test_exact_copies_are_equal_and_perturbed_ones_are_near(drawn):
    source, settings, seed = drawn
    parts, index, manifest = split(source, settings, seed)
    train = index[index["part"] == "train"].set_index("id")
    original = source.pixels[np.searchsorted(source.ids, parts["train"].sources)].astype(int)
    differs = (parts["train"].pixels != original).any(axis=(1, 2, 3))
    change = {number: group["perturbation"] for group in manifest["planted"] for number in group["sources"]}
    for row, (number, copy) in enumerate(zip(train["source"], train["copy"], strict=True)):
        wanted = change.get(number)
        assert differs[row] == train["perturbed"][row] == (wanted is not None and copy > 0)
        if differs[row]:
            gap = np.abs(parts["train"].pixels[row] - original[row]).max()
            assert gap <= 255 * (wanted["brightness"] + 7 * wanted["noise"]) + 1


@hypothesis_settings(max_examples=30, deadline=None)
@given(studies())
def test_the_seed_decides_everything(drawn):
    source, settings, seed = drawn
    first, index, manifest = split(source, settings, seed)
    again, index_again, manifest_again = split(source, settings, seed)
    for name in first:
        assert np.array_equal(first[name].pixels, again[name].pixels)
        assert np.array_equal(first[name].ids, again[name].ids)
    pd.testing.assert_frame_equal(index, index_again)
    assert manifest == manifest_again


def test_another_seed_draws_anew():
    source, settings = images(200), study(60, 40, 30, plant=[(4, 5, None)])
    (first, _, _), (second, _, _) = split(source, settings, 1), split(source, settings, 2)
    for name in first:
        assert set(first[name].sources.tolist()) != set(second[name].sources.tolist())


@hypothesis_settings(max_examples=60, deadline=None)
@given(studies().filter(lambda drawn: drawn[1]["split"]["official"]))
def test_the_official_parts_are_kept_apart(drawn):
    source, settings, seed = drawn
    parts, _, _ = split(source, settings, seed)
    assert not parts["train"].official_test.any()
    assert not parts["twins"].official_test.any()
    assert parts["holdout"].official_test.all()
    assert parts["reference"].official_test.all()


def test_perturbations_do_not_change_who_is_planted():
    source = images(200)
    sets = [split(source, study(60, 40, 30, plant=[(4, 5, change)]), 1) for change in (None, {"noise": 0.1, "brightness": 0.0})]
    assert np.array_equal(sets[0][0]["train"].sources, sets[1][0]["train"].sources)
    assert np.array_equal(sets[0][0]["twins"].ids, sets[1][0]["twins"].ids)


def test_noise_has_the_asked_size():
    grey = np.full((64, 64, 1), 128, np.uint8)
    rng = np.random.default_rng(0)
    noisy = planting.perturb(grey, 0.02, 0.0, rng, "key").astype(float) - 128
    assert noisy.std() / 255 == pytest.approx(0.02, rel=0.05)  # 4,096 draws: the error of the deviation is about 1.1%
    assert abs(noisy.mean()) / 255 < 0.001
    shifts = [planting.perturb(grey, 0.0, 0.1, rng, "key").astype(float).ravel() - 128 for _ in range(400)]
    assert all(np.ptp(shift) == 0 for shift in shifts)
    assert np.abs(shifts).max() <= 26
    assert min(shift[0] for shift in shifts) < -20
    assert max(shift[0] for shift in shifts) > 20


def test_values_are_clipped_not_wrapped():
    rng = np.random.default_rng(0)
    for value in (0, 255):
        changed = planting.perturb(np.full((20, 20, 1), value, np.uint8), 0.05, 0.0, rng, "key").astype(int)
        assert np.abs(changed - value).max() < 100


def test_a_perturbation_without_effect_is_an_error():
    settings = study(20, 10, 10, plant=[(2, 2, {"noise": 0.0, "brightness": 0.0})])
    with pytest.raises(
        ConfigError, match=r"data\.plant\.0\.perturbation: noise = 0\.0 and brightness = 0\.0 leave an image unchanged"
    ):
        split(images(60), settings, 0)


def test_twins_are_of_the_same_class_while_there_are_enough():
    rng = np.random.default_rng(0)
    labels = np.array([0] * 10 + [1] * 10 + [2])
    drawn = planting.pairs(labels, np.arange(21), 10, rng)
    assert len(np.unique(drawn)) == 20
    assert (labels[drawn[:, 0]] == labels[drawn[:, 1]]).all()
    lonely = planting.pairs(np.arange(8), np.arange(8), 4, rng)
    assert sorted(lonely.ravel()) == list(range(8))
    odd = np.array([0, 0, 0, 1, 1, 1])
    mixed = planting.pairs(odd, np.arange(6), 3, rng)
    assert sorted(mixed.ravel()) == list(range(6))
    assert (odd[mixed[:, 0]] == odd[mixed[:, 1]]).sum() == 2


def test_the_coin_makes_planted_and_twin_exchangeable():
    rng = np.random.default_rng(0)
    firsts = np.zeros(6)
    for _ in range(2000):
        firsts[planting.pairs(np.zeros(6, int), np.arange(6), 2, rng)[:, 0]] += 1
    # Each row is planted with probability 1/3: 667 times, standard deviation 21.
    assert np.abs(firsts - 2000 / 3).max() < 5 * 21
    swaps = [bool(np.diff(planting.pairs(np.zeros(2, int), np.arange(2), 1, rng))[0, 0] > 0) for _ in range(400)]
    assert 150 < sum(swaps) < 250  # 200, standard deviation 10


def test_byte_identical_controls_are_dropped_and_counted():
    pixels = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((SIDE, SIDE, 1), np.uint8)
    doubled = Images.of(np.concatenate([pixels, pixels[:20]]))  # rows 40..59 double rows 0..19
    seen = {"identical_to_training": 0, "identical_to_holdout": 0}
    for seed in range(20):
        parts, _, manifest = split(doubled, study(24, 10, None, plant=[(3, 4, None)]), seed)
        contents = {name: {int(image[0, 0, 0]) for image in part.pixels} for name, part in parts.items()}
        for control in ("holdout", "reference", "twins"):
            assert not contents["train"] & contents[control]
        assert not contents["holdout"] & contents["reference"]
        planted = {source for group in manifest["planted"] for source in group["sources"] + group["twins"]}
        assert planted <= set(range(20, 40))  # those without a double
        used = len(np.unique(np.concatenate([part.sources for part in parts.values()])))
        assert used + sum(manifest["dropped"].values()) == 60
        seen = {name: seen[name] + manifest["dropped"][name] for name in seen}
    assert min(seen.values()) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (study(80, 10, 20), r"data\.split\.reference: 20 images are asked for, but only 10 are left$"),
        (study(80, 30, None), r"data\.split\.holdout: 30 images are asked for, but only 20 are left$"),
        (study(105, 2, plant=[(2, 10, None)]), r"data\.split\.train: 105 different images and twins .* only 100"),
        (study(101, 10), r"data\.split\.train: 101 different images and twins are asked for, but only 100 are left"),
        (study(61, 10, 10, official=True), r"data\.split\.train: 61 .* only 60 are left in the official training part"),
        (study(50, 41, 2, official=True), r"data\.split\.holdout: 41 .* only 40 are left in the official test part"),
        (study(10, 5, 5, plant=[(4, 3, None)]), r"data\.plant asks for 12 training images, data\.split\.train = 10"),
    ],
)
def test_too_few_images_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        split(images(100, test=40), settings, 0)


def test_too_few_images_without_a_double_are_named():
    doubled = Images.of(np.repeat(images(30).pixels, 2, axis=0))
    with pytest.raises(ConfigError, match=r"data\.plant asks for 3 images with a twin each, 6 in all, but only 0"):
        split(doubled, study(20, 5, 5, plant=[(2, 3, None)]), 0)


def test_the_step_writes_a_store_that_checks_itself(tmp_path, resolved):
    fetch = {"source": {"kind": "sklearn-digits"}, "classes": None, "images": 300, "colour": "keep", "resize": None}
    fetch |= {"resize_filter": "bilinear", "crop": "centre"}
    assert main(["data", "fetch", "--config", resolved("data/fetch", fetch), "--out", str(tmp_path / "fetch")]) == 0
    path = resolved("data/split", study(100, 50, 40, plant=[(5, 6, None), (3, 2, {"noise": 0.02, "brightness": 0.0})]))
    arguments = ["data", "split", "--images", str(tmp_path / "fetch" / "images.npz"), "--config", path]
    assert main([*arguments, "--out", str(tmp_path / "split")]) == 0
    parts = {name: load_images(tmp_path / "split" / f"{name}.npz") for name in ("train", "holdout", "reference", "twins")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 100, "holdout": 50, "reference": 40, "twins": 8}
    manifest = json.loads((tmp_path / "split" / "manifest.json").read_text())
    assert manifest["licence"].startswith("BSD-3-Clause")
    for name, part in parts.items():
        assert manifest["pixels_sha256"][name] == hashlib.sha256(part.pixels.tobytes()).hexdigest()
        assert sum(manifest["counts"][name]["class"].values()) == manifest["counts"][name]["images"] == len(part)
    index = pd.read_parquet(tmp_path / "split" / "index.parquet")
    assert list(index.columns) == ["part", "id", "source", "label", "copies", "copy", "perturbed", "twin_of"]
    assert index["perturbed"].sum() == 4
    run = json.loads((tmp_path / "split" / "run.json").read_text())
    assert set(run["inputs"]) == {"images", "manifest"}


def test_an_unplanted_study_has_no_twins(tmp_path):
    parts, index, manifest = split(images(100), study(50, 20, None), 0)
    assert parts["twins"].pixels.shape == (0, SIDE, SIDE, 1)
    parts["twins"].save(tmp_path / "twins.npz")
    assert len(load_images(tmp_path / "twins.npz", check=False)) == 0
    assert manifest["planted"] == []
    assert (index.loc[index["part"] == "train", "copies"] == 1).all()
