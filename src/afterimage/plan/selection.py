"""The steps of ``snakemake loyal_selection``, which are not part of ``all`` (LoyalDiffusion, Li et
al. 2024).

The trainings, samplings and attacks of its derived arms are planned like those of any other arm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from afterimage.config.selection import CONTROL, WHOLE, LoyalSelection, plan
from afterimage.config.study import Study
from afterimage.plan.cost import memory, work
from afterimage.plan.cost.measured import Size
from afterimage.plan.cost.memory import Bytes
from afterimage.plan.cost.work import Work
from afterimage.plan.data import SPLIT, training_images
from afterimage.plan.report import page_settings
from afterimage.plan.step import Address, Inputs, Job, Settings, Step


def asked(study: Study) -> LoyalSelection:
    """Return the study's ``loyal_selection`` block; without one the steps here have no jobs."""
    assert study.loyal_selection is not None
    return study.loyal_selection


def derived_arms(study: Study) -> list[str]:
    """Return the arms of the selection; empty without one."""
    chosen = study.loyal_selection
    return [] if chosen is None else list(plan(chosen, len(study.model.channels)))


def _once(study: Study) -> Iterable[Address]:
    return [] if study.loyal_selection is None else [{}]


def _ablation_settings(study: Study, job: Job) -> Settings:
    settings: dict[str, Any] = {
        key: getattr(study, key).model_dump(mode="json")
        for key in ("sample", "quality", "extraction")
    } | {"statistics": study.statistics.of_intervals()}
    taus = asked(study).switch_timesteps
    return settings | {"switch_timesteps": taus, "mirrors": study.mirrors}


def _ablation_inputs(study: Study, job: Job) -> Inputs:
    return {
        "control": f"train/{CONTROL}/rep{job.replicate}/run.json",
        "blocks": f"train/{WHOLE}/rep{job.replicate}/run.json",
        "train": training_images(study, asked(study).base, job.replicate),
        "reference": f"{SPLIT}/reference.npz",
        "classifier": "data/classifier/run.json",
    }


def _ablation_work(study: Study, name: str) -> Work:
    """The generations; what compares them with training images is short beside that."""
    chosen = asked(study)
    drawn = work.drawing(study, chosen.base, study.sample.images)
    return drawn * (2 + 3 * len(chosen.switch_timesteps))


def _ablation_memory(study: Study, name: str) -> Bytes:
    return Bytes(2 * memory.passing(study, asked(study).base, study.sample.batch_size))


def _trainings(study: Study, name: str) -> Size:
    return Size(study.replicates * len(derived_arms(study)))


def _table_settings(study: Study, job: Job) -> Settings:
    cells = plan(asked(study), len(study.model.channels))
    return {
        "selection": asked(study).model_dump(mode="json"),
        "arms": [{"arm": name} | cell.model_dump(mode="json") for name, cell in cells.items()],
        "replicates": study.replicates,
        "confidence": study.statistics.confidence,
    }


def _table_inputs(study: Study, job: Job) -> Inputs:
    cells = [(arm, k) for arm in derived_arms(study) for k in range(study.replicates)]
    runs = [f"train/{arm}/rep{k}/run.json" for arm, k in cells]
    for attack in ("extraction", "quality"):
        runs += [f"attack/{arm}/rep{k}/{attack}/run.json" for arm, k in cells]
    return {"results": runs + [job.run for job in ABLATION.jobs(study)]}


ABLATION = Step(
    name="selection/timestep_ablation",
    verb="timestep_ablation",
    module="afterimage.selection.timestep_ablation",
    help="sample with the blocks at some timesteps only, without another training",
    folder="selection/timestep_ablation/rep{rep}",
    keys=("loyal_selection", "sample", "quality", "extraction", "statistics", "data"),
    settings=_ablation_settings,
    inputs=_ablation_inputs,
    addresses=lambda study: (
        [{"replicate": k} for k in range(study.replicates)] if study.loyal_selection else []
    ),
    work=_ablation_work,
    memory=_ablation_memory,
    size=None,
    networks=True,
    phase="report",
)

STEPS = (
    ABLATION,
    Step(
        name="selection/table",
        verb="table",
        module="afterimage.selection.table",
        help="rank skip groups and switch timesteps for LoyalDiffusion",
        folder="selection/table",
        keys=("loyal_selection", "statistics"),
        settings=_table_settings,
        inputs=_table_inputs,
        addresses=_once,
        size=_trainings,
        phase="report",
    ),
    Step(
        name="selection/page",
        verb="page",
        module="afterimage.report.page",
        help="run the notebook of the selection and write its HTML page",
        folder="selection/page",
        keys=("arms", "data", "statistics", "report"),
        settings=page_settings,
        inputs=lambda study, job: {"tables": "selection/table/run.json"},
        addresses=_once,
        code=lambda study, job: ("afterimage.report.pages.loyal_selection",),
        size=_trainings,
        libraries=True,
        phase="report",
    ),
)
