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
from afterimage.artifacts import ArtifactError
from afterimage.engines import bases, check_inputs
from afterimage.plan.cost import estimate
from afterimage.plan.inputs import flags_of, inputs_of, job_of
from afterimage.plan.jobs import STEPS, jobs, selection_jobs
from afterimage.plan.parts import Parts
from afterimage.plan.step import Job


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


def before_first_job(study: config.Study, workflow: Any) -> None:
    """Fetch the weights that the study takes from the Hub; where jobs run on this machine, check that
    the files that they read are here.

    Args:
        workflow: Snakemake's workflow object, with its jobs planned.

    Raises:
        WorkflowError: naming the key and its value.
    """
    try:
        bases.fetch_weights(study)
        if workflow.local_exec:
            planned = {job.rule.name for job in workflow.dag.needrun_jobs()}
            check_inputs.refuse_absent(study, planned)
    except (ArtifactError, config.ConfigError) as error:
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
        made: Returns Snakemake's rules once all files of rules are read.
        scratch: As ``uses_scratch`` says.
    """

    def __init__(
        self, study: config.Study, made: Callable[[], Iterable[Any]], scratch: bool
    ) -> None:
        self.study, self.made, self.scratch = study, made, scratch
        # The arms of `loyal_selection` are looked up like others; only `all` excludes them.
        self.whole = study.with_selection
        self.parts = Parts(self.whole)

    def inputs(self, *steps: str) -> Callable[[Any], dict[str, str | list[str]]]:
        """The inputs of a job that does one or several steps, by the flag that gives them, with
        config and code; without what one of the steps makes for another."""

        def function(wildcards: Any) -> dict[str, str | list[str]]:
            done = [_job(step, wildcards) for step in steps]
            made = tuple(f"results/{self.study.study}/{job.folder}/" for job in done)
            merged: dict[str, str | list[str]] = {}
            for job in done:
                for name, given in inputs_of(self.study, job).items():
                    others = [file for file in _listed(given) if not file.startswith(made)]
                    if name in merged:
                        merged[name] = list(dict.fromkeys([*_listed(merged[name]), *others]))
                    elif others:
                        merged[name] = others if isinstance(given, list) else given
            return merged

        return function

    def flags(self, step: str, *made: str) -> Callable[[Any], str]:
        """Return the flags that pass a step's jobs their inputs, without those named in ``made``,
        which its rule gives: their process makes them."""
        return lambda wildcards: flags_of(self.study, _job(step, wildcards), made)

    def needs(self, *steps: str) -> dict[str, Callable[[Any, int], int]]:
        """What a job asks for that does one or several steps after each other, as estimated: gpu,
        mem_mb and runtime (minutes), of the last two more at each attempt."""

        def asked(name: str, wildcards: Any, attempt: int) -> list[int]:
            return [
                estimate.asks(
                    self.study,
                    _job(step, wildcards),
                    self.parts.share(step, dict(wildcards.items())),
                    attempt,
                )[name]
                for step in steps
            ]

        return {
            "gpu": lambda wildcards, attempt: max(asked("gpu", wildcards, attempt)),
            "mem_mb": lambda wildcards, attempt: max(asked("mem_mb", wildcards, attempt)),
            "runtime": lambda wildcards, attempt: sum(asked("runtime", wildcards, attempt)),
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
        """Return every file of some jobs' results, as the rules that make them name it."""
        patterns = [str(path) for rule in self.made() for path in rule.output]
        files: list[str] = []
        for job in planned:
            folder = f"results/{{study}}/{STEPS[job.step].folder}/"
            address = {"arm": job.arm, "rep": job.replicate, "job": job.job}
            given = {name: value for name, value in address.items() if value is not None}
            own = [path for path in patterns if path.startswith(folder)]
            files += expand(own, study=self.study.study, **given)
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
    named: Mapping[str, str] = dict(wildcards.items())
    return job_of(step, named)


def _listed(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given
