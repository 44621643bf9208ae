"""The audit's second answer, by similarity in another space."""

import hashlib
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from afterimage import cli
from afterimage.attacks import feature_networks
from afterimage.data import pictures
from afterimage.standalone import audit, features, spaces
from afterimage.standalone.record import Similarities, Similarity

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

COPIES = 12
BIG = 20
"""Side of the pictures in folders."""


class Corners(nn.Module):
    """The image in 6 x 6, about its mean: similar images have similar features."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(6)

    def forward(self, x):
        small = self.pool(x).mean(1).flatten(1)
        return small - small.mean(1, keepdim=True)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """120 training images; 40 generations of which the first 12 are training images but for a
    pixel; 100 held out; a network."""
    root = tmp_path_factory.mktemp("sets")
    digits = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    generations = digits[1000:1040].copy()
    generations[:COPIES] = digits[10 : 10 + COPIES]
    generations[:COPIES, 0, 0, 0] ^= 8
    arrays = {"train": digits[:120], "samples": generations, "holdout": digits[400:500]}
    for name, images in arrays.items():
        np.savez(root / f"{name}.npz", images=images)
        folder = root / name
        folder.mkdir()
        for row, image in enumerate(images):
            picture = Image.fromarray(image[..., 0]).resize((BIG, BIG), Image.Resampling.BICUBIC)
            picture.save(folder / f"{row:03d}.png")
    torch.jit.save(torch.jit.script(Corners().eval()), root / "net.pt")
    return root


@pytest.fixture
def space(sets):
    sha256 = hashlib.sha256((sets / "net.pt").read_bytes()).hexdigest()
    return ["--space", "sscd", "--space-weights", sets / "net.pt", "--space-sha256", sha256]


def run(sets, out, *flags, kind="{}.npz", holdout=True, quality="pixels"):
    names = ("samples", "train", "holdout") if holdout else ("samples", "train")
    given = [text for name in names for text in (f"--{name}", sets / kind.format(name))]
    arguments = [*given, "--features", quality, "--seed", 1, "--out", out, *flags]
    return cli.main(["audit", *map(str, arguments)])


def result(out):
    return json.loads((out / "audit.json").read_text()), pd.read_parquet(out / "pairs.parquet")


@pytest.fixture(scope="module")
def audited(sets, tmp_path_factory):
    """An audit with a space; read only."""
    out = tmp_path_factory.mktemp("out")
    sha256 = hashlib.sha256((sets / "net.pt").read_bytes()).hexdigest()
    flags = ["--space", "sscd", "--space-weights", sets / "net.pt", "--space-sha256", sha256]
    assert run(sets, out, *flags) == 0
    return out


def test_copies_are_found_by_similarity_too(audited):
    record, pairs = result(audited)
    similar = record["similarity"]
    assert similar["verdict"]["outcome"] == "copies shown"
    assert similar["verdict"]["sentence"].startswith("By similarity (sscd): Copies shown")
    assert pairs["flagged_by_similarity"][:COPIES].all()
    assert pairs["nearest_by_similarity"][:COPIES].tolist() == list(range(10, 10 + COPIES))
    assert pairs["similarity"].between(-1, 1).all()
    assert pairs["similarity"][:COPIES].min() > 0.99
    assert similar["generations"]["mean"]["value"] == pytest.approx(pairs["similarity"].mean())
    assert similar["generations"]["percentile_95"]["value"] == pytest.approx(
        np.percentile(pairs["similarity"], 95)
    )
    above = pairs["similarity"] >= similar["level"]
    assert similar["generations"]["above_level"]["count"] == above.sum() >= COPIES
    assert similar["holdout"]["images"] == record["counts"]["holdout"] - len(record["left_out"])
    assert similar["holdout"]["above_level"]["share"] < 0.05
    assert similar["train_train"]["images"] == record["counts"]["training_distinct"]


def test_the_two_answers_share_the_false_reports(audited, sets, tmp_path):
    record, _ = result(audited)
    assert record["verdict"]["confidence"] == record["similarity"]["verdict"]["confidence"] == 0.975
    assert "either does in at most 5." in " ".join(record["limits"])
    assert run(sets, tmp_path) == 0
    record, pairs = result(tmp_path)
    assert record["verdict"]["confidence"] == 0.95
    assert record["similarity"] is None
    assert not set(spaces.COLUMNS) & set(pairs)


def test_the_keys_are_documented(audited):
    similar = result(audited)[0]["similarity"]
    assert similar.keys() == Similarity.model_fields.keys()
    assert similar["generations"].keys() == Similarities.model_fields.keys()
    assert "similarity" in audit.HELP
    assert similar["holdout"].keys() == similar["generations"].keys()


def test_rows_and_figure_are_on_the_page(audited):
    page = (audited / "audit.html").read_text()
    assert page.count("data:image/png;base64") == 2
    assert "<h3>Similarity (sscd)</h3>" in page
    for name in ("generations", "held-out images", "training images, to the most similar other"):
        assert f"similarity (sscd), 95th percentile (R): {name}" in page
        assert f"similarity (sscd), above 0.5: {name}" in page
    assert "By similarity (sscd): Copies shown" in page


def test_without_holdout_the_published_cut_off_does_not_stand_alone(sets, space, tmp_path, capsys):
    assert run(sets, tmp_path, *space, holdout=False) == 0
    record, _ = result(tmp_path)
    similar = record["similarity"]
    assert (similar["level"], similar["holdout"]) == (None, None)
    assert similar["generations"]["above_level"] is None
    assert similar["verdict"]["outcome"] == "cannot tell"
    assert "the share above 0.5 has no false-alarm rate" in " ".join(record["limits"])
    printed = capsys.readouterr().out
    assert "above 0.5, no false-alarm rate without --holdout: generations" in printed


def test_an_audit_goes_on_with_the_features_it_has(sets, space, tmp_path, monkeypatch):
    """A run that is stopped at 120 images keeps those of its full file; the next one computes the
    others alone, and its numbers are those of an undisturbed run."""
    calls, stop_at = [], 120
    embed = feature_networks.FeatureNetwork.embed

    def counted(network, inputs):
        calls.append(len(inputs))
        if sum(calls) > stop_at:
            raise KeyboardInterrupt
        return embed(network, inputs)

    monkeypatch.setattr(feature_networks.FeatureNetwork, "embed", counted)
    monkeypatch.setattr(features, "SAVED", 64)
    with pytest.raises(KeyboardInterrupt):
        run(sets, tmp_path / "out", *space)
    assert len(features.files(tmp_path / "out")) == 1
    calls.clear()
    stop_at = 1000
    assert run(sets, tmp_path / "out", *space) == 0
    assert sum(calls) == 2 + 260 - 64  # two test images
    continued = result(tmp_path / "out")[0]["similarity"]
    assert run(sets, tmp_path / "whole", *space) == 0
    assert continued == result(tmp_path / "whole")[0]["similarity"]


def test_small_copies_alone_stay_in_memory(sets, space, tmp_path, monkeypatch):
    """The space sees the pictures themselves, in pixels are copies of 8 x 8."""
    shapes = {}
    extract = audit.extract

    def seen(samples, train, *args, **settings):
        shapes["train"], shapes["samples"] = train.pixels.shape, samples.pixels.shape
        return extract(samples, train, *args, **settings)

    monkeypatch.setattr(audit, "extract", seen)
    assert run(sets, tmp_path / "small", *space, "--match-size", 8, kind="{}") == 0
    assert shapes == {"train": (120, 8, 8, 1), "samples": (40, 8, 8, 1)}
    small, pairs = result(tmp_path / "small")
    assert small["settings"]["match_size"] == 8
    assert "are of copies of 8x8 (--match-size)" in " ".join(small["limits"])
    assert pairs["nearest"][:COPIES].tolist() == [f"{row:03d}.png" for row in range(10, 22)]
    assert run(sets, tmp_path / "whole", *space, kind="{}") == 0
    assert shapes["train"] == (120, BIG, BIG, 1)
    whole, others = result(tmp_path / "whole")
    np.testing.assert_array_equal(pairs["similarity"], others["similarity"])
    parts = ("generations", "train_train", "weights_sha256")
    assert [small["similarity"][part] for part in parts] == [
        whole["similarity"][part] for part in parts
    ]


def test_images_of_many_sizes_are_scaled_by_a_policy_that_is_named(sets, space, tmp_path):
    rng = np.random.default_rng(0)
    for name, count in {"train": 60, "samples": 40}.items():
        (tmp_path / name).mkdir()
        for row in range(count):
            size = (rng.integers(6, 40), 30) if row else (90, 30)
            noise = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / name / f"{row:02d}.png")
    out = tmp_path / "out"
    flags = [*space, "--match-size", 8]
    assert run(tmp_path, out, *flags, kind="{}", holdout=False) == 0
    record, _ = result(out)
    policy = [
        line for line in record["limits"] if line.startswith("--train: for the copies of 8x8")
    ]
    assert len(policy) == 1
    assert re.search(r"the shorter side was scaled: \d+ sizes \(most have \d+x30", policy[0])
    assert re.search(r"\d+ not square, cropped to the centre; \d+ smaller, enlarged", policy[0])
    assert "of 60 of --train" in " ".join(record["limits"])  # enlarged for the network


def test_the_copy_in_pixels_is_the_trainers_transform(sets, space, tmp_path, monkeypatch):
    held = {}
    extract = audit.extract

    def seen(samples, train, *args, **settings):
        held["train"] = train.pixels
        return extract(samples, train, *args, **settings)

    monkeypatch.setattr(audit, "extract", seen)
    assert run(sets, tmp_path, *space, "--match-size", 8, kind="{}", holdout=False) == 0
    picture = Image.open(sets / "train" / "007.png")
    wanted = np.asarray(pictures.resize(picture, 8, "bilinear", "centre"))
    np.testing.assert_array_equal(held["train"][7, ..., 0], wanted)


def test_the_classifier_is_trained_on_half_of_the_held_out_images(sets, tmp_path):
    assert run(sets, tmp_path, "--space", "classifier") == 0
    record, pairs = result(tmp_path)
    similar = record["similarity"]
    kept = record["counts"]["holdout"] - len(record["left_out"])
    assert similar["holdout"]["images"] == kept - kept // 2
    assert similar["verdict"]["held_out"] == kept - kept // 2
    assert pairs["similarity"][:COPIES].min() > 0.95
    assert not (tmp_path / "features").exists()


def test_a_classifier_that_cannot_be_trained_stops_nothing(sets, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("train", "samples", "holdout"):
        images = np.load(sets / f"{name}.npz")["images"]
        np.savez(few / f"{name}.npz", images=images[:3] if name == "holdout" else images)
    assert run(few, tmp_path / "out", "--space", "classifier") == 0
    record, _ = result(tmp_path / "out")
    assert record["similarity"] is None
    assert "--space classifier: it needs at least 4 held-out images" in " ".join(record["limits"])


def test_mirror_images_are_compared_where_the_model_was_trained_with_them(sets, space, tmp_path):
    mirrored = tmp_path / "mirrored"
    mirrored.mkdir()
    for name in ("train", "samples", "holdout"):
        images = np.load(sets / f"{name}.npz")["images"]
        np.savez(
            mirrored / f"{name}.npz", images=images[:, :, ::-1] if name == "samples" else images
        )
    found = {}
    for flags in ([], ["--flips"]):
        out = tmp_path / f"out{len(flags)}"
        assert run(mirrored, out, *space, *flags) == 0
        found[len(flags)] = result(out)[1]["flagged_by_similarity"][:COPIES].sum()
    assert found[0] < COPIES == found[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--space-weights", "net.pt"], "it is for --space sscd, clip, dinov2, not pixels"),
        (["--space-sha256", "0" * 64], "it is for --space sscd, clip, dinov2, not pixels"),
        (["--space-normalisation", "dcr"], "it is for --space sscd, not pixels"),
        (["--match-size", "8"], "--match-size = 8: it is for --space sscd, clip, dinov2"),
        (["--space", "classifier", "--match-size", "8"], "not classifier"),
        (["--space", "classifier", "--space-weights", "x"], "not classifier"),
        (["--space", "clip", "--space-weights", "x", "--space-normalisation", "dcr"], "not clip"),
        (["--space", "clip"], "--space clip needs --space-weights"),
        (["--space", "sscd", "--space-weights", "net.pt"], "--space sscd needs --space-sha256"),
        (["--space", "sscd", "--space-weights", "n", "--space-sha256", "ab"], "has 64 hexadecimal"),
        (
            ["--space", "dinov2", "--space-weights", "x", "--match-size", "2"],
            "--match-size = 2: allowed are 4 to 1024 pixels",
        ),
        (
            ["--space", "dinov2", "--space-weights", "x", "--match-size", "9", "--resize", "8"],
            "--match-size = 9: allowed are 4 to 8 pixels, the side of --resize",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_is_read(
    sets, tmp_path, capsys, flags, words
):
    assert run(sets, tmp_path / "out", *flags) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_classifier_needs_held_out_images(sets, tmp_path, capsys):
    assert run(sets, tmp_path / "out", "--space", "classifier", holdout=False) == 2
    assert "--space classifier needs --holdout" in capsys.readouterr().err


def test_images_that_are_drawn_are_kept_whole(sets, space, tmp_path, capsys):
    flags = ["--pipeline", tmp_path, "--train", sets / "train.npz", *space, "--match-size", 8]
    assert cli.main(["audit", *map(str, flags), "--out", str(tmp_path / "out")]) == 2
    assert "Draw from --pipeline first, and give its drawn/ as --samples" in capsys.readouterr().err


def test_a_damaged_file_of_features_is_refused(sets, space, tmp_path, capsys):
    assert run(sets, tmp_path, *space, holdout=False) == 0
    path = tmp_path / min(features.files(tmp_path))
    path.write_bytes(path.read_bytes()[:-4])
    assert run(sets, tmp_path, *space, holdout=False) == 2
    assert f"{path} is not what an earlier run kept; remove it" in capsys.readouterr().err


def test_the_image_whose_features_are_nan_is_named(sets, tmp_path, capsys):
    class Bright(nn.Module):
        """The logarithm of what a black image does not have."""

        def forward(self, x):
            return torch.log(x.mean((2, 3)) + 1.5)

    torch.jit.save(torch.jit.script(Bright().eval()), tmp_path / "net.pt")
    sha256 = hashlib.sha256((tmp_path / "net.pt").read_bytes()).hexdigest()
    (tmp_path / "train").mkdir()
    for row in range(20):
        value = 0 if row == 13 else 100 + row
        Image.new("RGB", (9, 9), (value, value, value)).save(tmp_path / "train" / f"{row}.png")
    flags = ["--space", "sscd", "--space-weights", tmp_path / "net.pt", "--space-sha256", sha256]
    images = ["--samples", tmp_path / "train", "--train", tmp_path / "train"]
    out = ["--out", tmp_path / "out"]
    assert cli.main(["audit", *map(str, [*images, *flags, *out])]) == 2
    assert "the features of 13.png are NaN or infinite" in capsys.readouterr().err
