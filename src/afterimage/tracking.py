"""``afterimage track import``: import finished results into MLflow, idempotently.

Jobs never talk to MLflow: many writers on a fresh SQLite store lose runs, and compute nodes may
have no network. Instead, a single process reads ``run.json`` and ``metrics.jsonl`` of finished
results, so that the store can be deleted and rebuilt at any time. A study is an experiment, an arm
a parent run, a replicate its child; one more run, ``report``, has the study's tables and pages. A
run carries the digest of the ``run.json`` files that it shows: a run with the same digest is kept,
one with another digest is replaced, so that old and new numbers never mix.

This is the only module that imports MLflow.
"""

from __future__ import annotations

import argparse
import calendar
import hashlib
import json
import logging
import os
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from afterimage import artifacts, config
from afterimage.plan import jobs
from afterimage.plan.resolved import resolved

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

SQLITE = "sqlite:///"
REPORT = "(report)"
"""What stands for an arm in the tags of the run with tables and pages."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--study", type=Path, default=Path("params.yaml"), help="study file (default: %(default)s)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        help="folder of all results (default: %(default)s)",
    )
    parser.add_argument(
        "--uri", help="tracking store (default: $MLFLOW_TRACKING_URI, else mlflow.db here)"
    )
    parser.add_argument("--out", type=Path, help="JSON file for a summary of the imported runs")


def run(args: argparse.Namespace) -> None:
    uri = args.uri or os.environ.get("MLFLOW_TRACKING_URI") or default_uri()
    study = config.load(args.study)
    with errors_named(uri):
        check_store(uri)
    finished = read(study, args.results)
    with errors_named(uri):
        counts = import_study(study, args.results / study.study, finished, uri)
    if args.out:
        artifacts.write_json(args.out, summary(study, finished))
    done = ", ".join(f"{number} {verb}" for verb, number in counts.items())
    print(f"study {study.study!r} is in {without_password(uri)}: {done}")


def default_uri() -> str:
    """Return the store in the working folder."""
    return f"{SQLITE}{Path('mlflow.db').resolve()}"


# ---- results -------------------------------------------------------------------------------------


class Replicate(NamedTuple):
    """One trained model: folder and ``run.json`` of each of its steps."""

    number: int
    digest: str
    stores: dict[str, tuple[Path, dict[str, Any]]]


class Arm(NamedTuple):
    """All replicates of one arm, and the digest of them and of their report."""

    digest: str
    replicates: list[Replicate]


class Finished(NamedTuple):
    """The arms of a finished study, and the records of its report, in the order of its jobs."""

    arms: dict[str, Arm]
    report: list[dict[str, Any]]


def read(study: config.Study, results: Path) -> Finished:
    """Return the results of a finished study, with every file checked.

    Raises:
        ArtifactError: if a result is missing, changed, or from settings other than the study's.
    """
    cells: dict[tuple[str, int], dict[str, tuple[Path, dict[str, Any]]]] = defaultdict(dict)
    report: list[dict[str, Any]] = []
    for job in jobs.jobs(study):
        if job.phase == "data":
            continue
        folder = Path(results) / study.study / job.folder
        record = artifacts.check_store(folder, resolved(study, job))
        number = job.replicate
        if job.arm is not None and number is not None:
            cells[job.arm, number][job.step.removeprefix("attack/")] = (folder, record)
        elif (job.step, job.job) == ("attribution/scores", "main") and number is not None:
            assert study.attribution is not None
            cells[study.attribution.arm, number]["attribution"] = (folder, record)
        else:
            report.append(record)
    replicates: dict[str, list[Replicate]] = {arm: [] for arm in study.arms}
    for (arm, number), stores in cells.items():
        # The contents of a run depend on the results and on whether images may be shown.
        digest = _digest([study.report.show_images, *(record for _, record in stores.values())])
        replicates[arm].append(Replicate(number, digest, stores))
    arms = {
        arm: Arm(_digest([report, [replicate.digest for replicate in group]]), group)
        for arm, group in replicates.items()
    }
    return Finished(arms, report)


def summary(study: config.Study, finished: Finished) -> dict[str, Any]:
    """Return a summary of a study in a store: the same for the same results, wherever the store
    is."""
    digests = {
        name: {
            "digest": arm.digest,
            "replicates": [replicate.digest for replicate in arm.replicates],
        }
        for name, arm in finished.arms.items()
    }
    return {"study": study.study, "arms": digests}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as ``a.b.c`` -> text; lists are not flattened."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def metric_name(name: str) -> str:
    """Return ``name`` with only the characters that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", " at "))


