"""Near-duplicates: what each detector finds, how pairs become groups, and the table worked out by
hand."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import imagehash
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from afterimage import artifacts
from afterimage.cli import main
from afterimage.config import ConfigError, Dedup, Embedding
from afterimage.data import dedup, planting
from afterimage.data.split import split
from afterimage.images import Images, load_images

SIDE = 16


def smooth(count: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Random images with the coarse structure that photographs have, uint8 (N, SIDE, SIDE, C)."""
    small = np.random.default_rng(seed).integers(0, 256, (count * channels, 4, 4), dtype=np.uint8)
    large = [
        np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for one in small
    ]
    return np.stack(large).reshape(count, channels, SIDE, SIDE).transpose(0, 2, 3, 1).copy()


def as_set(pairs: dedup.Pairs) -> set[tuple[int, int]]:
    assert (pairs.a < pairs.b).all()
    found = list(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True))
    assert len(set(found)) == len(found)
    return set(found)


def pairs_of(*found: tuple[int, int]) -> dedup.Pairs:
    rows = np.array(found, np.int64).reshape(-1, 2)
    return dedup.Pairs(rows[:, 0], rows[:, 1], np.zeros(len(rows)))


def test_equal_bytes_are_found_and_nothing_else():
    pixels = smooth(5)[[0, 1, 0, 2, 1, 0, 3]]
    pixels[6] = pixels[0]
    pixels[6, 0, 0] ^= 1
    assert as_set(dedup.exact_pairs(pixels)) == {(0, 2), (0, 5), (2, 5), (1, 4)}
    assert as_set(dedup.exact_pairs(smooth(5))) == set()


CAPTIONS = np.array(["A cat", "a dog", "a  cat\n", "a cat", "a cat.", "A DOG"])


def test_equal_captions_are_found_whatever_their_case_and_white_space():
    assert as_set(dedup.caption_pairs(CAPTIONS)) == {(0, 2), (0, 3), (2, 3), (1, 5)}


def test_pairs_of_one_caption_keep_their_scores():
    rows = np.array([(0, 1), (0, 3), (1, 5), (3, 4)])
    pairs = dedup.Pairs(rows[:, 0], rows[:, 1], np.array([0.1, 0.2, 0.3, 0.4]))
    kept = dedup.of_one_caption(pairs, CAPTIONS)
    assert as_set(kept) == {(0, 3), (1, 5)}
    assert kept.score.tolist() == [0.2, 0.3]


@pytest.mark.parametrize("shape", [(32, 32, 3), (32, 32, 1), (8, 8, 1), (28, 40, 3)])
def test_hashes_are_those_of_imagehash(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (30, *shape), dtype=np.uint8)
    pixels[0] = 7  # plain: all waves but the first are equal
    pictures = (Image.fromarray(image[..., 0] if shape[2] == 1 else image) for image in pixels)
    expected = np.array([imagehash.phash(picture).hash.ravel() for picture in pictures])
    assert np.array_equal(np.unpackbits(dedup.perceptual_hashes(pixels), axis=1), expected)


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 8), st.integers(0, 99))
def test_hash_pairs_are_those_of_the_definition(count, max_bits, seed):
    hashes = np.random.default_rng(seed).integers(
        0, 4, (count, 8), dtype=np.uint8
    )  # few bits set: near pairs exist
    bits = np.unpackbits(hashes, axis=1).astype(int)
    distance = {
        (a, b): int(np.abs(bits[a] - bits[b]).sum())
        for a, b in itertools.combinations(range(count), 2)
    }
    found = dedup.hash_pairs(hashes, max_bits)
    assert as_set(found) == {
        pair for pair, bits_apart in distance.items() if bits_apart <= max_bits
    }
    assert [
        distance[pair] for pair in zip(found.a.tolist(), found.b.tolist(), strict=True)
    ] == found.score.tolist()


@pytest.mark.parametrize("block", [7, 1024])
def test_cosine_pairs_are_those_of_the_definition(block, monkeypatch):
    monkeypatch.setattr(dedup, "_BLOCK", block)
    vectors = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = vectors.astype(float) @ vectors.T.astype(float)
    expected = {pair for pair in itertools.combinations(range(50), 2) if cosine[pair] >= 0.9}
    found = dedup.cosine_pairs(vectors, 0.9)
    assert as_set(found) == expected
    assert found.score == pytest.approx(cosine[found.a, found.b], abs=1e-6)


