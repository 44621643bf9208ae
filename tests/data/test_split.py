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
from sklearn.datasets import load_digits

from afterimage.cli import main
from afterimage.config import ConfigError
from afterimage.data import planting
from afterimage.data.split import split
from afterimage.images import Images, load_images
from afterimage.metrics import near_duplicates

SIDE = 4


def images(
    count: int, classes: int = 3, seed: int = 0, test: int = 0, first_id: int = 1000
) -> Images:
    """Random images, the last ``test`` of them in the official test part; ids are not positions."""
    rng = np.random.default_rng(seed)
    return Images.of(
        rng.integers(0, 256, (count, SIDE, SIDE, 1), dtype=np.uint8),
        ids=first_id + 2 * np.arange(count),
        labels=rng.integers(classes, size=count),
        official_test=np.arange(count) >= count - test,
    )


def study(train, holdout, reference=None, official=False, plant=(), flips=False):
    groups = [{"copies": c, "images": n, "perturbation": p} for c, n, p in plant]
    return {
        "split": {"train": train, "holdout": holdout, "reference": reference, "official": official},
        "plant": groups,
        "flips": flips,
    }


@st.composite
def studies(draw):
    """A small study, a data set that is large enough for it, and a seed."""
    perturbation = st.none() | st.builds(
        lambda noise, brightness: {"noise": noise, "brightness": brightness},
        st.floats(0.02, 0.2),
        st.floats(0, 0.2),
    )
    plant = draw(
        st.lists(st.tuples(st.integers(2, 5), st.integers(1, 4), perturbation), max_size=3)
    )
    rows, planted = sum(c * n for c, n, _ in plant), sum(n for _, n, _ in plant)
    others, holdout, reference = (
        draw(st.integers(2, 10)),
        draw(st.integers(2, 10)),
        draw(st.none() | st.integers(2, 10)),
    )
    official = draw(st.booleans())
    spare = draw(st.integers(0, 5))
    outside = holdout + (reference or 2) + spare
    source = images(
        others + 2 * planted + outside,
        classes=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 99)),
        test=outside if official else 0,
    )
    return (
        source,
        study(rows + others, holdout, reference, official, plant),
        draw(st.integers(0, 2**40)),
    )


@hypothesis_settings(max_examples=60, deadline=None)
@given(studies())
def test_parts_are_disjoint_and_complete(drawn):
    source, settings, seed = drawn
    parts, index, _, manifest = split(source, settings, seed)
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
    parts, index, _, _ = split(source, settings, seed)
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
    assert np.array_equal(
        train.labels, source.labels[[row_of[number] for number in train.sources.tolist()]]
    )
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
    parts, index, _, manifest = split(source, settings, seed)
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
    assert twins["id"].tolist() == [
        number for group in manifest["planted"] for number in group["twins"]
    ]
    assert twins["twin_of"].tolist() == [
        number for group in manifest["planted"] for number in group["sources"]
    ]
    assert twins["copies"].tolist() == [promised[number] for number in twins["twin_of"]]
    others = index[index["part"].isin(["holdout", "reference"])]
    assert (others[["copies", "copy"]] == 0).all(axis=None)
    assert (index.loc[index["part"] != "twin", "twin_of"] == -1).all()


@hypothesis_settings(max_examples=60, deadline=None)
@given(studies())
def test_exact_copies_are_equal_and_perturbed_ones_are_near(drawn):
    source, settings, seed = drawn
    parts, index, _, manifest = split(source, settings, seed)
    train = index[index["part"] == "train"].set_index("id")
    original = source.pixels[np.searchsorted(source.ids, parts["train"].sources)].astype(int)
    differs = (parts["train"].pixels != original).any(axis=(1, 2, 3))
    change = {
        number: group["perturbation"]
        for group in manifest["planted"]
        for number in group["sources"]
    }
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
    first, index, left_out, manifest = split(source, settings, seed)
    again, index_again, left_out_again, manifest_again = split(source, settings, seed)
    for name in first:
        assert np.array_equal(first[name].pixels, again[name].pixels)
        assert np.array_equal(first[name].ids, again[name].ids)
    pd.testing.assert_frame_equal(index, index_again)
    pd.testing.assert_frame_equal(left_out, left_out_again)
    assert manifest == manifest_again


