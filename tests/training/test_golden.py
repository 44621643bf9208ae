"""The first losses of a tiny run, held in ``tests/golden/baseline.json``.

A change that should not alter results must leave them as they are. After one that should, write them anew with
``AFTERIMAGE_WRITE_GOLDEN=1 pytest tests/training/test_golden.py`` and say in the commit why they moved.
"""

import json
import os
from pathlib import Path

import pytest

from afterimage.methods import baseline

GOLDEN = Path(__file__).parent.parent / "golden" / "baseline.json"


def losses(make_job, folder: Path) -> list[float]:
    job = make_job(folder, images=64, updates=10, batch_size=16, log_every=1, condition="label", flips=True)
    baseline.train(job)
    rows = [json.loads(line) for line in job.store.curves.read_text().splitlines()]
    return [row["value"] for row in rows if row["name"] == "loss"]


def test_first_losses_are_those_on_record(make_job, tmp_path):
    found = losses(make_job, tmp_path)
    if os.environ.get("AFTERIMAGE_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({"losses": found}, indent=2) + "\n")
    assert found == pytest.approx(json.loads(GOLDEN.read_text())["losses"], rel=1e-5)
