"""The step ``train``: one replicate of one arm."""

from __future__ import annotations

from typing import Any

from afterimage.config.arms import METHODS
from afterimage.config.study import Study
from afterimage.config.texts import ORIGINAL
from afterimage.plan.cost import memory, work
from afterimage.plan.data import SPLIT, latents_of, texts_of, training_images
from afterimage.plan.step import Inputs, Job, Settings, Step, per_replicate


def arm_settings(study: Study, name: str) -> dict[str, Any]:
    """Return the settings of an arm's training: with those inherited from its base, without those
    that only tables use; captions are named if they are not the original ones, and a deduplication
    of its own."""
    arm = study.arms[name]
    settings = arm.model_dump(mode="json", exclude={"control", "captions", "dedup"})
    settings |= {"dedup": arm.dedup} if arm.dedup else {}
    blocks = study.rau_net_of(name)
    if study.captions_of(name) != ORIGINAL:
        settings["captions"] = study.captions_of(name)
    return settings | {
        "condition": study.condition_of(name),
        "rau_net": None if blocks is None else blocks.model_dump(mode="json"),
        "train": study.train_of(name).model_dump(mode="json"),
    }


def network_settings(study: Study) -> Settings:
    """Return the settings of the study, apart from its arm, that every training uses."""
    return {
        "model": study.model.model_dump(mode="json"),
        "diffusion": study.diffusion.model_dump(mode="json"),
        "flips": study.data.flips,
    }


def forget_sets(study: Study, names: list[str]) -> dict[str, Any]:
    """Return name -> settings of some forget sets."""
    return {name: study.forget[name].model_dump(mode="json") for name in names}


def others_of(study: Study, arm: str) -> Inputs:
    """Return the pictures that are mixed into an arm's training images; nothing for other arms."""
    return {"others": f"{SPLIT}/fusion.npz"} if study.arms[arm].dual_fusion is not None else {}


def extractions(study: Study, job: Job, names: list[str]) -> dict[str, str]:
    """Return set -> the attack that defines it, for the forget sets of extracted images."""
    origins = {name: study.forget[name].extracted_from for name in names}
    return {
        name: f"attack/{arm}/rep{job.replicate}/extraction/run.json"
        for name, arm in origins.items()
        if arm is not None
    }


def _settings(study: Study, job: Job) -> Settings:
    assert job.arm is not None
    return network_settings(study) | {
        "arm": arm_settings(study, job.arm),
        "forget": forget_sets(study, study.own_forget_sets(job.arm)),
        "states": study.states_of(job.arm),
        "latents": study.autoencoder is not None,
    }


def _inputs(study: Study, job: Job) -> Inputs:
    assert job.arm is not None
    arm = study.arms[job.arm]
    inputs: Inputs = {"train": training_images(study, job.arm, job.replicate)}
    if arm.base is not None:
        inputs["base"] = f"train/{arm.base}/rep{job.replicate}/run.json"
    if arm.matched_to is not None:
        inputs["matched"] = f"train/{arm.matched_to.arm}/rep{job.replicate}/run.json"
    inputs |= texts_of(study, job.arm) | latents_of(study)
    inputs |= others_of(study, job.arm)
    for run in extractions(study, job, study.own_forget_sets(job.arm)).values():
        inputs["extraction"] = run  # an arm has at most one such set
    return inputs


STEPS = (
    Step(
        name="train",
        verb="run",
        module="afterimage.methods.run",
        help="train one replicate of one arm, or resume it",
        folder="train/{arm}/rep{rep}",
        keys=("forget", "model", "diffusion", "train", "data"),
        settings=_settings,
        inputs=_inputs,
        addresses=per_replicate,
        code=lambda study, job: (METHODS[study.arms[job.arm or ""].method],),
        work=work.training,
        memory=memory.learning,
        size=None,
        networks=True,
    ),
)
