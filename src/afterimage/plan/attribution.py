"""The steps of ``attribution``: scores of training images, and their evaluation.

Every job reads one replicate of the explained arm; ``remedied`` reads that of two arms. The first
``attribution.replicates`` replicates are explained, each with the planting that it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from afterimage.config.attribution import ATTRIBUTORS, FINAL, MAIN, REPEAT, Attribution
from afterimage.config.study import Study
from afterimage.config.unet import StoredModel
from afterimage.plan.cost import memory, work
from afterimage.plan.cost.measured import Size
from afterimage.plan.cost.memory import Bytes
from afterimage.plan.cost.work import Work
from afterimage.plan.data import SPLIT, latents_of, texts_of, training_images
from afterimage.plan.step import Address, Inputs, Job, Settings, Step
from afterimage.plan.train import arm_settings, network_settings, others_of

FOLDER = "attribution/rep{rep}/"
CLASSIFIER = "data/classifier/run.json"


def asked(study: Study) -> Attribution:
    """Return the study's ``attribution`` block; without one the steps here have no jobs."""
    assert study.attribution is not None
    return study.attribution


def _once(study: Study) -> Iterable[Address]:
    """Return one address per explained replicate; none if the study skips the phase."""
    return [] if study.attribution is None else _replicates(study.attribution)


def _replicates(chosen: Attribution) -> list[Address]:
    return [{"replicate": k} for k in range(chosen.replicates)]


def _names(step: str) -> Callable[[Study], Iterable[Address]]:
    """Return the addresses of a step's jobs; none if the study skips the phase."""

    def addresses(study: Study) -> Iterable[Address]:
        if study.attribution is None:
            return []
        names = study.attribution.jobs(study.data.split.train).get(step, [])
        return [cell | {"job": name} for cell in _replicates(study.attribution) for name in names]

    return addresses


def _of(job: Job, rest: str) -> str:
    """Return the record of another job of the phase, for the same replicate."""
    return f"{FOLDER.format(rep=job.replicate)}{rest}/run.json"


def _explained(study: Study, job: Job) -> Inputs:
    """Return the training images of the explained arm, and the table of those it was trained on."""
    arm = asked(study).arm
    return {
        "train": training_images(study, arm, job.replicate),
        "members": f"train/{arm}/rep{job.replicate}/members.parquet",
    }


def _model(study: Study, job: Job) -> Inputs:
    arm = asked(study).arm
    model = f"train/{arm}/rep{job.replicate}/run.json"
    return {"model": model} | texts_of(study, arm) | latents_of(study) | _explained(study, job)


def _with_queries(study: Study, job: Job) -> Inputs:
    return _model(study, job) | {"queries": _of(job, "queries")}


def _retrained_arm(study: Study, job: Job) -> Inputs:
    return _with_queries(study, job) | others_of(study, asked(study).arm)


def _features(study: Study, job: Job, prefix: str) -> list[str]:
    """Return the features projected by the jobs whose name contains ``prefix``, training blocks in
    order."""
    names = asked(study).jobs(study.data.split.train)["attribution/features"]
    return [_of(job, f"features/{name}") for name in names if prefix in name]


def _retrained(study: Study, job: Job) -> list[str]:
    names = asked(study).jobs(study.data.split.train)["attribution/retrain"]
    return [_of(job, f"retrain/{name}") for name in names]


# ---- queries -------------------------------------------------------------------------------------


def _queries_inputs(study: Study, job: Job) -> Inputs:
    arm = asked(study).arm
    return {
        "holdout": f"{SPLIT}/holdout.npz",
        "samples": f"sample/{arm}/rep{job.replicate}/images.npz",
        "extraction": f"attack/{arm}/rep{job.replicate}/extraction/run.json",
    }


def _queries(study: Study) -> int:
    chosen = asked(study).queries
    return chosen.holdout + chosen.generated + chosen.extracted


# ---- features ------------------------------------------------------------------------------------


def _features_inputs(study: Study, job: Job) -> Inputs:
    _, _, block = (job.job or "").split("/")
    return _with_queries(study, job) if block == "0" else _model(study, job)


