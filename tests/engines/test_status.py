"""What ``afterimage status`` says of made-up folders: nothing there, half done, at work, silent,
all done."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from afterimage import artifacts, cli, config
from afterimage.engines import status
from afterimage.plan import jobs

NOW = 1_800_000_000.0


@pytest.fixture
def study(params, tmp_path, monkeypatch) -> config.Study:
    """Two arms and one replicate, of which nothing is done."""
    monkeypatch.chdir(tmp_path)
    params |= {
        "attribution": None,
        "loyal_selection": None,
        "forget": {},
        "arms": {"baseline": {"method": "baseline"}, "longer": {"method": "baseline"}},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return config.parse(params)


@pytest.fixture
def root(study) -> Path:
    return Path("results") / study.study


def lines(study: config.Study, height: int | None = None) -> list[str]:
    return status.Look(study, Path("results"), Path(".snakemake")).lines(NOW, height)


def finish(root: Path, *folders: str, seconds: float = 60, ago: float = 0) -> None:
    """Write results that took ``seconds`` and ended ``ago`` seconds before now."""
    finished = datetime.fromtimestamp(NOW - ago, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for folder in folders:
        artifacts.write_json(root / folder / "run.json", {"finished": finished, "seconds": seconds})


def begin(root: Path, folder: str) -> None:
    artifacts.partial_folder(root / folder).mkdir(parents=True)


def train(root: Path, arm: str, update: int, *, ago: float = 1, log: str = "") -> Path:
    """Begin a training that is at ``update``, ``ago`` seconds after the last point of its curves;
    return its state's folder."""
    begin(root, f"train/{arm}/rep0")
    folder = root / "state" / arm / "rep0" / "0123456789abcdef"
    folder.mkdir(parents=True)
    points = [{"step": s, "name": "loss", "value": 1 / s} for s in range(10, update + 1, 10)]
    text = "".join(f"{json.dumps(point)}\n" for point in points)
    (folder / "metrics.jsonl").write_text(f'{text}{{"step": 99')  # the next line is half written
    os.utime(folder / "metrics.jsonl", (NOW - ago, NOW - ago))
    path = root / "logs" / "train" / arm / "rep0.log"
    path.parent.mkdir(parents=True)
    path.write_text(log)
    return folder


def save(folder: Path, update: int, seconds: float) -> None:
    state = folder / f"update-{update:08d}"
    state.mkdir()
    (state / "state.json").write_text(json.dumps({"update": update, "facts": {"seconds": seconds}}))


def snakemake_started(seconds_ago: float) -> None:
    name = datetime.fromtimestamp(NOW - seconds_ago).strftime("%Y-%m-%dT%H%M%S.123456")
    for path in (f".snakemake/log/{name}.snakemake.log", ".snakemake/locks/0.input.lock"):
        Path(path).parent.mkdir(parents=True)
        Path(path).touch()


def test_nothing_is_done(study):
    assert lines(study) == [
        "study default: 0 of 18 jobs done",
        "data 0/5  train 0/2  sample 0/2  attack 0/6  report 0/3",
        "",
        "baseline rep0  waiting",
        "longer rep0    waiting",
    ]


def test_a_training_tells_its_update_rate_and_time_left(study, root):
    told = "update 10 of 1500: loss 1.2\nupdate 810 of 1500: loss 0.1\n"
    folder = train(root, "baseline", 810, log=told)
    save(folder, 250, seconds=25.0)
    save(folder, 500, seconds=25.0)
    train(root, "longer", 40)
    assert lines(study)[3:] == [
        "baseline rep0  training 810/1500 updates, 20 updates/s, 0:00:34 left",
        "longer rep0    training 40 updates",
    ]


def test_a_training_that_writes_nothing_says_so(study, root):
    train(root, "baseline", 40, ago=754, log="update 10 of 1500: loss 1")
    begin(root, "train/longer/rep0")
    assert lines(study)[3:] == [
        "baseline rep0  training 40/1500 updates, nothing new for 0:12:34",
        "longer rep0    training",
    ]


