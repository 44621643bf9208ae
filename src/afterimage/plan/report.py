"""The steps of ``report``: tidy tables over all arms, and the pages that notebooks render from
them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from afterimage.config.attribution import MAIN
from afterimage.config.study import Study
from afterimage.plan import attack, attribution, data, sample, train
from afterimage.plan.cost.measured import Size
from afterimage.plan.step import Address, Inputs, Job, Settings, Step

PAGES: dict[str, Callable[[Study], bool]] = {
    "extraction": lambda study: True,
    "comparison": lambda study: True,
    "iet_agc": lambda study: any(arm.method == "iet_agc" for arm in study.arms.values()),
    "loyal": lambda study: any(
        arm.method == "loyal" or study.rau_net_of(name) for name, arm in study.arms.items()
    ),
    "erasediff": lambda study: any(study.forget_sets_of(arm) for arm in study.arms),
    "attribution": lambda study: study.attribution is not None,
}
"""Notebook (and page) -> whether it applies to a study."""

TABULATED = ("attribution/scores", "attribution/acceleration", "attribution/counterfactual")
"""Steps of attribution that tables are made of; of the scores, the main ones."""


def runs_of(study: Study, steps: Iterable[Step]) -> list[str]:
    """Return the records of all jobs of some steps."""
    return [job.run for step in steps for job in step.jobs(study)]


def paired_with_control(study: Study, arm: str) -> bool:
    """Return whether replicate k of an arm and of its control were given the same images.

    Then they share what is random about the images, and differences are taken replicate by
    replicate. Arms on random shares of them (``fraction``) are taken for independent.
    """
    own = study.arms[arm]
    if own.control is None:
        return False
    control = study.arms[own.control]
    same_set = study.training_set_of(arm) == study.training_set_of(own.control)
    return same_set and own.without == control.without and own.fraction == control.fraction == 1


def _results(study: Study, name: str) -> Size:
    """Results of trainings and attacks."""
    return Size(len(runs_of(study, (*train.STEPS, *attack.STEPS))))


def _tables_settings(study: Study, job: Job) -> Settings:
    return {
        "arms": list(study.arms),
        "controls": {name: arm.control for name, arm in study.arms.items()},
        "frontiers": {name: study.frontier_of(name) for name in study.arms},
        "paired": {name: paired_with_control(study, name) for name in study.arms},
        "attacks": {
            step.verb: list(dict.fromkeys(job.arm for job in step.jobs(study)))
            for step in attack.STEPS
        },
        "replicates": study.replicates,
        "plantings": study.data.plantings,
        "deduplications": list(study.deduplications),
        "confidence": study.statistics.confidence,
        "margin": study.statistics.margin.model_dump(),
        "attribution": _attribution_settings(study),
    }


def _attribution_settings(study: Study) -> Settings | None:
    """Return which results of attribution there are tables of."""
    chosen = study.attribution
    if chosen is None:
        return None
    jobs = chosen.jobs(study.data.split.train)
    return {
        "replicates": chosen.replicates,
        "counterfactual": jobs.get("attribution/counterfactual", []),
        "variants": bool(chosen.variants),
    }


def _tables_inputs(study: Study, job: Job) -> Inputs:
    runs = runs_of(study, (*train.STEPS, *attack.STEPS))
    inputs: Inputs = {"results": [*runs, *_runs_on_plantings(study, data.DEDUP)]}
    if study.attribution is not None:
        inputs["attribution"] = [
            job.run
            for step in attribution.STEPS
            if step.name in TABULATED
            for job in step.jobs(study)
            if step.name != "attribution/scores" or job.job == MAIN
        ]
    return inputs


def _runs_on_plantings(study: Study, name: str) -> list[str]:
    """Return the records of a step that has one job per planting."""
    return runs_of(study, [step for step in data.STEPS if step.name == name])


def page_settings(study: Study, job: Job) -> Settings:
    """Return the settings of a page."""
    return {
        "study": study.study,
        "arms": list(study.arms),
        "replicates": study.replicates,
        "plantings": study.data.plantings,
        "confidence": study.statistics.confidence,
    } | study.report.model_dump(mode="json")


def _page_inputs(study: Study, job: Job) -> Inputs:
    steps = [*train.STEPS, *sample.STEPS, *attack.STEPS]
    if job.job == "attribution":
        steps += attribution.STEPS
    return {
        "results": [*runs_of(study, steps), *_runs_on_plantings(study, data.PLANTING)],
        "tables": "report/tables/run.json",
    }


def _shown(study: Study) -> Iterable[Address]:
    return [{"job": page} for page, applies in PAGES.items() if applies(study)]


STEPS = (
    Step(
        name="report/tables",
        verb="tables",
        module="afterimage.report.tables",
        help="collect the results of all arms in tidy tables",
        folder="report/tables",
        keys=("arms", "replicates", "data", "forget", "paths", "attribution", "statistics"),
        settings=_tables_settings,
        inputs=_tables_inputs,
        size=_results,
    ),
    Step(
        name="report/page",
        verb="page",
        module="afterimage.report.page",
        help="run a notebook and write its HTML page",
        folder="report/pages/{job}",
        keys=("arms", "replicates", "data", "forget", "attribution", "statistics", "report"),
        settings=page_settings,
        inputs=_page_inputs,
        addresses=_shown,
        code=lambda study, job: (f"afterimage.report.pages.{job.job}",),
        size=_results,
        libraries=True,
    ),
)
