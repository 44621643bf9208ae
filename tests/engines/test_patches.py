"""The plugin for SLURM forgets jobs when nobody answers; with ``watch`` it does not. Its own code, on commands that can be silenced."""

from __future__ import annotations

import asyncio
import inspect
import logging
from types import SimpleNamespace

import pytest
from throttler import Throttler

from afterimage.engines import patches

plugin = pytest.importorskip("snakemake_executor_plugin_slurm")

COMMAND = """#!/bin/sh
[ -e {folder}/away ] && {{ echo 'Unable to contact slurm controller' >&2; exit 1; }}
echo '{says}'
"""


@pytest.fixture
def controller(tmp_path, monkeypatch):
    """Commands of a cluster on which job 1 has ended and job 2 runs; the file ``away`` silences them."""
    for name, says in {
        "squeue": "1|COMPLETED\n2|RUNNING",
        "scontrol": "MinJobAge = 300 sec",
        "sacct": "",
    }.items():
        (tmp_path / name).write_text(COMMAND.format(folder=tmp_path, says=says))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


@pytest.fixture
def executor():
    """The plugin's executor without a workflow; ``done`` are the jobs that it reported."""
    made = object.__new__(plugin.Executor)
    settings = SimpleNamespace(
        status_command="squeue",
        init_seconds_before_status_checks=2,
        status_attempts=2,
        keep_successful_logs=True,
    )
    made.workflow = SimpleNamespace(executor_settings=settings)
    made.logger, made.run_uuid = logging.getLogger("test"), "run"
    made.status_rate_limiter = Throttler(rate_limit=1000)
    made.next_seconds_between_status_checks = 2
    made._status_query_calls = made._status_query_failures = 0
    made._status_query_total_seconds = made._status_query_max_seconds = 0.0
    made._status_query_min_seconds = None
    made._status_query_cycle_rows = []
    made.done = []
    made.report_job_success = lambda job: made.done.append(job.external_jobid)
    return made


JOBS = [SimpleNamespace(external_jobid=number, aux={}) for number in ("1", "2")]


def look(executor, jobs=JOBS):
    async def still_there():
        return [job.external_jobid async for job in executor.check_active_jobs(jobs)]

    return asyncio.run(still_there())


def test_jobs_are_kept_while_nobody_answers_and_reported_once_then(controller, executor):
    (controller / "away").touch()
    assert look(executor) == [], (
        "the plugin remembers them by itself now: patches.py is not needed any more"
    )
    patches.keep_unanswered(executor)
    assert look(executor) == ["1", "2"]
    assert look(executor, []) == []
    (controller / "away").unlink()
    assert look(executor) == ["2"]
    assert executor.done == ["1"]


@pytest.fixture
def workflow():
    """A run whose executor is not that of SLURM."""
    executor = SimpleNamespace(check_active_jobs=lambda jobs: iter(jobs))
    return SimpleNamespace(scheduler=SimpleNamespace(_executor=executor, job_rate_limiter="limit"))


def test_other_executors_are_left_alone(workflow):
    kept = workflow.scheduler._executor.check_active_jobs
    patches.apply(workflow)
    assert workflow.scheduler._executor.check_active_jobs is kept
    assert workflow.scheduler.job_rate_limiter is None


@pytest.mark.parametrize("name", ["SNAKEMAKE", "SLURM_PLUGIN"])
def test_another_version_of_what_is_patched_stops_the_run(name, workflow, executor, monkeypatch):
    workflow.scheduler._executor = executor
    monkeypatch.setattr(patches, name, "0.1")
    with pytest.raises(patches.UnknownVersionError, match=r"is installed, but .* patches 0\.1"):
        patches.apply(workflow)


def test_the_scheduler_still_has_the_limit_that_is_taken_away():
    """Without it ``drop_rate_limiter`` would set a name that nobody reads."""
    from snakemake.scheduling import job_scheduler

    assert "self.job_rate_limiter" in inspect.getsource(job_scheduler)