# ---- the store -----------------------------------------------------------------------------------


@contextmanager
def errors_named(uri: str) -> Iterator[None]:
    """Turn errors of MLflow and its libraries into one sentence that names the store, and what to
    do.

    Raises:
        ArtifactError: for a store that cannot be opened, read or written.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    try:
        yield
    except StoreError as error:
        reason = str(error)
    except DBAPIError as error:
        reason = str(error.orig)
    except (MlflowException, SQLAlchemyError, ModuleNotFoundError, OSError) as error:
        # MLflow's own advice follows the first sentence, and SQL statements the first line.
        reason = str(error).split("\n")[0].split(". ")[0].removesuffix(".")
        versions = re.search(r"found version (\w+), but expected (\w+)", reason)
        if versions:
            reason = (
                f"another version of MLflow wrote it (its schema is {versions[1]}, this version's "
                f"is {versions[2]})"
            )
    else:
        return
    reason = re.sub(r"^\((\w+\.)+\w+\) ", "", reason.strip())  # SQLAlchemy's name of the class
    path = _sqlite_path(uri)
    message = (
        f"the MLflow store {uri} cannot be used: {reason}. It can be rebuilt from the results at "
        "any time: repeat the command when that is fixed,"
        f"{f' or move {path} away for a new one,' if path else ''} or name another store by --uri "
        "or MLFLOW_TRACKING_URI (without either it is mlflow.db in the working folder)"
    )
    raise artifacts.ArtifactError(without_password(message))


def without_password(text: str) -> str:
    """Return a text with passwords in URIs masked."""
    return re.sub(r"(://[^:/@\s]*):[^@/\s]*@", r"\1:***@", text)


class StoreError(Exception):
    """A problem with a store that is detected before MLflow opens it."""


def check_store(uri: str) -> None:
    """Open the store. A file is inspected first: MLflow spends a minute trying to open a folder,
    and writes into other programs' databases.

    Raises:
        StoreError: for a file or folder that cannot be an MLflow store.
        Exception: from MLflow and its libraries; see ``errors_named``.
    """
    path = _sqlite_path(uri)
    if path is not None:
        _check_sqlite(path)
    elif uri.startswith("sqlite:") and "file:" not in uri:
        raise StoreError("a database in memory ends with this command")
    _client(uri).search_experiments(max_results=1)


def _sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite store; None for any other store."""
    name = uri.removeprefix(SQLITE).split("?")[0]
    if not uri.startswith(SQLITE) or name in ("", ":memory:") or name.startswith("file:"):
        return None
    return Path(name)


def _check_sqlite(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):  # creates an empty file, which MLflow treats as a new store
            pass
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            tables = {
                name
                for (name,) in database.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table'"
                )
            }
    except OSError as error:
        raise StoreError(f"{error.strerror}: {error.filename}") from None
    except sqlite3.DatabaseError as error:
        raise StoreError(str(error)) from None
    if tables and "experiments" not in tables:
        raise StoreError(
            f"it is another program's database, with the tables {', '.join(sorted(tables))}"
        )


def _without_tracebacks(record: logging.LogRecord) -> bool:
    """Filter out MLflow's log of an error that it also raises."""
    return record.levelno != logging.ERROR


