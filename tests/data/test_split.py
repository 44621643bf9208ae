"""Splits and plantings: disjoint parts, exact multiplicities, exchangeable twins."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from afterimage import artifacts
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


def study(
    train, holdout, reference=None, official=False, plant=(), flips=False, plantings=1, fusion=0
):
    sizes = {"train": train, "holdout": holdout, "reference": reference, "fusion": fusion}
    groups = [{"copies": c, "images": n, "perturbation": p} for c, n, p in plant]
    return {
        "split": sizes | {"official": official},
        "plant": groups,
        "plantings": plantings,
        "flips": flips,
    }


def unforgetting(folder):
    """Write the whole study, as far as a planting reads it, and return its path."""
    (folder / "study.json").write_text(json.dumps({"forget": {}}))
    return str(folder / "study.json")


def planted(source, settings, seed, number=0):
    """The parts, the training set and the twins of one planting; its index; the images left out;
    and both manifests as one."""
    parts, table, left_out, manifest = split(source, settings, seed)
    drawn = planting.draw(parts["pool"], table["alone"].to_numpy(), settings, seed, number)
    facts = planting.manifest(drawn, parts["pool"], settings["plant"])
    everything = parts | {"train": drawn.train, "twins": drawn.twins}
    for key in ("counts", "pixels_sha256"):
        facts[key] |= manifest[key]
    return everything, drawn.index, left_out, manifest | facts


def digits():
    """The digits as the study's source gives them."""
    found = load_digits()
    pixels = np.rint(found.images / 16 * 255).astype(np.uint8)[..., None]
    return Images.of(pixels, labels=found.target)


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
    fusion = 0 if reference is None else draw(st.integers(0, 5))
    spare = draw(st.integers(0, 5))
    outside = holdout + (reference or 2) + fusion + spare
    source = images(
        others + 2 * planted + outside,
        classes=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 99)),
        test=outside if official else 0,
    )
    return (
        source,
        study(
            rows + others,
            holdout,
            reference,
            official,
            plant,
            plantings=draw(st.integers(1, 3)) if plant else 1,
            fusion=fusion,
        ),
        draw(st.integers(0, 2**40)),
    )


@hypothesis_settings(max_examples=60, deadline=None)
@given(studies())
def test_parts_are_disjoint_and_complete(drawn):
    source, settings, seed = drawn
    parts, index, _, manifest = planted(source, settings, seed)
    several = sum(group["images"] for group in settings["plant"])
    assert len(parts["train"]) == settings["split"]["train"]
    for name in ("holdout", "fusion"):
        assert len(parts[name]) == settings["split"][name]
    assert len(parts["twins"]) == several
    pool = np.concatenate([np.unique(parts["train"].sources), parts["twins"].ids])
    assert sorted(pool) == parts["pool"].ids.tolist()
    del parts["pool"]
    in_use = sum(len(np.unique(part.sources)) for part in parts.values())
    if settings["split"]["reference"] is None and not settings["split"]["official"]:
        assert in_use == len(source)  # the reference takes all that are left
    elif settings["split"]["reference"] is not None:
        assert len(parts["reference"]) == settings["split"]["reference"]
    assert len(np.unique(np.concatenate([part.sources for part in parts.values()]))) == in_use
    assert len(index) == len(parts["train"]) + several
    assert manifest["distinct_training_sources"] == len(np.unique(parts["train"].sources))


@hypothesis_settings(max_examples=60, deadline=None)
@given(studies())
def test_every_row_is_its_source_and_controls_are_never_trained_on(drawn):
    source, settings, seed = drawn
    parts, index, _, _ = planted(source, settings, seed)
    row_of = {number: row for row, number in enumerate(source.ids.tolist())}
    trained = {image.tobytes() for image in parts["train"].pixels}
    for name in ("holdout", "reference", "fusion", "twins"):
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
    for part in ("train", "twin"):
        here = index[index["part"] == part]
        stored = parts["twins" if part == "twin" else part]
        assert here["id"].tolist() == stored.ids.tolist()
        assert here["source"].tolist() == stored.sources.tolist()
        assert here["label"].tolist() == stored.labels.tolist()