def test_another_seed_draws_anew():
    source, settings = images(200), study(60, 40, 30, plant=[(4, 5, None)])
    (first, *_), (second, *_) = split(source, settings, 1), split(source, settings, 2)
    for name in first:
        assert set(first[name].sources.tolist()) != set(second[name].sources.tolist())


@hypothesis_settings(max_examples=60, deadline=None)
@given(studies().filter(lambda drawn: drawn[1]["split"]["official"]))
def test_the_official_parts_are_kept_apart(drawn):
    source, settings, seed = drawn
    parts, _, _, _ = split(source, settings, seed)
    assert not parts["train"].official_test.any()
    assert not parts["twins"].official_test.any()
    assert parts["holdout"].official_test.all()
    assert parts["reference"].official_test.all()


def test_perturbations_do_not_change_who_is_planted():
    source = images(200)
    sets = [
        split(source, study(60, 40, 30, plant=[(4, 5, change)]), 1)
        for change in (None, {"noise": 0.1, "brightness": 0.0})
    ]
    assert np.array_equal(sets[0][0]["train"].sources, sets[1][0]["train"].sources)
    assert np.array_equal(sets[0][0]["twins"].ids, sets[1][0]["twins"].ids)


def test_noise_has_the_asked_size():
    grey = np.full((64, 64, 1), 128, np.uint8)
    rng = np.random.default_rng(0)
    noisy = planting.perturb(grey, 0.02, 0.0, rng, "key").astype(float) - 128
    assert noisy.std() / 255 == pytest.approx(
        0.02, rel=0.05
    )  # 4,096 draws: the error of the deviation is about 1.1%
    assert abs(noisy.mean()) / 255 < 0.001
    shifts = [
        planting.perturb(grey, 0.0, 0.1, rng, "key").astype(float).ravel() - 128 for _ in range(400)
    ]
    assert all(np.ptp(shift) == 0 for shift in shifts)
    assert np.abs(shifts).max() <= 26
    assert min(shift[0] for shift in shifts) < -20
    assert max(shift[0] for shift in shifts) > 20


def test_each_change_does_what_it_says():
    rng = np.random.default_rng(0)
    image = rng.integers(20, 200, (12, 10, 3), dtype=np.uint8)

    def changed(**setting):
        copy = planting.change(image, setting, rng, "key")
        assert copy.shape == image.shape
        assert copy.dtype == np.uint8
        return copy

    assert np.array_equal(changed(kind="mirror"), image[:, ::-1])
    offsets = set()
    for _ in range(100):
        copy = changed(kind="shift", pixels=2)
        (offset,) = [
            (down, right)
            for down in (-2, 0, 2)
            for right in (-2, 0, 2)
            if np.array_equal(copy[2:-2, 2:-2], image[2 - down : 10 - down, 2 - right : 8 - right])
        ]
        offsets.add(offset)
    assert len(offsets) == 8
    assert (0, 0) not in offsets
    gain = changed(kind="colour", strength=0.2) / image
    assert np.ptp(gain, axis=(0, 1)).max() < 0.06  # one factor for a channel, but for rounding
    assert np.abs(gain.mean(axis=(0, 1)) - 1).max() <= 0.21
    contrast = changed(kind="contrast", strength=0.2).astype(float)
    assert contrast.mean() == pytest.approx(image.mean(), abs=0.1)
    assert 0.79 <= contrast.std() / image.std() <= 1.21
    assert changed(kind="blur", deviation=1).std() < image.std() * 0.8
    noise = changed(kind="noise", deviation=0.02).astype(float) - image
    assert noise.std() / 255 == pytest.approx(0.02, rel=0.15)
    wide = np.tile(np.arange(40, dtype=np.uint8)[:, None, None] * 6, (1, 40, 1))
    crop = planting.change(wide, {"kind": "crop", "share": 0.25}, rng, "key").astype(float)
    assert np.diff(crop[:, 0, 0])[5:-5].mean() == pytest.approx(6 * 30 / 40, rel=0.02)


