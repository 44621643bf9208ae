"""Faults of other people's programs that a run meets, worked around until they are mended upstream.

Each patch replaces something private, so each names the version that it was written for. With
another
version the run does not start: look whether the fault is still there, then drop the patch or write
down the version.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType, SimpleNamespace
from typing import Any

SNAKEMAKE = "9.27.1"
SLURM_PLUGIN = "2.8.0"
DEFERRED_OF = {"torch": "2.13.0", "diffusers": "0.42.1"}
"""Versions whose imports ``defer_imports`` knows; with others it does nothing."""


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

    At every round of the scheduler it starts a timer that starts a round of its own, so that the
    more jobs are done the more rounds there are, until they take up a core (after 200 of 670 jobs:
    a third of one). The limit was rewritten in snakemake/snakemake#3067; no issue names the timers.
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


class _Deferred(ModuleType):
    """Stands for a module that is imported when something of it is used that is not given here.

    Args:
        name: Of the module.
        given: What can be used without importing it.
    """

    def __init__(self, name: str, **given: Any) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        vars(self).update(given)

    def __getattr__(self, attribute: str) -> Any:
        # `from M import x` asks every module for its path, an import of M.x its package; only the
        # second needs it.
        importing = sys._getframe(1).f_code.co_filename == "<frozen importlib._bootstrap>"
        # Other names of this form are asked for by programs that look through all modules.
        if attribute.startswith("__") and not (attribute == "__path__" and importing):
            raise AttributeError(attribute)
        name = self.__name__
        if sys.modules.get(name) is self:
            del sys.modules[name]
        return getattr(import_module(name), attribute)


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    return _unmarked if function is None else function


class _Compiled:
    """A compiled network, of which there are none."""


def defer_imports() -> None:
    """Do not import ``torch._dynamo``, ``scipy.stats`` and ``scipy.integrate`` for those who do not
    use them.

    What is imported already stays. Every network of diffusers (0.42.1) imports all others, hence
    all schedulers, hence scipy's modules. It marks functions for torch's compiler and asks whether
    a network is compiled, and so does every optimiser of torch (2.13.0): each imports the compiler,
    ``torch._dynamo``. That is almost half of the processor time that a job takes to start. As long
    as nothing is compiled the marks do nothing and the answer is no, which the stand-in can say.
    All else that is asked of a stand-in imports the module and comes from it, ``torch.compile``
    included.
    """
    if any(version(name).partition("+")[0] != known for name, known in DEFERRED_OF.items()):
        return
    for module in (
        _Deferred("scipy.integrate"),
        _Deferred("scipy.stats"),
        _Deferred(
            "torch._dynamo",
            allow_in_graph=_unmarked,
            disable=_unmarked,
            graph_break=lambda msg="": None,
            eval_frame=SimpleNamespace(OptimizedModule=_Compiled),
        ),
    ):
        sys.modules.setdefault(module.__name__, module)
