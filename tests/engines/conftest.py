"""Made-up results of a whole study: true stores with small files, each made from the one before it,
in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from afterimage import artifacts, config, provenance
from afterimage.plan import jobs
from afterimage.plan.resolved import modules, resolved
from afterimage.plan.step import Job


@pytest.fixture
def build() -> Callable[..., None]:
    return _build


@pytest.fixture
def study(params: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.Study:
    """The default study with two arms and two replicates, and finished, made-up results in a
    working folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(provenance, "fingerprint", lambda *entries: f"code of {', '.join(entries)}")
    params["replicates"] = 2
    params["forget"] = {"zeros": {"label": 0}}
    params["arms"] = {
        "baseline": {"method": "baseline"},
        "dedup": {"method": "baseline", "data": "deduplicated", "without": "zeros"},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    study = config.parse(params)
    _build(study, Path("results"))
    return study


def _build(study: config.Study, results: Path, only: str = "", offset: float = 0.0) -> None:
    """Write every job of ``study`` whose folder starts with ``only``.

    Args:
        offset: Added to every number, so that another result comes out of the same settings.
    """
    root = results / study.study
    for job in jobs.jobs(study):
        if job.folder.startswith(only):
            wanted = resolved(study, job)
            with artifacts.step(
                wanted, root / job.folder, _inputs(root, job), modules(study, job)
            ) as step:
                _write(step, job, study, offset)


def _inputs(root: Path, job: Job) -> dict[str, Path]:
    cell = f"{job.arm}/rep{job.replicate}"
    split, planting = root / "data" / "split", root / "data" / "planting" / "0"
    return {
        "data/fetch": {},
        "data/split": {"images": root / "data" / "fetch" / "images.npz"},
        "data/planting": {"pool": split / "pool.npz"},
        "data/classifier": {"reference": split / "reference.npz"},
        "data/dedup": {"train": planting / "train.npz", "classifier": root / "data" / "classifier"},
        "train": {"images": planting / "train.npz"},
        "sample": {"model": root / "train" / cell / "pipeline"},
        "attack/extraction": {"samples": root / "sample" / cell / "images.npz"},
        "attack/quality": {"samples": root / "sample" / cell / "images.npz"},
        "attack/membership": {"model": root / "train" / cell / "pipeline"},
        "attack/forgetting": {"samples": root / "sample" / cell / "images.npz"},
        "report/tables": {"split": split / artifacts.RUN},
        "report/page": {"tables": root / "report" / "tables" / artifacts.RUN},
    }[job.step]


def _write(step: artifacts.Step, job: Job, study: config.Study, offset: float) -> None:
    files = {
        "data/fetch": ["images.npz"],
        "data/split": ["pool.npz", "reference.npz"],
        "data/planting": ["train.npz", "index.parquet"],
        "data/classifier": ["classifier.safetensors", "classifier.json"],
        "data/dedup": ["train.npz"],
        "train": ["pipeline/unet/config.json", "pipeline/model_index.json", "members.parquet"],
        "sample": ["images.npz", "grid.png"],
        "attack/extraction": ["results.csv", "pairs.parquet"],
        "attack/quality": ["results.csv"],
        "attack/membership": ["results.csv", "losses.parquet"],
        "attack/forgetting": ["results.csv", "relearning.csv"],
        "report/tables": ["arms.csv"],
        "report/page": [f"{Path(job.folder).name}.html"],
    }[job.step]
    for name in files:
        path = step.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{job.folder} {name} {offset}\n")
    if job.step == "train":
        for update in range(0, 30, 10):
            step.metric("loss", 1 / (update + 1) + offset, update)
    if job.step == "attack/extraction":
        step.metric("mq_holdout@0.15", 0.25 + offset)
    if job.step == "attack/membership":
        step.metric("tpr@0.01", 0.125 + offset)
    if job.step == "attack/forgetting":
        step.metric("zeros/probability", 0.75 + offset)
    if job.step == "report/tables":
        metrics = {arm: {"unique_images": 3.0 + offset, "mq@0.15": 0.5} for arm in study.arms}
        (step.folder / "metrics.json").write_text(json.dumps(metrics))