def test_equal_images_meet_similarity_one():
    vectors = dedup.features(
        smooth(30)[np.repeat(np.arange(30), 2)], smooth(2), Embedding(features="pixels"), 0
    )
    assert as_set(dedup.cosine_pairs(vectors, 1.0)) == {(2 * row, 2 * row + 1) for row in range(30)}


def test_an_average_image_is_near_to_nothing():
    pixels = np.array([[100], [200], [150]], np.uint8).reshape(3, 1, 1, 1) * np.ones(
        (1, 4, 4, 1), np.uint8
    )
    vectors = dedup.features(pixels, pixels, Embedding(features="pixels"), 0)
    assert np.abs(vectors[2]).max() == 0
    assert as_set(dedup.cosine_pairs(vectors, 0.5)) == set()


def test_a_threshold_that_all_meet_is_an_error(monkeypatch):
    monkeypatch.setattr(dedup, "_MOST_PAIRS", 10)
    with pytest.raises(ConfigError, match=r"dedup\.phash\.max_bits: more than 10 pairs"):
        dedup.hash_pairs(np.zeros((6, 8), np.uint8), 2)


def test_components_must_fit_the_reference():
    with pytest.raises(
        ConfigError,
        match=r"dedup\.embedding\.components = 32: 5 reference images of 256 values have at most 5",
    ):
        dedup.features(smooth(4), smooth(5), Embedding(features="pca", components=32), 0)


def test_all_components_keep_all_angles():
    train, reference = smooth(20), smooth(300, seed=1)
    vectors = dedup.features(train, reference, Embedding(features="pca", components=SIDE * SIDE), 0)
    centred = train.reshape(20, -1) / 255 - reference.reshape(300, -1).mean(axis=0) / 255
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    assert vectors @ vectors.T == pytest.approx(centred @ centred.T, abs=1e-4)


# ---- groups --------------------------------------------------------------------------------------


def test_groups_follow_chains():
    group = dedup.groups(6, [pairs_of((0, 3)), pairs_of((3, 5), (1, 2))])
    assert group.tolist() == [0, 1, 1, 0, 2, 0]


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=25),
    st.sampled_from(["first", "medoid"]),
)
def test_one_image_of_each_group_stays(count, edges, which):
    inside = [(min(pair), max(pair)) for pair in edges if max(pair) < count and pair[0] != pair[1]]
    group = dedup.groups(count, [pairs_of(*inside)])
    for a, b in inside:
        assert group[a] == group[b]
    vectors = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    kept = dedup.keep(group, vectors, which)
    assert sorted(group[kept]) == sorted(set(group.tolist()))
    if which == "first":
        assert all(not (group[:row] == group[row]).any() for row in np.flatnonzero(kept))


def test_the_medoid_is_the_one_in_the_middle():
    angles = np.deg2rad([0, 20, 50, 100, 100, 180])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    group = np.array([0, 0, 0, 1, 1, 2])
    # Mean cosine distance inside the first group is smallest at 20 degrees; equal images leave the
    # first.
    assert dedup.keep(group, vectors, "medoid").tolist() == [False, True, False, True, False, True]
    assert dedup.keep(group, vectors, "first").tolist() == [True, False, False, True, False, True]


# ---- the table -----------------------------------------------------------------------------------


def test_a_case_worked_out_by_hand():
    """Rows 0-2 show source 7 (row 2 changed), rows 3-4 source 8, rows 5-7 stand once.

    True pairs: 3 + 1 = 4, of them 2 with a changed copy. Found: (0,1) right, (1,2) right and
    changed, (5,6) wrong, (4,7) wrong. Groups: {0,1,2}, {3}, {4,7}, {5,6}: 3 + 1 + 1 = 5 pairs, 3 of
    them true. First kept: 0, 3, 4, 5; removed: 1, 2, 6, 7.
    """
    sources = np.array([7, 7, 7, 8, 8, 1, 2, 3])
    perturbed = np.array([0, 0, 1, 0, 0, 0, 0, 0], bool)
    found = pairs_of((0, 1), (1, 2), (4, 7), (5, 6))
    group = dedup.groups(8, [found])
    kept = dedup.keep(group, np.zeros((8, 1), np.float32), "first")
    assert np.flatnonzero(kept).tolist() == [0, 3, 4, 5]
    assert dedup.score(
        found, group, kept, sources, perturbed, np.where(perturbed, "noise", "")
    ) == {
        "pairs_found": 4,
        "true_pairs": 4,
        "true_pairs_found": 2,
        "pair_precision": 0.5,
        "pair_recall": 0.5,
        "perturbed_pair_recall": 0.5,
        "group_pairs": 5,
        "group_precision": 0.6,
        "group_recall": 0.75,
        "removed": 4,
        "surplus_copies": 3,
        "surplus_copies_removed": 2,
        "surplus_recall": 2 / 3,
        "unplanted_removed": 2,
        "sources_lost": 2,
        "recall_noise": 0.5,
    }


