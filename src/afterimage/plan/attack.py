"""The steps of ``attack``, run on every arm."""

from __future__ import annotations

from collections.abc import Iterable

from afterimage.config.study import Study
from afterimage.plan.cost import memory, work
from afterimage.plan.cost.measured import Size, all_images
from afterimage.plan.cost.memory import Bytes
from afterimage.plan.cost.work import Work
from afterimage.plan.data import SPLIT, latents_of, planting_of, texts_of
from afterimage.plan.members import members_of
from afterimage.plan.sample import remedy_module, remedy_settings
from afterimage.plan.step import Address, Inputs, Job, Settings, Step, per_replicate
from afterimage.plan.train import extractions, forget_sets

FOLDER = "attack/{arm}/rep{rep}/"

SIMILARITY_ROWS, SIMILARITY_BYTES = 1024, 2**30
"""As in ``metrics.similarity``, which planning does not import: the most images compared at once,
and the most memory of their features."""


def _controls(study: Study, job: Job) -> Inputs:
    """Return the images that the replicate is not trained on, and the planted ground truth."""
    planting = planting_of(study, job.replicate)
    return {
        "holdout": f"{SPLIT}/holdout.npz",
        "twins": f"{planting}/twins.npz",
        "index": f"{planting}/index.parquet",
    }


def _statistics(study: Study) -> Settings:
    return {"statistics": study.statistics.of_intervals()}


def _trained(job: Job) -> str:
    return f"train/{job.arm}/rep{job.replicate}"


def _attacked(study: Study, job: Job) -> Inputs:
    """Return the inputs of an attack on generations."""
    return {
        "samples": f"sample/{job.arm}/rep{job.replicate}/images.npz",
        "members": members_of(study, job),
        "train": f"{planting_of(study, job.replicate)}/train.npz",
    }


# ---- extraction ----------------------------------------------------------------------------------


def _extraction_settings(study: Study, job: Job) -> Settings:
    settings = study.extraction.model_dump(mode="json")
    return settings | {"mirrors": study.mirrors} | _statistics(study)


def _extraction_inputs(study: Study, job: Job) -> Inputs:
    return _attacked(study, job) | _controls(study, job)


def _searched(study: Study, name: str) -> Size:
    """Generations, held-out and training images are compared with the arm's training set."""
    split = study.data.split
    images = (study.sample.images + split.holdout + split.train) * (1 + study.mirrors)
    return Size(images * work.values(study), work.trained_images(study, name))


def _searched_on_path(study: Study, name: str) -> Size:
    """The same, for the generations of every state."""
    split = study.data.split
    drawn = (len(study.path_of(name)) + 1) * _path_images(study)
    images = (drawn + split.holdout) * (1 + study.mirrors)
    return Size(images * work.values(study), work.trained_images(study, name))


# ---- quality -------------------------------------------------------------------------------------


def _quality_settings(study: Study, job: Job) -> Settings:
    return study.quality.model_dump(mode="json") | _statistics(study)


def _quality_inputs(study: Study, job: Job) -> Inputs:
    return _attacked(study, job) | {
        "reference": f"{SPLIT}/reference.npz",
        "holdout": f"{SPLIT}/holdout.npz",
        "classifier": "data/classifier/run.json",
    }


def _quality_work(study: Study, name: str) -> Work:
    """Return the features in the space of quality and in that of similarity, which needs those of
    the training images, too; and of pixels, which are many, their products with those of all
    training images, in float64, which takes as long as twice as many in fp32."""
    settings, seen = study.quality, work.trained_images(study, name)
    unseen = study.sample.images + study.data.split.holdout
    judged = work.features(settings.features, unseen + work.reference_images(study))
    judged += work.features(settings.similarity, unseen + seen)
    if settings.similarity == "pixels":
        judged += Work(fp32=2 * 2.0 * (unseen + seen) * seen * work.values(study))
    return judged


def _quality_memory(study: Study, name: str) -> Bytes:
    """Return what pixels hold as features: all, three times, as a space of quality; blocks of them,
    as often, as that of similarity. Features of other spaces are small."""
    double, settings, width = 2 * memory.SINGLE, study.quality, work.values(study)
    arrays = 0
    if settings.features == "pixels":
        unseen = study.sample.images + study.data.split.holdout + work.reference_images(study)
        arrays += 3 * double * unseen * width
    if settings.similarity == "pixels":
        seen = work.trained_images(study, name)
        queries = min(double * width * min(SIMILARITY_ROWS, seen), SIMILARITY_BYTES)
        arrays += 3 * (queries + min(double * width * seen, memory.BLOCK))
    return Bytes(arrays=arrays)


# ---- membership ----------------------------------------------------------------------------------


