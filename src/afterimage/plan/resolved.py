"""The resolved config and the code fingerprint of every job, as files that the workflow plans with.

``results/<study>/config/<job>.json`` is the resolved config of a job and ``<job>.code`` the
fingerprint of its code. The workflow writes both before it plans, and every rule takes them as
inputs: a job reruns if and only if one of them changes. ``config/parts.json`` lists the jobs that
are split into parts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from afterimage import artifacts, provenance
from afterimage.config.study import Study
from afterimage.plan.jobs import STEPS, jobs, selection_jobs, study_of
from afterimage.plan.parts import parts_of_jobs
from afterimage.plan.step import Job


def resolve(
    study: Study,
    step: str,
    arm: str | None = None,
    replicate: int | None = None,
    job: str | None = None,
) -> dict[str, Any]:
    """Return the settings that one job depends on, including defaults, as plain JSON values.

    Raises:
        KeyError: for an unknown step.
    """
    if step not in STEPS:
        raise KeyError(f"unknown step {step!r}; steps are: {', '.join(STEPS)}")
    return resolved(study, STEPS[step].job(arm, replicate, job))


def resolved(study: Study, job: Job) -> dict[str, Any]:
    """Return the same for a job of ``jobs.jobs``."""
    address: dict[str, Any] = {"arm": job.arm, "replicate": job.replicate}
    if job.job is not None:
        address["job"] = job.job
    settings = STEPS[job.step].settings(study, job)
    return {"step": job.step, **address, "seed": study.seed, "settings": settings}


def modules(study: Study, job: Job) -> tuple[str, ...]:
    """Return the modules whose code computes the result of ``job``."""
    return STEPS[job.step].modules(study, job)


def hashes(study: Study, job: Job) -> tuple[str, str]:
    """Return the hashes of a job's resolved config and of its code."""
    return provenance.digest(resolved(study, job)), provenance.fingerprint(*modules(study, job))


def write_configs(study: Study, results: Path) -> None:
    """Write the resolved config and the code fingerprint of every job, and the whole study;
    unchanged files are not touched."""
    write(changed_configs(study, results))


def changed_configs(study: Study, results: Path) -> dict[Path, bytes]:
    """Return the files that ``write_configs`` would write, with their new content."""
    root = Path(results) / study.study / "config"
    # Arms in their order, which pages follow; how the work is split does not affect results.
    texts = {root / "study.json": study.model_dump_json(indent=2, exclude={"cluster"})}
    settings: dict[str, tuple[str, str]] = {}
    derived = study.with_selection
    for job in jobs(study) + selection_jobs(study):
        planner = study_of(study, job)
        config = resolved(planner, job)
        texts[root / f"{job.folder}.json"] = json.dumps(config, indent=2, sort_keys=True)
        settings[job.folder] = hashes(planner, job)
        texts[root / f"{job.folder}.code"] = settings[job.folder][1]
    texts[root / "parts.json"] = json.dumps(parts_of_jobs(derived, root.parent, settings), indent=2)
    contents = {path: f"{text}\n".encode() for path, text in texts.items()}
    return {
        path: content
        for path, content in contents.items()
        if not path.is_file() or path.read_bytes() != content
    }


def write(files: dict[Path, bytes]) -> None:
    """Write files, each atomically."""
    for path, content in files.items():
        artifacts.write_atomically(path, content)