def test_losing_a_planted_image_altogether_counts():
    sources = np.array([5, 7, 7])
    found = pairs_of((0, 1), (0, 2))
    group = dedup.groups(3, [found])
    row = dedup.score(
        found, group, np.array([True, False, False]), sources, np.zeros(3, bool), np.full(3, "")
    )
    assert (row["pair_precision"], row["pair_recall"], row["group_recall"]) == (0, 0, 1)
    assert (
        row["removed"],
        row["surplus_copies_removed"],
        row["unplanted_removed"],
        row["sources_lost"],
    ) == (2, 1, 0, 1)


def test_shares_without_denominator_are_empty():
    row = dedup.score(
        pairs_of(), np.arange(3), np.ones(3, bool), np.arange(3), np.zeros(3, bool), np.full(3, "")
    )
    assert {name for name, value in row.items() if value is None} == {
        "pair_precision",
        "pair_recall",
        "perturbed_pair_recall",
        "group_precision",
        "group_recall",
        "surplus_recall",
    }


# ---- the step ------------------------------------------------------------------------------------

PLANT = [
    {"copies": 3, "images": 5, "perturbation": None},
    {"copies": 4, "images": 3, "perturbation": {"noise": 0.01, "brightness": 0.0}},
]
TRUE = 5 * 3 + 3 * 6
EXACT = 5 * 3


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def stored(request, tmp_path):
    """A stored split of smooth images, with and without colour."""
    pixels = smooth(140, channels=request.param)
    settings = {
        "split": {"train": 70, "holdout": 20, "reference": None, "fusion": 0, "official": False},
        "plant": PLANT,
        "plantings": 1,
        "flips": False,
    }
    parts, table, *_ = split(Images.of(pixels), settings, 1)
    drawn = planting.draw(parts["pool"], table["alone"].to_numpy(), settings, 1, 0)
    parts["train"] = drawn.train
    with artifacts.step(
        {"step": "data/split", "settings": settings}, tmp_path / "split", {}, ()
    ) as step:
        for name, part in parts.items():
            part.save(step.folder / f"{name}.npz")
        drawn.index.to_parquet(step.folder / "index.parquet")
    return tmp_path / "split"


def run(stored, resolved, settings: dict, *more: str) -> int:
    path = resolved("data/dedup", Dedup.model_validate(settings).model_dump(mode="json"))
    files = [
        f"--{name}={stored / file}"
        for name, file in (("train", "train.npz"), ("index", "index.parquet"))
    ]
    reference = f"--reference={stored / 'reference.npz'}"
    return main(
        [
            "data",
            "dedup",
            *files,
            reference,
            "--config",
            path,
            "--out",
            str(stored.parent / "dedup"),
            *more,
        ]
    )