def test_copies_take_the_changes_in_turn():
    changes = [{"kind": "mirror"}, {"kind": "shift", "pixels": 1}]
    settings = study(40, 10, 10, plant=[(5, 3, None)])
    settings["plant"][0]["perturb"] = changes
    parts, index, *_ = split(images(120), settings, 0)
    index = index[index["part"] == "train"].set_index("id")
    expected = {0: "", 1: "mirror", 2: "shift", 3: "mirror", 4: "shift"}
    planted = index[index["copies"] == 5]
    assert [expected[copy] for copy in planted["copy"]] == planted["kind"].tolist()
    assert (index["perturbed"] == (index["kind"] != "")).all()
    plain = split(images(120), study(40, 10, 10, plant=[(5, 3, None)]), 0)[0]
    assert np.array_equal(plain["train"].sources, parts["train"].sources)


def test_a_change_without_effect_is_an_error():
    plain = np.full((8, 8, 3), 9, np.uint8)
    for setting in (
        {"kind": "mirror"},
        {"kind": "shift", "pixels": 1},
        {"kind": "blur", "deviation": 1},
    ):
        with pytest.raises(ConfigError, match=r"data\.plant\.0\.perturb\.1: .* unchanged"):
            planting.change(plain, setting, np.random.default_rng(0), "data.plant.0.perturb.1")
    with pytest.raises(ConfigError, match=r"key: pixels = 8 must be less than the side, 8"):
        planting.change(plain, {"kind": "shift", "pixels": 8}, np.random.default_rng(0), "key")


def test_values_are_clipped_not_wrapped():
    rng = np.random.default_rng(0)
    for value in (0, 255):
        changed = planting.perturb(
            np.full((20, 20, 1), value, np.uint8), 0.05, 0.0, rng, "key"
        ).astype(int)
        assert np.abs(changed - value).max() < 100