@hypothesis_settings(max_examples=60, deadline=None)
@given(studies())
def test_multiplicities_are_exact(drawn):
    source, settings, seed = drawn
    parts, index, _, manifest = planted(source, settings, seed)
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
    assert (index.loc[index["part"] != "twin", "twin_of"] == -1).all()


@hypothesis_settings(max_examples=60, deadline=None)
@given(studies())
def test_exact_copies_are_equal_and_perturbed_ones_are_near(drawn):
    source, settings, seed = drawn
    parts, index, _, manifest = planted(source, settings, seed)
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
    first, index, left_out, manifest = planted(source, settings, seed)
    again, index_again, left_out_again, manifest_again = planted(source, settings, seed)
    for name in first:
        assert np.array_equal(first[name].pixels, again[name].pixels)
        assert np.array_equal(first[name].ids, again[name].ids)
    pd.testing.assert_frame_equal(index, index_again)
    pd.testing.assert_frame_equal(left_out, left_out_again)
    assert manifest == manifest_again


def test_another_seed_draws_anew():
    source, settings = images(200), study(60, 40, 30, plant=[(4, 5, None)], fusion=20)
    (first, *_), (second, *_) = planted(source, settings, 1), planted(source, settings, 2)
    for name in first:
        assert set(first[name].sources.tolist()) != set(second[name].sources.tolist())


@hypothesis_settings(max_examples=60, deadline=None)
@given(studies().filter(lambda drawn: drawn[1]["split"]["official"]))
def test_the_official_parts_are_kept_apart(drawn):
    source, settings, seed = drawn
    parts, _, _, _ = planted(source, settings, seed)
    assert not parts["train"].official_test.any()
    assert not parts["twins"].official_test.any()
    assert parts["holdout"].official_test.all()
    assert parts["reference"].official_test.all()


def test_perturbations_do_not_change_who_is_planted():
    source = images(200)
    sets = [
        planted(source, study(60, 40, 30, plant=[(4, 5, change)]), 1)
        for change in (None, {"noise": 0.1, "brightness": 0.0})
    ]
    assert np.array_equal(sets[0][0]["train"].sources, sets[1][0]["train"].sources)
    assert np.array_equal(sets[0][0]["twins"].ids, sets[1][0]["twins"].ids)


def test_copies_take_the_changes_in_turn():
    changes = [{"kind": "mirror"}, {"kind": "shift", "pixels": 1}]
    settings = study(40, 10, 10, plant=[(5, 3, None)])
    settings["plant"][0]["perturb"] = changes
    parts, index, *_ = planted(images(120), settings, 0)
    index = index[index["part"] == "train"].set_index("id")
    expected = {0: "", 1: "mirror", 2: "shift", 3: "mirror", 4: "shift"}
    several = index[index["copies"] == 5]
    assert [expected[copy] for copy in several["copy"]] == several["kind"].tolist()
    assert (index["perturbed"] == (index["kind"] != "")).all()
    plain = planted(images(120), study(40, 10, 10, plant=[(5, 3, None)]), 0)[0]
    assert np.array_equal(plain["train"].sources, parts["train"].sources)


def test_a_perturbation_without_effect_is_an_error():
    settings = study(20, 10, 10, plant=[(2, 2, {"noise": 0.0, "brightness": 0.0})])
    with pytest.raises(
        ConfigError,
        match=r"data\.plant\.0\.perturbation: noise = 0\.0 and brightness = 0\.0 leave an image "
        r"unchanged",
    ):
        planted(images(60), settings, 0)


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
        settings = study(24, 10, None, plant=[(3, 4, None)])
        parts, _, _, manifest = planted(doubled, settings, seed)
        contents = {
            name: {int(image[0, 0, 0]) for image in part.pixels} for name, part in parts.items()
        }
        for control in ("holdout", "reference", "twins"):
            assert not contents["train"] & contents[control]
        assert not contents["pool"] & (contents["holdout"] | contents["reference"])
        assert not contents["holdout"] & contents["reference"]
        in_pool = pd.Series(parts["pool"].pixels[:, 0, 0, 0]).value_counts()
        for group in manifest["planted"]:
            assert (in_pool[pixels[np.array(group["sources"]) % 40, 0, 0, 0]] == 1).all()
        parts = {name: parts[name] for name in ("pool", "holdout", "reference")}
        used = len(np.unique(np.concatenate([part.sources for part in parts.values()])))
        assert used + sum(manifest["dropped"].values()) == 60
        seen = {name: seen[name] + manifest["dropped"][name] for name in seen}
    assert min(seen.values()) > 0