def _features_settings(study: Study, job: Job) -> Settings:
    chosen = asked(study)
    variant, network, block = (job.job or "").split("/")
    served = chosen.attributors_of(variant)
    few = chosen.repeatability if network == REPEAT else None
    journey = block == "0" and network == FINAL and "journey_trak" in served
    return {
        "features": chosen.features_of(variant).model_dump(mode="json"),
        "network": network,
        "block": int(block),
        "images_per_job": few.images if few else chosen.images_per_job,
        "queries": few.queries if few else None,
        "weights": study.sample.weights,
        "journey": study.sample.model_dump(mode="json") if journey else None,
        **_adapters(study),
    }


def _adapters(study: Study) -> Settings:
    """Return the network whose adapters are the parameters, for a study that trains such
    (``model.lora``)."""
    model = study.model
    if not isinstance(model, StoredModel) or model.lora is None:
        return {}
    return {"model": model.model_dump(mode="json")}


def _projected_images(study: Study, name: str) -> int:
    """Return how many images a job of features is of, queries included."""
    chosen = asked(study)
    _, network, block = name.split("/")
    trained = work.trained_images(study, chosen.arm)
    if network == REPEAT and chosen.repeatability is not None:
        few = chosen.repeatability
        return min(few.images, trained) + min(3 * few.queries, _queries(study))
    left = trained - int(block) * chosen.images_per_job
    images = max(0, min(chosen.images_per_job, left))
    return images + _queries(study) if block == "0" else images


def _features_work(study: Study, name: str) -> Work:
    chosen = asked(study)
    variant, network, block = name.split("/")
    settings = chosen.features_of(variant)
    readouts = work.readouts_of(settings, final=network in (FINAL, REPEAT))
    images = _projected_images(study, name)
    total = work.gradients(study, chosen.arm, images, settings, readouts)
    journey = "journey_trak" in chosen.attributors_of(variant)
    if journey and (network, block) == (FINAL, "0"):
        count = chosen.queries.generated + chosen.queries.extracted
        total += work.drawing(study, chosen.arm, count)
        total += work.gradients(study, chosen.arm, count, settings, 1)
    return total


def _features_memory(study: Study, name: str) -> Bytes:
    chosen = asked(study)
    variant = name.partition("/")[0]
    return memory.projected(study, chosen.arm, variant, _projected_images(study, name))


# ---- retrain, counterfactual ---------------------------------------------------------------------


def _retrain_settings(study: Study, job: Job) -> Settings:
    chosen = asked(study)
    keys = {"arm", "subsets", "seeds", "share", "networks_per_job", "stacked", "ground_truth"}
    return network_settings(study) | {
        "attribution": chosen.model_dump(mode="json", include=keys),
        "arm": arm_settings(study, chosen.arm),
        "weights": study.sample.weights,
    }


def _retrain_work(study: Study, name: str) -> Work:
    chosen, truth = asked(study), asked(study).ground_truth
    left = chosen.subsets * chosen.seeds - int(name) * chosen.networks_per_job
    networks = min(chosen.networks_per_job, left)
    fitted = work.training(study, chosen.arm) * chosen.share
    measured = work.losses(study, chosen.arm, _queries(study), truth.timesteps, truth.draws)
    together = fitted * networks
    if chosen.stacked:
        together = Work(**vars(together) | {"launches": fitted.launches})
    return together + measured * networks


def _retrain_memory(study: Study, name: str) -> Bytes:
    chosen = asked(study)
    return _trained_memory(study, chosen.networks_per_job if chosen.stacked else 1)


def _trained_memory(study: Study, networks: int) -> Bytes:
    arm = asked(study).arm
    single = memory.learning(study, arm)
    passing = memory.passing(study, arm, 256)
    return Bytes(networks * single.networks + passing, networks * single.arrays)


def _counterfactual_settings(study: Study, job: Job) -> Settings:
    chosen = asked(study)
    assert chosen.counterfactual is not None
    return network_settings(study) | {
        "arm": arm_settings(study, chosen.arm),
        "sample": study.sample.model_dump(mode="json"),
        "ground_truth": chosen.ground_truth.model_dump(mode="json"),
        "counterfactual": chosen.counterfactual.model_dump(mode="json"),
    }


