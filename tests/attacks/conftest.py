"""Diffusion models in closed form, and a small DDIM sampler to draw from them: known truth without
any training.

Each denoiser takes noisy images, (B, d) around [-1, 1], and alpha-bar, and returns the expected
clean image under its own idea of the training distribution. Beside them a tiny study, really
trained, for what needs a network.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from scipy.special import softmax

from afterimage import cli, config
from afterimage.plan import jobs
from afterimage.plan.resolved import write_configs


def empirical_bayes(data, bandwidth=0.0):
    """The perfect memoriser: the data are points (or, with a bandwidth, narrow Gaussians around
    points)."""

    def denoise(x, abar):
        signal = np.sqrt(abar)
        variance = 1 - abar + abar * bandwidth**2
        squares = (x**2).sum(1)[:, None] - 2 * signal * x @ data.T + abar * (data**2).sum(1)
        mean = softmax(-squares / (2 * variance), axis=1) @ data
        return mean + signal * bandwidth**2 / variance * (x - signal * mean)

    return denoise


def gaussian_fit(data):
    """The model that knows mean and covariance and nothing of any single image."""
    mean = data.mean(0)
    values, vectors = np.linalg.eigh(np.cov(data.T))

    def denoise(x, abar):
        gain = np.sqrt(abar) * values / (abar * values + 1 - abar)
        return mean + ((x - np.sqrt(abar) * mean) @ vectors * gain) @ vectors.T

    return denoise


def ddim(denoise, count, size, seed, steps=50):
    """Draw deterministic DDIM samples, float64 (count, size), on a cosine schedule."""
    abars = np.cos(np.linspace(0.999, 0, steps + 1) * np.pi / 2) ** 2
    x = np.random.default_rng(seed).standard_normal((count, size))
    for abar, following in pairwise(abars):
        clean = denoise(x, abar)
        noise = (x - np.sqrt(abar) * clean) / np.sqrt(1 - abar)
        x = np.sqrt(following) * clean + np.sqrt(1 - following) * noise
    return x


def smooth_images(count, seed, side=8):
    """Smooth random grey images, float64 (count, side, side, 1) in [0, 1]: a few random low waves
    each."""
    rng = np.random.default_rng(seed)
    grid = (np.arange(side) + 0.5) / side
    waves = np.cos(np.pi * np.arange(4)[:, None] * grid)
    fields = np.einsum(
        "nij,ih,jw->nhw",
        rng.standard_normal((count, 4, 4)) / (1 + np.add.outer(np.arange(4), np.arange(4))),
        waves,
        waves,
    )
    low, high = fields.min((1, 2), keepdims=True), fields.max((1, 2), keepdims=True)
    return ((fields - low) / (high - low))[..., None]


def to_uint8(x, shape):
    """Quantise samples around [-1, 1] to images."""
    return np.rint(np.clip((x.reshape(-1, *shape) + 1) / 2, 0, 1) * 255).astype(np.uint8)


@pytest.fixture(scope="session")
def oracles():
    """The functions above."""
    return SimpleNamespace(
        empirical_bayes=empirical_bayes,
        gaussian_fit=gaussian_fit,
        ddim=ddim,
        smooth_images=smooth_images,
        to_uint8=to_uint8,
    )


class Study:
    """A study in a folder of its own, worked off verb by verb."""

    def __init__(self, params: dict, folder: Path):
        self.params, self.root = params, folder / params["study"]
        self.write()

    def write(self) -> None:
        self.study = config.parse(self.params)
        write_configs(self.study, self.root.parent)

    def store(self, step: str, arm: str | None = None) -> Path:
        """Return the store of a step's only job."""
        (job,) = [job for job in jobs.jobs(self.study) if (job.step, job.arm) == (step, arm)]
        return self.root / job.folder

    def command(self, step: str, arm: str | None = None, out: str | None = None) -> list[str]:
        """Return the command line of a step's verb."""
        data = self.root / "data"
        split, planting = data / "split", data / "planting" / "0"
        stored = {"train": planting, "holdout": split, "reference": split, "twins": planting}
        parts = {name: (f"--{name}", folder / f"{name}.npz") for name, folder in stored.items()}
        index, classifier = (
            ("--index", planting / "index.parquet"),
            ("--classifier", data / "classifier"),
        )
        flags: list = []
        if arm is not None:
            trained = self.root / "train" / arm / "rep0"
            samples = ("--samples", self.root / "sample" / arm / "rep0" / "images.npz")
            model, members = ("--model", trained), ("--members", trained / "members.parquet")
        match step:
            case "data/split":
                flags = ["--images", data / "fetch" / "images.npz"]
            case "data/planting":
                flags = ["--pool", split / "pool.npz", "--pool-table", split / "pool.parquet"]
                flags += ["--study", self.root / "config" / "study.json"]
            case "data/classifier":
                flags = [*parts["reference"]]
            case "train":
                flags = [*parts["train"], "--state", self.root / "state"]
            case "sample":
                flags = [*model]
            case "attack/membership":
                flags = [
                    *model,
                    *parts["train"],
                    *members,
                    *parts["holdout"],
                    *parts["twins"],
                    *index,
                ]
            case "attack/path":
                flags = [*model, *samples, *members, *index, *classifier]
                flags += [flag for pair in parts.values() for flag in pair]
            case "attack/forgetting":
                flags = [
                    *model,
                    *samples,
                    *parts["train"],
                    *members,
                    *parts["holdout"],
                    *parts["reference"],
                    *classifier,
                ]
        verb = {"train": ["train", "run"], "sample": ["sample", "draw"]}.get(step, step.split("/"))
        folder = self.store(step, arm)
        where = [
            "--config",
            self.root / "config" / folder.relative_to(self.root).with_suffix(".json"),
            "--out",
            out or folder,
        ]
        return [*verb, *map(str, [*flags, *where])]

    def run(self, step: str, arm: str | None = None, *more: str, out: str | None = None) -> Path:
        """Run a step's verb; return its store."""
        assert cli.main([*self.command(step, arm, out), *more]) == 0, step
        return Path(out) if out else self.store(step, arm)


@pytest.fixture(scope="session")
def trained(root, tmp_path_factory) -> Iterator[Study]:
    """The tiny study with a conditional arm, one that never saw the zeros, and a plain one;
    sampled, not attacked."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    params = yaml.safe_load((root / "tests" / "workflow" / "tiny.yaml").read_text())
    params["forget"] = {
        "zeros": {"label": 0},
        "some": {"ids": [3, 5]},
        "found": {"extracted_from": "plain"},
    }
    params["arms"] = {
        "conditional": {"method": "baseline", "condition": "label"},
        "retrained": {"method": "baseline", "condition": "label", "without": "zeros"},
        "plain": {"method": "baseline", "without": "zeros"},
        "tuned": {"method": "baseline", "base": "conditional", "without": "zeros"},
    }
    params["forgetting"] = {
        "relearn_updates": 4,
        "relearn_every": 3,
        "relearn_images": 8,
        "relearn_batch_size": 4,
    }
    params["paths"] = {"frontier": ["conditional"], "arms": ["plain"], "states": 3, "images": 10}
    params["membership"] = {"timesteps": 3, "draws": 2, "false_positive_rates": [0.05, 0.1]}
    study = Study(params, tmp_path_factory.mktemp("trained"))
    for step in ("data/fetch", "data/split", "data/planting", "data/classifier"):
        study.run(step)
    for arm in ("conditional", "retrained", "plain"):
        study.run("train", arm)
        study.run("sample", arm)
    yield study
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