@pytest.mark.parametrize("features", ["pixels", "pca"])
def test_a_clean_case_is_solved_whole(stored, resolved, features):
    settings = {
        "methods": ["exact", "embedding"],
        "embedding": {"features": features, "components": 16, "similarity": 0.99},
    }
    assert run(stored, resolved, settings) == 0
    out = stored.parent / "dedup"
    table = pd.read_csv(out / "table.csv", index_col="method")
    assert table.index.tolist() == ["exact", "phash", "embedding", "combined"]
    assert (table["true_pairs"] == TRUE).all()
    assert table.loc["exact", ["pairs_found", "true_pairs_found", "removed"]].tolist() == [
        EXACT,
        EXACT,
        10,
    ]
    assert table.loc["exact", "perturbed_pair_recall"] == 0
    for method in ("embedding", "combined"):
        row = table.loc[method]
        assert (
            row[
                [
                    "pair_precision",
                    "pair_recall",
                    "group_precision",
                    "group_recall",
                    "surplus_recall",
                ]
            ]
            == 1
        ).all()
        assert row[
            ["removed", "surplus_copies_removed", "unplanted_removed", "sources_lost"]
        ].tolist() == [19, 19, 0, 0]
    assert table.loc["phash", "pair_recall"] >= EXACT / TRUE

    train, left = load_images(stored / "train.npz"), load_images(out / "train.npz")
    assert len(left) == len(np.unique(left.sources)) == 70 - 19
    rows = np.searchsorted(train.ids, left.ids)
    assert np.array_equal(left.pixels, train.pixels[rows])
    groups = pd.read_parquet(out / "groups.parquet")
    assert groups.columns.tolist() == ["id", "source", "group", "kept"]
    assert (groups.groupby("group")["kept"].sum() == 1).all()
    assert len(groups[["group", "source"]].drop_duplicates()) == len(left)
    assert groups.loc[groups["kept"], "id"].tolist() == left.ids.tolist()
    assert (
        groups[groups["kept"]].set_index("group")["id"] == groups.groupby("group")["id"].min()
    ).all()
    pairs = pd.read_parquet(out / "pairs.parquet")
    assert pairs["method"].value_counts()["embedding"] == TRUE
    assert (pairs["a"] < pairs["b"]).all()
    numbers = {
        row["name"]: row["value"]
        for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    }
    assert numbers["exact/pairs_found"] == EXACT
    assert numbers["combined/pair_recall"] == 1


def test_every_kind_that_was_planted_has_a_recall(tmp_path, resolved):
    changes = [{"kind": "mirror"}, {"kind": "shift", "pixels": 1}, {"kind": "jpeg", "quality": 90}]
    settings = {
        "split": {"train": 60, "holdout": 20, "reference": None, "fusion": 0, "official": False},
        "plant": [{"copies": 4, "images": 5, "perturbation": None, "perturb": changes}],
        "plantings": 1,
        "flips": False,
    }
    parts, table, *_ = split(Images.of(smooth(400, channels=3)), settings, 1)
    drawn = planting.draw(parts["pool"], table["alone"].to_numpy(), settings, 1, 0)
    parts["train"] = drawn.train
    stored = tmp_path / "split"
    with artifacts.step({"step": "data/split", "settings": settings}, stored, {}, ()) as step:
        for name, part in parts.items():
            part.save(step.folder / f"{name}.npz")
        drawn.index.to_parquet(step.folder / "index.parquet")
    assert run(stored, resolved, {"methods": ["exact", "likeness"]}) == 0
    table = pd.read_csv(tmp_path / "dedup" / "table.csv", index_col="method")
    assert table.index.tolist() == ["exact", "phash", "embedding", "likeness", "combined"]
    kinds = ["recall_jpeg", "recall_mirror", "recall_shift"]
    assert table.loc["exact", kinds].tolist() == [0, 0, 0]
    assert table.loc["likeness", kinds].tolist() == [1, 1, 1]
    assert table.loc["likeness", "pair_precision"] == 1
    assert table.loc["embedding", "recall_mirror"] == 0


def test_only_the_named_methods_decide_but_all_are_scored(stored, resolved):
    settings = {"methods": ["exact"], "embedding": {"features": "pixels", "similarity": 0.99}}
    assert run(stored, resolved, settings) == 0
    table = pd.read_csv(stored.parent / "dedup" / "table.csv", index_col="method")
    assert table.loc["combined"].equals(table.loc["exact"].rename("combined"))
    assert table.loc["embedding", "pair_recall"] == 1
    assert len(load_images(stored.parent / "dedup" / "train.npz")) == 60


