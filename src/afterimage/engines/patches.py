"""What is changed in other people's programs while they run, each with its reason.

The versions are pinned by the locks in ``envs/``, and ``tests/engines/test_patches.py`` fails where they move.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any


def keep_unanswered(executor: Any) -> None:
    """Let the executor of a run keep its jobs where a look at them was not answered.

    Snakemake's plugin for SLURM (2.8.0) asks for the state of all its jobs at once. Where none of its attempts is answered,
    because the controller or the accounting is away for longer than they take, it forgets the jobs: they run to their end, and
    snakemake waits for them for ever.

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
        # `from M import x` asks every module for its path, an import of M.x its package; only the second needs it.
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
    """Do not import ``torch._dynamo``, ``scipy.stats`` and ``scipy.integrate`` for those who do not use them.

    What is imported already stays. Every network of diffusers (0.42.1) imports all others, hence all schedulers, hence
    scipy's modules. It marks functions for torch's compiler and asks whether a network is compiled, and so does every optimiser
    of torch (2.13.0): each imports the compiler, ``torch._dynamo``. That is almost half of the processor time that a job
    takes to start. As long as nothing is compiled the marks do nothing and the answer is no, which the stand-in can say. All
    else that is asked of a stand-in imports the module and comes from it, ``torch.compile`` included.
    """
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