def test_a_perturbation_without_effect_is_an_error():
    settings = study(20, 10, 10, plant=[(2, 2, {"noise": 0.0, "brightness": 0.0})])
    with pytest.raises(
        ConfigError,
        match=r"data\.plant\.0\.perturbation: noise = 0\.0 and brightness = 0\.0 leave an image "
        r"unchanged",
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
    swaps = [
        bool(np.diff(planting.pairs(np.zeros(2, int), np.arange(2), 1, rng))[0, 0] > 0)
        for _ in range(400)
    ]
    assert 150 < sum(swaps) < 250  # 200, standard deviation 10


def test_byte_identical_controls_are_dropped_and_counted():
    pixels = images(40).pixels
    pixels[:, 0, 0, 0] = np.arange(40)
    doubled = Images.of(np.concatenate([pixels, pixels[:20]]))  # rows 40..59 double rows 0..19
    seen = {"identical_to_training": 0, "identical_to_holdout": 0}
    for seed in range(20):
        parts, _, _, manifest = split(doubled, study(24, 10, None, plant=[(3, 4, None)]), seed)
        contents = {
            name: {int(image[0, 0, 0]) for image in part.pixels} for name, part in parts.items()
        }
        for control in ("holdout", "reference", "twins"):
            assert not contents["train"] & contents[control]
        assert not contents["holdout"] & contents["reference"]
        planted = {
            source for group in manifest["planted"] for source in group["sources"] + group["twins"]
        }
        assert planted <= set(range(20, 40))  # those without a double
        used = len(np.unique(np.concatenate([part.sources for part in parts.values()])))
        assert used + sum(manifest["dropped"].values()) == 60
        seen = {name: seen[name] + manifest["dropped"][name] for name in seen}
    assert min(seen.values()) > 0


def test_digits_are_split_as_they_were_before_near_duplicates_were_looked_for():
    """None of theirs is left out, so that every image stands where it stood; the hashes are of that
    time."""
    digits = load_digits()
    source = Images.of(
        np.rint(digits.images / 16 * 255).astype(np.uint8)[..., None], labels=digits.target
    )
    settings = study(
        1000, 400, None, plant=[(8, 16, None), (4, 8, {"noise": 0.02, "brightness": 0.0})]
    )
    _, _, left_out, manifest = split(source, settings, 0)
    assert left_out.empty
    assert {name: digest[:10] for name, digest in manifest["pixels_sha256"].items()} == {
        "train": "6094f90c7b",
        "holdout": "8cb09168d9",
        "reference": "fc297e14fb",
        "twins": "866ecf4efb",
    }


# ---- near-duplicates -----------------------------------------------------------------------------


def almost(pixels, rng):
    """The same pictures with noise of up to 6 in 255: a relative distance of about 0.03 among
    random images."""
    return np.clip(pixels.astype(int) + rng.integers(-6, 7, pixels.shape), 0, 255).astype(np.uint8)


def crowd(source, rows, originals, rng):
    """The source with its rows replaced by near-duplicates of originals."""
    pixels = source.pixels.copy()
    pixels[rows] = almost(pixels[originals], rng)
    return Images.of(
        pixels, ids=source.ids, labels=source.labels, official_test=source.official_test
    )


@st.composite
def crowded_studies(draw):
    """A study as in ``studies``, images to spare, and a source where some are near-duplicates of
    others."""
    plain, settings, seed = draw(studies())
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    official = settings["split"]["official"]
    extra = images(80, classes=3, seed=1000, test=40 if official else 0, first_id=9000)
    plain = Images.of(
        np.concatenate([plain.pixels, extra.pixels]),
        ids=np.concatenate([plain.ids, extra.ids]),
        labels=np.concatenate([plain.labels, extra.labels]),
        official_test=np.concatenate([plain.official_test, extra.official_test]),
    )
    order = rng.permutation(len(plain))
    copies = draw(st.integers(1, 20))
    return plain, crowd(plain, order[:copies], order[copies : 2 * copies], rng), settings, seed


@hypothesis_settings(max_examples=80, deadline=None)
@given(crowded_studies(), st.booleans())
def test_no_control_is_a_near_duplicate_of_a_training_image(drawn, flips):
    _, source, settings, seed = drawn
    parts, index, left_out, manifest = split(source, settings | {"flips": flips}, seed)
    originals = parts["train"].take(~index.loc[index["part"] == "train", "perturbed"].to_numpy())
    for name in ("holdout", "reference", "twins"):
        for against in (parts["train"], originals):
            assert (
                near_duplicates.find(parts[name].pixels, against.pixels, flips).rows == -1
            ).all()
    assert (
        near_duplicates.find(parts["reference"].pixels, parts["holdout"].pixels, flips).rows == -1
    ).all()

    used = np.concatenate(
        [
            np.unique(parts["train"].sources),
            *(parts[name].ids for name in ("holdout", "reference", "twins")),
        ]
    )
    assert len(np.unique(used)) == len(used)
    assert not set(left_out["id"]) & set(used.tolist())
    assert left_out["id"].is_unique
    row_of = {number: row for row, number in enumerate(source.ids.tolist())}
    for row in left_out.to_dict("records"):
        part = parts[row["like"]]
        place = part.ids.tolist().index(row["nearest"])
        assert part.sources[place] == row["source"]
        gap = (part.pixels[place] / 255 - source.pixels[row_of[row["id"]]] / 255).ravel()
        mirrored = (
            part.pixels[place] / 255 - source.pixels[row_of[row["id"]], :, ::-1] / 255
        ).ravel()
        sides = [gap, mirrored] if flips else [gap]
        assert min(np.sqrt((side**2).mean()) for side in sides) == pytest.approx(row["distance"])
        assert row["exact"] == (row["distance"] == 0)
        assert row["relative"] <= near_duplicates.NEAR
    assert sum(manifest["dropped"].values()) == len(left_out)
    assert (
        manifest["dropped"]["near_training"]
        == ((left_out["like"] == "train") & ~left_out["exact"]).sum()
    )


@hypothesis_settings(max_examples=80, deadline=None)
@given(crowded_studies())
def test_only_those_left_out_change_their_part(drawn):
    """As the same study of a source without near-duplicates, whose parts are drawn from the same
    ids and labels."""
    plain, source, settings, seed = drawn
    before, _, none, _ = split(plain, settings, seed)
    after, _, left_out, _ = split(source, settings, seed)
    assert none.empty
    assert np.array_equal(before["train"].sources, after["train"].sources)
    gone = set(left_out["id"])
    replaced = 0
    for name, drawn_for in (("holdout", "holdout"), ("twins", "twin")):
        lost = set(left_out.loc[left_out["drawn"] == drawn_for, "id"])
        assert lost == gone & set(before[name].ids.tolist())
        assert set(before[name].ids.tolist()) - lost <= set(after[name].ids.tolist())
        assert len(before[name]) == len(after[name])
        replaced += len(lost)
    places = before["twins"].ids == after["twins"].ids
    assert set(before["twins"].ids[~places].tolist()) == set(
        left_out.loc[left_out["drawn"] == "twin", "id"]
    )
    stayed = set(before["reference"].ids.tolist()) - gone
    moved = stayed - set(after["reference"].ids.tolist())
    assert len(moved) <= replaced  # into holdout or twins, where no image without a part was left
    assert set(left_out.loc[left_out["drawn"] == "reference", "id"]) == gone & set(
        before["reference"].ids.tolist()
    )


@pytest.mark.parametrize("official", [False, True])
def test_known_near_duplicates_are_left_out_and_named(official):
    plain, rng = images(200, test=100), np.random.default_rng(0)
    settings = study(60, 40, 30, official, plant=[(4, 5, None)])
    before, *_ = split(plain, settings, 1)
    row_of = {number: row for row, number in enumerate(plain.ids.tolist())}
    victims = [before[name].ids[0] for name in ("holdout", "reference", "twins")]
    models = before["train"].sources[:3]
    source = crowd(plain, [row_of[v] for v in victims], [row_of[m] for m in models], rng)
    parts, _, left_out, manifest = split(source, settings, 1)
    assert left_out.set_index("id")["drawn"].to_dict() == dict(
        zip(victims, ("holdout", "reference", "twin"), strict=True)
    )
    assert left_out.set_index("id")["source"].to_dict() == dict(zip(victims, models, strict=True))
    assert not left_out["exact"].any()
    assert manifest["dropped"] == {
        "identical_to_training": 0,
        "near_training": 3,
        "identical_to_holdout": 0,
        "near_holdout": 0,
    }
    for name, victim in zip(("holdout", "reference"), victims, strict=False):
        assert set(before[name].ids) - {victim} <= set(
            parts[name].ids
        )  # there are images that no part was drawn for
    assert manifest["planted"][0]["twins"] == parts["twins"].ids.tolist()
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 60,
        "holdout": 40,
        "reference": 30,
        "twins": 5,
    }


