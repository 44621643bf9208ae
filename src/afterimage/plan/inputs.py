"""The files that a job reads, and the flags that pass them on its command line."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath

from afterimage.artifacts import RUN
from afterimage.config.study import Study
from afterimage.plan.jobs import STEPS, study_of
from afterimage.plan.step import Job

HEADING = "afterimage {}:"
"""What a process that runs several commands prints before each."""


def job_of(step: str, wildcards: Mapping[str, str]) -> Job:
    """Return the job of a step that Snakemake's wildcards ``arm``, ``rep`` and ``job`` address."""
    replicate = wildcards.get("rep")
    return STEPS[step].job(
        arm=wildcards.get("arm"),
        replicate=None if replicate is None else int(replicate),
        job=wildcards.get("job"),
    )


def inputs_of(study: Study, job: Job) -> dict[str, str | list[str]]:
    """Return flag -> its files, with ``results/<study>``, including the config and the code
    fingerprint."""
    root = f"results/{study.study}"
    files: dict[str, str | list[str]] = {}
    for name, value in STEPS[job.step].inputs(study_of(study, job), job).items():
        if isinstance(value, str):
            files[name] = f"{root}/{value}"
        else:
            listed = value.values() if isinstance(value, dict) else value
            files[name] = list(dict.fromkeys(f"{root}/{file}" for file in listed))
    config = f"{root}/config/{job.folder}"
    return files | {"config": f"{config}.json", "code": f"{config}.code"}


def flags_of(study: Study, job: Job, omitted: Collection[str] = ()) -> str:
    """Return the flags that pass a job its inputs, quoted for a shell; a store is passed as its
    folder.

    Args:
        omitted: Names of inputs without a flag.
    """
    root = f"results/{study.study}"

    def path(file: str) -> str:
        whole = PurePosixPath(root, file)
        return str(whole.parent if whole.name == RUN else whole)

    words: list[str] = []
    for name, value in STEPS[job.step].inputs(study_of(study, job), job).items():
        if name in omitted:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, dict):
            for key, file in value.items():
                words += [flag, f"{key}={path(file)}"]
        else:
            words += [flag, *map(path, [value] if isinstance(value, str) else value)]
    return shlex.join(words)
