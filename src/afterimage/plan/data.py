"""The steps of ``data``: the source as one array, its splits, the feature network, and
deduplication."""

from __future__ import annotations

from afterimage.config.study import Study
from afterimage.plan.cost import memory, work
from afterimage.plan.cost.measured import Size
from afterimage.plan.cost.memory import Bytes
from afterimage.plan.cost.work import Work
from afterimage.plan.step import Inputs, Job, Settings, Step

SPLIT = "data/split"

LIKENESS_COMPONENTS, LIKENESS_SHIFTS = 256, 9
"""As in ``metrics.likeness``, which planning does not import: the most components, and the shifts
at which each image is searched."""


def training_images(study: Study, arm: str) -> str:
    """Return the training set of an arm: as planted, or deduplicated."""
    step = {"planted": "split", "deduplicated": "dedup"}[study.arms[arm].data]
    return f"data/{step}/train.npz"


def _fetch_settings(study: Study, job: Job) -> Settings:
    keys = {"source", "classes", "images", "colour", "resize", "resize_filter", "crop"}
    return study.data.model_dump(mode="json", include=keys)


def _split_settings(study: Study, job: Job) -> Settings:
    return study.data.model_dump(mode="json", include={"split", "plant", "flips"})


def _split_size(study: Study, name: str) -> Size:
    """Every image is compared with the training set: near-duplicates leave the other parts."""
    split = study.data.split
    images = split.train + split.holdout + work.reference_images(study)
    return Size(images * work.values(study), split.train)


def _classifier_size(study: Study, name: str) -> Size:
    """Reference images, once an epoch."""
    return Size(work.reference_images(study) * work.values(study), study.classifier.epochs)


def _classifier_memory(study: Study, name: str) -> Bytes:
    """Some dozen tensors of a batch at the finest level."""
    height, width, _ = work.shape(study)
    settings = study.classifier
    return Bytes(12 * memory.SINGLE * settings.batch_size * settings.channels[0] * height * width)


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
    """Return the products of the search by likeness; the other detectors are in what was
    measured."""
    if "likeness" not in study.dedup.methods:
        return Work()
    views = LIKENESS_SHIFTS * (1 + study.dedup.likeness.mirrors)
    return Work(fp32=2.0 * study.data.split.train**2 * LIKENESS_COMPONENTS * views)


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
        help="draw training, held-out and reference splits and plant duplicates",
        folder="data/split",
        keys=("data",),
        settings=_split_settings,
        inputs=lambda study, job: {"images": "data/fetch/images.npz"},
        size=_split_size,
    ),
    Step(
        name="data/classifier",
        verb="classifier",
        module="afterimage.metrics.classifier",
        help="train the feature network on the reference split",
        folder="data/classifier",
        keys=("classifier",),
        settings=lambda study, job: study.classifier.model_dump(mode="json"),
        inputs=lambda study, job: {"reference": f"{SPLIT}/reference.npz"},
        memory=_classifier_memory,
        size=_classifier_size,
        networks=True,
    ),
    Step(
        name="data/dedup",
        verb="dedup",
        module="afterimage.data.dedup",
        help="find and remove near-duplicates, scored against the planted ground truth",
        folder="data/dedup",
        keys=("dedup",),
        settings=lambda study, job: study.dedup.model_dump(mode="json"),
        inputs=_dedup_inputs,
        work=_dedup_work,
        size=lambda study, name: Size(
            study.data.split.train * work.values(study), study.data.split.train
        ),
    ),
)