def _membership_settings(study: Study, job: Job) -> Settings:
    seen = {"weights": study.sample.weights, "flips": study.data.flips}
    return study.membership.model_dump(mode="json") | seen | _statistics(study)


def _membership_inputs(study: Study, job: Job) -> Inputs:
    assert job.arm is not None
    return (
        texts_of(study, job.arm)
        | latents_of(study)
        | _controls(study, job)
        | {
            "model": f"{_trained(job)}/run.json",
            "members": members_of(study, job),
            "train": f"{planting_of(study, job.replicate)}/train.npz",
        }
    )


def _membership_work(study: Study, name: str) -> Work:
    settings, data = study.membership, study.data
    images = data.distinct + data.split.holdout + sum(plant.images for plant in data.plant)
    return work.losses(study, name, images, settings.timesteps, settings.draws, flips=data.flips)


# ---- prompts -------------------------------------------------------------------------------------


def _prompts_settings(study: Study, job: Job) -> Settings:
    assert study.prompts is not None
    settings = study.prompts.model_dump(mode="json", exclude={"arms"}) | _statistics(study)
    compared = {"delta": study.extraction.delta, "mirrors": study.mirrors}
    return settings | compared | {"sample": study.sample.model_dump(mode="json")}


def _prompts_inputs(study: Study, job: Job) -> Inputs:
    inputs = _membership_inputs(study, job)
    return {name: path for name, path in inputs.items() if name != "latents"}


def _prompted(study: Study) -> Iterable[Address]:
    arms = [] if study.prompts is None else study.prompts.arms
    return [cell for cell in per_replicate(study) if cell["arm"] in arms]


def _prompts_work(study: Study, name: str) -> Work:
    assert study.prompts is not None
    settings, data = study.prompts, study.data
    planted = sum(plant.images for plant in data.plant)
    unplanted = min(settings.prompts, data.distinct - planted)
    prompts = 2 * planted + unplanted + min(settings.prompts, data.split.holdout)
    # Two passes at two timesteps from every noise.
    total = work.passes(work.forward(study, name), 4 * settings.draws * prompts, 128)
    return total + work.drawing(study, name, settings.images * prompts)


# ---- path ----------------------------------------------------------------------------------------


def _path_images(study: Study) -> int:
    chosen = study.paths.images if study.paths is not None else None
    return study.sample.images if chosen is None else chosen


def _path_settings(study: Study, job: Job) -> Settings:
    assert job.arm is not None
    return remedy_settings(study, job.arm) | {
        "states": study.path_of(job.arm) | {"last": 1.0},
        "images": _path_images(study),
        "sample": study.sample.model_dump(mode="json"),
        "extraction": study.extraction.model_dump(mode="json"),
        "quality": study.quality.model_dump(mode="json"),
        "mirrors": study.mirrors,
    }


def _path_inputs(study: Study, job: Job) -> Inputs:
    assert job.arm is not None
    return (
        texts_of(study, job.arm)
        | (latents_of(study) if study.arms[job.arm].reads_training_images else {})
        | {
            "model": f"{_trained(job)}/run.json",
            **_attacked(study, job),
            **_controls(study, job),
            "reference": f"{SPLIT}/reference.npz",
            "classifier": "data/classifier/run.json",
        }
    )


def _with_path(study: Study) -> Iterable[Address]:
    return [cell for cell in per_replicate(study) if study.path_of(cell["arm"])]


def _path_work(study: Study, name: str) -> Work:
    states = len(study.path_of(name))
    images = states * _path_images(study)
    total = work.drawing(study, name, images)
    measured = images + work.reference_images(study)
    return total + work.features(study.quality.features, measured)


# ---- forgetting ----------------------------------------------------------------------------------


def _forgetting_settings(study: Study, job: Job) -> Settings:
    assert job.arm is not None
    seen = {
        key: getattr(study, key).model_dump(mode="json")
        for key in ("sample", "membership", "extraction", "quality")
    }
    sets = forget_sets(study, study.forget_sets_of(job.arm))
    settings = study.forgetting.model_dump(mode="json") | _statistics(study)
    return settings | seen | {"sets": sets, "flips": study.data.flips, "mirrors": study.mirrors}


def _forgetting_inputs(study: Study, job: Job) -> Inputs:
    assert job.arm is not None
    attacks = extractions(study, job, study.forget_sets_of(job.arm))
    inputs: Inputs = _attacked(study, job) | {
        **texts_of(study, job.arm),
        **latents_of(study),
        "model": f"{_trained(job)}/run.json",
        "holdout": f"{SPLIT}/holdout.npz",
        "reference": f"{SPLIT}/reference.npz",
        "classifier": "data/classifier/run.json",
    }
    return inputs | ({"extraction": attacks} if attacks else {})