def test_digits_are_split_as_they_were():
    """The hashes are those of the first split with a pool; none of the digits is left out."""
    settings = study(
        1000, 400, None, plant=[(8, 16, None), (4, 8, {"noise": 0.02, "brightness": 0.0})]
    )
    _, _, left_out, manifest = planted(digits(), settings, 0)
    assert left_out.empty
    assert {name: digest[:10] for name, digest in manifest["pixels_sha256"].items()} == {
        "pool": "d3fe7fb227",
        "train": "896a813808",
        "holdout": "b5099e8b64",
        "reference": "30b3c1912c",
        "fusion": "e3b0c44298",  # nothing
        "twins": "9c56b32276",
    }


# ---- plantings -----------------------------------------------------------------------------------


@hypothesis_settings(max_examples=40, deadline=None)
@given(studies().filter(lambda drawn: drawn[1]["plant"]))
def test_plantings_share_their_images_and_controls(drawn):
    source, settings, seed = drawn
    parts, table, _, _ = split(source, settings, seed)
    alone = table["alone"].to_numpy()
    assert table["id"].tolist() == parts["pool"].ids.tolist()
    made = [planting.draw(parts["pool"], alone, settings, seed, p) for p in range(3)]
    for one in made:
        both = np.concatenate([np.unique(one.train.sources), one.twins.ids])
        assert sorted(both) == parts["pool"].ids.tolist()
        assert len(one.train) == settings["split"]["train"]
        paired = one.index[one.index["part"] == "twin"][["id", "twin_of"]].to_numpy()
        assert np.isin(paired, parts["pool"].ids[alone]).all()
    again = planting.draw(parts["pool"], alone, settings, seed, 1)
    assert np.array_equal(again.train.pixels, made[1].train.pixels)
    assert np.array_equal(again.train.sources, made[1].train.sources)
    pd.testing.assert_frame_equal(again.index, made[1].index)
    for number in range(settings["plantings"]):
        for control in ("holdout", "reference", "fusion"):
            nearest = near_duplicates.find(
                parts[control].pixels, made[number].train.pixels, settings["flips"]
            )
            assert (nearest.rows == -1).all()


def test_plantings_plant_other_images_and_have_other_twins():
    settings = study(60, 40, 30, plant=[(4, 5, None)], plantings=3)
    made = [planted(images(200), settings, 1, number) for number in range(3)]
    roles = [
        (
            frozenset(manifest["planted"][0]["sources"]),
            frozenset(manifest["planted"][0]["twins"]),
        )
        for *_, manifest in made
    ]
    assert len(set(roles)) == len({role[0] for role in roles}) == 3
    assert len({tuple(parts["train"].sources) for parts, *_ in made}) == 3
    for name in ("pool", "holdout", "reference"):
        assert len({parts[name].pixels.tobytes() for parts, *_ in made}) == 1


def test_the_pool_does_not_depend_on_the_number_of_plantings():
    few, many = (
        split(images(200), study(60, 40, 30, plant=[(4, 5, None)], plantings=p), 1)[0]
        for p in (1, 4)
    )
    assert np.array_equal(few["pool"].ids, many["pool"].ids)


