"""Inputs that do not fit the study are refused by snakemake itself, and no job runs."""

from dataclasses import replace

import pytest

from afterimage.artifacts import sha256
from afterimage.config import Model
from afterimage.diffusion.model import build_unet

from .conftest import CAPTIONED, INSTALLED, OF_CAPTIONED, captioned_digits, study_of_captions

pytestmark = pytest.mark.slow


@pytest.fixture
def texts(empty):
    """A clone with captioned digits and a study of them, not run."""
    captioned_digits(empty.folder / "digits.parquet")
    arms = {name: CAPTIONED[name] for name in ("plain", "erased", "retrained")}
    study_of_captions(empty, arms=arms, attribution=OF_CAPTIONED | {"arm": "plain"})
    return empty


def refusal(texts, *arguments):
    """Return what a call of snakemake that fails says; a dry run does so on standard output."""
    done = texts.snakemake(*arguments, "--", "all", check=False)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("arguments", [["--dry-run"], []])
def test_a_phrase_of_no_image_is_refused_before_any_job(texts, arguments):
    texts.edit("forget", "zeros", "caption", value="eleven")
    said = refusal(texts, *arguments)
    assert "forget.zeros is empty: 'eleven' is in the captions of none of the 300" in said
    assert not (texts.folder / "results").exists()


def test_missing_captions_and_another_checksum_are_refused_before_any_job(texts):
    captioned_digits(texts.folder / "digits.parquet", without=[4, 7])
    said = refusal(texts, "--dry-run")
    assert "2 of 300 images have no caption: digits.parquet:4, digits.parquet:7" in said
    captioned_digits(texts.folder / "digits.parquet")
    unet, name = texts.folder / "unet", "diffusion_pytorch_model.safetensors"
    net = build_unet(Model(channels=[8, 16], attention=[False, True]), (8, 8, 1), text_width=16)
    net.save_pretrained(unet)
    texts.edit("model", value={"kind": "stored", "path": "unet", "sha256": {name: "0" * 64}})
    assert f"model.sha256: unet/{name} has" in refusal(texts, "--dry-run")
    assert not (texts.folder / "results").exists()
    texts.edit("model", "sha256", value={name: sha256(unet / name)})
    assert texts.planned()["fit"] == 3


def test_a_network_that_cannot_be_fetched_stops_the_run_before_its_first_job(texts, monkeypatch):
    """Its config is in the Hub's local cache, its weights are not, and there is no network."""
    commit = "0" * 40
    snapshot = texts.folder / "hub/models--owner--name/snapshots" / commit
    net = build_unet(Model(channels=[8, 16], attention=[False, True]), (8, 8, 1), text_width=16)
    net.save_pretrained(snapshot / "unet")
    [weights] = (snapshot / "unet").glob("*.safetensors")
    weights.rename(texts.folder / weights.name)
    monkeypatch.setenv("HF_HUB_CACHE", str(texts.folder / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = replace(texts, commands=INSTALLED)
    model = {"kind": "stored", "id": "owner/name", "revision": commit, "path": "unet"}
    offline.edit("model", value=model)
    assert offline.planned()["fit"] == 3
    said = refusal(offline)
    assert "model.path = 'unet': there are no weights in safetensors of owner/name at rev" in said
    assert {path.name for path in offline.results.iterdir()} <= {"config", "logs"}
    assert not list(offline.results.glob("logs/**/*.log"))
    (texts.folder / weights.name).rename(weights)
    offline.edit("model", "id", value="owner/other")
    assert "model.id = owner/other: it is neither in the local cache" in refusal(offline, "-n")


def test_a_run_without_a_network_that_its_jobs_read_does_not_start(texts):
    """A dry run plans it, as another machine may have it, and so does a run of other jobs."""
    texts.edit("model", value={"kind": "stored", "path": "${NO_SUCH_VARIABLE}/unet"})
    assert texts.planned()["fit"] == 3
    said = refusal(texts)
    assert "model.path = ${NO_SUCH_VARIABLE}/unet: the environment variable NO_SUCH_VARI" in said
    assert not list(texts.results.glob("logs/**/*.log"))
    texts.snakemake("--", "data")
    assert (texts.results / "data/planting/0/run.json").is_file()


def test_a_phrase_of_no_training_image_stops_at_the_planting_and_then_at_once(texts):
    """It is in the source, but not in what is drawn of it; other sets do not make it due again."""
    captioned_digits(texts.folder / "digits.parquet", {299: "a rare thing, number 299"})
    texts.edit("data", "split", "train", value=40)
    texts.edit("forget", "zeros", "caption", value="rare thing")
    refusal(texts)
    log = (texts.results / "logs/data/planting/0.log").read_text()
    assert "forget.zeros is empty: 'rare thing' is in the captions of none of the 40" in log
    assert not (texts.results / "train").exists()
    texts.edit("forget", "zeros", "caption", value="zero")
    texts.snakemake("--", "data")
    made = (texts.results / "data/planting/0/run.json").read_bytes()
    texts.edit("forget", "zeros", "caption", value="rare thing")
    said = refusal(texts, "--dry-run")
    assert "forget.zeros is empty: 'rare thing' is in the captions of none of the 40" in said
    texts.edit("forget", "zeros", "caption", value="one")
    assert "planting" not in texts.planned()
    assert (texts.results / "data/planting/0/run.json").read_bytes() == made
