"""Validation, and what rules ask of the plan. A change of this file reruns nothing."""

import platform
import shutil
import signal
import sys
from os.path import relpath
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import AnnotatedString, get_flag_value
from snakemake.logging import logger

from afterimage import config as studies
from afterimage.artifacts import ArtifactError
from afterimage.engines import patches, settings_lock
from afterimage.plan.cost import estimate
from afterimage.plan.inputs import flags_of, inputs_of, job_of
from afterimage.plan.jobs import STEPS, jobs, pages, selection_jobs
from afterimage.plan.parts import Parts
from afterimage.report.page import mark_earlier

try:
    # Snakemake, which read them into `config`, keeps the last of several keys of one name without a word.
    for path in workflow.overwrite_configfiles or ["params.yaml"]:
        studies.read_yaml(path)
    STUDY = studies.parse(
        config,
        name=", ".join(map(str, workflow.overwrite_configfiles)) or "params.yaml",
    )
except studies.ConfigError as error:
    raise WorkflowError(str(error)) from None

# Beside the workflow, wherever results lie (--directory).
NOTEBOOKS = Path(relpath(Path(workflow.current_basedir).parent.parent / "notebooks"))

# With a storage provider (slurm/scratch.yaml) outputs are written on the disk of the machine that makes them, and sent from there.
SCRATCH = workflow.storage_settings.default_storage_provider is not None
if SCRATCH:
    place = workflow.storage_settings.local_storage_prefix
    if "$" in str(place):
        raise WorkflowError(
            f"the prefix for unfinished results is {place}, with a variable that is not set on {platform.node()}:"
            " name another folder in slurm/scratch.yaml"
        )
    if not shutil.which("rsync"):
        raise WorkflowError(
            f"slurm/scratch.yaml needs rsync, which is not found on {platform.node()}"
        )

# Written before planning and only where something changed: every job takes its resolved config and the fingerprint of
# its code as inputs. A job that runs in a process of its own reads what the main process planned with. The hold lasts as
# long as this process; `--unlock` is for those who cannot get it.
if workflow.is_main_process and "--unlock" not in sys.argv:
    try:
        HOLD = settings_lock.write_configs(
            STUDY, Path("results"), Path(".snakemake"), scratch=SCRATCH
        )
    except ArtifactError as error:
        raise WorkflowError(str(error)) from None
    if HOLD.others:
        logger.warning(f"{HOLD.others}. If it was killed, type `afterimage recover`.")

# SLURM warns every process of a job before its time limit (slurm/profile.yaml says when). A training saves its state then; whoever
# does not handle the signal would die of it, the snakemake between SLURM and the training first.
if not workflow.is_main_process:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

# The arms of `loyal_selection` are found like others; only `all` leaves them out.
WHOLE = STUDY.with_selection()
PARTS = Parts(WHOLE)


wildcard_constraints:
    study=STUDY.study,
    arm="|".join(WHOLE.arms),
    rep=r"\d+",


def in_place(path):
    """An input that is read where it lies, not from a copy of its own: steps open what lies beside it, too."""
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


inputflags:
    in_place,


def kept(path):
    """An output of which a failed job leaves the earlier version. `run.json` beside it must not be
    one: without it the job is due, and the version known to be old. Snakemake looks for the earlier
    version on the job's disk; with a storage provider it is not there.
    """
    return path if SCRATCH else update(path)


def inputs(step):
    """The inputs of a step's jobs, by the flag that gives them, with config and code."""
    return lambda wildcards: inputs_of(STUDY, job_of(step, dict(wildcards.items())))


def flags(step):
    """The flags that give a step's jobs their inputs."""
    return lambda wildcards: flags_of(STUDY, job_of(step, dict(wildcards.items())))


def results_of(planned):
    """Every file of some jobs' results, as the rules that make them name it."""
    files = []
    for job in planned:
        made_by = getattr(rules, RULES.get(job.step, job.step.rpartition("/")[2]))
        address = {"arm": job.arm, "rep": job.replicate, "job": job.job}
        given = {name: value for name, value in address.items() if value is not None}
        files += expand(made_by.output, study=STUDY.study, **given)
    return files


RULES = {"train": "fit", "sample": "draw", "selection/table": "selection"} | {
    "selection/page": "selection_page"
}
"""Step -> the rule that makes it, where it is not called as its verb."""


def phase(name):
    """Every file of a phase."""
    return lambda wildcards: results_of(job for job in jobs(STUDY) if job.phase == name)


def selection_results(wildcards):
    """What `loyal_selection` makes."""
    if STUDY.loyal_selection is None:
        raise WorkflowError(
            "the study has no loyal_selection: say what to select in a block of this name"
        )
    return results_of(
        job for job in selection_jobs(STUDY) if job.step.startswith("selection/")
    )


def needs(step):
    """What jobs of a step ask for, as estimated: gpu, mem_mb and runtime (minutes), of the last two more at each attempt."""

    def asked(what, wildcards, attempt):
        share = PARTS.share(step, dict(wildcards.items()))
        job = job_of(step, dict(wildcards.items()))
        return estimate.asks(STUDY, job, share, attempt)[what]

    def function(what):
        return lambda wildcards, attempt: asked(what, wildcards, attempt)

    return {what: function(what) for what in ("gpu", "mem_mb", "runtime")}


def training_threads(wildcards):
    """The threads of all processes of a training."""
    return STUDY.cluster.threads * WHOLE.processes_of(wildcards.arm)


def processes_flag(wildcards, resources):
    """The flag for several processes. As it takes the resources it is no setting for Snakemake, whose change would rerun the job."""
    count = WHOLE.processes_of(wildcards.arm)
    return f"--processes {count}" if count > 1 else ""
