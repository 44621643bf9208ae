"""The attack on states of a training: the last one is what the other attacks see, and earlier ones
are other networks, sampled from the same noise."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from afterimage import cli, config
from afterimage.artifacts import ArtifactError
from afterimage.attacks import twins
from afterimage.attacks.extraction import extract
from afterimage.attacks.quality import measure
from afterimage.config import Sample
from afterimage.data.members import trained_rows
from afterimage.diffusion.sample import generate, load_trained, trained_pipeline
from afterimage.images import load_images
from afterimage.metrics import spaces

STATISTICS = config.Statistics(bootstrap=10)


@pytest.fixture(scope="module", params=["plain", "conditional"])
def arm(request):
    return request.param


@pytest.fixture(scope="module")
def attacked(trained, arm):
    """The store of the attack on an arm, its command's flags, and its settings."""
    store = trained.run("attack/path", arm)
    command = trained.command("attack/path", arm)
    flags = dict(zip(command[2::2], command[3::2], strict=True))
    settings = json.loads(Path(flags["--config"]).read_text())
    return store, flags, settings


def numbers(store):
    return pd.read_csv(store / "results.csv").set_index(["state", "metric"])["value"]


def drawn(flags, resolved, state):
    """Return the generations of a state, drawn without the attack."""
    model = Path(flags["--model"])
    net, scheduler = load_trained(trained_pipeline(model, "ema", state), resolved["seed"], 0)
    ids = np.arange(10)
    classes = net.config["num_class_embeds"]
    labels = None if classes is None else ids % (classes - 1)
    sample = Sample.model_validate(resolved["settings"]["sample"])
    return generate(net, scheduler, ids, sample, resolved["seed"], 0, labels)


@pytest.mark.parametrize("state", ["path1", "path2", "last"])
def test_numbers_are_those_of_the_attacks_on_the_same_images(attacked, state):
    store, flags, resolved = attacked
    pixels = drawn(flags, resolved, None if state == "last" else state)
    split = {name: load_images(flags[f"--{name}"]) for name in ("train", "holdout", "reference")}
    train = trained_rows(split["train"], pd.read_parquet(flags["--members"]))
    samples = load_images(flags["--samples"]).take(np.arange(10))
    if state == "last":
        assert np.array_equal(samples.pixels, pixels)
    samples = replace(samples, pixels=pixels)
    found = extract(
        samples,
        train,
        config.Extraction(**resolved["settings"]["extraction"]),
        STATISTICS,
        resolved["seed"],
        flips=resolved["settings"]["mirrors"],
        holdout=split["holdout"],
        planted=twins.read(pd.read_parquet(flags["--index"]), load_images(flags["--twins"])),
    )
    quality = config.Quality(**resolved["settings"]["quality"])
    classifier = Path(flags["--classifier"])
    measured = measure(
        samples,
        split["reference"],
        quality,
        STATISTICS,
        resolved["seed"],
        spaces.find(quality, classifier),
        spaces.classes(classifier),
    ).set_index("metric")["value"]
    own = numbers(store)[state]
    planted = found.images[found.images["copies"] > 1]["extracted_training_calibrated"]
    assert own["flagged_generations_calibrated"] == pytest.approx(
        found.headline["extraction/flagged_generations_calibrated"]
    )
    assert own["unique_images_calibrated"] == found.headline["extraction/unique_images_calibrated"]
    assert own["planted_extracted_calibrated"] == pytest.approx(planted.mean())
    for metric in own.index:
        if "[" in metric:
            assert own[metric] == pytest.approx(measured[metric], rel=1e-9), metric


def test_states_are_different_networks_at_even_steps_of_the_logarithm(attacked):
    store, _, resolved = attacked
    shares = resolved["settings"]["states"]
    assert shares == pytest.approx({"path1": 0.25, "path2": 0.5, "last": 1})
    frechet = numbers(store).unstack("state").filter(like="FD", axis=0)
    assert frechet.nunique(axis=1).eq(3).all()
    table = pd.read_csv(store / "results.csv")
    assert list(dict.fromkeys(table["state"])) == ["path1", "path2", "last"]
    assert table.groupby("state")["share"].unique().map(list).to_dict() == {
        state: [pytest.approx(share)] for state, share in shares.items()
    }


def test_only_arms_with_a_path_keep_states(trained):
    kept = {
        arm: sorted(p.name for p in (trained.store("train", arm) / "states").iterdir())
        for arm in ("plain", "conditional", "retrained")
    }
    both = ["path1", "path2"]
    assert kept == {"plain": both, "conditional": both, "retrained": []}


def test_a_changed_state_is_refused(trained, tmp_path, capsys):
    folder = trained.store("train", "plain") / "states" / "path1" / "pipeline" / "unet"
    (weights,) = folder.glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        command = trained.command("attack/path", "plain", str(tmp_path / "out"))
        assert cli.main(command) != 0
        assert "path1" in capsys.readouterr().err
    finally:
        weights.write_bytes(whole)


def test_states_that_a_training_lacks_are_refused(trained):
    with pytest.raises(ArtifactError, match="kept no network path1"):
        trained_pipeline(trained.store("train", "retrained"), "ema", "path1")
