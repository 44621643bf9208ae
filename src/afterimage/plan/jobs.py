"""The steps of the workflow, and the jobs of a study: the single list that everything else reads.

The result of a job is ``results/<study>/<folder of the job>``.
"""

from __future__ import annotations

from afterimage.config.study import Study
from afterimage.plan import attack, attribution, data, report, sample, selection, train
from afterimage.plan.report import PAGES
from afterimage.plan.step import TOGETHER, Job, Step

STEPS: dict[str, Step] = {
    step.name: step
    for phase in (data, train, sample, attack, attribution, report, selection)
    for step in phase.STEPS
}
"""Name -> step, upstream first."""

PHASES = tuple(dict.fromkeys(step.phase_name for step in STEPS.values()))
"""Phases, upstream first; DVC has one stage for each."""

DERIVED = ("train", *TOGETHER)
"""Steps that the arms of ``loyal_selection`` go through. No table of theirs has the membership
attack, but one rule draws the generations of an arm and attacks them."""


def jobs(study: Study) -> list[Job]:
    """Return every job of a study, upstream first."""
    optional = {step.name for step in selection.STEPS}
    return [job for name, step in STEPS.items() if name not in optional for job in step.jobs(study)]


def selection_jobs(study: Study) -> list[Job]:
    """Return the jobs of ``snakemake loyal_selection`` that are not jobs of the study itself."""
    whole = study.with_selection
    derived = [
        job for name in DERIVED for job in STEPS[name].jobs(whole) if job.arm not in study.arms
    ]
    return derived + [job for step in selection.STEPS for job in step.jobs(study)]


def pages(study: Study) -> list[str]:
    """Return the notebooks that apply to a study; each produces the page of its name."""
    return [page for page, applies in PAGES.items() if applies(study)]


def study_of(study: Study, job: Job) -> Study:
    """Return the study that plans a job: the study itself, or for an arm of its selection the study
    including these arms."""
    return study if job.arm is None or job.arm in study.arms else study.with_selection
