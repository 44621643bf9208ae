"""The steps of ``data``: the source as one array, its splits, the feature network, and for each
planting the training set and its deduplication."""

from __future__ import annotations

from collections.abc import Iterable

from afterimage.config.data import Dedup
from afterimage.config.study import Study
from afterimage.config.texts import ORIGINAL, ColumnCaptions
from afterimage.plan.cost import memory, work
from afterimage.plan.cost.measured import Size
from afterimage.plan.cost.memory import Bytes
from afterimage.plan.cost.work import Work
from afterimage.plan.step import Address, Inputs, Job, Settings, Step, once

SPLIT, PLANTING, DEDUP, ENCODE = "data/split", "data/planting", "data/dedup", "data/encode"
AUTOENCODER, LATENTS = "data/autoencoder", "data/latents"

LIKENESS_COMPONENTS, LIKENESS_SHIFTS = 256, 9
"""As in ``metrics.likeness``, which planning does not import: the most components, and the shifts
at which each image is searched."""


def planting_of(study: Study, replicate: int | None) -> str:
    """Return the folder of the planting that a replicate is trained on and attacked with."""
    return f"{PLANTING}/{_number(study, replicate)}"


def training_images(study: Study, arm: str, replicate: int | None) -> str:
    """Return the training set of a replicate of an arm: as planted, or deduplicated."""
    if study.arms[arm].data == "planted":
        return f"{planting_of(study, replicate)}/train.npz"
    own = study.dedup_of(arm)
    first = [f"{name}/" for name, block in study.deduplications.items() if block == own]
    return f"{DEDUP}/{''.join(first)}{_number(study, replicate)}/train.npz"


def _deduplication(study: Study, name: str) -> tuple[Dedup, str]:
    """Return the settings of a deduplication, the study's or those of an arm, and the number of its
    planting."""
    arm, _, number = name.rpartition("/")
    return (study.dedup_of(arm) if arm else study.dedup), number


def _deduplicated(study: Study) -> Iterable[Address]:
    """Return the deduplications of every planting: the study's, and those of arms with their
    own."""
    names = ["", *(f"{arm}/" for arm in study.deduplications)]
    return [{"job": name + str(number)} for name in names for number in range(study.data.plantings)]


def _number(study: Study, replicate: int | None) -> int:
    assert replicate is not None
    return replicate % study.data.plantings


def _plantings(study: Study) -> Iterable[Address]:
    return [{"job": str(number)} for number in range(study.data.plantings)]


def _fetch_settings(study: Study, job: Job) -> Settings:
    """Return the settings of the images, and the columns that variants of captions are read from,
    if there are any."""
    keys = {"source", "classes", "images", "colour", "resize", "resize_filter", "crop"}
    settings = study.data.model_dump(mode="json", include=keys)
    columns = study.caption_columns
    return settings | ({"captions": columns} if columns else {})


def _split_settings(study: Study, job: Job) -> Settings:
    keys = {"split", "plant", "plantings", "flips"}
    return study.data.model_dump(mode="json", include=keys)


def _split_size(study: Study, name: str) -> Size:
    """Every image is compared with the pool and with every training set: near-duplicates leave the
    other parts."""
    train, values = study.data.split.train, work.split_images(study) * work.values(study)
    return Size(values, train * (1 + study.data.plantings))


def _planting_size(study: Study, name: str) -> Size:
    """The twins are compared with the training set."""
    train, planted = study.data.split.train, sum(plant.images for plant in study.data.plant)
    return Size((train + planted) * work.values(study), train)


def _classifier_size(study: Study, name: str) -> Size:
    """Reference images, once an epoch."""
    return Size(work.reference_images(study) * work.values(study), study.classifier.epochs)


def _classifier_memory(study: Study, name: str) -> Bytes:
    """Some dozen tensors of a batch at the finest level."""
    height, width, _ = work.shape(study)
    settings = study.classifier
    return Bytes(12 * memory.SINGLE * settings.batch_size * settings.channels[0] * height * width)


