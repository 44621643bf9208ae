"""The plan in the form that Snakemake rules need: functions of wildcards, and flags for files.

``workflow/rules/common.smk`` gives these functions short names; the other rule files contain only
rules.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from snakemake.exceptions import WorkflowError
from snakemake.io import AnnotatedString, expand, get_flag_value
from snakemake.ioflags import update

from afterimage import config
from afterimage.plan.cost import estimate
from afterimage.plan.inputs import flags_of, inputs_of, job_of
from afterimage.plan.jobs import jobs, selection_jobs
from afterimage.plan.parts import Parts
from afterimage.plan.step import Job

NAMES = {
    "train": "fit",
    "sample": "draw",
    "selection/table": "selection",
    "selection/page": "selection_page",
}
"""Step -> its rule, where the rule is not named after the step."""


def read_study(values: dict[str, Any], files: list[Path]) -> config.Study:
    """Return the study that Snakemake read.

    Args:
        values: Snakemake's ``config``, merged from the files.
        files: The study files. Snakemake silently keeps the last of several equal keys, so the
            files are read again.

    Raises:
        WorkflowError: naming the key, its value and what is allowed.
    """
    try:
        for path in files:
            config.read_yaml(path)
        return config.parse(values, name=", ".join(map(str, files)))
    except config.ConfigError as error:
        raise WorkflowError(str(error)) from None


def uses_scratch(storage: Any) -> bool:
    """Return whether outputs are written to the local disk of the compute node and transferred from
    there (``slurm/scratch.yaml``).

    Args:
        storage: ``workflow.storage_settings``.

    Raises:
        WorkflowError: if that cannot work on this machine.
    """
    if storage.default_storage_provider is None:
        return False
    prefix = storage.local_storage_prefix
    if "$" in str(prefix):
        raise WorkflowError(
            f"the prefix for unfinished results is {prefix}, with a variable that is not set on "
            f"{platform.node()}: name another folder in slurm/scratch.yaml"
        )
    if not shutil.which("rsync"):
        raise WorkflowError(
            f"slurm/scratch.yaml needs rsync, which is not found on {platform.node()}"
        )
    return True


def in_place(path: Any) -> Any:
    """Mark an input to be read in place, not from a copy: steps also open the files next to it."""
    if not hasattr(path, "flags"):
        path = AnnotatedString(path)
    stored = get_flag_value(path, "storage_object")
    if stored:
        path.flags["storage_object"] = type(stored)(
            query=stored.query,
            keep_local=stored.keep_local,
            retrieve=False,
            provider=stored.provider,
        )
    return path


class Rules:
    """Inputs, flags, resources and outputs of the rules of a study.

    Args:
        study: The study.
        made: Snakemake's ``rules``, with a member for each rule.
        scratch: As returned by ``uses_scratch``.
    """

    def __init__(self, study: config.Study, made: Any, scratch: bool) -> None:
        self.study, self.made, self.scratch = study, made, scratch
        # The arms of `loyal_selection` are looked up like others; only `all` excludes them.
        self.whole = study.with_selection
        self.parts = Parts(self.whole)

    def inputs(self, step: str) -> Callable[[Any], dict[str, str | list[str]]]:
        """Return the inputs of a step's jobs, by flag, with config and code."""
        return lambda wildcards: inputs_of(self.study, _job(step, wildcards))

    def flags(self, step: str) -> Callable[[Any], str]:
        """Return the flags that pass a step's jobs their inputs."""
        return lambda wildcards: flags_of(self.study, _job(step, wildcards))

    def needs(self, step: str) -> dict[str, Callable[[Any, int], int]]:
        """Return the estimated resources of a step's jobs: gpu, mem_mb and runtime (minutes); the
        last two grow with each attempt."""

        def asked(wildcards: Any, attempt: int) -> dict[str, int]:
            share = self.parts.share(step, dict(wildcards.items()))
            return estimate.asks(self.study, _job(step, wildcards), share, attempt)

        return {
            "gpu": lambda wildcards, attempt: asked(wildcards, attempt)["gpu"],
            "mem_mb": lambda wildcards, attempt: asked(wildcards, attempt)["mem_mb"],
            "runtime": lambda wildcards, attempt: asked(wildcards, attempt)["runtime"],
        }

    def training_threads(self, wildcards: Any) -> int:
        """Return the number of threads of all processes of a training."""
        return self.study.cluster.threads * self.whole.processes_of(wildcards.arm)

    def processes_flag(self, wildcards: Any, resources: Any) -> str:
        """Return the flag for several processes. Since it depends on the resources, Snakemake does
        not treat it as a setting whose change would rerun the job."""
        count = self.whole.processes_of(wildcards.arm)
        return f"--processes {count}" if count > 1 else ""

    def kept(self, path: str) -> Any:
        """Mark an output whose earlier version survives a failed job.

        ``run.json`` next to it must not be marked: without it the job is due, and the version known
        to be old. Snakemake looks for the earlier version on the job's disk; with a storage
        provider it is not there.
        """
        return path if self.scratch else update(path)

    def results(self, planned: Iterable[Job]) -> list[str]:
        """Return every file of some jobs' results, as named by their rules."""
        files: list[str] = []
        for job in planned:
            rule = getattr(self.made, NAMES.get(job.step, job.step.rpartition("/")[2]))
            address = {"arm": job.arm, "rep": job.replicate, "job": job.job}
            wildcards = {name: value for name, value in address.items() if value is not None}
            files += expand(rule.output, study=self.study.study, **wildcards)
        return files

    def phase(self, name: str) -> Callable[[Any], list[str]]:
        """Return every file of a phase."""
        return lambda wildcards: self.results(job for job in jobs(self.study) if job.phase == name)

    def selection_results(self, wildcards: Any) -> list[str]:
        """Return the files of ``loyal_selection``."""
        if self.study.loyal_selection is None:
            raise WorkflowError(
                "the study has no loyal_selection: say what to select in a block of this name"
            )
        planned = selection_jobs(self.study)
        return self.results(job for job in planned if job.step.startswith("selection/"))


def _job(step: str, wildcards: Any) -> Job:
    address: Mapping[str, str] = dict(wildcards.items())
    return job_of(step, address)
