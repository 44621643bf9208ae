"""Go on watching SLURM jobs of which nobody can tell the state for a while.

Snakemake's plugin for SLURM (2.8.0) asks for the state of all its jobs at once. Where none of its attempts is answered, because the
controller or the accounting is away for longer than they take, it forgets the jobs: they run to their end, and snakemake waits for
them for ever.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any


def keep_unanswered(executor: Any) -> None:
    """Let the executor of a run keep its jobs where a look at them was not answered.

    Args:
        executor: Of snakemake-executor-plugin-slurm; nothing is done to any other.
    """
    if type(executor).__module__ != "snakemake_executor_plugin_slurm":
        return
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