def test_the_new_twin_is_of_the_planted_images_class_even_if_the_reference_gives_it():
    """Two images are left that no part was drawn for, and 40 of the reference."""
    plain, settings = images(100), study(25, 30, 40, plant=[(2, 3, None)])
    for seed in range(12):
        before, *_ = split(plain, settings, seed)
        row_of = {number: row for row, number in enumerate(plain.ids.tolist())}
        victim, model = before["twins"].ids[0], before["train"].sources[0]
        source = crowd(plain, [row_of[victim]], [row_of[model]], np.random.default_rng(0))
        parts, _, left_out, manifest = split(source, settings, seed)
        assert left_out["drawn"].tolist() == ["twin"]
        planted = manifest["planted"][0]["sources"][0]
        assert parts["twins"].labels[0] == plain.labels[row_of[planted]]
        assert parts["twins"].ids[0] != victim


def test_a_reference_image_like_a_held_out_one_is_left_out():
    plain, settings = images(120), study(30, 40, None)
    before, *_ = split(plain, settings, 1)
    row_of = {number: row for row, number in enumerate(plain.ids.tolist())}
    victim, model = before["reference"].ids[3], before["holdout"].ids[7]
    source = crowd(plain, [row_of[victim]], [row_of[model]], np.random.default_rng(0))
    parts, _, left_out, _ = split(source, settings, 1)
    row = left_out.iloc[0]
    assert (len(left_out), row["id"], row["drawn"], row["like"], row["nearest"]) == (
        1,
        victim,
        "reference",
        "holdout",
        model,
    )
    assert set(parts["reference"].ids) == set(before["reference"].ids) - {victim}
    assert np.array_equal(parts["holdout"].ids, before["holdout"].ids)


