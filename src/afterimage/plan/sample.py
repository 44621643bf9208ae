"""The step ``sample``: the generations of one replicate of one arm."""

from __future__ import annotations

from afterimage.config.study import Study
from afterimage.plan.cost import memory, work
from afterimage.plan.cost.memory import Bytes
from afterimage.plan.cost.work import Work
from afterimage.plan.data import prompts_of
from afterimage.plan.step import Inputs, Job, Step, per_replicate


def _work(study: Study, name: str) -> Work:
    return work.drawing(study, name, study.sample.images)


def _memory(study: Study, name: str) -> Bytes:
    passing = memory.passing(study, name, study.sample.batch_size)
    return Bytes(passing, 2 * study.sample.images * work.values(study))


def _inputs(study: Study, job: Job) -> Inputs:
    assert job.arm is not None
    return {"model": f"train/{job.arm}/rep{job.replicate}/run.json"} | prompts_of(study, job)


STEPS = (
    Step(
        name="sample",
        verb="draw",
        module="afterimage.diffusion.sample",
        help="draw generations from a trained pipeline",
        folder="sample/{arm}/rep{rep}",
        keys=("sample",),
        settings=lambda study, job: study.sample.model_dump(mode="json"),
        inputs=_inputs,
        addresses=per_replicate,
        work=_work,
        memory=_memory,
        size=None,
        networks=True,
    ),
)
