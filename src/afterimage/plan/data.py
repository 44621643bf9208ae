"""The steps of ``data``: the source as one array, its parts, the feature network, and
deduplication."""

from __future__ import annotations

from afterimage.config.study import Study
from afterimage.plan.cost import memory, work
from afterimage.plan.cost.memory import Bytes
from afterimage.plan.cost.work import Work
from afterimage.plan.step import Inputs, Job, Settings, Step

SPLIT = "data/split"

# Of metrics.likeness: the most components, and the shifts at which each image is searched.
_LIKENESS_COMPONENTS, _LIKENESS_SHIFTS = 256, 9


def training_images(study: Study, arm: str) -> str:
    """Return the training set of an arm: as planted, or what deduplication left of it."""
    step = {"planted": "split", "deduplicated": "dedup"}[study.arms[arm].data]
    return f"data/{step}/train.npz"


def _fetch_settings(study: Study, job: Job) -> Settings:
    keys = {"source", "classes", "images", "colour", "resize", "resize_filter", "crop"}
    return study.data.model_dump(mode="json", include=keys)


def _split_settings(study: Study, job: Job) -> Settings:
    return study.data.model_dump(mode="json", include={"split", "plant", "flips"})


def _classifier_work(study: Study, name: str) -> Work:
    flop = work.classifier(study).flop
    return Work(fp32=3 * study.classifier.epochs * work.reference_images(study) * flop)


def _classifier_memory(study: Study, name: str) -> Bytes:
    net, split = work.classifier(study), study.data.split
    activations = study.classifier.batch_size * net.values * memory.SINGLE
    images = 2 * (split.train + split.holdout) * work.values(study)
    return Bytes(16 * net.parameters + activations, images)


def _dedup_inputs(study: Study, job: Job) -> Inputs:
    inputs: Inputs = {
        "train": f"{SPLIT}/train.npz",
        "index": f"{SPLIT}/index.parquet",
        "reference": f"{SPLIT}/reference.npz",
    }
    if study.dedup.embedding.features == "classifier":
        inputs["classifier"] = "data/classifier/run.json"
    return inputs


def _dedup_work(study: Study, name: str) -> Work:
    embedding, count = study.dedup.embedding, study.data.split.train
    dimension = {
        "pca": embedding.components,
        "pixels": work.values(study),
        "classifier": study.classifier.features,
    }[embedding.features]
    flop = 2.0 * count**2 * (dimension + 2)
    if embedding.features == "pca":
        flop += 4 * count * work.values(study) * embedding.components
    if "likeness" in study.dedup.methods:
        flop += (
            2.0
            * count**2
            * _LIKENESS_COMPONENTS
            * _LIKENESS_SHIFTS
            * (1 + study.dedup.likeness.mirrors)
        )
    return Work(host=count * work.HASH + flop / work.SINGLE)


def _dedup_memory(study: Study, name: str) -> Bytes:
    doubles = 2 * memory.DOUBLE * (study.dedup.embedding.features == "pca")
    vectors = memory.SINGLE * _LIKENESS_COMPONENTS * ("likeness" in study.dedup.methods)
    return Bytes(0, study.data.split.train * (work.values(study) * (1 + doubles) + vectors))


STEPS = (
    Step(
        name="data/fetch",
        verb="fetch",
        module="afterimage.data.fetch",
        help="read the source into one checked array file; the only step that may use the network",
        folder="data/fetch",
        keys=("data",),
        settings=_fetch_settings,
        inputs=lambda study, job: {},
        code=lambda study, job: (study.data.source.reader,),
    ),
    Step(
        name="data/split",
        verb="split",
        module="afterimage.data.split",
        help="draw train, holdout and reference parts and plant duplicates",
        folder="data/split",
        keys=("data",),
        settings=_split_settings,
        inputs=lambda study, job: {"images": "data/fetch/images.npz"},
    ),
    Step(
        name="data/classifier",
        verb="classifier",
        module="afterimage.metrics.classifier",
        help="train the feature network on the reference part",
        folder="data/classifier",
        keys=("classifier",),
        settings=lambda study, job: study.classifier.model_dump(mode="json"),
        inputs=lambda study, job: {"reference": f"{SPLIT}/reference.npz"},
        work=_classifier_work,
        memory=_classifier_memory,
        networks=True,
    ),
    Step(
        name="data/dedup",
        verb="dedup",
        module="afterimage.data.dedup",
        help="find and remove near-duplicates, scored against the planted truth",
        folder="data/dedup",
        keys=("dedup",),
        settings=lambda study, job: study.dedup.model_dump(mode="json"),
        inputs=_dedup_inputs,
        work=_dedup_work,
        memory=_dedup_memory,
    ),
)
