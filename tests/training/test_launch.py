"""Processes that are started together: what they are told, and what status comes of theirs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from afterimage.training import launch as module
from afterimage.training.launch import launch


def start(source: str, count: int = 2) -> int:
    return launch(
        [
            sys.executable,
            "-c",
            f"import os, signal, sys, time\nrank = int(os.environ['RANK'])\n{source}",
        ],
        count,
    )


def test_each_knows_its_place_and_all_meet_at_one(tmp_path):
    keys = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"]
    source = f"import json; json.dump([os.environ[key] for key in {keys}], open(f'{tmp_path}/{{rank}}', 'w'))"
    assert start(source, 3) == 0
    told = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert [(rank, local) for rank, local, *_ in told] == [
        (str(rank), str(rank)) for rank in range(3)
    ]
    (shared,) = {tuple(rest) for _, _, *rest in told}
    assert shared[:2] == ("3", "127.0.0.1")
    assert shared[3] == "1"  # the tests' own thread, which cannot be parted


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [([0, 0], 0), ([0, 75], 75), ([75, 75], 75), ([2, 0], 2), ([75, 2], 2), ([0, 1], 1)],
)
def test_the_worst_status_counts_and_a_stop_is_no_failure(statuses, expected):
    assert start(f"sys.exit({statuses}[rank])") == expected


def test_a_process_that_dies_takes_those_that_wait_for_it_with_it(monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.5)
    started = time.monotonic()
    assert start("os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)") == 128 + 9
    assert time.monotonic() - started < 30


def test_one_that_is_stopped_and_still_saving_is_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "GRACE", 0.0)
    assert start(f"rank or (time.sleep(1), open('{tmp_path}/saved', 'w')); sys.exit(75)") == 75
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_go_on_to_all(number, tmp_path):
    child = f"""
import os, signal, sys, time
signal.signal({int(number)}, lambda *_: sys.exit(75))
open(f"{tmp_path}/{{os.environ['RANK']}}", "w").close()
time.sleep(60)
"""
    parent = f"import sys; from afterimage.training.launch import launch; sys.exit(launch([sys.executable, '-c', {child!r}], 2))"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == 75
