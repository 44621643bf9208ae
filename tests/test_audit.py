"""The audit of an outside model: the same answer from every kind of file, and clear words where something is missing."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from afterimage import audit, cli

COPIES = 12


@pytest.fixture(scope="module")
def digits():
    return np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]


def write_sets(folder, digits):
    """Write 300 training images; 60 generations of which the first 12 are training images but for a pixel; 200 held out."""
    generations = digits[1000:1060].copy()
    generations[:COPIES] = digits[10 : 10 + COPIES]
    generations[:COPIES, 0, 0, 0] ^= 8
    for name, images in {"train": digits[:300], "samples": generations, "holdout": digits[400:600]}.items():
        np.savez(folder / f"{name}.npz", images=images)
    return folder


@pytest.fixture
def sets(tmp_path, digits):
    return write_sets(tmp_path, digits)


def run(*arguments):
    return cli.main(["audit", *map(str, arguments)])


def result(folder):
    return json.loads((folder / "audit.json").read_text()), pd.read_parquet(folder / "pairs.parquet")


@pytest.fixture(scope="module")
def audited(tmp_path_factory, digits):
    """The result of one audit; read only."""
    sets = write_sets(tmp_path_factory.mktemp("audit"), digits)
    flags = ["--seed", 1, "--samples", sets / "samples.npz", "--train", sets / "train.npz", "--holdout", sets / "holdout.npz"]
    assert run(*flags, "--out", sets / "out", "--features", "pixels", "--show-images") == 0
    return sets


def test_copies_are_found_and_controlled(audited):
    record, pairs = result(audited / "out")
    assert record["counts"] == {"generations": 60, "training": 300, "training_distinct": 300, "holdout": 200}
    assert list(pairs) == ["sample", "nearest", "l2", "ratio_training", "ratio_candidate"]
    np.testing.assert_array_equal(pairs["sample"], np.arange(60))
    np.testing.assert_array_equal(pairs["nearest"][:COPIES], np.arange(10, 10 + COPIES))
    np.testing.assert_allclose(pairs["l2"][:COPIES], 8 / 255 / 8, atol=1e-12)
    calibrated = record["flagged_generations"]["training"]["calibrated"]
    assert calibrated["count"] >= COPIES
    assert record["flagged_holdout"]["training"]["calibrated"]["of"] == 100
    assert record["quality"]["FD[pixels]"]["holdout"] >= 0


def test_json_has_the_documented_keys(audited):
    record, _ = result(audited / "out")
    assert set(re.findall(r"^  (\w+)", audit.KEYS, flags=re.MULTILINE)) == set(record) - {"version"}
    assert record["settings"]["seed"] == 1
    assert set(record["unique_images"]) == {"training", "candidate"}
    one = record["unique_images"]["training"]["fixed"]
    assert set(one) == {"count", "of", "share", "low", "high", "exact_low", "exact_high"}


def test_page_is_whole(audited):
    page = (audited / "out" / "audit.html").read_text()
    assert page.count("data:image/png;base64") == 2
    assert "https://" not in page
    assert "the model gives back training images" in page


def test_images_are_not_shown_unless_asked(sets):
    assert run("--samples", sets / "samples.npz", "--train", sets / "train.npz", "--out", sets / "out") == 0
    assert (sets / "out" / "audit.html").read_text().count("data:image/png;base64") == 1


def test_without_holdout_no_control_is_claimed(sets, capsys):
    assert run("--samples", sets / "samples.npz", "--train", sets / "train.npz", "--out", sets / "out") == 0
    record, _ = result(sets / "out")
    assert record["flagged_holdout"] is None
    assert record["quality"] is None
    assert "calibrated" not in record["alpha"]["training"]
    assert "Without --holdout nothing says how many of them are false alarms" in capsys.readouterr().out


def test_every_kind_of_file_gives_the_same_answer(sets):
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {}
    for name in ("samples", "train"):
        images = np.load(sets / f"{name}.npz")["images"]
        folder = sets / name
        folder.mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(folder / f"{i:04d}.png")
        raw = [(folder / f"{i:04d}.png").read_bytes() for i in range(len(images))]
        table = pa.table({"img": [{"bytes": b, "path": None} for b in raw], "label": [0] * len(raw)})
        pq.write_table(table, sets / f"{name}.parquet")
    answers = []
    for kind in ("{}.npz", "{}", "{}.parquet"):
        flags = ["--samples", sets / kind.format("samples"), "--train", sets / kind.format("train"), "--out", sets / "out"]
        assert run(*flags) == 0
        record, pairs = result(sets / "out")
        kinds[kind] = pairs["nearest"].tolist()
        answers.append((record["unique_images"], record["mq"], pairs["l2"].tolist(), pairs["ratio_candidate"].tolist()))
    assert answers[0] == answers[1] == answers[2]
    assert kinds["{}"] == [f"{row:04d}.png" for row in kinds["{}.npz"]]


def test_quality_in_the_classifiers_space(sets):
    labels = load_digits().target[400:600]
    np.savez(sets / "holdout.npz", images=np.load(sets / "holdout.npz")["images"], labels=labels)
    flags = ["--samples", sets / "samples.npz", "--train", sets / "train.npz", "--holdout", sets / "holdout.npz"]
    assert run(*flags, "--out", sets / "out") == 0
    record, _ = result(sets / "out")
    assert {"FD[classifier]", "KID[classifier]", "precision[classifier]"} <= set(record["quality"])


def test_pipeline_is_sampled(sets):
    from afterimage import config
    from afterimage.diffusion.model import build_scheduler, build_unet, save_pipeline

    model = config.Model(channels=[8, 8], attention=[False, False], layers_per_block=1, norm_groups=4)
    save_pipeline(build_unet(model, (8, 8, 1)), build_scheduler(config.Diffusion(timesteps=20)), sets / "pipeline")
    flags = [
        "--pipeline",
        sets / "pipeline",
        "--generate",
        10,
        "--steps",
        2,
        "--train",
        sets / "train.npz",
        "--out",
        sets / "out",
    ]
    assert run(*flags) == 0
    record, pairs = result(sets / "out")
    assert record["counts"]["generations"] == len(pairs) == 10


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--samples", "nowhere", "--train", "train.npz"], "--samples nowhere: not a folder or zip"),
        (["--samples", "samples.npz", "--train", "nothing.npz"], "--train: nothing.npz: no such file"),
        (["--samples", "samples.npz", "--train", "wide.npz"], "--train 9x9x1, --samples 8x8x1; --resize and --colour"),
        (["--samples", "samples.npz", "--train", "train.npz", "--alpha", "-1"], "--alpha = -1.0"),
        (["--samples", "samples.npz", "--train", "train.npz", "--features", "inception"], "inception_weights"),
        (["--pipeline", "nowhere", "--train", "train.npz"], "nowhere cannot be opened as a diffusers pipeline"),
    ],
)
def test_bad_input_is_explained_and_nothing_is_written(sets, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(sets)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    np.savez("wide.npz", images=np.zeros((20, 9, 9, 1), np.uint8))
    assert run(*flags, "--out", "out") == 2
    assert words in capsys.readouterr().err
    assert not (sets / "out").exists()
