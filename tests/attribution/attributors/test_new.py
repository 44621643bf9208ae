"""A toy attributor, added by its family's file and its row of the table: it takes part in
everything."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from afterimage import artifacts
from afterimage.attribution.queries import SETS
from afterimage.config import Diffusion
from afterimage.diffusion.model import build_scheduler, save_pipeline
from afterimage.images import Images
from afterimage.metrics import classifier

FAMILY = '''"""A toy: how similar the norms of the loss gradients are."""

import numpy as np

from afterimage.attribution.attributors.inner_products import norms
from afterimage.attribution.attributors.inputs import AttributionInputs


def toy(inputs: AttributionInputs) -> np.ndarray:
    """Minus the distance of the norms."""
    query, train = (norms(side.feature("loss")) for side in (inputs.queries, inputs.train))
    return -np.abs(query[:, None] - train)
'''
ROW = '    "toy": Attributor("toy", ("loss",), regularised=False),\n'
PROGRAM = """
import json, sys, afterimage
from afterimage import cli, config
from afterimage.config.attribution import ATTRIBUTORS

params, scores, attribute = json.loads(sys.argv[1])
study = config.parse(params)
for variant in ("main", "long"):
    assert study.attribution.attributors_of(variant) == ["toy"]
assert cli.main(scores) == 0
assert cli.main(attribute) == 0
print(json.dumps([afterimage.__file__, ATTRIBUTORS["toy"]]))
"""
IMAGES, SUBSETS, DIMENSION, QUERIES = 12, 8, 6, {"holdout": 3, "generated": 2, "extracted": 0}


@pytest.fixture
def source(tmp_path, root) -> Path:
    """A copy of the package with the toy."""
    copy = tmp_path / "src"
    shutil.copytree(root / "src", copy)
    (copy / "afterimage" / "attribution" / "attributors" / "toy.py").write_text(FAMILY)
    table = copy / "afterimage" / "config" / "attribution.py"
    head, marker, tail = table.read_text().partition("ATTRIBUTOR_TABLE = {\n")
    table.write_text(head + marker + ROW + tail)
    return copy


def store(folder: Path, step: str, block: int | None = None) -> artifacts.step:
    settings = {} if block is None else {"block": block}
    inputs = dict.fromkeys(("model", "train", "members", *SETS), Path(__file__))
    resolved = {"step": step, "seed": 0, "settings": settings}
    return artifacts.step(resolved, folder, inputs, ("afterimage.seeds",))


@pytest.fixture
def scores_command(tmp_path) -> tuple[list[str], dict[str, np.ndarray]]:
    """The command of a scores job on random inputs, and the loss features by set."""
    rng = np.random.default_rng(0)
    sizes = {"train": IMAGES, **QUERIES}
    features = {
        name: rng.standard_normal((size, DIMENSION)).astype(np.float32)
        for name, size in sizes.items()
    }
    with store(tmp_path / "images", "data") as step:
        for name, size in sizes.items():
            images = Images.of(rng.integers(0, 256, (size, 8, 8, 1), np.uint8))
            images.save(step.folder / f"{name}.npz")
        members = pd.DataFrame({"id": np.arange(IMAGES), "trained": True})
        members.to_parquet(step.folder / "members.parquet")
    with store(tmp_path / "features", "attribution/features", 0) as step:
        tensors = {f"{name}/loss": features[name] for name in sizes}
        tensors |= {f"{name}/rows": np.zeros((sizes[name], 0, 1), np.float32) for name in sizes}
        tensors |= {f"{name}/residual": np.ones(sizes[name], np.float32) for name in sizes}
        save_file(tensors, step.folder / "features.safetensors")
    with store(tmp_path / "retrain", "attribution/retrain") as step:
        effects = {
            f"{name}/{target}": rng.standard_normal((SUBSETS, size))
            for name, size in QUERIES.items()
            for target in ("loss", "shift")
        }
        network = {"subset": np.arange(SUBSETS), "seed": np.zeros(SUBSETS, np.int64)}
        np.savez(step.folder / "losses.npz", **network, **effects)
    with store(tmp_path / "classifier", "data/classifier") as step:
        description = classifier.Description("labels", [0, 1], 1, [2], 3, [0.5], [0.3])
        classifier.save(step.folder, classifier.Network(description), description)
    settings = {
        "attributors": ["toy"],
        "regularisers": [1.0],
        "concepts": {},
        "subsets": SUBSETS,
        "seeds": 1,
        "share": 0.5,
        "confidence": 0.95,
    }
    resolved = {"step": "attribution/scores", "replicate": 0, "seed": 0, "settings": settings}
    (tmp_path / "config.json").write_text(json.dumps(resolved))
    flags = {
        "train": ["images/train.npz"],
        "members": ["images/members.parquet"],
        "queries": ["images"],
        "features": ["features"],
        "retrain": ["retrain"],
        "classifier": ["classifier"],
        "config": ["config.json"],
        "out": ["scores"],
    }
    command = ["attribution", "scores"]
    for flag, paths in flags.items():
        command += [f"--{flag}", *(str(tmp_path / path) for path in paths)]
    return command, features


@pytest.fixture
def attribute_command(tmp_path, tiny_net, images) -> list[str]:
    """The command that attributes the first 2 of 17 digits to all of them with the toy."""
    save_pipeline(tiny_net(), build_scheduler(Diffusion()), tmp_path / "pipeline")
    for name, count in {"digits": len(images), "asked": 2}.items():
        np.savez(tmp_path / f"{name}.npz", images=images.pixels[:count])
    paths = {
        "pipeline": tmp_path / "pipeline",
        "train": tmp_path / "digits.npz",
        "queries": tmp_path / "asked.npz",
        "out": tmp_path / "attributed",
    }
    flags = [text for flag, path in paths.items() for text in (f"--{flag}", str(path))]
    return ["attribute", *flags, "--attributor", "toy", "--timesteps", "1", "--dimension", "8"]


def test_an_attributor_is_a_function_and_a_row_of_the_table(
    source, params, scores_command, attribute_command, tmp_path
):
    attribution = {
        "arm": "baseline",
        "attributors": ["toy"],
        "variants": {"long": {"timesteps": 20}},
    }
    command, features = scores_command
    study = params | {"attribution": attribution}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([study, command, attribute_command])],
        env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [
        str(source / "afterimage" / "__init__.py"),
        "afterimage.attribution.attributors.toy",
    ]

    scores = load_file(tmp_path / "scores" / "scores.safetensors")
    assert scores.keys() == {"toy/holdout", "toy/generated"}
    lengths = {name: np.linalg.norm(values, axis=1) for name, values in features.items()}
    for name in ("holdout", "generated"):
        expected = -np.abs(lengths[name][:, None] - lengths["train"])
        np.testing.assert_allclose(scores[f"toy/{name}"], expected, rtol=1e-5, atol=1e-6)
    entries = artifacts.check_store(tmp_path / "scores")["code_entries"]
    assert "afterimage.attribution.attributors.toy" in entries

    first = pd.read_csv(tmp_path / "attributed" / "first.csv")
    best = first[first["rank"] == 0]
    assert best[["query", "attributor"]].to_numpy().tolist() == [[0, "toy"], [1, "toy"]]
    assert (first["score"] <= 0).all()
    assert load_file(tmp_path / "attributed" / "scores.safetensors")["toy"].shape == (2, 17)