def test_mirror_images_count_where_the_model_is_trained_with_them():
    plain = images(120)
    before, *_ = split(plain, study(30, 40, 20), 1)
    row_of = {number: row for row, number in enumerate(plain.ids.tolist())}
    victim, model = before["holdout"].ids[0], before["train"].sources[0]
    pixels = plain.pixels.copy()
    pixels[row_of[victim]] = pixels[row_of[model], :, ::-1]
    source = Images.of(pixels, ids=plain.ids, labels=plain.labels)
    (without, _, nothing, _), (_, _, left_out, manifest) = (
        split(source, study(30, 40, 20, flips=flips), 1) for flips in (False, True)
    )
    assert nothing.empty
    assert victim in without["holdout"].ids
    assert left_out["id"].tolist() == [victim]
    assert manifest["dropped"]["identical_to_training"] == 1


def test_many_perturbed_copies_hide_no_near_duplicate():
    """60 copies near each other make each other's mean distance as small as a near-duplicate's
    own."""
    plain, settings = (
        images(200),
        study(90, 40, 30, plant=[(60, 1, {"noise": 0.03, "brightness": 0.0})]),
    )
    before, *_ = split(plain, settings, 1)
    sources, times = np.unique(before["train"].sources, return_counts=True)
    planted, victim = sources[times > 1][0], before["holdout"].ids[0]
    row_of = {number: row for row, number in enumerate(plain.ids.tolist())}
    source = crowd(plain, [row_of[victim]], [row_of[planted]], np.random.default_rng(0))
    _, _, left_out, _ = split(source, settings, 1)
    assert left_out[["id", "source"]].to_numpy().tolist() == [[victim, planted]]


def test_too_few_images_that_are_no_near_duplicates_are_named():
    rng = np.random.default_rng(0)
    few = images(30).pixels
    many = Images.of(np.concatenate([few] + [almost(few, rng) for _ in range(3)]))
    with pytest.raises(
        ConfigError,
        match=r"data\.split\.holdout: 20 images are asked for, but only \d+ are left after \d+ "
        r"duplicates and near-duplicates of training",
    ):
        split(many, study(60, 20, 20), 0)
    with pytest.raises(
        ConfigError,
        match=r"data\.split\.reference: 25 images are asked for, but only \d+ are left after \d+ "
        r".* and \d+ of held-out images",
    ):
        split(many, study(5, 25, 25), 0)
    with pytest.raises(
        ConfigError,
        match=r"data\.plant: \d twins are near-duplicates of training images, but only 0 images",
    ):
        split(
            crowd(images(60, test=40), range(10), range(10, 20), rng),
            study(20, 10, 10, True, plant=[(2, 4, None)]),
            0,
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            study(80, 10, 20),
            r"data\.split\.reference: 20 images are asked for, but only 10 are left$",
        ),
        (
            study(80, 30, None),
            r"data\.split\.holdout: 30 images are asked for, but only 20 are left$",
        ),
        (
            study(105, 2, plant=[(2, 10, None)]),
            r"data\.split\.train: 105 different images and twins .* only 100",
        ),
        (
            study(101, 10),
            r"data\.split\.train: 101 different images and twins are asked for, but only 100 are "
            r"left",
        ),
        (
            study(61, 10, 10, official=True),
            r"data\.split\.train: 61 .* only 60 are left in the official training split",
        ),
        (
            study(50, 41, 2, official=True),
            r"data\.split\.holdout: 41 .* only 40 are left in the official test split",
        ),
        (
            study(10, 5, 5, plant=[(4, 3, None)]),
            r"data\.plant asks for 12 training images, data\.split\.train = 10",
        ),
    ],
)
def test_too_few_images_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        split(images(100, test=40), settings, 0)


