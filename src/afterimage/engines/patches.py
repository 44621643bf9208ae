"""Faults of other people's programs that a run meets, worked around until they are mended upstream.

Each patch replaces something private, so each names the version that it was written for. With another
version the run does not start: look whether the fault is still there, then drop the patch or write
down the version.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

SNAKEMAKE = "9.27.1"
SLURM_PLUGIN = "2.8.0"


class UnknownVersionError(RuntimeError):
    """A program that a patch was not written for."""


def apply(workflow: Any) -> None:
    """Patch a run of Snakemake, before its first job.

    Args:
        workflow: Snakemake's.

    Raises:
        UnknownVersionError: for another version of what is patched than the one of the patch.
    """
    check("snakemake", SNAKEMAKE)
    drop_rate_limiter(workflow.scheduler)
    executor = workflow.scheduler._executor
    if type(executor).__module__ == "snakemake_executor_plugin_slurm":
        check("snakemake-executor-plugin-slurm", SLURM_PLUGIN)
        keep_unanswered(executor)


def check(distribution: str, known: str) -> None:
    """Refuse another version of a program than the patched one.

    Raises:
        UnknownVersionError: naming both.
    """
    installed = version(distribution)
    if installed != known:
        raise UnknownVersionError(
            f"{distribution} {installed} is installed, but {__name__} patches {known}: see there "
            "whether the patch is still needed"
        )


def drop_rate_limiter(scheduler: Any) -> None:
    """Take the limit on jobs per second away, which nothing here needs.

    At every round of the scheduler it starts a timer that starts a round of its own, so that the more
    jobs are done the more rounds there are, until they take up a core (after 200 of 670 jobs: a third
    of one). The limit was rewritten in snakemake/snakemake#3067; no issue names the timers.
    """
    scheduler.job_rate_limiter = None


def keep_unanswered(executor: Any) -> None:
    """Keep tracking SLURM jobs whose status is temporarily unavailable.

    The plugin asks for the state of all its jobs at once. Where none of its attempts is answered,
    because the controller or the accounting is away for longer than they take, it forgets the jobs:
    they run to their end, and snakemake waits for them for ever
    (snakemake/snakemake-executor-plugin-slurm#207).

    Args:
        executor: Of snakemake-executor-plugin-slurm.
    """
    look = executor.check_active_jobs

    async def check_active_jobs(active_jobs: list[Any]) -> AsyncIterator[Any]:
        answers = executor._status_query_calls
        async for job in look(active_jobs):
            yield job
        if active_jobs and executor._status_query_calls == answers:
            executor.logger.warning(
                f"SLURM does not answer; {len(active_jobs)} job(s) are waited for."
            )
            for job in active_jobs:
                yield job

    executor.check_active_jobs = check_active_jobs
