"""The audit of an outside model: the same answer from every kind of file, and clear words where
something is missing."""

import html
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from afterimage import cli, config
from afterimage.attacks.verdict import POWER
from afterimage.diffusion.model import build_scheduler, build_unet, save_pipeline
from afterimage.metrics.exceedance import visible_rate
from afterimage.standalone import statement
from afterimage.standalone.record import AuditRecord

COPIES = 12


@pytest.fixture(scope="module")
def digits():
    return np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]


def write_sets(folder, digits):
    """Write 300 training images; 60 generations of which the first 12 are training images but for a
    pixel; 200 held out."""
    generations = digits[1000:1060].copy()
    generations[:COPIES] = digits[10 : 10 + COPIES]
    generations[:COPIES, 0, 0, 0] ^= 8
    for name, images in {
        "train": digits[:300],
        "samples": generations,
        "holdout": digits[400:600],
    }.items():
        np.savez(folder / f"{name}.npz", images=images)
    return folder


@pytest.fixture
def sets(tmp_path, digits):
    return write_sets(tmp_path, digits)


def run(*arguments):
    return cli.main(["audit", *map(str, arguments)])


def result(folder):
    return json.loads((folder / "audit.json").read_text()), pd.read_parquet(
        folder / "pairs.parquet"
    )


@pytest.fixture(scope="module")
def audited(tmp_path_factory, digits):
    """The result of one audit; read only."""
    sets = write_sets(tmp_path_factory.mktemp("audit"), digits)
    flags = [
        "--seed",
        1,
        "--samples",
        sets / "samples.npz",
        "--train",
        sets / "train.npz",
        "--holdout",
        sets / "holdout.npz",
    ]
    assert run(*flags, "--out", sets / "out", "--features", "pixels", "--show-images") == 0
    return sets


def test_copies_are_found_and_controlled(audited):
    record, pairs = result(audited / "out")
    assert record["counts"]["training_never_nearest"] >= 300 - 60
    del record["counts"]["training_never_nearest"]
    sizes = {
        "generations": 60,
        "training": 300,
        "training_distinct": 300,
        "generations_identical": 0,
        "extracted": COPIES,
        "extracted_repeated": 0,
        "holdout": 200,
        "holdout_left_out": 0,
    }
    assert record["counts"] == sizes
    columns = [
        "sample",
        "nearest",
        "l2",
        "ratio_training",
        "ratio_candidate",
        "low_detail",
        "flagged_verdict",
    ]
    assert list(pairs) == columns
    assert record["verdict"]["outcome"] == "copies shown"
    assert pairs["flagged_verdict"].tolist() == [True] * COPIES + [False] * (60 - COPIES)
    extracted = pd.read_csv(audited / "out" / "extracted.csv")
    assert sorted(extracted["file"]) == list(range(10, 10 + COPIES))
    assert (extracted[["copies", "flagged_generations"]] == 1).all(axis=None)
    np.testing.assert_array_equal(pairs["sample"], np.arange(60))
    np.testing.assert_array_equal(pairs["nearest"][:COPIES], np.arange(10, 10 + COPIES))
    np.testing.assert_allclose(pairs["l2"][:COPIES], 8 / 255 / 8, atol=1e-12)
    calibrated = record["flagged_generations"]["training"]["calibrated"]
    assert calibrated["count"] >= COPIES
    assert record["flagged_holdout"]["training"]["calibrated"]["of"] == 200
    assert record["quality"]["FD[pixels]"]["holdout"] >= 0


def test_the_record_is_as_declared_and_says_how_it_was_made(audited):
    record, _ = result(audited / "out")
    read = AuditRecord.model_validate(record)
    assert read.model_dump(mode="json") == record
    assert record["settings"]["seed"] == 1
    assert record["command"] == (
        f"afterimage audit --samples {audited}/samples.npz --train {audited}/train.npz --holdout "
        f"{audited}/holdout.npz --out {audited}/out --features pixels --show-images --seed 1"
    )
    assert (audited / "out" / "statement.txt").read_text() == statement.document(read)
    rate = visible_rate(60, 200, POWER)
    assert f"A copying rate of {100 * rate:.2g} % or more" in record["risk_statement"]["found"][-1]
    assert record["given"][0].startswith(f"Yes, for copying rates from {100 * rate:.2g} %")