def _encoded(study: Study) -> Iterable[Address]:
    """Return every variant of the captions, the captions as they are first."""
    variants = [] if study.text is None else [ORIGINAL, *study.text.captions]
    return [{"job": name} for name in variants]


def _encode_settings(study: Study, job: Job) -> Settings:
    """Return the settings of the text encoder and of the variant, and the texts beside captions
    that are embedded, if there are any."""
    if study.text is None:
        return {}
    own = study.text.captions.get(job.job or "")
    variant = {} if own is None else {"captions": {job.job: own.model_dump(mode="json")}}
    settings = study.text.model_dump(mode="json", exclude={"captions"}) | variant
    texts = {block.surrogate for block in study.forget.values() if block.surrogate is not None}
    return settings | ({"surrogates": sorted(texts)} if texts else {})


def _encode_inputs(study: Study, job: Job) -> Inputs:
    assert study.text is not None
    parts = ("pool", "holdout", "reference", "fusion")
    inputs: Inputs = {part: f"{SPLIT}/{part}.npz" for part in parts}
    if isinstance(study.text.captions.get(job.job or ""), ColumnCaptions):
        inputs["columns"] = "data/fetch/captions.parquet"
    return inputs


def _with_autoencoder(study: Study) -> Iterable[Address]:
    return [] if study.autoencoder is None else once(study)


def _autoencoder_settings(study: Study, job: Job) -> Settings:
    return {} if study.autoencoder is None else study.autoencoder.model_dump(mode="json")


def _latents_inputs(study: Study, job: Job) -> Inputs:
    """Return the images that networks are trained on or attacked with; those that are left after
    deduplication are among them."""
    images = [f"{SPLIT}/holdout.npz", f"{SPLIT}/fusion.npz"]
    for number in range(study.data.plantings):
        images += [f"{PLANTING}/{number}/{part}.npz" for part in ("train", "twins")]
    return {"autoencoder": f"{AUTOENCODER}/run.json", "images": images}


def _encoding(study: Study, name: str) -> Work:
    """Encode every image, with its mirror image if trainings mirror, and decode it once."""
    split, plantings = study.data.split, study.data.plantings
    twins = sum(plant.images for plant in study.data.plant)
    images = split.holdout + split.fusion + plantings * (split.train + twins)
    return work.autoencoding(study, images * (1 + study.data.flips))


def latents_of(study: Study) -> Inputs:
    """Return the latents of images, for a study with an autoencoder."""
    return {} if study.autoencoder is None else {"latents": f"{LATENTS}/run.json"}


def texts_of(study: Study, arm: str) -> Inputs:
    """Return the embeddings of an arm's variant of captions, if it is conditioned on them."""
    if study.condition_of(arm) != "text":
        return {}
    return {"texts": f"{ENCODE}/{study.captions_of(arm)}/run.json"}


def prompts_of(study: Study, job: Job) -> Inputs:
    """Return what the prompts of an arm's generations are made of, if it is conditioned on
    captions: those of all training images."""
    assert job.arm is not None
    texts = texts_of(study, job.arm)
    train = f"{planting_of(study, job.replicate)}/train.npz"
    return texts | ({"train": train} if texts else {})


def _dedup_inputs(study: Study, job: Job) -> Inputs:
    dedup, number = _deduplication(study, job.name)
    planting = f"{PLANTING}/{number}"
    inputs: Inputs = {
        "train": f"{planting}/train.npz",
        "index": f"{planting}/index.parquet",
        "reference": f"{SPLIT}/reference.npz",
    }
    if dedup.embedding.features == "classifier":
        inputs["classifier"] = "data/classifier/run.json"
    return inputs


