"""MLflow shows exactly the finished results, however often and however interrupted the import
was."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from afterimage import cli, config, tracking
from afterimage.artifacts import ArtifactError

Build = Callable[..., None]
ROOT = Path("results/default")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with MLflow's tables and nothing in them; making one takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tracking._client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def store(study: config.Study, empty_store: Path) -> None:
    """A fresh copy of it where the import looks by default."""
    shutil.copy(empty_store, "mlflow.db")


def do_import(study: config.Study) -> dict[str, int]:
    return tracking.import_study(
        study, ROOT, tracking.read(study, Path("results")), tracking.default_uri()
    )


def shown(name: str = "default") -> dict[str, object]:
    """Return run name -> run, of all that MLflow shows of the study; no name may stand twice."""
    client = tracking._client(tracking.default_uri())
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    assert len(by_name) == len(runs)
    return by_name


def ids(runs: dict) -> dict[str, str]:
    return {name: run.info.run_id for name, run in runs.items()}


def test_runs_hold_what_the_results_hold(study: config.Study) -> None:
    assert do_import(study) == {"made": 4, "replaced": 0, "kept": 0, "removed": 0}
    runs = shown()
    assert runs.keys() == {
        "baseline",
        "dedup",
        "report",
        *(f"{arm}/rep{k}" for arm in study.arms for k in (0, 1)),
    }
    assert {run.info.status for run in runs.values()} == {"FINISHED"}

    child = runs["dedup/rep1"]
    record = json.loads((ROOT / "train/dedup/rep1/run.json").read_text())
    assert child.data.tags["mlflow.parentRunId"] == runs["dedup"].info.run_id
    assert child.data.tags["afterimage.train.config"] == record["config_sha256"]
    assert child.data.tags["afterimage.train.code"] == record["code_sha256"]
    assert child.data.tags["mlflow.source.git.commit"] == str(record["environment"]["git_commit"])
    assert child.data.params["train.arm.data"] == "deduplicated"
    assert child.data.params["train.model.channels"] == "[16, 32]"
    assert child.data.params["sample.images"] == "1024"
    assert child.data.metrics["extraction/mq_holdout at 0.15"] == 0.25

    client = tracking._client(tracking.default_uri())
    curve = client.get_metric_history(child.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in curve] == [(0, 1.0), (10, 1 / 11), (20, 1 / 21)]
    assert [file.path for file in client.list_artifacts(child.info.run_id, "sample")] == [
        "sample/grid.png"
    ]
    copied = Path(client.download_artifacts(child.info.run_id, "extraction/results.csv"))
    assert copied.read_text() == (ROOT / "attack/dedup/rep1/extraction/results.csv").read_text()
    assert Path("mlartifacts/default").is_dir()

    parent = runs["dedup"]
    assert parent.data.metrics == {"unique_images": 3.0, "mq at 0.15": 0.5}
    assert parent.data.params["arm.data"] == "deduplicated"
    assert parent.data.params["data.split.train"] == "400"
    folders = ("tables", "extraction", "comparison", "erasediff")
    pages = {
        file.path
        for folder in folders
        for file in client.list_artifacts(runs["report"].info.run_id, folder)
    }
    assert client.list_artifacts(parent.info.run_id) == []
    assert pages == {"tables/arms.csv", *(f"{page}/{page}.html" for page in folders[1:])}
    forgetting = {file.path for file in client.list_artifacts(child.info.run_id, "forgetting")}
    assert forgetting == {"forgetting/results.csv", "forgetting/relearning.csv"}
    assert child.data.metrics["membership/tpr at 0.01"] == 0.125


def test_second_import_changes_nothing(
    study: config.Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["track", "import", "--out", "first.json"]) == 0
    assert "4 made, 0 replaced, 0 kept, 0 removed" in capsys.readouterr().out
    before = shown()
    assert cli.main(["track", "import", "--out", "second.json"]) == 0
    assert "0 made, 0 replaced, 4 kept, 0 removed" in capsys.readouterr().out
    assert ids(shown()) == ids(before)
    assert Path("first.json").read_bytes() == Path("second.json").read_bytes()


def test_only_the_changed_replicate_is_replaced(build: Build, study: config.Study) -> None:
    do_import(study)
    before = shown()
    build(study, Path("results"), only="attack/dedup/rep1", offset=0.5)
    assert do_import(study) == {"made": 0, "replaced": 1, "kept": 3, "removed": 0}
    after = shown()
    assert {name for name in after if ids(after)[name] != ids(before)[name]} == {
        "dedup",
        "dedup/rep1",
    }
    assert after["dedup/rep1"].data.metrics["extraction/mq_holdout at 0.15"] == 0.75
    for name in ("dedup/rep0", "dedup/rep1"):
        assert after[name].data.tags["mlflow.parentRunId"] == after["dedup"].info.run_id


def test_new_tables_replace_parents_and_keep_children(build: Build, study: config.Study) -> None:
    do_import(study)
    before = shown()
    build(study, Path("results"), only="report/tables", offset=1.0)
    assert do_import(study) == {"made": 0, "replaced": 0, "kept": 4, "removed": 0}
    after = shown()
    assert {name for name in after if ids(after)[name] != ids(before)[name]} == {
        "baseline",
        "dedup",
        "report",
    }
    assert after["dedup"].data.metrics["unique_images"] == 4.0


@pytest.mark.parametrize("calls", [1, 3, 5])
def test_import_that_was_killed_is_repaired(
    study: config.Study, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    true = tracking._log
    left = iter(range(calls))

    def killed_after(client, run_id, params, metrics):
        """Write a part, then die in the middle of the last call."""
        true(client, run_id, params, [])
        if next(left) == calls - 1:
            raise KeyboardInterrupt
        true(client, run_id, {}, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_log", killed_after)
        with pytest.raises(KeyboardInterrupt):
            do_import(study)
    assert "RUNNING" in {run.info.status for run in shown().values()}
    do_import(study)
    runs = shown()
    assert len(runs) == 7
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    client = tracking._client(tracking.default_uri())
    for arm in study.arms:
        for k in (0, 1):
            child = runs[f"{arm}/rep{k}"]
            assert child.data.tags["mlflow.parentRunId"] == runs[arm].info.run_id
            assert len(client.get_metric_history(child.info.run_id, "train/loss")) == 3
    assert do_import(study) == {"made": 0, "replaced": 0, "kept": 4, "removed": 0}


def test_arms_and_replicates_that_the_study_dropped_are_removed(
    build: Build, study: config.Study, params: dict
) -> None:
    do_import(study)
    params["replicates"] = 1
    del params["arms"]["dedup"]
    smaller = config.parse(params)
    build(smaller, Path("results"), only="report")
    assert do_import(smaller) == {"made": 0, "replaced": 0, "kept": 1, "removed": 3}
    assert shown().keys() == {"baseline", "baseline/rep0", "report"}


def test_results_of_other_settings_are_refused(study: config.Study, params: dict) -> None:
    params["sample"]["steps"] = 7
    with pytest.raises(ArtifactError, match=r"settings\.steps was 50, is now 7"):
        do_import(config.parse(params))


def test_pictures_are_withheld_unless_the_study_allows_them(
    build: Build, study: config.Study, params: dict
) -> None:
    params["report"]["show_images"] = False
    private = config.parse(params)
    build(private, Path("results"), only="report")
    do_import(private)
    client = tracking._client(tracking.default_uri())
    child = ids(shown())["baseline/rep0"]
    assert client.list_artifacts(child, "sample") == []
    assert [file.path for file in client.list_artifacts(child, "quality")] == [
        "quality/results.csv"
    ]


def test_long_values_and_many_points_fit_the_limits_of_mlflow(study: config.Study) -> None:
    from mlflow.entities import Metric

    client = tracking._client(tracking.default_uri())
    run = client.create_run("0").info.run_id
    params = {f"p{k}": "x" * 10_000 for k in range(150)}
    tracking._log(client, run, params, [Metric("loss", float(k), 0, k) for k in range(2500)])
    assert len(client.get_run(run).data.params) == 150
    history = client.get_metric_history(run, "loss")
    assert sorted(point.step for point in history) == list(range(2500))


# ---- stores that are none ------------------------------------------------------------------------


def sql(path: Path, statement: str) -> str:
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement)
        database.commit()
    return f"sqlite:///{path}"


def other_version(path: Path) -> str:
    return sql(path, "UPDATE alembic_version SET version_num = 'cc1f77228345'")


def lost_table(path: Path) -> str:
    return sql(path, "DROP TABLE experiment_tags")


def text(path: Path) -> str:
    path.write_text("hello " * 1000)
    return f"sqlite:///{path}"


def truncated(path: Path) -> str:
    os.truncate(path, path.stat().st_size // 2)
    return f"sqlite:///{path}"


def folder(path: Path) -> str:
    path.unlink()
    path.mkdir()
    return f"sqlite:///{path}"


def below_a_file(path: Path) -> str:
    return f"sqlite:///{path}/mlflow.db"


def dangling(path: Path) -> str:
    path.unlink()
    path.symlink_to("nowhere/mlflow.db")
    return f"sqlite:///{path}"


def another_program(path: Path) -> str:
    path.unlink()
    return sql(path, "CREATE TABLE studies (name TEXT)")


def read_only(path: Path) -> str:
    return f"sqlite:///file:{path.resolve()}?mode=ro&uri=true"


def in_memory(path: Path) -> str:
    return "sqlite://"


def no_server(path: Path) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://user:secret@127.0.0.1:{free.getsockname()[1]}"


def file_store(path: Path) -> str:
    return "mlruns"


def no_driver(path: Path) -> str:
    return "postgresql+nosuchdriver://user:secret@127.0.0.1/mlflow"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            other_version,
            "another version of MLflow wrote it (its schema is cc1f77228345, this version's is ",
        ),
        (lost_table, "cannot be used: no such table: experiment_tags"),
        (text, "file is not a database"),
        (truncated, "database disk image is malformed"),
        (folder, "Is a directory: "),
        (below_a_file, "File exists: "),
        (dangling, "No such file or directory: "),
        (another_program, "another program's database, with the tables studies"),
        (read_only, "attempt to write a readonly database"),
        (in_memory, "a database in memory ends with this command"),
        (no_server, "Connection refused"),
        (file_store, "maintenance mode"),
        (no_driver, "nosuchdriver"),
    ],
)
def test_what_cannot_be_a_store_is_named_and_left_alone(
    study, make, reason, caplog, capsys, monkeypatch
):
    """One sentence, status 2, no traceback; what lies there is somebody's, so that nothing is
    deleted."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    path = Path(f"{make.__name__}.db")  # MLflow keeps a connection for each name
    shutil.copy("mlflow.db", path)
    uri = make(path)
    before = path.read_bytes() if path.is_file() else None
    assert cli.main(["track", "import", "--uri", uri]) == 2
    message = capsys.readouterr().err
    assert message.startswith("afterimage: error: the MLflow store ")
    assert reason in message
    assert "secret" not in message
    assert "rebuilt from the results at any time" in message
    assert (f"move {path}" in message) == uri.startswith(f"sqlite:///{path}")
    assert not [record for record in caplog.records if record.exc_info]
    assert before is None or path.read_bytes() == before


def test_an_empty_file_becomes_a_store(study: config.Study) -> None:
    Path("new").mkdir()
    Path("new/empty.db").touch()
    assert cli.main(["track", "import", "--uri", "sqlite:///new/empty.db"]) == 0
    assert len(tracking._client("sqlite:///new/empty.db").search_runs(["1"])) == 7


def test_a_fault_in_the_middle_of_an_import_is_named_too(
    study: config.Study, monkeypatch, capsys
) -> None:
    """A full disk, another program's lock."""
    from sqlalchemy.exc import OperationalError

    def fail(*arguments: object) -> None:
        raise OperationalError(
            "INSERT INTO metrics", {}, sqlite3.OperationalError("database or disk is full")
        )

    monkeypatch.setattr(tracking, "_log", fail)
    assert cli.main(["track", "import"]) == 2
    assert "cannot be used: database or disk is full. It can be rebuilt" in capsys.readouterr().err
