"""Processes that are really killed, and started again with the same command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from afterimage import artifacts, cli

pytestmark = pytest.mark.slow
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "afterimage.cli", *command],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )


def reached(state: Path) -> int:
    """Return the last update in the curves of a running process; 0 before there are any."""
    files = list(state.glob("*/metrics.jsonl"))
    lines = files[0].read_text().splitlines() if files else []
    whole = [line for line in lines if line.endswith("}")]
    return json.loads(whole[-1])["step"] if whole else 0


def kill_after(command: list[str], state: Path, update: int, number: int) -> tuple[int, str]:
    """Start, wait until the curves show ``update``, send the signal; return exit status and error
    text."""
    process = start(command)
    deadline = time.monotonic() + 120
    while process.poll() is None and reached(state) < update and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    return process.returncode, errors


def test_killed_and_started_again_it_ends_with_the_same_bytes(study, tmp_path, curves):
    """Uninterrupted here; in other processes killed, stopped by SIGTERM; and finished here
    again."""
    train = {"updates": 200, "batch_size": 4, "warmup": 20, "checkpoint_every": 15, "log_every": 1}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert cli.main(study(folder=tmp_path / "a", **train)) == 0

    command = study(folder=tmp_path / "b", **train)
    state, out = tmp_path / "b" / "state", tmp_path / "b" / "out"
    assert kill_after(command, state, 50, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not out.exists()
    status, errors = kill_after(command, state, 100, signal.SIGTERM)
    assert status == 75
    assert "stopped by SIGTERM after update" in errors
    assert not out.exists()
    saved = sorted(path.name for path in state.glob("*/update-*"))
    assert len(saved) == 2
    stopped_at = int(saved[-1].removeprefix("update-"))
    assert 100 <= stopped_at < 200
    assert cli.main(command) == 0

    one, two = artifacts.check_store(tmp_path / "a" / "out"), artifacts.check_store(out)
    assert one["facts"]["resumed_at"] == []
    first, second = two["facts"]["resumed_at"]
    assert 45 <= first < 100
    assert first % 15 == 0
    assert second == stopped_at
    weights = [name for name in one["outputs"] if name.endswith(".safetensors")]
    assert len(weights) == 2
    for name in weights:
        assert (tmp_path / "a" / "out" / name).read_bytes() == (out / name).read_bytes()
    assert curves(tmp_path / "a" / "out" / "metrics.jsonl") == curves(out / "metrics.jsonl")
    assert len(curves(out / "metrics.jsonl")) == 3 * 200
