"""The whole attack, on models in closed form and on stores."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from afterimage import artifacts, config
from afterimage.artifacts import ArtifactError
from afterimage.attacks import adaptive, calibration, extraction, twins
from afterimage.attacks.extraction import extract
from afterimage.data.members import trained_rows
from afterimage.images import Images

SETTINGS, STATISTICS = config.Extraction(), config.Statistics(bootstrap=50)


@pytest.fixture(scope="module")
def digits():
    images = np.rint(load_digits().images / 16 * 255).astype(np.uint8)[..., None]
    return images[np.random.default_rng(0).permutation(len(images))]


@pytest.fixture(scope="module")
def drawn(oracles):
    def draw(kind, pixels, count=1000, **keys):
        data = pixels.reshape(len(pixels), -1) / 127.5 - 1
        denoise = getattr(oracles, kind)(data, **keys)
        return oracles.to_uint8(
            oracles.ddim(denoise, count, data.shape[1], seed=0), pixels.shape[1:]
        )

    return draw


def attack(samples, pixels, **keys):
    return extract(
        Images.of(samples), Images.of(pixels), keys.pop("settings", SETTINGS), STATISTICS, 0, **keys
    )


def value(found, metric, column="value", **where):
    rows = found.results[found.results["metric"] == metric]
    for key, wanted in ({"subset": "all"} | where).items():
        rows = rows[rows[key] == wanted]
    assert len(rows) == 1
    return rows[column].iloc[0]


# ---- models in closed form -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["digits", "smooth"])
def test_the_perfect_memoriser_is_caught_every_time(kind, digits, drawn, oracles):
    pixels = (
        digits[:1000]
        if kind == "digits"
        else np.rint(oracles.smooth_images(1000, 0) * 255).astype(np.uint8)
    )
    found = attack(drawn("empirical_bayes", pixels), pixels)
    uniform = 1000 * (1 - (1 - 1 / 1000) ** 1000)
    for anchor in adaptive.ANCHORS:
        assert value(found, "flagged_generations", anchor=anchor) == 1
        assert value(found, "extracted_images", "count", anchor=anchor) == pytest.approx(
            uniform, rel=0.05
        )
    assert found.pairs["l2"].median() == 0
    assert found.headline["mq@0.15"] == 1000


def test_the_gaussian_fit_gives_nothing_back(digits, drawn):
    found = attack(drawn("gaussian_fit", digits[:1000]), digits[:1000])
    for anchor in adaptive.ANCHORS:
        assert value(found, "flagged_generations", anchor=anchor) <= 0.01


def test_the_rate_falls_as_the_memoriser_is_blurred(digits, drawn):
    rates = []
    for bandwidth in (0.1, 0.3, 0.6):
        pairs = attack(
            drawn("empirical_bayes", digits[:500], 300, bandwidth=bandwidth), digits[:500]
        ).pairs
        rates.append([pairs[f"flagged_{anchor}_fixed"].mean() for anchor in adaptive.ANCHORS])
    assert (np.diff(rates, axis=0) < 0).all()


# ---- counting ------------------------------------------------------------------------------------


def test_more_generations_never_find_fewer_images(digits, drawn):
    samples = drawn("empirical_bayes", digits[:200], 200, bandwidth=0.3)
    counts = [
        [
            value(attack(samples[:n], digits[:200]), "extracted_images", "count", anchor=a)
            for a in adaptive.ANCHORS
        ]
        for n in (1, 20, 80, 200)
    ]
    assert (np.diff(counts, axis=0) >= 0).all()
    assert counts[-1] > counts[0]


def test_copies_count_as_one_image_and_the_best_generation_is_kept(digits):
    original = digits[0]
    near = np.clip(original.astype(int) + np.eye(8, dtype=int)[..., None] * 9, 0, 255).astype(
        np.uint8
    )
    pixels = np.stack([*digits[1:80], original, original, near])
    sources = np.array([*range(79), 500, 500, 500])
    samples = np.stack([near, original, digits[3]])
    settings = SETTINGS.model_copy(update={"delta": 0.03})
    found = extract(Images.of(samples), Images.of(pixels, sources=sources), settings, STATISTICS, 0)
    assert found.pairs["nearest"].tolist() == [81, 79, 2]
    assert found.pairs["nearest_source"].tolist() == [500, 500, 2]
    images = found.images.set_index("source")
    assert len(images) == 80
    assert found.images["source"].is_unique
    assert images.loc[500, ["id", "copies", "best_sample", "best_l2"]].tolist() == [79, 3, 0, 0]
    assert images.loc[500, "k_eidetic"] == 3
    assert pd.isna(images.loc[7, "best_sample"])
    assert images["extracted_training_fixed"].sum() == 2
    assert value(found, "extracted_images", "count", anchor="training") == 2
    assert value(found, "extracted_images", "of", anchor="training") == 80
    assert value(found, "extracted_contents", "count", anchor="training") == 3
    assert value(found, "extracted_by_copies", anchor="training", subset="copies=3") == 1
    assert value(
        found, "extracted_by_copies", anchor="training", subset="copies=1"
    ) == pytest.approx(1 / 79)


def test_generations_and_training_images_alone_are_enough(digits):
    found = attack(digits[:60], digits[:150])
    assert found.holdout_pairs is None
    assert found.twins is None
    assert found.precision_recall is None
    assert set(found.results["alpha"]) == {"fixed", "none"}
    assert found.headline["extraction/unique_images"] == 60
    assert "extraction/alpha_calibrated" not in found.headline


def test_ids_may_be_text(digits):
    train = Images.of(digits[:60], ids=np.array([f"train/{i}.png" for i in range(60)]))
    samples = Images.of(digits[5:8], ids=np.array(["a.png", "b.png", "c.png"]))
    found = extract(samples, train, SETTINGS, STATISTICS, 0, holdout=Images.of(digits[100:140]))
    assert found.pairs["nearest"].tolist() == ["train/5.png", "train/6.png", "train/7.png"]
    assert found.images.set_index("source").loc["train/6.png", "best_sample"] == "b.png"


def test_the_control_and_the_calibrated_alpha(digits):
    settings = SETTINGS.model_copy(update={"calibrated_rate": 0.1})
    found = attack(
        digits[:100], digits[:300], holdout=Images.of(digits[600:1000]), settings=settings
    )
    held = found.holdout_pairs
    for anchor in adaptive.ANCHORS:
        relative = held[f"ratio_{anchor}"].to_numpy() * SETTINGS.alpha
        crossed = calibration.cross_fit(relative, 0.1, 0)
        assert found.alphas[anchor]["calibrated"] == pytest.approx(crossed.alpha, rel=1e-12)
        rate = value(found, "flagged_holdout", anchor=anchor, alpha="calibrated")
        assert rate == np.rint(crossed.flagged.sum()) / 400
        assert 0.08 < rate < 0.13  # out of sample: close to the asked rate
        assert value(found, "flagged_holdout", "of", anchor=anchor, alpha="calibrated") == 400
        assert (
            value(found, "flagged_holdout", anchor=anchor, alpha="fixed")
            == (held[f"ratio_{anchor}"] <= 1).mean()
        )
        assert value(found, "flagged_holdout", "of", anchor=anchor, alpha="fixed") == 400
        assert value(found, "flagged_holdout", "exact_low", anchor=anchor, alpha="calibrated") > 0


def test_held_out_images_that_are_training_images_are_left_out_and_said(digits):
    near = np.clip(
        digits[20:25].astype(int) + np.random.default_rng(0).integers(-2, 3, (5, 8, 8, 1)), 0, 255
    )
    held = np.concatenate([digits[:20], near.astype(np.uint8), digits[600:640], digits[600:601]])
    found = attack(digits[:10], digits[:100], holdout=Images.of(held))
    assert found.facts["holdout_left_out"] == {"exact": 20, "near": 5, "repeated": 1}
    assert found.left_out["nearest"].tolist()[:25] == list(range(25))
    assert found.holdout_pairs["sample"].tolist() == list(range(25, 65))
    assert found.facts["calibration_impossible"] == []
    assert found.verdict.outcome == "copies shown"


def test_without_any_other_held_out_image_the_attack_cannot_tell(digits):
    found = attack(digits[:10], digits[:100], holdout=Images.of(digits[:50]))
    assert found.holdout_pairs is None
    assert found.verdict.outcome == "cannot tell"
    assert "no held-out image is left" in found.verdict.sentence
    assert "extraction/flagged_holdout_calibrated" not in found.headline


def test_too_few_held_out_images_give_no_calibrated_alpha(digits):
    found = attack(digits[:10], digits[:100], holdout=Images.of(digits[600:619]))
    assert found.facts["calibration_impossible"] == ["training", "candidate"]
    assert found.headline["extraction/unique_images_calibrated"] == 0


@pytest.mark.parametrize("copies", [3, 60])
def test_copies_of_an_image_do_not_hide_it(digits, copies):
    """With all copies as neighbours a near copy of an image that stands there 60 times has no
    ratio, and was never flagged."""
    pixels = np.concatenate([digits[:100], digits[:1].repeat(copies - 1, 0)])
    near = digits[:1].copy()
    near[0, 0, 0] ^= 8
    found = attack(near, pixels)
    assert found.headline["extraction/flagged_generations"] == 1
    published = attack(near, pixels, settings=SETTINGS.model_copy(update={"gallery": "all"}))
    assert published.headline["extraction/flagged_generations"] == (copies < 51)


def test_blank_and_blurred_generations_are_counted_apart(digits):
    blank = np.full((40, 8, 8, 1), 30, np.uint8)
    blurred = np.tile(digits[:40].mean(axis=(1, 2), keepdims=True), (1, 8, 8, 1)).astype(np.uint8)
    train = np.concatenate([digits[:200], blank[:1]])
    found = attack(
        np.concatenate([blank, blurred, digits[300:400]]), train, holdout=Images.of(digits[600:800])
    )
    assert found.pairs["low_detail"].tolist() == [True] * 80 + [False] * 100
    assert found.facts["low_detail_generations"] == 80
    assert found.verdict.outcome == "not shown"
    assert attack(blank, train, holdout=Images.of(digits[600:800])).verdict.outcome == "cannot tell"


def test_training_images_are_counted_by_the_generations_nearest_to_them(digits):
    found = attack(digits[[3, 3, 3, 5, 700]], digits[:100], holdout=Images.of(digits[800:1000]))
    images = found.images.set_index("id")
    assert images["nearest_generations"].sum() == 5
    assert images.loc[3, ["nearest_generations", "flagged_generations"]].tolist() == [3, 3]
    assert (images["nearest_generations"] == 0).sum() >= 97


def test_a_single_sample_and_a_repeated_run(digits):
    first, again = (
        attack(digits[700:701], digits[:90], holdout=Images.of(digits[300:350])) for _ in range(2)
    )
    assert len(first.pairs) == 1
    pd.testing.assert_frame_equal(first.results, again.results)


def test_results_hold_no_nan_but_where_a_column_does_not_apply(digits):
    found = attack(digits[700:760], digits[:90], holdout=Images.of(digits[300:350]))
    assert found.results.drop(columns="alpha_value").notna().all(axis=None)
    assert (found.results["alpha_value"].isna() == (found.results["alpha"] == "none")).all()
    shares = found.results
    assert (
        (shares["exact_low"] <= shares["value"]) & (shares["value"] <= shares["exact_high"])
    ).all()
    assert ((shares["low"] <= shares["value"]) & (shares["value"] <= shares["high"])).all()


# ---- twins ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planting(digits):
    """Twelve planted sources (four each at 2, 4 and 8 copies, the last of each perturbed) among 100
    others, and their twins."""
    rng = np.random.default_rng(0)
    copies = np.repeat([2, 4, 8], 4)
    pixels, sources = list(digits[:100]), list(range(100))
    for i, times in enumerate(copies):
        for copy in range(times):
            noise = rng.integers(-3, 4, (8, 8, 1)) if i % 4 == 3 and copy else 0
            pixels.append(np.clip(digits[100 + i].astype(int) + noise, 0, 255).astype(np.uint8))
            sources.append(100 + i)
    train = Images.of(np.stack(pixels), sources=np.array(sources))
    planted = twins.Planted(
        np.arange(100, 112),
        copies,
        Images.of(digits[112:124], ids=np.arange(112, 124)),
        repeat=np.full(12, "both", object),
        times=copies,
        carriers={},
    )
    return train, planted


def test_swapping_replaces_every_copy_and_nothing_else(planting):
    train, planted = planting
    swapped = twins.swap(train, planted)
    np.testing.assert_array_equal(swapped.pixels[:100], train.pixels[:100])
    for source, twin, image in zip(
        planted.sources, planted.twins.ids, planted.twins.pixels, strict=True
    ):
        rows = train.sources == source
        assert (swapped.pixels[rows] == image).all()
        assert (swapped.sources[rows] == twin).all()
    np.testing.assert_array_equal(swapped.ids, train.ids)
    labelled = replace(planted, twins=replace(planted.twins, labels=np.arange(12)))
    assert twins.swap(train, labelled).labels[train.sources == 105].tolist() == [5] * 4


def test_a_memoriser_gives_back_planted_images_and_no_twin(planting, drawn):
    train, planted = planting
    samples = Images.of(drawn("empirical_bayes", train.pixels, 600))
    found = extract(samples, train, SETTINGS, STATISTICS, 0, planted=planted)
    for number in (4, 8):
        subset = {"anchor": "training", "alpha": "fixed", "subset": f"copies={number}"}
        assert value(found, "extracted_by_copies", **subset) == 1
        assert value(found, "twins_flagged_by_copies", **subset) <= 0.25
        assert value(found, "twins_flagged_by_copies", "of", **subset) == 4
    assert value(found, "average_precision") > 0.95
    assert found.twins["twin_of"].tolist() == planted.sources.tolist()
    assert found.images.set_index("source").loc[111, "copies"] == 8
    curve = found.precision_recall
    assert curve["precision"].iloc[0] == 0.5
    assert curve["recall"].iloc[-1] == 0


def test_images_that_were_planted_apart_from_their_captions_are_counted_apart(planting):
    """Four images each planted twice with their captions, four times with other captions, and once
    with a caption that other images have too: generations show the latter."""
    train, planted = planting
    shown = planted.sources[8:]
    once = np.isin(train.sources, shown) & (np.arange(len(train)) % 8 > 0)
    copies, repeat = planted.copies.copy(), planted.repeat.copy()
    copies[8:], repeat[4:8], repeat[8:] = 1, "image", "caption"
    apart = replace(planted, copies=copies, repeat=repeat, carriers={7: 8, 9: 8})
    samples = train.take(np.isin(train.sources, shown))
    found = extract(samples, train.take(~once), SETTINGS, STATISTICS, 0, planted=apart)
    where = {"anchor": "training", "alpha": "fixed"}
    results = found.results.query("anchor == 'training' and alpha == 'fixed'")
    numbers = results.set_index(["metric", "subset"])[["count", "of"]]
    assert numbers.loc["extracted_by_copies"].to_numpy().tolist() == [[0, 98], [0, 4]]
    assert list(numbers.loc["extracted_by_copies"].index) == ["copies=1", "copies=2"]
    by_repeat = {
        "repeat=both times=2": [0, 4],
        "repeat=caption times=8": [4, 4],
        "repeat=carrier times=8": [0, 2],
        "repeat=image times=4": [0, 4],
        "repeat=neither times=1": [0, 98],
    }
    found_by = numbers.loc["extracted_by_repeat"]
    assert dict(zip(found_by.index, found_by.to_numpy().tolist(), strict=True)) == by_repeat
    assert "repeat=caption times=8" in numbers.loc["twins_flagged_by_repeat"].index
    assert "repeat=neither times=1" not in numbers.loc["twins_flagged_by_repeat"].index
    assert value(found, "twins_flagged_by_copies", "of", subset="copies=2", **where) == 4
    images = found.images.set_index("source")
    assert images.loc[111, ["copies", "repeat", "times"]].tolist() == [1, "caption", 8]
    assert images.loc[0, ["copies", "repeat", "times"]].tolist() == [1, "neither", 1]


def test_without_other_styles_nothing_is_counted_by_style(planting):
    train, planted = planting
    found = extract(Images.of(train.pixels[:9]), train, SETTINGS, STATISTICS, 0, planted=planted)
    assert not found.results["metric"].str.contains("by_repeat").any()


def test_twins_are_extracted_where_generations_show_them(planting):
    train, planted = planting
    found = extract(
        Images.of(planted.twins.pixels), train, SETTINGS, STATISTICS, 0, planted=planted
    )
    assert value(found, "twins_flagged", "count", anchor="training") == 12
    assert (found.twins["best_l2"] == 0).all()
    assert value(found, "roc_auc") < 0.1


def test_only_planted_images_that_the_arm_trained_on_count(planting):
    train, planted = planting
    kept = train.take(~np.isin(train.sources, [100, 111]))
    found = extract(Images.of(train.pixels[:50]), kept, SETTINGS, STATISTICS, 0, planted=planted)
    assert len(found.twins) == 10
    assert 111 not in found.images["source"].tolist()


def test_nothing_planted(planting):
    train, planted = planting
    found = extract(
        Images.of(train.pixels[:5]),
        train,
        SETTINGS,
        STATISTICS,
        0,
        planted=planted.among(np.array([-5])),
    )
    assert len(found.twins) == 0
    assert "extracted_training_fixed" in found.twins
    assert found.precision_recall.columns.tolist() == ["recall", "precision", "ratio"]
    assert "average_precision" not in set(found.results["metric"])


# ---- the verb ------------------------------------------------------------------------------------


@pytest.fixture
def stores(planting, digits, tmp_path):
    train, planted = planting
    split = tmp_path / "split"
    split.mkdir()
    train.save(split / "train.npz")
    Images.of(digits[300:400], ids=np.arange(300, 400)).save(split / "holdout.npz")
    planted.twins.save(split / "twins.npz")
    Images.of(train.pixels[::2]).save(split / "images.npz")
    index = pd.DataFrame(
        {
            "id": planted.twins.ids,
            "part": "twin",
            "source": planted.twins.ids,
            "copies": planted.copies,
            "twin_of": planted.sources,
            "repeat": planted.repeat,
            "caption_copies": 0,
        }
    )
    index.sample(frac=1, random_state=0).to_parquet(split / "index.parquet")
    pd.DataFrame({"id": train.ids, "trained": train.ids != 3}).to_parquet(split / "members.parquet")
    files = sorted(split.iterdir())
    artifacts.write_json(
        split / "run.json", {"outputs": {file.name: artifacts.sha256(file) for file in files}}
    )
    settings = SETTINGS.model_dump() | {"mirrors": False, "statistics": STATISTICS.model_dump()}
    resolved = {
        "step": extraction.STEP,
        "arm": "a",
        "replicate": 0,
        "seed": 1,
        "settings": settings,
    }
    artifacts.write_json(tmp_path / "config.json", resolved)
    names = {"samples": "images", "train": "train", "holdout": "holdout", "twins": "twins"}
    paths = {name: split / f"{file}.npz" for name, file in names.items()}
    return argparse.Namespace(
        **paths,
        members=[split / "members.parquet"],
        index=split / "index.parquet",
        config=tmp_path / "config.json",
        out=tmp_path / "out",
    )


def test_images_that_only_the_base_saw_are_attacked_too(stores, tmp_path):
    """Image 3 is not among the arm's own."""
    extraction.run(stores)
    base = tmp_path / "base"
    base.mkdir()
    members = pd.read_parquet(stores.members[0])
    assert members.loc[members["id"] == 3, "trained"].tolist() == [False]
    members.assign(trained=members["id"] == 3).to_parquet(base / "members.parquet")
    listed = {"members.parquet": artifacts.sha256(base / "members.parquet")}
    artifacts.write_json(base / "run.json", {"outputs": listed})
    both = argparse.Namespace(
        **vars(stores) | {"members": [*stores.members, base / "members.parquet"]}
    )
    both.out = tmp_path / "both"
    extraction.run(both)
    own, all_seen = (pd.read_parquet(out / "images.parquet") for out in (stores.out, both.out))
    assert set(all_seen["id"]) - set(own["id"]) == {3}
    inputs = artifacts.read_run(both.out)["inputs"]
    assert {"members", "members/1"} <= set(inputs)