def test_what_follows_a_training(study, root):
    finish(root, "train/baseline/rep0", "train/longer/rep0", "attack/baseline/rep0/membership")
    assert lines(study)[3:] == [
        "baseline rep0  trained, attacks 1/3",
        "longer rep0    trained",
    ]
    finish(root, "sample/baseline/rep0", "attack/baseline/rep0/quality")
    begin(root, "attack/baseline/rep0/extraction")
    begin(root, "sample/longer/rep0")
    log = root / "logs" / "attack" / "baseline" / "rep0.log"
    log.parent.mkdir(parents=True)
    log.write_text(
        "afterimage sample draw:\ndrawn 9 of 9 generations, 0 s left\n"
        "afterimage attack quality:\nmeasured 9 of 9 images, 0 s left\n"
        "afterimage attack extraction:\nsearched 5 of 9 images, 2 min left\n"
    )
    log = root / "logs" / "attack" / "longer" / "rep0.log"
    log.parent.mkdir(parents=True)
    log.write_text(
        "afterimage sample draw:\n"
        "drawn 64 of 1024 generations (6 %), 3 min 10 s left\nsomething else\n"
    )
    assert lines(study) == [
        "study default: 5 of 18 jobs done",
        "data 0/5  train 2/2  sample 1/2  attack 2/6  report 0/3",
        "",
        "baseline rep0  attacks 2/3 (extraction: searched 5 of 9 images, 2 min left)",
        "longer rep0    sampling: drawn 64 of 1024 generations (6 %), 3 min 10 s left",
    ]


def test_a_result_that_is_made_again_is_not_done(study, root):
    finish(root, "data/fetch", "data/split")
    begin(root, "data/split")
    assert lines(study) == [
        "study default: 1 of 18 jobs done",
        "data 1/5  train 0/2  sample 0/2  attack 0/6  report 0/3",
        "",
        "baseline rep0  waiting",
        "longer rep0    waiting",
        "data/split     split",
    ]


def test_the_time_left_is_that_of_kinds_measured_in_this_run(study, root):
    snakemake_started(100)
    finish(root, "data/fetch", seconds=7, ago=4000)  # of an earlier run
    finish(root, "data/split", seconds=50, ago=50)
    finish(root, "train/baseline/rep0", seconds=90, ago=10)  # 140 s of work in 90 s
    assert lines(study)[0] == (
        "study default: 3 of 18 jobs done, snakemake started 0:01:40 ago, about 0:00:58 left for "
        "train"
    )


def test_without_a_measured_kind_no_time_left_is_told(study, root):
    snakemake_started(100)
    finish(root, "data/fetch", seconds=7, ago=50)
    assert lines(study)[0] == "study default: 1 of 18 jobs done, snakemake started 0:01:40 ago"


def test_too_many_arms_for_the_screen_are_counted(study, root):
    train(root, "longer", 40)
    assert lines(study, height=5)[3:] == ["longer rep0  training 40 updates", "and 1 waiting"]


def test_watching_ends_when_all_is_done(study, root, capsys, monkeypatch):
    listed = [job.folder for job in jobs.jobs(study)]
    finish(root, *listed[:-1])
    monkeypatch.setattr(status.time, "sleep", lambda seconds: finish(root, listed[-1]))
    files = sorted(Path().rglob("*"))
    assert cli.main(["status", "--watch"]) == 0
    told = capsys.readouterr().out
    assert "study default: 17 of 18 jobs done" in told
    assert told.endswith(
        "study default: 18 of 18 jobs done\n"
        "data 5/5  train 2/2  sample 2/2  attack 6/6  report 3/3\n\n"
        "baseline rep0  done\nlonger rep0    done\n"
    )
    made = {path.name for path in set(Path().rglob("*")) - set(files)}
    assert made == {Path(listed[-1]).name, "run.json"}, "status wrote something"


def test_a_study_that_is_not_there_is_an_error(study, capsys):
    assert cli.main(["status", "--study", "other.yaml"]) == 2
    assert "other.yaml" in capsys.readouterr().err
