"""The step ``sample``: the generations of one replicate of one arm."""

from __future__ import annotations

from afterimage.config.arms import AtInference
from afterimage.config.study import Study
from afterimage.plan.cost import memory, work
from afterimage.plan.cost.memory import Bytes
from afterimage.plan.cost.work import Work
from afterimage.plan.data import latents_of, planting_of, prompts_of
from afterimage.plan.members import members_of
from afterimage.plan.step import Inputs, Job, Settings, Step, per_replicate


def _work(study: Study, name: str) -> Work:
    return work.drawing(study, name, study.sample.images)


def _memory(study: Study, name: str) -> Bytes:
    passing = memory.passing(study, name, study.sample.batch_size)
    return Bytes(passing, 2 * study.sample.images * work.values(study))


def _inputs(study: Study, job: Job) -> Inputs:
    assert job.arm is not None
    inputs: Inputs = {"model": f"train/{job.arm}/rep{job.replicate}/run.json"} | prompts_of(
        study, job
    )
    if study.arms[job.arm].reads_training_images:
        inputs["train"] = f"{planting_of(study, job.replicate)}/train.npz"
        inputs["members"] = members_of(study, job)
        inputs |= latents_of(study)
    return inputs


def remedy_settings(study: Study, arm: str) -> Settings:
    """Return what the drawing of an arm with a remedy at inference depends on besides the block
    ``sample``; nothing for other arms."""
    own = study.arms[arm]
    if not isinstance(own, AtInference):
        return {}
    block = own.model_dump(mode="json", exclude={"control"})
    return {"remedy": block, "mirrors": study.mirrors}


def remedy_module(study: Study, arm: str) -> tuple[str, ...]:
    """Return the module of an arm's remedy at inference, which draws with it; none for others."""
    own = study.arms[arm]
    return (own.module,) if isinstance(own, AtInference) else ()


def _settings(study: Study, job: Job) -> Settings:
    assert job.arm is not None
    return study.sample.model_dump(mode="json") | remedy_settings(study, job.arm)


STEPS = (
    Step(
        name="sample",
        verb="draw",
        module="afterimage.diffusion.sample",
        help="draw generations from a trained pipeline",
        folder="sample/{arm}/rep{rep}",
        keys=("sample",),
        settings=_settings,
        inputs=_inputs,
        addresses=per_replicate,
        code=lambda study, job: remedy_module(study, job.arm or ""),
        work=_work,
        memory=_memory,
        size=None,
        networks=True,
    ),
)
