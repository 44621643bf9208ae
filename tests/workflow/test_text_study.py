"""A study whose arms are conditioned on captions, from raw data to the pages: plain training,
IET-AGC, RAU-Net and LoyalDiffusion."""

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from afterimage import artifacts
from afterimage.images import load_images

pytestmark = pytest.mark.slow

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ARMS = {
    "plain": {"method": "baseline", "condition": "text"},
    "none": {"method": "baseline"},
    "agc": {
        "method": "iet_agc",
        "condition": "text",
        "shards": 2,
        "rounds": 2,
        "control": "plain",
    },
    "rau_net": {
        "method": "baseline",
        "condition": "text",
        "rau_net": {"groups": [1]},
        "control": "plain",
    },
    "loyal": {"method": "loyal", "condition": "text", "switch_timestep": 25, "control": "plain"},
}


@pytest.fixture(scope="module")
def finished(commands, tmp_path_factory):
    """The study, run to the end."""
    from tests.workflow.conftest import clone

    made = clone(tmp_path_factory.mktemp("text"), commands)
    digits = load_digits()
    cells = []
    for pixels in digits.images[:300]:
        stream = io.BytesIO()
        Image.fromarray((pixels * 15).astype(np.uint8)).save(stream, "PNG")
        cells.append({"bytes": stream.getvalue(), "path": None})
    captions = [
        f"the digit {WORDS[label]}, {'thick' if row % 2 else 'thin'}"
        for row, label in enumerate(digits.target[:300])
    ]
    table = pa.table({"image": cells, "label": digits.target[:300], "text": captions})
    pq.write_table(table, made.folder / "digits.parquet")
    study = yaml.safe_load(made.params.read_text())
    study["data"]["source"] = {
        "kind": "parquet",
        "path": "digits.parquet",
        "caption_column": "text",
    }
    study["text"] = {"vocabulary": 320, "length": 16, "width": 16, "layers": 1, "heads": 2}
    study["model"] |= {"attention": [False, True], "channels": [8, 16]}
    study |= {"arms": ARMS, "paths": {"frontier": ["plain"], "states": 2}}
    study["sample"]["guidance"] = 2.0
    study["train"]["updates"] = 8
    made.params.write_text(yaml.safe_dump(study, sort_keys=False))
    made.snakemake("--", "all")
    return made


def test_the_study_runs_to_the_end_and_is_right(finished):
    assert finished.run("afterimage", "verify").returncode == 0
    assert finished.planned() == {}
    wide = pd.read_csv(finished.results / "report/tables/comparison_wide.csv").set_index("arm")
    assert list(wide.index) == list(ARMS)


def test_arms_are_drawn_from_the_same_prompts(finished):
    samples = {
        arm: load_images(finished.results / "sample" / arm / "rep0" / "images.npz") for arm in ARMS
    }
    prompts = samples["plain"].captions.tolist()
    known = set(load_images(finished.results / "data/planting/0/train.npz").captions.tolist())
    assert set(prompts) <= known
    for arm in ("agc", "rau_net", "loyal"):
        assert samples[arm].captions.tolist() == prompts
    assert set(samples["none"].captions.tolist()) == {""}


def test_a_caption_reruns_what_reads_it_and_no_other_arm(finished):
    inputs = artifacts.read_run(finished.results / "train" / "plain" / "rep0")["inputs"]
    assert set(inputs) == {"train", "texts"}
    assert set(artifacts.read_run(finished.results / "train" / "none" / "rep0")["inputs"]) == {
        "train"
    }
