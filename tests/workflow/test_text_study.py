"""A study whose arms are conditioned on captions, from raw data to the pages: plain training,
IET-AGC, RAU-Net, LoyalDiffusion, and EraseDiff with its retrained control."""

import json

import numpy as np
import pandas as pd
import pytest

from afterimage import artifacts
from afterimage.images import load_images

pytestmark = pytest.mark.slow

ARMS = ["plain", "none", "agc", "rau_net", "loyal", "erased", "retrained"]


def test_the_study_runs_to_the_end_and_is_right(captioned):
    assert captioned.run("afterimage", "verify").returncode == 0
    assert captioned.planned() == {}
    wide = pd.read_csv(captioned.results / "report/tables/comparison_wide.csv").set_index("arm")
    assert list(wide.index) == ARMS


def test_arms_are_drawn_from_the_same_prompts(captioned):
    samples = {
        arm: load_images(captioned.results / "sample" / arm / "rep0" / "images.npz") for arm in ARMS
    }
    prompts = samples["plain"].captions.tolist()
    known = set(load_images(captioned.results / "data/planting/0/train.npz").captions.tolist())
    assert set(prompts) <= known
    for arm in ("agc", "rau_net", "loyal", "erased", "retrained"):
        assert samples[arm].captions.tolist() == prompts
    assert set(samples["none"].captions.tolist()) == {""}


def test_a_caption_reruns_what_reads_it_and_no_other_arm(captioned):
    inputs = artifacts.read_run(captioned.results / "train" / "plain" / "rep0")["inputs"]
    assert set(inputs) == {"train", "texts"}
    assert set(artifacts.read_run(captioned.results / "train" / "none" / "rep0")["inputs"]) == {
        "train"
    }


def test_a_set_by_caption_is_forgotten_and_judged(captioned):
    """Of the base, the erased and the retrained arm; the surrogate is embedded, too."""
    assert "a digit" in json.loads((captioned.results / "data/encode/captions.json").read_text())
    train = load_images(captioned.results / "data/planting/0/train.npz")
    zeros = len(np.unique(train.sources[train.labels == 0]))
    for arm, seen in (("plain", zeros), ("erased", zeros), ("retrained", 0)):
        store = captioned.results / "attack" / arm / "rep0" / "forgetting"
        record = artifacts.read_run(store)
        assert "texts" in record["inputs"]
        facts = record["facts"]["sets"]["zeros"]
        assert (facts["sources"], facts["trained"]) == (zeros, seen)
        numbers = pd.read_csv(store / "results.csv")
        assert {"copied", "copied_images", "probability", "roc_auc"} <= set(numbers["metric"])
    page = (captioned.results / "report/pages/erasediff/erasediff.html").read_text()
    assert "in their captions" in page
