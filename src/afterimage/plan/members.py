"""The tables of the images that an arm's weights have seen."""

from __future__ import annotations

from afterimage.config.study import Study
from afterimage.plan.step import Job


def members_of(study: Study, job: Job) -> list[str]:
    """Return the tables of the images that an arm was trained on, and of those that the arms that
    it starts from were trained on."""
    tables, name = [], job.arm
    while name is not None:
        tables.append(f"train/{name}/rep{job.replicate}/members.parquet")
        name = study.arms[name].base
    return tables