def test_the_page_answers_in_order(audited):
    page = (audited / "out" / "audit.html").read_text()
    assert page.count("data:image/png;base64") == 2
    assert "https://" not in page
    headings = re.findall("<h2[^>]*>(.*?)</h2>", page)
    assert headings == [
        "What was asked",
        "Can it be answered with what was given?",
        "Copies or not",
        "The pairs",
        "What to do next",
        "Risk statement",
        "Numbers",
        "Settings",
    ]
    assert "Copies shown: at least" in page.split("<h2>Copies or not</h2>")[1].split("<h2")[0]
    assert "at most 5 of 100 such audits" in page.split("<h2>Copies or not</h2>")[1].split("<h2")[0]
    assert '<td class="number">12</td>' in page  # an extracted training image, by its row
    assert page.count("<thead>") == 3  # of every table that has a head: repeated in print


def test_what_follows_is_on_the_page_and_as_data(audited):
    record, _ = result(audited / "out")
    page = html.unescape((audited / "out" / "audit.html").read_text())
    sentences = [sentence for part in record["risk_statement"].values() for sentence in part]
    sentences += record["given"]
    for step in record["next_steps"]:
        sentences += [step["text"], step["command"] or ""]
    assert len(sentences) > 15
    assert all(sentence in page for sentence in sentences)


def test_repeated_and_identical_images_are_counted(sets, digits):
    train = np.load(sets / "train.npz")["images"]
    np.savez(sets / "train.npz", images=np.concatenate([train, train[10:13]]))
    samples = np.load(sets / "samples.npz")["images"]
    samples[:2] = digits[10:12]
    np.savez(sets / "samples.npz", images=samples)
    sources = [f"--{name}={sets / name}.npz" for name in ("samples", "train", "holdout")]
    assert run(*sources, "--features", "pixels", "--out", sets / "out") == 0
    record, _ = result(sets / "out")
    assert record["counts"]["generations_identical"] == 2
    assert record["counts"]["extracted"] == COPIES
    assert record["counts"]["extracted_repeated"] == 3
    assert "2 of 60 generations are identical" in record["risk_statement"]["found"][-1]
    assert any("3 of 12 extracted images" in step["text"] for step in record["next_steps"])


def test_images_are_not_shown_unless_asked(sets):
    assert (
        run("--samples", sets / "samples.npz", "--train", sets / "train.npz", "--out", sets / "out")
        == 0
    )
    assert (sets / "out" / "audit.html").read_text().count("data:image/png;base64") == 1


def test_without_holdout_no_control_is_claimed(sets, capsys):
    assert (
        run("--samples", sets / "samples.npz", "--train", sets / "train.npz", "--out", sets / "out")
        == 0
    )
    record, _ = result(sets / "out")
    assert record["flagged_holdout"] is None
    assert record["quality"] is None
    assert "calibrated" not in record["alpha"]["training"]
    assert record["verdict"]["outcome"] == "cannot tell"
    assert "Cannot tell: no held-out images were given" in capsys.readouterr().out
    assert len(pd.read_csv(sets / "out" / "extracted.csv")) == 0


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
        table = pa.table(
            {"img": [{"bytes": b, "path": None} for b in raw], "label": [0] * len(raw)}
        )
        pq.write_table(table, sets / f"{name}.parquet")
    answers = []
    for kind in ("{}.npz", "{}", "{}.parquet"):
        flags = [
            "--samples",
            sets / kind.format("samples"),
            "--train",
            sets / kind.format("train"),
            "--out",
            sets / "out",
        ]
        assert run(*flags) == 0
        record, pairs = result(sets / "out")
        kinds[kind] = pairs["nearest"].tolist()
        answers.append(
            (
                record["unique_images"],
                record["mq"],
                pairs["l2"].tolist(),
                pairs["ratio_candidate"].tolist(),
            )
        )
    assert answers[0] == answers[1] == answers[2]
    assert kinds["{}"] == [f"{row:04d}.png" for row in kinds["{}.npz"]]


