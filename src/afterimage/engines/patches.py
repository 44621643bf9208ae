"""Workarounds for bugs in other programs, until they are fixed upstream.

Each patch replaces something private, so each names the version that it was written for. A run does
not start with any other version: check whether the bug is still there, then drop the patch or
update the version.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec, spec_from_loader
from types import ModuleType, SimpleNamespace
from typing import Any

from afterimage import meta_device

SNAKEMAKE = "9.27.1"
SLURM_PLUGIN = "2.8.0"
DEFERRED_OF = {"torch": "2.13.0", "diffusers": "0.42.1"}
"""Versions for which ``defer_imports`` was written; with others it does nothing."""

TEXT = ("transformers", "peft", "tokenizers")


class UnknownVersionError(RuntimeError):
    """A program version that a patch was not written for."""


def apply(workflow: Any) -> None:
    """Patch a run of Snakemake, before its first job.

    Args:
        workflow: Snakemake's workflow object.

    Raises:
        UnknownVersionError: if a patched program has a version other than the patch's.
    """
    check("snakemake", SNAKEMAKE)
    drop_rate_limiter(workflow.scheduler)
    executor = workflow.scheduler._executor
    if type(executor).__module__ == "snakemake_executor_plugin_slurm":
        check("snakemake-executor-plugin-slurm", SLURM_PLUGIN)
        keep_unanswered(executor)


def check(distribution: str, known: str) -> None:
    """Refuse a program version other than the patched one.

    Raises:
        UnknownVersionError: naming both versions.
    """
    installed = version(distribution)
    if installed != known:
        raise UnknownVersionError(
            f"{distribution} {installed} is installed, but {__name__} patches {known}: see there "
            "whether the patch is still needed"
        )


def drop_rate_limiter(scheduler: Any) -> None:
    """Remove the limit on jobs per second, which nothing here needs.

    At every round of the scheduler it starts a timer that starts another round, so that the number
    of rounds grows with the number of finished jobs, until they occupy a core (after 200 of 670
    jobs: a third of a core). The limit was rewritten in snakemake/snakemake#3067; no issue mentions
    the timers.
    """
    scheduler.job_rate_limiter = None


def keep_unanswered(executor: Any) -> None:
    """Keep tracking SLURM jobs whose status is temporarily unavailable.

    The plugin queries the state of all its jobs at once. If none of its attempts is answered,
    because the controller or the accounting is down for longer than they take, it forgets the jobs:
    they run to completion, and snakemake waits for them forever
    (snakemake/snakemake-executor-plugin-slurm#207).

    Args:
        executor: The executor of snakemake-executor-plugin-slurm.
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
    """A placeholder for a module that is imported on the first use of an attribute not listed here.

    Args:
        name: Name of the module.
        before: Called before the module is imported.
        given: Attributes that can be used without importing the module.
    """

    def __init__(self, name: str, before: Callable[[], None] | None = None, **given: Any) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        vars(self).update(given, _before=before)

    def __getattr__(self, attribute: str) -> Any:
        # `from M import x` reads the path of every module, an import of M.x that of its package;
        # only the second needs it.
        caller = sys._getframe(1)
        importing = caller.f_code.co_filename == "<frozen importlib._bootstrap>"
        # Other dunder names are read by programs that inspect all modules.
        if attribute.startswith("__") and not (attribute == "__path__" and importing):
            raise AttributeError(attribute)
        name = self.__name__
        if sys.modules.get(name) is self:
            del sys.modules[name]
            if self._before is not None:
                self._before()
        found = getattr(import_module(name), attribute)
        if (
            importing
            and (submodule := sys.modules.get(caller.f_locals.get("name", ""))) is not None
        ):
            sys.meta_path.insert(0, _Loaded(submodule))
        return found


class _Loaded(MetaPathFinder, Loader):
    """Gives the import of a submodule, which came before that of its package and has caused it, the
    submodule that the package has imported meanwhile; it would be loaded once more."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        sys.meta_path.remove(self)
        return spec_from_loader(fullname, self) if fullname == self.module.__name__ else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        with suppress(AttributeError):  # some modules have attributes of their own alone
            module.__spec__ = self.spec


class _Distributions(Mapping[str, list[str]]):
    """Distributions by the packages that they hold, which are looked up on the first use."""

    @cached_property
    def _found(self) -> Mapping[str, list[str]]:
        return packages_distributions()

    def __getitem__(self, package: str) -> list[str]:
        return self._found[package]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    return _unmarked if function is None else function


class _Compiled:
    """A compiled network, of which there are no instances."""


def defer_imports(texts: bool = False) -> None:
    """Defer what most steps import without a use for it: torch's compiler and its kernels for
    tensors without data (``meta_device``), ``scipy.stats`` and ``scipy.integrate``, and
    ``requests``, which diffusers opens images on the web with.

    Modules that are already imported stay. Every network of diffusers (0.42.1) imports all others,
    hence all schedulers, hence scipy's modules. It decorates functions for torch's compiler and
    checks whether a network is compiled, and so does every optimiser of torch (2.13.0): each
    imports the compiler, ``torch._dynamo``. That is almost half of the processor time of a job's
    start-up. As long as nothing is compiled, the decorators do nothing and the answer to the check
    is no, so a placeholder suffices. Any other use of a placeholder imports the module and is
    passed on to it, including ``torch.compile``.

    ``torch._meta_registrations`` registers kernels of the meta device in Python and imports all of
    torch's decompositions. Networks are made on that device without any of them; an operation that
    lacks its kernel is an error. The compiler, which does need them, imports them first.

    Every U-Net of diffusers imports a module of ``diffusers.models.transformers``, and that package
    all its networks. Modules of the package are found without it.

    diffusers looks up which distribution every installed package comes from, which reads the
    metadata of them all, and asks for none as long as only networks are used.

    The packages of text pipelines (``TEXT``), which diffusers imports with any network if they are
    installed, are hidden from it. Where diffusers is imported already, they stay.

    ``rfc3987_syntax`` is hidden from jsonschema (4.26.0), which notebooks are checked with: it
    compiles 38 grammars when it is imported, which takes two seconds per page, for formats of
    addresses that no notebook has.

    Args:
        texts: The command uses these packages: they are not hidden.
    """
    if any(version(name).partition("+")[0] != known for name, known in DEFERRED_OF.items()):
        return
    for module in (
        _Deferred("requests"),
        _Deferred("scipy.integrate"),
        _Deferred("scipy.stats"),
        _Deferred(
            "torch._dynamo",
            before=meta_device.import_kernels,
            allow_in_graph=_unmarked,
            disable=_unmarked,
            graph_break=lambda msg="": None,
            eval_frame=SimpleNamespace(OptimizedModule=_Compiled),
        ),
    ):
        sys.modules.setdefault(module.__name__, module)
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    meta_device.put_off_kernels()
    if "diffusers" not in sys.modules:
        importlib.metadata.packages_distributions = _Distributions
        package = find_spec("diffusers")
        assert package is not None
        paths = [f"{path}/models/transformers" for path in package.submodule_search_locations or ()]
        networks = _Deferred("diffusers.models.transformers", __path__=paths)
        sys.modules.setdefault(networks.__name__, networks)
        for name in () if texts else TEXT:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]