def _counterfactual_inputs(study: Study, job: Job) -> Inputs:
    scores = {"scores": _of(job, f"scores/{MAIN}"), "classifier": CLASSIFIER}
    return _retrained_arm(study, job) | scores


def _counterfactual_work(study: Study, name: str) -> Work:
    chosen, truth = asked(study), asked(study).ground_truth
    assert chosen.counterfactual is not None
    again = name == "again"
    images = chosen.counterfactual.queries if again else 1
    removed = 0 if again else chosen.counterfactual.remove / work.trained_images(study, chosen.arm)
    measured = work.losses(study, chosen.arm, images, truth.timesteps, truth.draws)
    trained = work.training(study, chosen.arm) * (1 - removed)
    return trained + work.drawing(study, chosen.arm, images) + measured


# ---- scores, acceleration ------------------------------------------------------------------------


def _scores_settings(study: Study, job: Job) -> Settings:
    chosen = asked(study)
    keys = {"regularisers", "subsets", "seeds", "share", "concepts"}
    return chosen.model_dump(mode="json", include=keys) | {
        "attributors": chosen.attributors_of(job.job or ""),
        "confidence": study.statistics.confidence,
    }


def _scores_inputs(study: Study, job: Job) -> Inputs:
    inputs = _explained(study, job) | {
        "queries": _of(job, "queries"),
        "features": _features(study, job, f"{job.job}/{FINAL}/"),
        "retrain": _retrained(study, job),
        "classifier": CLASSIFIER,
    }
    if repeated := _features(study, job, f"{job.job}/{REPEAT}/"):
        inputs["repeat"] = repeated
    if job.job == MAIN and (states := _features(study, job, f"{MAIN}/state")):
        inputs["states"] = states
    return inputs


def _scores_size(study: Study, name: str) -> Size:
    """Features of training images, as stored and of each attributor."""
    chosen = asked(study)
    features = chosen.features_of(name)
    k = min(features.dimension, work.weights(study, chosen.arm))
    matrices = (
        len(chosen.attributors_of(name)) + features.timesteps * features.probes * features.rows
    )
    return Size(work.trained_images(study, chosen.arm) * k * matrices)


def _variants(study: Study) -> Iterable[Address]:
    return _once(study) if study.attribution is not None and study.attribution.variants else []


def _acceleration_settings(study: Study, job: Job) -> Settings:
    chosen = asked(study)
    keys = {"subsets", "seeds", "share", "reference", "shortlist"}
    return chosen.model_dump(mode="json", include=keys) | {
        "variants": list(chosen.variants),
        "confidence": study.statistics.confidence,
    }


def _acceleration_inputs(study: Study, job: Job) -> Inputs:
    variants = asked(study).jobs(study.data.split.train)["attribution/scores"]
    return _explained(study, job) | {
        "scores": [_of(job, f"scores/{name}") for name in variants],
        "features": _features(study, job, f"/{FINAL}/"),
        "retrain": _retrained(study, job),
    }


def _acceleration_size(study: Study, name: str) -> Size:
    """Training images, each ranked for every query by every attributor of every variant."""
    chosen = asked(study)
    ranked = (1 + len(chosen.variants)) * len(chosen.attributors) * _queries(study)
    return Size(ranked * work.trained_images(study, chosen.arm))


# ---- remedied ------------------------------------------------------------------------------------


def _remedied_settings(study: Study, job: Job) -> Settings:
    chosen = asked(study)
    assert chosen.remedied is not None
    return {
        "before": chosen.remedied.before,
        "queries": chosen.remedied.queries,
        "attributors": chosen.remedied.attributors,
        "features": chosen.features.model_dump(mode="json"),
        "weights": study.sample.weights,
    }


def _remedied_inputs(study: Study, job: Job) -> Inputs:
    remedied = asked(study).remedied
    assert remedied is not None
    return {
        **texts_of(study, remedied.before),
        **latents_of(study),
        "before": f"train/{remedied.before}/rep{job.replicate}/run.json",
        "after": f"train/{job.job}/rep{job.replicate}/run.json",
        "train": training_images(study, remedied.before, job.replicate),
        "samples": f"sample/{remedied.before}/rep{job.replicate}/images.npz",
        "scores": _of(job, f"scores/{MAIN}"),
    }