@hypothesis_settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6),
    st.integers(1, 40),
    st.integers(0, 2**40),
)
def test_pairs_are_spread_evenly_over_classes(sizes, wanted, seed):
    labels = np.repeat(np.arange(len(sizes)) - 1, sizes)
    wanted = min(wanted, len(labels) // 2)
    drawn = planting.pairs(labels, np.arange(len(labels)), wanted, np.random.default_rng(seed))
    assert drawn.shape == (wanted, 2)
    assert len(np.unique(drawn)) == 2 * wanted
    possible = np.array(sizes) // 2
    alike = labels[drawn[:, 0]] == labels[drawn[:, 1]]
    assert alike.sum() == min(wanted, possible.sum())
    numbers = np.bincount(labels[drawn[alike, 0]] + 1, minlength=len(sizes))
    for one, most, number in zip(range(len(sizes)), possible, numbers, strict=True):
        assert number == most or number >= np.delete(numbers, one).max(initial=0) - 1
    if alike.all():
        for start in range(wanted):
            for end in range(start + 1, wanted + 1):
                window = np.bincount(labels[drawn[start:end, 0]] + 1, minlength=len(sizes))
                free = numbers < possible
                assert not free.any() or np.ptp(window[free]) <= 1


def test_planted_digits_are_of_all_classes():
    """Class shares of the training images are nearer to the pool's than if the pairs were drawn
    without regard to the class."""
    groups = [(2, 8, None), (4, 8, None), (8, 8, None), (16, 8, None)]
    settings = study(400, 800, 300, plant=groups)
    balanced, drawn_freely = [], []
    for seed in range(20):
        parts, _, _, manifest = planted(digits(), settings, seed)
        numbers = list(manifest["planted_by_class"].values())
        assert (sum(numbers), max(numbers) - min(numbers)) == (32, 1)
        for group in manifest["planted"]:
            assert set(group["class"].values()) == {1}
        assert (manifest["short_of_pairs"], manifest["mixed_pairs"]) == ([], 0)
        labels = parts["pool"].labels
        assert manifest["class_distance"] == pytest.approx(
            np.abs(
                np.bincount(parts["train"].labels, minlength=10) / 400
                - np.bincount(labels, minlength=10) / len(labels)
            ).sum()
            / 2
        )
        balanced.append(manifest["class_distance"])
        free = np.random.default_rng(seed).permutation(labels)
        copies = np.repeat([2, 4, 8, 16, 1], [8, 8, 8, 8, len(labels) - 64])
        train = np.repeat(free[: len(copies)], copies)
        assert len(train) == 400
        drawn_freely.append(planting.class_distance(train, labels))
    assert np.mean(balanced) < 0.8 * np.mean(drawn_freely)


def test_a_class_with_too_few_images_is_named():
    source = images(60)
    labels = np.repeat([0, 1, -1], [28, 28, 4])
    source = Images.of(source.pixels, ids=source.ids, labels=labels)
    parts, _, _, manifest = planted(source, study(34, 2, None, plant=[(2, 10, None)]), 0)
    few = (parts["pool"].labels == -1).sum() // 2
    assert manifest["planted_by_class"]["-1"] == few
    assert manifest["short_of_pairs"] == ["-1"]
    assert manifest["mixed_pairs"] == 0


def test_a_twin_like_a_changed_copy_is_used_neither_way():
    """Every image has its mirror image in the pool; planted with mirrored copies, one would equal
    the twin of the other."""
    half = images(20, classes=1).pixels
    source = Images.of(np.concatenate([half, half[:, :, ::-1], images(60, seed=5).pixels]))
    settings = study(104, 2, plant=[(3, 4, None)])
    settings["plant"][0]["perturb"] = [{"kind": "mirror"}]
    for number in range(30):
        drawn = planting.draw(source, np.ones(len(source), bool), settings, 0, number)
        trained = {image.tobytes() for image in drawn.train.pixels}
        assert not trained & {image.tobytes() for image in drawn.twins.pixels}


def test_a_control_like_a_changed_copy_is_left_out():
    """Not in the pool is an image whose mirror image is planted, but in a training set."""
    half = images(60, classes=1, test=0).pixels
    source = Images.of(np.concatenate([half, half[:, :, ::-1]]), official_test=np.arange(120) >= 60)
    settings = study(84, 20, None, True, plant=[(5, 8, None)], plantings=2)
    settings["plant"][0]["perturb"] = [{"kind": "mirror"}]
    parts, table, left_out, _ = split(source, settings, 0)
    copied = set()
    for number in range(2):
        drawn = planting.draw(parts["pool"], table["alone"].to_numpy(), settings, 0, number)
        copied |= set(drawn.index.loc[drawn.index["part"] == "twin", "twin_of"])
    assert set(left_out["source"]) == copied
    assert (left_out["exact"] & (left_out["id"] == left_out["source"] + 60)).all()


def test_images_are_replaced_where_too_few_of_the_pool_are_alone():
    rng = np.random.default_rng(0)
    few = images(30).pixels
    pixels = np.concatenate([few, almost(few, rng), images(40, seed=9).pixels])
    settings = study(36, 2, None, plant=[(2, 16, None)])
    for seed in range(10):
        parts, table, _, _ = split(Images.of(pixels), settings, seed)
        assert len(parts["pool"]) == 36
        assert table["alone"].sum() >= 32
        alone = near_duplicates.alone(parts["pool"].pixels, False)
        assert table["alone"].tolist() == alone.tolist()


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.integers(2, 70), st.integers(0, 30), st.booleans(), st.integers(0, 99))
def test_who_is_alone_is_who_is_no_near_duplicate_of_the_others(count, copies, flips, seed):
    """As ``find`` says of each image and all others; of two alike neither is alone."""
    rng = np.random.default_rng(seed)
    plain = images(count, seed=seed).pixels
    chosen = rng.integers(count, size=copies)
    sides = np.where(
        rng.integers(2, size=copies)[:, None, None, None], plain[chosen], plain[chosen, :, ::-1]
    )
    pixels = np.concatenate(
        [plain, np.where(np.arange(copies)[:, None, None, None] % 2, sides, almost(sides, rng))]
    )
    expected = np.ones(len(pixels), bool)
    for row in range(len(pixels)):
        others = np.delete(np.arange(len(pixels)), row)
        result = near_duplicates.find(pixels[[row]], pixels[others], flips)
        if result.rows[0] >= 0:
            expected[[row, others[result.rows[0]]]] = False
    for row in range(len(pixels)):
        same = (pixels == pixels[row]).all(axis=(1, 2, 3))
        if flips:
            same |= (pixels == pixels[row, :, ::-1]).all(axis=(1, 2, 3))
        if not expected[row]:
            expected[same] = False
    assert near_duplicates.alone(pixels, flips).tolist() == expected.tolist()


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
    settings |= {"flips": flips, "plantings": 1}
    parts, index, left_out, manifest = planted(source, settings, seed)
    used = ("holdout", "reference", "fusion", "twins")
    originals = parts["train"].take(~index.loc[index["part"] == "train", "perturbed"].to_numpy())
    for name in used:
        for against in (parts["train"], originals):
            assert (
                near_duplicates.find(parts[name].pixels, against.pixels, flips).rows == -1
            ).all()
    for name, other in (
        ("reference", "holdout"),
        ("fusion", "holdout"),
        ("fusion", "reference"),
    ):
        nearest = near_duplicates.find(parts[name].pixels, parts[other].pixels, flips)
        assert (nearest.rows == -1).all()

    in_use = np.concatenate(
        [
            np.unique(parts["train"].sources),
            *(parts[name].ids for name in used),
        ]
    )
    assert len(np.unique(in_use)) == len(in_use)
    assert not set(left_out["id"]) & set(in_use.tolist())
    assert left_out["id"].is_unique
    row_of = {number: row for row, number in enumerate(source.ids.tolist())}
    for row in left_out.to_dict("records"):
        alike = [parts[row["like"]]] + [parts["train"]] * (row["like"] == "pool")
        of_source = np.concatenate([part.pixels[part.sources == row["source"]] for part in alike])
        image = source.pixels[row_of[row["id"]]] / 255
        sides = [image, image[:, ::-1]] if flips else [image]
        distances = [
            np.sqrt(((side - other / 255) ** 2).mean()) for side in sides for other in of_source
        ]
        assert np.abs(np.array(distances) - row["distance"]).min() < 1e-9
        assert row["exact"] == (row["distance"] == 0)
        assert row["relative"] <= near_duplicates.NEAR
    assert sum(manifest["dropped"].values()) == len(left_out)
    assert (
        manifest["dropped"]["near_training"]
        == ((left_out["like"] == "pool") & ~left_out["exact"]).sum()
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
    assume(np.array_equal(before["pool"].ids, after["pool"].ids))  # enough of it is alone
    gone = set(left_out["id"])
    lost = set(left_out.loc[left_out["drawn"] == "holdout", "id"])
    assert lost == gone & set(before["holdout"].ids.tolist())
    assert set(before["holdout"].ids.tolist()) - lost <= set(after["holdout"].ids.tolist())
    assert len(before["holdout"]) == len(after["holdout"])
    stayed = set(before["reference"].ids.tolist()) - gone
    moved = stayed - set(after["reference"].ids.tolist())
    assert len(moved) <= len(lost)  # into the holdout, where no image without a part was left
    assert set(left_out.loc[left_out["drawn"] == "reference", "id"]) == gone & set(
        before["reference"].ids.tolist()
    )


@pytest.mark.parametrize("official", [False, True])
def test_known_near_duplicates_are_left_out_and_named(official):
    plain, rng = images(200, test=100), np.random.default_rng(0)
    settings = study(60, 40, 30, official, plant=[(4, 5, None)])
    before, *_ = planted(plain, settings, 1)
    row_of = {number: row for row, number in enumerate(plain.ids.tolist())}
    victims = [before[name].ids[0] for name in ("holdout", "reference")]
    models = before["pool"].ids[:2]
    source = crowd(plain, [row_of[v] for v in victims], [row_of[m] for m in models], rng)
    parts, _, left_out, manifest = planted(source, settings, 1)
    assert left_out.set_index("id")["drawn"].to_dict() == dict(
        zip(victims, ("holdout", "reference"), strict=True)
    )
    assert left_out.set_index("id")["source"].to_dict() == dict(zip(victims, models, strict=True))
    assert not left_out["exact"].any()
    assert manifest["dropped"] == {
        "identical_to_training": 0,
        "near_training": 2,
        "identical_to_holdout": 0,
        "near_holdout": 0,
    }
    for name, victim in zip(("holdout", "reference"), victims, strict=False):
        assert set(before[name].ids) - {victim} <= set(
            parts[name].ids
        )  # there are images that no part was drawn for
    assert manifest["planted"][0]["twins"] == parts["twins"].ids.tolist()
    assert {name: len(part) for name, part in parts.items()} == {
        "pool": 50,
        "train": 60,
        "holdout": 40,
        "reference": 30,
        "fusion": 0,
        "twins": 5,
    }


def test_a_reference_image_like_a_held_out_one_is_left_out():
    plain, settings = images(120), study(30, 40, None)
    before, *_ = planted(plain, settings, 1)
    row_of = {number: row for row, number in enumerate(plain.ids.tolist())}
    victim, model = before["reference"].ids[3], before["holdout"].ids[7]
    source = crowd(plain, [row_of[victim]], [row_of[model]], np.random.default_rng(0))
    parts, _, left_out, _ = planted(source, settings, 1)
    row = left_out.iloc[0]
    assert (len(left_out), row["id"], row["drawn"], row["like"], row["source"]) == (
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
    before, *_ = planted(plain, study(30, 40, 20), 1)
    row_of = {number: row for row, number in enumerate(plain.ids.tolist())}
    victim, model = before["holdout"].ids[0], before["train"].sources[0]
    pixels = plain.pixels.copy()
    pixels[row_of[victim]] = pixels[row_of[model], :, ::-1]
    source = Images.of(pixels, ids=plain.ids, labels=plain.labels)
    (without, _, nothing, _), (_, _, left_out, manifest) = (
        planted(source, study(30, 40, 20, flips=flips), 1) for flips in (False, True)
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
    before, *_ = planted(plain, settings, 1)
    sources, times = np.unique(before["train"].sources, return_counts=True)
    copied, victim = sources[times > 1][0], before["holdout"].ids[0]
    row_of = {number: row for row, number in enumerate(plain.ids.tolist())}
    source = crowd(plain, [row_of[victim]], [row_of[copied]], np.random.default_rng(0))
    _, _, left_out, _ = planted(source, settings, 1)
    assert left_out[["id", "source"]].to_numpy().tolist() == [[victim, copied]]


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
        match=r"data\.split\.reference: 40 images are asked for, but only \d+ are left after \d+ "
        r".* and \d+ of held-out images",
    ):
        split(many, study(5, 25, 40), 0)
    with pytest.raises(
        ConfigError,
        match=r"data\.split\.fusion: 60 images are asked for, but only \d+ are left after \d+ "
        r"duplicates and near-duplicates of reference images",
    ):
        split(many, study(5, 5, 10, fusion=60), 0)
    with pytest.raises(
        ConfigError,
        match=r"data\.plant asks for 4 images with a twin each, 8 in all, but only 0 of the images",
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
        split(doubled, study(60, 5, 5, plant=[(2, 3, None)]), 0)


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
    groups = [(5, 6, None), (3, 2, {"noise": 0.02, "brightness": 0.0})]
    settings = study(100, 50, 40, plant=groups, plantings=2)
    path = resolved("data/split", settings)
    arguments = [
        "data",
        "split",
        "--images",
        str(tmp_path / "fetch" / "images.npz"),
        "--config",
        path,
    ]
    assert main([*arguments, "--out", str(tmp_path / "split")]) == 0
    stored, made = tmp_path / "split", tmp_path / "planting"
    resolved("data/planting", settings)
    config = json.loads((tmp_path / "data-planting.json").read_text()) | {"job": "1"}
    (tmp_path / "data-planting.json").write_text(json.dumps(config))
    arguments = ["data", "planting", "--pool", stored / "pool.npz"]
    arguments += ["--pool-table", stored / "pool.parquet"]
    arguments += ["--study", unforgetting(tmp_path)]
    arguments += ["--config", tmp_path / "data-planting.json", "--out", made]
    assert main([*map(str, arguments)]) == 0
    parts = {name: load_images(stored / f"{name}.npz") for name in ("pool", "holdout", "reference")}
    planted_parts = {name: load_images(made / f"{name}.npz") for name in ("train", "twins")}
    sizes = {"pool": 100 - 6 * 4 - 2 * 2 + 8, "holdout": 50, "reference": 40}
    sizes |= {"train": 100, "twins": 8}
    assert {name: len(part) for name, part in (parts | planted_parts).items()} == sizes
    manifest = json.loads((stored / "manifest.json").read_text())
    assert manifest["licence"].startswith("BSD-3-Clause")
    of_planting = json.loads((made / "manifest.json").read_text())
    for facts, some in ((manifest, parts), (of_planting, planted_parts)):
        for name, part in some.items():
            digest = hashlib.sha256(part.pixels.tobytes()).hexdigest()
            assert facts["pixels_sha256"][name] == digest
            counted = facts["counts"][name]
            assert sum(counted["class"].values()) == counted["images"] == len(part)
    left_out = pd.read_parquet(stored / "left_out.parquet")
    assert list(left_out.columns) == [
        *("id", "drawn", "like", "source", "exact", "distance", "relative")
    ]
    table = pd.read_parquet(stored / "pool.parquet")
    assert list(table.columns) == ["id", "source", "label", "alone"]
    index = pd.read_parquet(made / "index.parquet")
    assert list(index.columns) == [
        *("part", "id", "source", "label", "copies", "copy", "perturbed", "kind", "twin_of"),
        *("repeat", "caption_source", "caption_copies"),
    ]
    assert index["perturbed"].sum() == 4
    expected = planting.draw(parts["pool"], table["alone"].to_numpy(), settings, 3, 1)
    assert np.array_equal(planted_parts["train"].pixels, expected.train.pixels)
    assert set(json.loads((stored / "run.json").read_text())["inputs"]) == {"images", "manifest"}
    assert set(json.loads((made / "run.json").read_text())["inputs"]) == {"pool", "pool_table"}


def test_a_table_of_another_pool_is_refused(tmp_path, resolved, capsys):
    for name, seed in (("one", 0), ("two", 1)):
        parts, table, _, _ = split(images(60), study(20, 5, 5, plant=[(2, 3, None)]), seed)
        with artifacts.step({"step": "data/split"}, tmp_path / name, {}, ()) as step:
            parts["pool"].save(step.folder / "pool.npz")
            table.to_parquet(step.folder / "pool.parquet")
    path = resolved("data/planting", study(20, 5, 5, plant=[(2, 3, None)]))
    files = [f"--pool={tmp_path / 'one/pool.npz'}", f"--pool-table={tmp_path / 'two/pool.parquet'}"]
    files += [f"--study={unforgetting(tmp_path)}"]
    assert main(["data", "planting", *files, "--config", path, f"--out={tmp_path / 'out'}"]) == 2
    assert "does not describe the images of" in capsys.readouterr().err


def test_an_unplanted_study_has_no_twins(tmp_path):
    parts, index, _, manifest = planted(images(100), study(50, 20, None), 0)
    assert parts["twins"].pixels.shape == (0, SIDE, SIDE, 1)
    parts["twins"].save(tmp_path / "twins.npz")
    assert len(load_images(tmp_path / "twins.npz", check=False)) == 0
    assert manifest["planted"] == []
    assert (index.loc[index["part"] == "train", "copies"] == 1).all()