def _judged(study: Study) -> Iterable[Address]:
    """Return the addresses of the arms with a forget set of their own, or of an arm that starts
    from them."""
    return [cell for cell in per_replicate(study) if study.forget_sets_of(cell["arm"])]


def _forgetting_work(study: Study, name: str) -> Work:
    settings, flop, levels = study.forgetting, work.forward(study, name), study.membership
    total = Work()
    looks = settings.relearn_updates // settings.relearn_every + 1
    prompted = study.condition_of(name) == "text"
    for chosen in study.forget_sets_of(name):
        block = study.forget[chosen]
        by_class, by_words = block.label is not None, block.caption is not None
        held = study.data.split.holdout // (10 if by_class or by_words else 1)
        for images, times in ((held, 1), (work.forgotten(study, chosen), looks + 1)):
            measured = work.losses(
                study, name, images, levels.timesteps, levels.draws, flips=study.data.flips
            )
            total += measured * times
        batch = settings.relearn_batch_size
        total += work.passes(flop, settings.relearn_updates * batch, batch, backward=True)
        drawings = prompted + looks * (by_class or (prompted and by_words))
        total += work.drawing(study, name, settings.relearn_images) * drawings
        if prompted:
            sought = 2 * min(settings.embedding_images, work.forgotten(study, chosen))
            size = settings.embedding_batch_size
            samples = sought * size * settings.embedding_updates
            total += work.passes(flop, samples, max(size, batch), backward=True, trained=0)
            total += work.drawing(study, name, sought * settings.embedding_generations)
    return total


def _forgetting_memory(study: Study, name: str) -> Bytes:
    relearned = memory.relearning(study, name)
    return Bytes(relearned + memory.passing(study, name, study.sample.batch_size))


STEPS = (
    Step(
        name="attack/extraction",
        verb="extraction",
        module="afterimage.attacks.extraction",
        help="extract training images from generations (Carlini et al. 2023)",
        folder=FOLDER + "extraction",
        keys=("extraction", "statistics", "data"),
        settings=_extraction_settings,
        inputs=_extraction_inputs,
        addresses=per_replicate,
        size=_searched,
    ),
    Step(
        name="attack/quality",
        verb="quality",
        module="afterimage.attacks.quality",
        help="measure quality and diversity of generations",
        folder=FOLDER + "quality",
        keys=("quality", "statistics"),
        settings=_quality_settings,
        inputs=_quality_inputs,
        addresses=per_replicate,
        work=_quality_work,
        memory=_quality_memory,
        size=lambda study, name: Size(all_images(study, name).numbers, study.sample.images),
        libraries=True,
    ),
    Step(
        name="attack/membership",
        verb="membership",
        module="afterimage.attacks.membership",
        help="infer which images were trained on from their loss",
        folder=FOLDER + "membership",
        keys=("membership", "sample", "statistics", "data"),
        settings=_membership_settings,
        inputs=_membership_inputs,
        addresses=per_replicate,
        work=_membership_work,
        memory=lambda study, name: Bytes(memory.passing(study, name, 256)),
        networks=True,
    ),
    Step(
        name="attack/prompts",
        verb="prompts",
        module="afterimage.attacks.prompt_detection",
        help="find the captions of training by detectors of memorised prompts, and training images "
        "by the images of a caption that agree (Carlini et al. 2023)",
        folder=FOLDER + "prompts",
        keys=("prompts", "extraction", "sample", "statistics", "data"),
        settings=_prompts_settings,
        inputs=_prompts_inputs,
        addresses=_prompted,
        work=_prompts_work,
        memory=lambda study, name: Bytes(memory.passing(study, name, study.sample.batch_size)),
        size=None,
        networks=True,
    ),
    Step(
        name="attack/path",
        verb="path",
        module="afterimage.attacks.path",
        help="attack the networks that a training kept on the way",
        folder=FOLDER + "path",
        keys=("paths", "sample", "extraction", "quality", "data"),
        settings=_path_settings,
        inputs=_path_inputs,
        addresses=_with_path,
        code=lambda study, job: remedy_module(study, job.arm or ""),
        work=_path_work,
        memory=lambda study, name: Bytes(memory.passing(study, name, study.sample.batch_size)),
        size=_searched_on_path,
        networks=True,
    ),
    Step(
        name="attack/forgetting",
        verb="forgetting",
        module="afterimage.attacks.forgetting",
        help="measure what a model retains of its forget sets",
        folder=FOLDER + "forgetting",
        keys=(
            "forgetting",
            "forget",
            "sample",
            "membership",
            "extraction",
            "quality",
            "statistics",
            "data",
        ),
        settings=_forgetting_settings,
        inputs=_forgetting_inputs,
        addresses=_judged,
        work=_forgetting_work,
        memory=_forgetting_memory,
        size=_searched,
        networks=True,
    ),
)