def test_the_verb_stores_all_tables(stores):
    extraction.run(stores)
    run = artifacts.check_store(stores.out)
    expected = {f"{name}.parquet" for name in ("pairs", "holdout_pairs", "images", "twins")}
    assert set(run["outputs"]) == expected | {
        "results.csv",
        "precision_recall.csv",
        "metrics.jsonl",
    }
    metrics = {
        row["name"]: row["value"]
        for row in map(json.loads, (stores.out / "metrics.jsonl").read_text().splitlines())
    }
    results = pd.read_csv(stores.out / "results.csv")
    row = results.query(
        "metric == 'extracted_images' and anchor == 'training' and alpha == 'calibrated'"
    )
    assert metrics["extraction/unique_images_calibrated"] == row["count"].item()
    assert metrics["extraction/alpha_calibrated"] == row["alpha_value"].item()
    images = pd.read_parquet(stores.out / "images.parquet")
    assert 3 not in images["source"].tolist()  # not trained on
    assert len(pd.read_parquet(stores.out / "pairs.parquet")) == 78
    assert run["facts"]["training_rows"] == 155


def test_mismatched_stores_are_refused(stores, planting):
    train, planted = planting
    with pytest.raises(ArtifactError, match="do not name the same twins"):
        twins.read(pd.read_parquet(stores.index), planted.twins.take(np.arange(5)))
    with pytest.raises(ArtifactError, match="training image 999"):
        trained_rows(train, pd.DataFrame({"id": [1, 999], "trained": [True, True]}))
    with pytest.raises(ArtifactError, match="no training image"):
        trained_rows(train, pd.DataFrame({"id": [1], "trained": [False]}))
    with pytest.raises(ArtifactError, match=r"generations have shape \(8, 8, 3\)"):
        attack(train.pixels.repeat(3, axis=-1), train.pixels)
    with pytest.raises(ArtifactError, match="no held-out images"):
        attack(train.pixels, train.pixels, holdout=Images.of(train.pixels[:0]))


def test_a_single_training_image_has_distances_and_no_answer(digits):
    train = digits[:1].repeat(60, 0)
    found = attack(digits[:3], train, holdout=Images.of(digits[100:200]))
    squares = ((digits[:3].astype(float) - digits[0]) / 255) ** 2
    np.testing.assert_allclose(found.pairs["l2"], np.sqrt(squares.mean((1, 2, 3))))
    assert found.pairs["ratio_training"].tolist() == [0, np.inf, np.inf]
    assert found.verdict.outcome == "cannot tell"