def test_duplicates_of_image_of_caption_and_of_both(stored, resolved, tmp_path):
    """Half of the planted copies get a caption of their own; six unplanted images share one."""
    train = load_images(stored / "train.npz", check=False)
    captions = np.array([f"source {source}" for source in train.sources.tolist()])
    order = pd.Series(train.sources).groupby(train.sources).cumcount().to_numpy()
    captions[order % 2 == 1] = [f"row {row}" for row in np.flatnonzero(order % 2 == 1)]
    single = np.flatnonzero(~pd.Series(train.sources).duplicated(keep=False))[:6]
    captions[single] = "the same"
    with artifacts.step(
        {"step": "data/split", "settings": {}}, tmp_path / "captions", {}, ()
    ) as step:
        replace(train, captions=captions).save(step.folder / "train.npz")
        for name in ("reference.npz", "index.parquet"):
            shutil.copy(stored / name, step.folder / name)

    def left(**settings) -> set[int]:
        assert run(tmp_path / "captions", resolved, settings) == 0
        groups = pd.read_parquet(tmp_path / "dedup" / "groups.parquet")
        return set(np.flatnonzero(groups["kept"]))

    def first(*columns) -> set[int]:
        return set(np.flatnonzero(~pd.DataFrame(dict(enumerate(columns))).duplicated()))

    exact = pd.Series([image.tobytes() for image in train.pixels])
    assert left(methods=["exact"]) == first(exact)
    assert left(methods=["caption"]) == first(captions)
    assert left(methods=["exact"], same_caption=True) == first(exact, captions)
    assert len({frozenset(first(*c)) for c in ((exact,), (captions,), (exact, captions))}) == 3


def test_medoid_keeps_one_of_each_group(stored, resolved):
    settings = {
        "methods": ["embedding"],
        "keep": "medoid",
        "embedding": {"features": "pixels", "similarity": 0.99},
    }
    assert run(stored, resolved, settings) == 0
    left = load_images(stored.parent / "dedup" / "train.npz")
    assert len(left) == len(np.unique(left.sources)) == 51


def test_undefined_shares_are_empty_cells(stored, resolved):
    train = load_images(stored / "train.npz")
    alone = np.unique(train.sources, return_index=True)[1]
    index = pd.read_parquet(stored / "index.parquet")
    single = train.take(np.sort(alone))
    with artifacts.step({"step": "x", "settings": {}}, stored.parent / "single", {}, ()) as step:
        single.save(step.folder / "train.npz")
        index[(index["part"] == "train") & index["id"].isin(single.ids)].to_parquet(
            step.folder / "index.parquet"
        )
        load_images(stored / "reference.npz").save(step.folder / "reference.npz")
    assert (
        run(
            stored.parent / "single",
            resolved,
            {"methods": ["exact"], "embedding": {"features": "pixels"}},
        )
        == 0
    )
    lines = (stored.parent / "dedup" / "table.csv").read_text().splitlines()
    assert lines[1] == "exact,0,0,0,,,,0,,,0,0,0,,0,0,"
    assert "nan" not in (stored.parent / "dedup" / "metrics.jsonl").read_text().lower()


def test_the_classifier_must_be_given(stored, resolved, capsys):
    assert run(stored, resolved, {"embedding": {"features": "classifier"}}) == 2
    assert "--classifier" in capsys.readouterr().err


def test_the_studys_classifier_can_judge(stored, resolved):
    from afterimage.config import Classifier

    path = resolved(
        "data/classifier", Classifier(channels=[4], features=8, epochs=1).model_dump(mode="json")
    )
    folder = stored.parent / "classifier"
    assert (
        main(
            [
                "data",
                "classifier",
                f"--reference={stored / 'reference.npz'}",
                "--config",
                path,
                "--out",
                str(folder),
            ]
        )
        == 0
    )
    settings = {
        "methods": ["embedding"],
        "embedding": {"features": "classifier", "similarity": 0.9999},
    }
    assert run(stored, resolved, settings, f"--classifier={folder}") == 0
    table = pd.read_csv(stored.parent / "dedup" / "table.csv", index_col="method")
    assert table.loc["embedding", "true_pairs_found"] >= EXACT  # equal images have equal features
    run_json = json.loads((stored.parent / "dedup" / "run.json").read_text())
    assert set(run_json["inputs"]) == {"train", "index", "reference", "classifier"}


def test_an_index_of_another_split_is_refused(stored, resolved, capsys):
    index = pd.read_parquet(stored / "index.parquet")
    index.loc[index["part"] == "train", "source"] += 1
    with artifacts.step({"step": "x", "settings": {}}, stored.parent / "other", {}, ()) as step:
        index.to_parquet(step.folder / "index.parquet")
    other = f"--index={stored.parent / 'other' / 'index.parquet'}"
    assert run(stored, resolved, {"embedding": {"features": "pixels"}}, other) == 2
    assert "does not describe the images of" in capsys.readouterr().err