def _dedup_memory(study: Study, name: str) -> Bytes:
    """Return what pixels hold as features, or as what principal components are taken of."""
    train = study.data.split.train
    images = {"classifier": 0, "pixels": train, "pca": train + work.reference_images(study)}
    dedup, _ = _deduplication(study, name)
    held = images[dedup.embedding.features] * work.values(study)
    return Bytes(arrays=2 * memory.SINGLE * held)


def _dedup_work(study: Study, name: str) -> Work:
    """Return the products of the search by likeness; the other detectors are in what was
    measured."""
    dedup, _ = _deduplication(study, name)
    if "likeness" not in dedup.methods:
        return Work()
    views = LIKENESS_SHIFTS * (1 + dedup.likeness.mirrors)
    return Work(fp32=2.0 * study.data.split.train**2 * LIKENESS_COMPONENTS * views)


STEPS = (
    Step(
        name="data/fetch",
        verb="fetch",
        module="afterimage.data.fetch",
        help="read the source into one checked array file; the only step that may use the network",
        folder="data/fetch",
        keys=("data", "text"),
        settings=_fetch_settings,
        inputs=lambda study, job: {},
        code=lambda study, job: (study.data.source.reader,),
    ),
    Step(
        name=SPLIT,
        verb="split",
        module="afterimage.data.split",
        help="draw the pool of training images, and held-out, reference and fusion images",
        folder=SPLIT,
        keys=("data",),
        settings=_split_settings,
        inputs=lambda study, job: {"images": "data/fetch/images.npz"},
        size=_split_size,
    ),
    Step(
        name=PLANTING,
        verb="planting",
        module="afterimage.data.planting",
        help="make one training set of planted duplicates, with their never-trained twins",
        folder=PLANTING + "/{job}",
        keys=("data",),
        settings=lambda study, job: study.data.model_dump(mode="json", include={"plant", "flips"}),
        inputs=lambda study, job: {
            "pool": f"{SPLIT}/pool.npz",
            "pool_table": f"{SPLIT}/pool.parquet",
        },
        addresses=_plantings,
        size=_planting_size,
    ),
    Step(
        name=ENCODE,
        verb="encode",
        module="afterimage.data.encode",
        help="embed every caption of a variant once",
        folder=ENCODE + "/{job}",
        keys=("text", "forget"),
        settings=_encode_settings,
        inputs=_encode_inputs,
        addresses=_encoded,
        work=lambda study, name: work.encoding(study),
        memory=memory.texts,
        size=None,
        networks=True,
    ),
    Step(
        name=AUTOENCODER,
        verb="autoencoder",
        module="afterimage.data.autoencoder",
        help="train the autoencoder of latents on the reference split, or check a stored one",
        folder=AUTOENCODER,
        keys=("autoencoder",),
        settings=_autoencoder_settings,
        inputs=lambda study, job: {"reference": f"{SPLIT}/reference.npz"},
        addresses=_with_autoencoder,
        work=lambda study, name: work.autoencoder_training(study),
        memory=memory.autoencoder,
        size=None,
        networks=True,
    ),
    Step(
        name=LATENTS,
        verb="latents",
        module="afterimage.data.latents",
        help="encode every image once",
        folder=LATENTS,
        keys=("data",),
        settings=lambda study, job: {"flips": study.data.flips},
        inputs=_latents_inputs,
        addresses=_with_autoencoder,
        work=_encoding,
        memory=memory.autoencoder,
        size=None,
        networks=True,
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
        name=DEDUP,
        verb="dedup",
        module="afterimage.data.dedup",
        help="find and remove near-duplicates, scored against the planted ground truth",
        folder=DEDUP + "/{job}",
        keys=("dedup", "data", "arms"),
        settings=lambda study, job: _deduplication(study, job.name)[0].model_dump(mode="json"),
        inputs=_dedup_inputs,
        addresses=_deduplicated,
        work=_dedup_work,
        memory=_dedup_memory,
        size=lambda study, name: Size(
            study.data.split.train * work.values(study), study.data.split.train
        ),
    ),
)