def test_quality_in_the_classifiers_space(sets):
    labels = load_digits().target[400:600]
    np.savez(sets / "holdout.npz", images=np.load(sets / "holdout.npz")["images"], labels=labels)
    flags = [
        "--samples",
        sets / "samples.npz",
        "--train",
        sets / "train.npz",
        "--holdout",
        sets / "holdout.npz",
    ]
    assert run(*flags, "--out", sets / "out") == 0
    record, _ = result(sets / "out")
    assert {"FD[classifier]", "KID[classifier]", "precision[classifier]"} <= set(record["quality"])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """An untrained pipeline of 20 timesteps."""
    folder = tmp_path_factory.mktemp("pipeline")
    model = config.Model(
        channels=[8, 8], attention=[False, False], layers_per_block=1, norm_groups=4
    )
    scheduler = build_scheduler(config.Diffusion(timesteps=20))
    save_pipeline(build_unet(model, (8, 8, 1)), scheduler, folder)
    return folder


def test_pipeline_is_sampled(sets, pipeline):
    flags = [
        "--pipeline",
        pipeline,
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


MISSING_WEIGHTS = ["--inception-weights", "nowhere.pt", "--inception-sha256", "0"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--samples", "nowhere", "--train", "train.npz"],
            "--samples nowhere: not a folder or zip",
        ),
        (
            ["--samples", "samples.npz", "--train", "nothing.npz"],
            "--train: nothing.npz: no such file",
        ),
        (
            ["--samples", "samples.npz", "--train", "wide.npz"],
            "--train 9x9x1, --samples 8x8x1; --resize and --colour",
        ),
        (["--samples", "samples.npz", "--train", "train.npz", "--alpha", "-1"], "--alpha = -1.0"),
        (
            ["--samples", "samples.npz", "--train", "train.npz", "--features", "inception"],
            "needs --inception-weights FILE",
        ),
        (
            [
                "--samples",
                "samples.npz",
                "--train",
                "train.npz",
                "--features",
                "inception",
                *MISSING_WEIGHTS,
            ],
            "--inception-weights = nowhere.pt: there is no such file",
        ),
        (
            ["--pipeline", "nowhere", "--train", "train.npz"],
            "nowhere cannot be opened as a diffusers pipeline",
        ),
    ],
)
def test_bad_input_is_explained_and_nothing_is_written(sets, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(sets)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    np.savez("wide.npz", images=np.zeros((20, 9, 9, 1), np.uint8))
    assert run(*flags, "--out", "out") == 2
    assert words in capsys.readouterr().err
    assert not (sets / "out").exists()


def test_more_steps_than_timesteps_name_the_flag(sets, pipeline, capsys):
    flags = [
        "--pipeline",
        pipeline,
        "--steps",
        21,
        "--train",
        sets / "train.npz",
        "--out",
        sets / "out",
    ]
    assert run(*flags) == 2
    assert "--steps = 21 is more than the model's 20 timesteps" in capsys.readouterr().err


@pytest.mark.parametrize(("generations", "held_out"), [(1, 200), (4, 200), (20, 2), (20, 8)])
def test_few_images_stop_the_quality_and_not_the_attack(sets, digits, generations, held_out):
    np.savez(sets / "samples.npz", images=digits[:generations])
    np.savez(sets / "holdout.npz", images=digits[400 : 400 + held_out])
    flags = [
        "--samples",
        sets / "samples.npz",
        "--train",
        sets / "train.npz",
        "--holdout",
        sets / "holdout.npz",
    ]
    assert run(*flags, "--out", sets / "out") == 0
    record, pairs = result(sets / "out")
    assert (pairs["l2"] == 0).all()
    assert record["quality_missing"]
    assert not set(record["quality"] or {}) & set(record["quality_missing"])
    if held_out < 20:
        assert "calibrated" not in record["alpha"]["training"]
        assert any("too few for a calibrated alpha" in limit for limit in record["limits"])


def test_held_out_copies_of_training_images_are_named_before_the_answer(sets, digits, capsys):
    held = digits[400:600].copy()
    held[:3] = digits[50:53]
    held[3] = np.clip(digits[53].astype(int) + 3, 0, 255)
    np.savez(sets / "holdout.npz", images=held, ids=[f"h{row}" for row in range(200)])
    flags = [
        "--samples",
        sets / "samples.npz",
        "--train",
        sets / "train.npz",
        "--holdout",
        sets / "holdout.npz",
    ]
    assert run(*flags, "--out", sets / "out", "--features", "pixels") == 0
    out = capsys.readouterr().out
    assert "--holdout: 4 images were left out" in out
    assert "(3 exactly, 1 nearly): h0, h1, h2, h3" in out
    assert out.index("left out") < out.index("Copies shown")
    record, _ = result(sets / "out")
    assert [entry["kind"] for entry in record["left_out"]] == ["exact"] * 3 + ["near"]
    assert record["counts"]["holdout_left_out"] == 4


def test_an_audit_never_says_that_nothing_is_memorised(sets, digits, capsys):
    np.savez(sets / "samples.npz", images=digits[1000:1300])
    flags = [
        "--samples",
        sets / "samples.npz",
        "--train",
        sets / "train.npz",
        "--holdout",
        sets / "holdout.npz",
    ]
    assert run(*flags, "--out", sets / "out", "--features", "pixels") == 0
    out = capsys.readouterr().out
    assert "Copies are not shown, though a copying rate of" in out
    assert "memorisation" not in out + (sets / "out" / "audit.html").read_text()


def test_foreign_files_in_the_folder_stop_the_audit_first(sets, capsys):
    (sets / "out").mkdir()
    (sets / "out" / "thesis.txt").write_text("years of work")
    flags = ["--samples", sets / "samples.npz", "--train", sets / "train.npz"]
    assert run(*flags, "--out", sets / "out") == 2
    assert "--out" in capsys.readouterr().err
    (sets / "out" / "thesis.txt").unlink()
    assert run(*flags, "--out", sets / "out") == 0
    assert run(*flags, "--out", sets / "out") == 0  # an earlier audit is replaced


@pytest.mark.parametrize(
    ("checkpoint", "outcome"),
    [("checkpoint-5000", "copies shown"), ("checkpoint-500", "not shown")],
)
def test_a_real_model_is_told_from_its_own_early_checkpoint(
    real_client, tmp_path, checkpoint, outcome
):
    flags = [
        "--pipeline",
        real_client / "ddpm-emoji-16" / checkpoint,
        "--weights",
        "ema",
        "--generate",
        128,
        "--steps",
        25,
    ]
    flags += [
        "--sampler",
        "ddim",
        "--resize",
        16,
        "--train",
        real_client / "train.zip",
        "--holdout",
        real_client / "holdout.zip",
    ]
    kept = tmp_path / "kept"
    assert (
        run(*flags, "--features", "pixels", "--out", tmp_path / "out", "--keep-samples", kept) == 0
    )
    record, _ = result(tmp_path / "out")
    assert record["verdict"]["outcome"] == outcome
    assert record["settings"]["sampler"] == "ddim"
    assert record["settings"]["network"]["weights"] == "ema"
    extracted = pd.read_csv(tmp_path / "out" / "extracted.csv")
    if outcome == "copies shown":
        assert (extracted["copies"] == 20).sum() >= 8
        assert extracted.head(8)["copies"].tolist() == [20] * 8
    else:
        assert len(extracted) == 0
    assert np.load(kept / "samples.npz")["images"].shape == (128, 16, 16, 3)