def _remedied_work(study: Study, name: str) -> Work:
    """Gradients under both networks; the spectra of their features take little beside them."""
    chosen, settings = asked(study).remedied, asked(study).features
    assert chosen is not None
    images = work.trained_images(study, chosen.before) + chosen.queries
    readouts = work.readouts_of(settings)
    total = Work()
    for arm in (chosen.before, name):
        total += work.gradients(study, arm, images, settings, readouts)
    return total


def _remedied_code(study: Study, job: Job) -> tuple[str, ...]:
    remedied = asked(study).remedied
    assert remedied is not None
    return tuple(ATTRIBUTORS[name] for name in remedied.attributors)


STEPS = (
    Step(
        name="attribution/queries",
        verb="queries",
        module="afterimage.attribution.queries",
        help="choose the images to attribute",
        folder=FOLDER + "queries",
        keys=("attribution",),
        settings=lambda study, job: asked(study).queries.model_dump(mode="json"),
        inputs=_queries_inputs,
        addresses=_once,
    ),
    Step(
        name="attribution/features",
        verb="features",
        module="afterimage.attribution.features",
        help="project the gradients of a network for one block of images",
        folder=FOLDER + "features/{job}",
        keys=("attribution", "sample", "model"),
        settings=_features_settings,
        inputs=_features_inputs,
        addresses=_names("attribution/features"),
        work=_features_work,
        memory=_features_memory,
        size=None,
        networks=True,
    ),
    Step(
        name="attribution/retrain",
        verb="retrain",
        module="afterimage.attribution.judges.retrain",
        help="measure the losses of the queries under networks retrained on random subsets",
        folder=FOLDER + "retrain/{job}",
        keys=("attribution", "arms", "model", "diffusion", "train", "data", "sample"),
        settings=_retrain_settings,
        inputs=_retrained_arm,
        addresses=_names("attribution/retrain"),
        work=_retrain_work,
        memory=_retrain_memory,
        size=None,
        networks=True,
    ),
    Step(
        name="attribution/scores",
        verb="scores",
        module="afterimage.attribution.scores",
        help="score training images with every attributor, and evaluate them by retraining (LDS)",
        folder=FOLDER + "scores/{job}",
        keys=("attribution", "statistics"),
        settings=_scores_settings,
        inputs=_scores_inputs,
        addresses=_names("attribution/scores"),
        code=lambda study, job: tuple(
            ATTRIBUTORS[name] for name in asked(study).attributors_of(job.job or "")
        ),
        size=_scores_size,
        libraries=True,
    ),
    Step(
        name="attribution/acceleration",
        verb="acceleration",
        module="afterimage.attribution.acceleration",
        help="compare cost and quality of cheaper features and two-stage ranking",
        folder=FOLDER + "acceleration",
        keys=("attribution", "statistics"),
        settings=_acceleration_settings,
        inputs=_acceleration_inputs,
        addresses=_variants,
        size=_acceleration_size,
    ),
    Step(
        name="attribution/counterfactual",
        verb="counterfactual",
        module="afterimage.attribution.judges.counterfactual",
        help="retrain without a generation's top-ranked training images, and generate it again",
        folder=FOLDER + "counterfactual/{job}",
        keys=("attribution", "arms", "model", "diffusion", "train", "data", "sample"),
        settings=_counterfactual_settings,
        inputs=_counterfactual_inputs,
        addresses=_names("attribution/counterfactual"),
        work=_counterfactual_work,
        memory=lambda study, name: _trained_memory(study, 1),
        size=None,
        networks=True,
    ),
    Step(
        name="attribution/remedied",
        verb="remedied",
        module="afterimage.attribution.judges.forgetting_influence",
        help="compare the influence of forgotten images before and after a remedy",
        folder=FOLDER + "remedied/{job}",
        keys=("attribution", "sample"),
        settings=_remedied_settings,
        inputs=_remedied_inputs,
        addresses=_names("attribution/remedied"),
        code=_remedied_code,
        work=_remedied_work,
        memory=lambda study, name: memory.projected(study, name, MAIN, study.data.split.train),
        size=None,
        networks=True,
    ),
)