def test_too_few_images_without_a_double_are_named():
    doubled = Images.of(np.repeat(images(30).pixels, 2, axis=0))
    with pytest.raises(
        ConfigError, match=r"data\.plant asks for 3 images with a twin each, 6 in all, but only 0"
    ):
        split(doubled, study(20, 5, 5, plant=[(2, 3, None)]), 0)


def test_the_step_writes_a_store_that_checks_itself(tmp_path, resolved):
    fetch = {
        "source": {"kind": "sklearn-digits"},
        "classes": None,
        "images": 300,
        "colour": "keep",
        "resize": None,
    }
    fetch |= {"resize_filter": "bilinear", "crop": "centre"}
    assert (
        main(
            [
                "data",
                "fetch",
                "--config",
                resolved("data/fetch", fetch),
                "--out",
                str(tmp_path / "fetch"),
            ]
        )
        == 0
    )
    path = resolved(
        "data/split",
        study(100, 50, 40, plant=[(5, 6, None), (3, 2, {"noise": 0.02, "brightness": 0.0})]),
    )
    arguments = [
        "data",
        "split",
        "--images",
        str(tmp_path / "fetch" / "images.npz"),
        "--config",
        path,
    ]
    assert main([*arguments, "--out", str(tmp_path / "split")]) == 0
    parts = {
        name: load_images(tmp_path / "split" / f"{name}.npz")
        for name in ("train", "holdout", "reference", "twins")
    }
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 100,
        "holdout": 50,
        "reference": 40,
        "twins": 8,
    }
    manifest = json.loads((tmp_path / "split" / "manifest.json").read_text())
    assert manifest["licence"].startswith("BSD-3-Clause")
    for name, part in parts.items():
        assert manifest["pixels_sha256"][name] == hashlib.sha256(part.pixels.tobytes()).hexdigest()
        assert (
            sum(manifest["counts"][name]["class"].values())
            == manifest["counts"][name]["images"]
            == len(part)
        )
    left_out = pd.read_parquet(tmp_path / "split" / "left_out.parquet")
    assert list(left_out.columns) == [
        "id",
        "drawn",
        "like",
        "nearest",
        "source",
        "exact",
        "distance",
        "relative",
    ]
    index = pd.read_parquet(tmp_path / "split" / "index.parquet")
    assert list(index.columns) == [
        "part",
        "id",
        "source",
        "label",
        "copies",
        "copy",
        "perturbed",
        "kind",
        "twin_of",
    ]
    assert index["perturbed"].sum() == 4
    run = json.loads((tmp_path / "split" / "run.json").read_text())
    assert set(run["inputs"]) == {"images", "manifest"}


def test_an_unplanted_study_has_no_twins(tmp_path):
    parts, index, _, manifest = split(images(100), study(50, 20, None), 0)
    assert parts["twins"].pixels.shape == (0, SIDE, SIDE, 1)
    parts["twins"].save(tmp_path / "twins.npz")
    assert len(load_images(tmp_path / "twins.npz", check=False)) == 0
    assert manifest["planted"] == []
    assert (index.loc[index["part"] == "train", "copies"] == 1).all()