def _client(uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    # Report an unreachable server within seconds, not minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    from mlflow import MlflowClient

    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").addFilter(_without_tracebacks)
    return MlflowClient(uri)


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    """Return the id of the study's experiment, created or restored if necessary."""
    existing = client.get_experiment_by_name(name)
    if existing is None:
        files = None  # a server chooses the location itself
        if uri.startswith(SQLITE):
            files = (
                Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts" / name
            ).as_uri()
        return client.create_experiment(name, artifact_location=files)
    if existing.lifecycle_stage == "deleted":
        client.restore_experiment(existing.experiment_id)
    return existing.experiment_id


def _runs(client: MlflowClient, experiment: str) -> dict[tuple[str, str], list[Run]]:
    """Return (arm, replicate) -> its runs; the replicate of a parent is the empty text."""
    runs: dict[tuple[str, str], list[Run]] = defaultdict(list)
    page = None
    while page is None or page.token:
        page = client.search_runs(
            [experiment], max_results=1000, page_token=page.token if page else None
        )
        for run in page:
            tags = run.data.tags
            if "afterimage.arm" in tags:
                runs[tags["afterimage.arm"], tags.get("afterimage.replicate", "")].append(run)
    return runs


def _log(
    client: MlflowClient, run_id: str, params: Mapping[str, str], metrics: Iterable[Metric]
) -> None:
    """Write params and metrics in batches of the size that MLflow accepts."""
    from mlflow.entities import Param
    from mlflow.utils import validation as limits

    values = [Param(key, text[: limits.MAX_PARAM_VAL_LENGTH]) for key, text in params.items()]
    for start in range(0, len(values), limits.MAX_PARAMS_TAGS_PER_BATCH):
        client.log_batch(run_id, params=values[start : start + limits.MAX_PARAMS_TAGS_PER_BATCH])
    points = list(metrics)
    for start in range(0, len(points), limits.MAX_METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=points[start : start + limits.MAX_METRICS_PER_BATCH])


def _times(records: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Return start and end of the work recorded in some ``run.json``, in milliseconds."""
    spans = [
        (calendar.timegm(time.strptime(r["finished"], "%Y-%m-%dT%H:%M:%SZ")), r["seconds"])
        for r in records
    ]
    return int(1000 * min(end - seconds for end, seconds in spans)), 1000 * max(
        end for end, _ in spans
    )


def _keep(client: MlflowClient, runs: list[Run], digest: str) -> str | None:
    """Return the finished run with this digest; delete all others, including incomplete runs of a
    killed import."""
    kept: str | None = None
    for run in runs:
        if (
            kept is None
            and run.info.status == "FINISHED"
            and run.data.tags.get("afterimage.digest") == digest
        ):
            kept = run.info.run_id
        else:
            client.delete_run(run.info.run_id)
    return kept


# ---- import --------------------------------------------------------------------------------------


def import_study(study: config.Study, root: Path, finished: Finished, uri: str) -> dict[str, int]:
    """Synchronise the store at ``uri`` with the results in ``root``; return the number of
    replicates made, replaced, ..."""
    client = _client(uri)
    experiment = _experiment(client, study.study, uri)
    existing = _runs(client, experiment)
    counts = {"made": 0, "replaced": 0, "kept": 0, "removed": 0}
    for name, arm in finished.arms.items():
        start, end = _times(
            record for replicate in arm.replicates for _, record in replicate.stores.values()
        )
        parent = known = _keep(client, existing.pop((name, ""), []), arm.digest)
        if parent is None:
            tags = {"afterimage.arm": name, "afterimage.digest": arm.digest}
            parent = client.create_run(experiment, start, tags, run_name=name).info.run_id
        for replicate in arm.replicates:
            old = existing.pop((name, str(replicate.number)), [])
            child = _keep(client, old, replicate.digest)
            if child is None:
                shown = study.report.show_images
                _make_child(client, experiment, name, replicate, parent, show_images=shown)
                counts["replaced" if old else "made"] += 1
            else:
                client.set_tag(child, "mlflow.parentRunId", parent)
                counts["kept"] += 1
        if known is None:
            _fill_parent(client, parent, study, root, name, end)
            client.set_terminated(parent, "FINISHED", end)
    digest = _digest(finished.report)
    if _keep(client, existing.pop((REPORT, ""), []), digest) is None:
        start, end = _times(finished.report)
        tags = {"afterimage.arm": REPORT, "afterimage.digest": digest}
        run_id = client.create_run(experiment, start, tags, run_name="report").info.run_id
        _log_report(client, run_id, study, root)
        client.set_terminated(run_id, "FINISHED", end)
    for (_, number), runs in existing.items():  # arms and replicates no longer in the study
        _keep(client, runs, digest="")
        counts["removed"] += bool(number)
    return counts


def _fill_parent(
    client: MlflowClient, run_id: str, study: config.Study, root: Path, arm: str, time_ms: int
) -> None:
    """Write the study's settings and the arm's headline numbers (means over replicates) to the
    arm's run."""
    from mlflow.entities import Metric

    settings = study.model_dump(
        mode="json", exclude={"arms", "model", "diffusion", "train", "sample", "cluster"}
    )
    headline = json.loads((root / "report" / "tables" / "metrics.json").read_text())[arm]
    _log(
        client,
        run_id,
        flatten(settings) | flatten({"arm": study.arms[arm].model_dump(mode="json")}),
        [Metric(metric_name(name), value, time_ms, 0) for name, value in headline.items()],
    )


def _log_report(client: MlflowClient, run_id: str, study: config.Study, root: Path) -> None:
    """Copy the study's tables and pages to a run."""
    pages = [root / "report" / "pages" / page / f"{page}.html" for page in jobs.pages(study)]
    for path in [*sorted((root / "report" / "tables").glob("*.csv")), *pages]:
        artifacts.check_file(path)
        client.log_artifact(run_id, str(path), path.parent.name)


def _make_child(
    client: MlflowClient,
    experiment: str,
    arm: str,
    replicate: Replicate,
    parent: str,
    *,
    show_images: bool,
) -> None:
    """Write one replicate, marked finished only at the very end."""
    from mlflow.entities import Metric
    from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID

    start, end = _times(record for _, record in replicate.stores.values())
    environment = replicate.stores["train"][1]["environment"]
    tags = {
        MLFLOW_PARENT_RUN_ID: parent,
        MLFLOW_GIT_COMMIT: str(environment["git_commit"]),
        "afterimage.arm": arm,
        "afterimage.replicate": str(replicate.number),
        "afterimage.digest": replicate.digest,
        "afterimage.git_dirty": str(environment["git_dirty"]),
        "afterimage.lock": str(environment["lock_sha256"]),
    }
    params: dict[str, str] = {}
    metrics: list[Metric] = []
    for name, (folder, record) in replicate.stores.items():
        tags[f"afterimage.{name}.config"] = record["config_sha256"]
        tags[f"afterimage.{name}.code"] = record["code_sha256"]
        tags[f"afterimage.{name}.outputs"] = _digest(record["outputs"])
        params |= flatten(record["config"]["settings"], f"{name}.")
        if "metrics.jsonl" in record["outputs"]:
            _, when = _times([record])
            for line in (folder / "metrics.jsonl").read_text().splitlines():
                point = json.loads(line)
                metrics.append(
                    Metric(
                        metric_name(f"{name}/{point['name']}"), point["value"], when, point["step"]
                    )
                )
    run_id = client.create_run(
        experiment, start, tags, run_name=f"{arm}/rep{replicate.number}"
    ).info.run_id
    _log(client, run_id, params, metrics)
    for name, (folder, record) in replicate.stores.items():
        for file in record["outputs"]:
            if file.endswith(".csv") or (file == "grid.png" and show_images):
                client.log_artifact(run_id, str(folder / file), name)
    client.set_terminated(run_id, "FINISHED", end)
