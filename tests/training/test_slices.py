"""A run in several parts, each a process with less time than the whole takes, ends with the bits of
one in a single piece."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import pytest

from afterimage import artifacts, cli
from afterimage.methods import baseline
from afterimage.training.learner import Learner

ARMS = {
    "baseline": ({"method": "baseline", "condition": "label"}, 7),
    "iet_agc": ({"method": "iet_agc", "shards": 2, "rounds": 2, "agc_threshold": 0.5}, 16),
    "loyal": ({"method": "loyal", "switch_timestep": 500, "rau_net": {"groups": [1]}}, 7),
}


def status(command: list[str], *more: str) -> int:
    try:
        return cli.main([*command, *more])
    except SystemExit as left:
        return left.code


def updates_saved(folder) -> list[int]:
    return sorted(
        int(path.name.removeprefix("update-")) for path in folder.glob("state/*/update-*")
    )


@pytest.fixture
def pair(study, tmp_path):
    """Return a function that makes the same run twice, in folders of their own, and gives both
    folders and commands."""

    def make(arm: dict | None = None, **train):
        folders = [tmp_path / "whole", tmp_path / "parts"]
        for folder in folders:
            folder.mkdir()
        return folders, [study(arm, folder=folder, **train) for folder in folders]

    return make


@pytest.fixture
def same(curves):
    """Return a function that compares what two runs published: every file, but for the pace in the
    curves."""

    def check(one, two) -> None:
        mine, its = (artifacts.check_store(folder / "out")["outputs"] for folder in (one, two))
        assert mine.pop("metrics.jsonl")
        assert its.pop("metrics.jsonl")
        assert mine == its
        assert curves(one / "out" / "metrics.jsonl") == curves(two / "out" / "metrics.jsonl")

    return check


@pytest.mark.parametrize("method", ARMS)
def test_three_parts_are_one_run(method, pair, same, capsys):
    arm, updates = ARMS[method]
    (whole, parts), (one, three) = pair(arm, updates=updates)
    assert status(one) == 0
    for k in (1, 2):
        assert status(three, "--part", f"{k}/3") == 0
        assert f"part {k} of 3 ends here" in capsys.readouterr().err
        assert not (parts / "out").exists()
    assert status(three, "--part", "3/3") == 0
    same(whole, parts)
    facts = artifacts.read_run(parts / "out")["facts"]
    assert facts["parts"] == ["1of3", "2of3"]
    assert len(facts["resumed_at"]) == 2
    assert artifacts.read_run(whole / "out")["facts"]["parts"] == []
    assert not list((parts / "state").iterdir())


def test_a_part_is_its_share_of_the_budget_rounded_up(pair):
    (_, folder), (_, command) = pair(updates=7, checkpoint_every=100)
    for k, expected in ((1, 3), (2, 5)):
        assert status(command, "--part", f"{k}/3") == 0
        assert updates_saved(folder)[-1] == expected


def test_a_stopped_part_goes_on(pair, same, stop_at):
    (whole, parts), (one, three) = pair()
    assert status(one) == 0
    assert status(three, "--part", "1/3") == 0
    stop_at(3)
    assert status(three, "--part", "2/3") == 75
    assert updates_saved(parts)[-1] == 4
    assert status(three, "--part", "2/3") == 0
    assert updates_saved(parts)[-1] == 5
    stop_at(5)
    assert status(three, "--part", "3/3") == 75
    assert status(three, "--part", "3/3") == 0
    same(whole, parts)
    assert artifacts.read_run(parts / "out")["facts"]["resumed_at"] == [3, 4, 5, 6]


def test_a_signal_in_the_last_update_of_a_part_stops_nothing(pair, stop_at):
    (_, folder), (_, command) = pair()
    stop_at(2)
    assert status(command, "--part", "1/3") == 0
    assert updates_saved(folder)[-1] == 3


@pytest.mark.parametrize("part", ["1/3", "2/3", "3/9"])
def test_a_part_that_is_done_is_not_done_again(part, pair, same, monkeypatch):
    (whole, folder), (one, command) = pair()
    assert status(command, "--part", "2/3") == 0
    before = {path: path.stat().st_mtime_ns for path in folder.glob("state/*/update-*/*")}
    with monkeypatch.context() as watched:
        watched.setattr(Learner, "update", lambda *_: pytest.fail("an update was done"))
        assert status(command, "--part", part) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("state/*/update-*/*")} == before
    assert status(one) == status(command) == 0
    same(whole, folder)


def test_where_the_state_is_gone_the_last_part_does_everything(pair, same):
    (whole, parts), (one, three) = pair()
    assert status(three, "--part", "1/2") == 0
    shutil.rmtree(parts / "state")
    assert status(three, "--part", "2/2") == status(one) == 0
    same(whole, parts)
    assert artifacts.read_run(parts / "out")["facts"]["resumed_at"] == []


def test_parts_of_other_settings_are_not_gone_on_with(study, tmp_path):
    assert status(study(), "--part", "1/2") == 0
    assert status(study(learning_rate=2e-3), "--part", "2/2") == 0
    assert artifacts.read_run(tmp_path / "out")["facts"]["resumed_at"] == []


def test_a_finished_result_stays_while_parts_of_the_next_are_trained(study, tmp_path):
    assert status(study()) == 0
    before = (tmp_path / "out" / "run.json").read_bytes()
    assert status(study(learning_rate=2e-3), "--part", "1/2") == 0
    assert (tmp_path / "out" / "run.json").read_bytes() == before


def test_networks_kept_under_way_are_kept_by_every_part(tmp_path, make_job):
    kept = []
    for name, ends in (("whole", [(1, 1)]), ("parts", [(1, 3), (2, 3), (3, 3)])):
        for share in ends:
            job = replace(
                make_job(tmp_path / name),
                states={f"state{k}": k / 4 for k in (1, 2, 3)},
                share=share,
            )
            with (
                nullcontext()
                if share in ((1, 1), (3, 3))
                else pytest.raises(SystemExit, match=r"^0$")
            ):
                baseline.train(job)
        kept.append(
            {
                path.relative_to(job.kept): path.read_bytes()
                for path in job.kept.rglob("*.safetensors")
            }
        )
    assert len(kept[0]) == 6
    assert kept[0] == kept[1]


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "1/0", "a/b", "-1/2"])
def test_what_is_no_part_is_refused(part, study, capsys):
    assert status([*study(), f"--part={part}"]) == 2
    assert "is not a share of a run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_method_that_cannot_share_is_refused_in_several_processes(study, capfd):
    command = study({"method": "dp_sgd", "noise_multiplier": 1.0})
    assert status(command, "--processes", "2") == 2
    assert "method dp_sgd trains in one" in capfd.readouterr().err


@pytest.mark.slow
def test_processes_are_started_stopped_and_go_on_in_parts(study, tmp_path, capfd):
    """Two processes, stopped by a signal to the one that started them; the rest of the part by two,
    the rest of the run by one."""
    command = study(updates=160, checkpoint_every=1000, log_every=1)
    state = tmp_path / "state"
    both = [sys.executable, "-m", "afterimage.cli", *command, "--part", "1/2", "--processes", "2"]
    process = subprocess.Popen(both, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while (
        not any(path.stat().st_size for path in state.glob("*/metrics.jsonl"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    (stopped_at,) = updates_saved(tmp_path)
    assert 0 < stopped_at < 80
    assert status(command, "--part", "1/2", "--processes", "2") == 0
    assert updates_saved(tmp_path)[-1] == 80
    assert not (tmp_path / "out").exists()
    assert status(command) == 0
    facts = artifacts.read_run(tmp_path / "out")["facts"]
    assert facts["resumed_at"] == [stopped_at, 80]
    assert facts["processes"] == 1
    assert "stopped by SIGTERM" in capfd.readouterr().err
