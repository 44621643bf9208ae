"""The typed study: every key of ``params.yaml``, its type, range, default and meaning.

Unknown keys are errors that name the nearest allowed key. ``workflow/schemas/params.schema.json`` is generated from these
classes (``afterimage config schema``) and a test holds the two together. ``resolve`` cuts out of a study what one job depends
on; the JSON that it returns is all that a step sees, so a change of any other key cannot change, or rerun, that step.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator


class ConfigError(ValueError):
    """A study that cannot run; the message names the key, the value and what is allowed."""


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Share = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]


# ---- data ---------------------------------------------------------------------------------------------------------------


class SklearnDigits(Block):
    """The 1,797 8x8 grey digits that scikit-learn ships; needs no network."""

    kind: Literal["sklearn-digits"]


class HuggingFace(Block):
    """A data set of the Hugging Face Hub, read from its parquet files at a pinned revision."""

    kind: Literal["huggingface"]
    dataset: str
    """Id, e.g. ``uoft-cs/cifar10``."""
    revision: Annotated[str, Field(min_length=1)]
    """Commit hash or tag. A branch name is accepted but is not a pin."""
    config: str | None = None
    """Name of the data set's configuration (folder), where it has several."""
    split: str = "train"
    """``train``, ``test``, or several joined by ``+``; a part named test or validation counts as the official test part."""
    image_column: str | None = None
    """Column with the images; by default the first of struct type with ``bytes``."""
    label_column: str | None = None
    """Column with integer labels; by default ``label`` where there is one."""
    licence: str = "see the data set's card"
    """Note kept in the manifest."""


class Parquet(Block):
    """Hub-style parquet files on disk: a struct column with ``bytes``, and an integer label column."""

    kind: Literal["parquet"]
    path: str | list[str]
    """File, glob pattern or list of both. Environment variables are expanded."""
    test_path: str | list[str] | None = None
    """Files of the official test part, if it is to be used too."""
    image_column: str | None = None
    """Column with the images; by default the first of struct type with ``bytes``."""
    label_column: str | None = None
    """Column with integer labels; by default ``label`` where there is one."""
    sha256: dict[str, str] = {}
    """File name -> expected sha256. A file with another checksum is an error."""
    licence: str = "unknown"
    """Note kept in the manifest."""


class ImageFolder(Block):
    """A folder, or a zip of one, of image files, with or without one sub-folder per class."""

    kind: Literal["image_folder"]
    path: str
    """Folder or zip file. Environment variables are expanded."""
    on_bad_file: Literal["fail", "skip"] = "fail"
    """What to do about unreadable files and, without ``resize``, files of another size than most: counted and named either way."""
    licence: str = "unknown"
    """Note kept in the manifest."""


class ArrayFile(Block):
    """One ``.npz`` with ``images`` (uint8, N x H x W x C) and optionally ``labels`` and ``ids``."""

    kind: Literal["npz"]
    path: str
    """The file. Environment variables are expanded."""
    licence: str = "unknown"
    """Note kept in the manifest."""


class ArchiveUrl(Block):
    """CIFAR-10 or CIFAR-100 as the python tarball of its authors."""

    kind: Literal["archive_url"]
    layout: Literal["cifar10", "cifar100"]
    """Which of the two data sets the tarball holds."""
    url: str | None = None
    """Address; by default the authors' own."""
    sha256: str | None = None
    """Expected checksum; by default that of the authors' file. Needed with another ``url``."""
    labels: Literal["fine", "coarse"] = "fine"
    """Which labels CIFAR-100 is read with."""
    licence: str = "none stated by the authors"
    """Note kept in the manifest."""

    @model_validator(mode="after")
    def _checksum_goes_with_url(self) -> ArchiveUrl:
        if self.url is not None and self.sha256 is None:
            raise ValueError("url needs sha256: an archive from another address must be pinned")
        return self


Source = Annotated[
    SklearnDigits | HuggingFace | Parquet | ImageFolder | ArrayFile | ArchiveUrl,
    Field(discriminator="kind"),
]


class Perturbation(Block):
    """A light change to each planted copy, so that copies are near but not equal."""

    noise: Annotated[float, Field(ge=0, le=0.2)] = 0.0
    """Standard deviation of Gaussian noise, in units of the full range [0, 1]."""
    brightness: Annotated[float, Field(ge=0, le=0.2)] = 0.0
    """Half-width of a uniform shift of all values, in the same unit."""


class Plant(Block):
    """One group of planted duplicates."""

    copies: Annotated[int, Field(ge=2)]
    """How often each image of the group stands in the training set."""
    images: Annotated[int, Field(ge=1)]
    """How many different images the group has."""
    perturbation: Perturbation | None = None
    """None plants exact copies; otherwise every copy but the first is changed lightly."""


class Split(Block):
    """Sizes of the three parts, drawn once from the study's seed."""

    train: Annotated[int, Field(ge=2)]
    """Number of training images, planted copies counted in."""
    holdout: Annotated[int, Field(ge=2)]
    """Real images that no model and no feature network sees: the control of every attack."""
    reference: Annotated[int, Field(ge=2)] | None = None
    """Real images for reference statistics and for the feature classifier; None takes all that are left."""
    official: bool = False
    """Draw the training images from the source's official training part and the others from its test part only."""


class Data(Block):
    """Where the images come from and what is done to them once."""

    source: Source
    """Where the images come from."""
    classes: list[int] | None = None
    """Labels to keep; None keeps all."""
    images: Annotated[int, Field(ge=4)] | None = None
    """How many images to keep, drawn by the study's seed; None keeps all."""
    colour: Literal["keep", "grey", "rgb"] = "keep"
    """Keep the channels, or turn all images grey or into three channels."""
    resize: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Side length in pixels after an area resize of the centre square; None keeps the size."""
    flips: bool = False
    """Train with random horizontal flips. The attacks then compare with the mirror images too."""
    split: Split
    """Sizes of the parts."""
    plant: list[Plant] = []
    """Groups of duplicates to plant in the training part; empty plants none."""

    @model_validator(mode="after")
    def _plants_fit(self) -> Data:
        planted = sum(p.copies * p.images for p in self.plant)
        if planted > self.split.train:
            raise ValueError(
                f"plant asks for {planted} training images (the sum of copies x images), more than split.train = {self.split.train}"
            )
        twins = sum(p.images for p in self.plant)
        if self.images is not None:
            needed = self.distinct + twins + self.split.holdout + (self.split.reference or 2)
            if needed > self.images:
                raise ValueError(
                    f"images = {self.images} is too few: {self.distinct} distinct for training, {twins} twins, "
                    f"{self.split.holdout} holdout and {self.split.reference or 'at least 2'} reference need {needed}"
                )
        return self

    @property
    def distinct(self) -> int:
        """Number of different source images in the training set."""
        return self.split.train - sum((p.copies - 1) * p.images for p in self.plant)


class PerceptualHash(Block):
    """64-bit DCT hash; two images are near when few bits differ."""

    max_bits: Annotated[int, Field(ge=0, le=32)] = 2
    """Largest Hamming distance of a duplicate pair."""


class Embedding(Block):
    """Cosine neighbours in a feature space, proposed by faiss."""

    features: Literal["pixels", "pca", "classifier"] = "pca"
    """Centred pixels, their principal components, or the study's own classifier, which takes one class for near-duplicates."""
    components: Annotated[int, Field(ge=1)] = 32
    """Number of principal components, with ``features: pca``."""
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.98
    """Smallest cosine similarity of a duplicate pair."""


class Dedup(Block):
    """How near-duplicates are found in the training set (Carlini et al. 2023, section 7.1)."""

    methods: Annotated[list[Literal["exact", "phash", "embedding"]], Field(min_length=1)] = [
        "exact",
        "phash",
        "embedding",
    ]
    """Whose pairs are joined into groups. All three are scored against the planted truth whichever are used."""
    phash: PerceptualHash = PerceptualHash()
    """The perceptual hash detector."""
    embedding: Embedding = Embedding()
    """The embedding detector."""
    keep: Literal["first", "medoid"] = "first"
    """Which image of a group stays: the one with the lowest id, or the one nearest to all others."""


class Classifier(Block):
    """The small network whose features judge quality and propose duplicates; trained on the reference split only."""

    channels: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [32, 64]
    """Width of each convolutional block."""
    features: Annotated[int, Field(ge=2)] = 64
    """Width of the penultimate layer, i.e. dimension of the feature space."""
    epochs: Annotated[int, Field(ge=1)] = 30
    """Passes over the training share of the reference part."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images per update."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """AdamW's step size."""


# ---- training -----------------------------------------------------------------------------------------------------------


class Model(Block):
    """The diffusers ``UNet2DModel`` to train."""

    channels: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    """Channels per level, finest first."""
    attention: list[bool]
    """Self-attention per level, finest first."""
    layers_per_block: Annotated[int, Field(ge=1)] = 2
    """Residual blocks per level."""
    attention_head_dim: Annotated[int, Field(ge=1)] = 8
    """Channels per attention head."""
    norm_groups: Annotated[int, Field(ge=1)] = 8
    """Groups of every group normalisation; must divide all channels."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout inside the residual blocks."""

    @model_validator(mode="after")
    def _levels_agree(self) -> Model:
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention has {len(self.attention)} entries but channels has {len(self.channels)}: one per level"
            )
        for width in self.channels:
            if width % self.norm_groups:
                raise ValueError(f"channels: {width} is not a multiple of norm_groups = {self.norm_groups}")
        for width, on in zip(self.channels, self.attention, strict=True):
            if on and width % self.attention_head_dim:
                raise ValueError(
                    f"channels: {width} has attention but is not a multiple of attention_head_dim = {self.attention_head_dim}"
                )
        return self


class Diffusion(Block):
    """The forward process and what the network predicts."""

    timesteps: Annotated[int, Field(ge=2, le=10_000)] = 1000
    """T, the number of noise levels."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Linear betas from 1e-4 to 0.02 (Ho et al. 2020) or the cosine schedule (Nichol & Dhariwal 2021)."""
    prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    """What the network predicts: the noise, v (Salimans & Ho 2022) or the clean image."""


class Train(Block):
    """The optimisation, the same for every arm unless the arm says otherwise."""

    updates: Annotated[int, Field(ge=1)] | None = None
    """Budget in optimiser updates. Give this or ``epochs``."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Budget in passes over the arm's training images."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images per optimiser update, over all accumulation steps and processes."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Forward and backward passes per update; must divide ``batch_size``."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """AdamW's step size after warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Updates over which the learning rate rises linearly from 0."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Decay of the moving average of the weights; 0 keeps the last weights."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm; null does not clip."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward and backward pass; weights and averages stay fp32."""
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of labels replaced by the null label in label-conditional arms (classifier-free guidance)."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    """Updates between two saved states. A stopped run goes on from the last."""
    log_every: Annotated[int, Field(ge=1)] = 25
    """Updates between two points of the training curves."""

    @model_validator(mode="after")
    def _budget(self) -> Train:
        if (self.updates is None) == (self.epochs is None):
            raise ValueError(f"give exactly one of updates and epochs (updates = {self.updates}, epochs = {self.epochs})")
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation = {self.accumulation} does not divide batch_size = {self.batch_size}")
        return self


class Arm(Block):
    """What every arm has: a method and the settings that it trains with."""

    data: Literal["planted", "deduplicated"] = "planted"
    """Train on the training set as planted, or on what deduplication left of it."""
    fraction: Share = 1.0
    """Train each replicate on its own random share of those images (Carlini et al. 2023, section 5: one half)."""
    condition: Literal["none", "label"] = "none"
    """Train without labels, or conditioned on them with label dropout."""
    base: str | None = None
    """Arm of the same study whose weights this one starts from (same replicate)."""
    train: dict[str, Any] = {}
    """Keys of the study's ``train`` block that differ in this arm."""


class Baseline(Arm):
    """Plain training (Ho et al. 2020); also every control arm that only changes data or budget."""

    method: Literal["baseline"]


METHODS = {"baseline": "afterimage.methods.baseline"}
"""Method name -> module. A new method adds its block above, joins ``AnyArm`` and stands here."""

AnyArm = Annotated[Baseline, Field()]


# ---- sampling, attacks, quality, report ---------------------------------------------------------------------------------


class Sample(Block):
    """How generations are drawn from each trained arm."""

    images: Annotated[int, Field(ge=1)]
    """Generations per arm and replicate."""
    sampler: Literal["ddim", "ddpm"] = "ddim"
    """DDIM (Song et al. 2021) or ancestral DDPM (Ho et al. 2020)."""
    steps: Annotated[int, Field(ge=1)] = 50
    """Denoising steps."""
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """DDIM's noise share; 0 is deterministic given the start."""
    weights: Literal["ema", "raw"] = "ema"
    """Sample from the averaged weights or from the last ones."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Classifier-free guidance scale of label-conditional arms: 1 is the plain conditional model, 0 the unconditional one."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Images denoised at once; bounds memory, never the result."""


class Extraction(Block):
    """Untargeted extraction (Carlini et al. 2023, section 5.1) and MQ (IET-AGC)."""

    distance: Literal["l2", "tiled"] = "l2"
    """Normalised l2, or the largest l2 over a grid of tiles."""
    tiles: Annotated[int, Field(ge=1)] = 4
    """Tiles per side, with ``distance: tiled``; must divide the image's side."""
    anchor: Literal["training", "candidate"] = "training"
    """Whose neighbours normalise the distance in the headline numbers; both are computed and reported."""
    alpha: Annotated[float, Field(gt=0)] = 0.5
    """The paper's fixed factor of the neighbours' mean distance (0.5)."""
    calibrated_rate: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """The calibrated alpha is the largest at which at most this share of one half of the held-out images is flagged."""
    neighbours: Annotated[int, Field(ge=1)] = 50
    """n, the number of training images whose mean distance normalises (fewer where the set is smaller)."""
    include_self: bool = False
    """Count a training image among its own neighbours, as one public implementation does."""
    gallery: Literal["all", "distinct"] = "all"
    """Neighbours among all training rows, exact copies counted each, as published; or among different images only, which keeps
    copies from shrinking the mean distance that normalises."""
    delta: Annotated[float, Field(gt=0)] = 0.15
    """Radius of the eidetic count k, in normalised l2."""
    mq_thresholds: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [
        0.15,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
    ]
    """Ratios below which a generation counts in MQ."""
    mq_neighbours: Annotated[int, Field(ge=1)] = 50
    """Neighbours in the denominator of MQ, the nearest one among them."""
    block: Annotated[int, Field(ge=1)] = 1024
    """Images compared at once; bounds memory, never the result."""


class Quality(Block):
    """How good and how varied generations are, against reference images that no arm was trained on."""

    features: Literal["classifier", "pixels", "inception"] = "classifier"
    """The named feature space: the study's classifier, raw pixels, or Inception (optional extra)."""
    neighbours: Annotated[int, Field(ge=1)] = 5
    """k of precision, recall, density and coverage."""
    kid_subsets: Annotated[int, Field(ge=1)] = 50
    """Random subsets that KID averages over."""
    kid_subset_size: Annotated[int, Field(ge=2)] = 200
    """Images per subset (fewer where there are fewer)."""
    inception_weights: str | None = None
    """Path of torch-fidelity's Inception weights, with ``features: inception``."""
    inception_sha256: str | None = None
    """Checksum that this file must have."""

    @model_validator(mode="after")
    def _weights_are_pinned(self) -> Quality:
        if self.features == "inception" and not (self.inception_weights and self.inception_sha256):
            raise ValueError("features = inception needs inception_weights (a path) and inception_sha256")
        return self


class Statistics(Block):
    """Intervals of every reported number."""

    bootstrap: Annotated[int, Field(ge=10)] = 1000
    """Bootstrap resamples per interval."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Coverage of every interval."""


class Report(Block):
    """What the pages may show."""

    show_images: bool = False
    """Embed training images and their copies in reports. Leave it off where the data shows people."""
    pairs: Annotated[int, Field(ge=1)] = 24
    """Pairs in the picture grid of each arm."""


class Study(Block):
    """One study: everything that ``snakemake all`` needs to know."""

    study: Name
    """Results go to ``results/<study>``."""
    seed: Annotated[int, Field(ge=0)]
    """Root of all random streams."""
    replicates: Annotated[int, Field(ge=1)] = 1
    """Independent trainings and samplings of every arm."""
    data: Data
    """Source, parts and planted duplicates."""
    dedup: Dedup = Dedup()
    """Deduplication of the training part."""
    classifier: Classifier = Classifier()
    """The feature network."""
    model: Model
    """The denoising network of every arm."""
    diffusion: Diffusion = Diffusion()
    """The forward process."""
    train: Train
    """The training of every arm."""
    arms: Annotated[dict[Name, AnyArm], Field(min_length=1)]
    """Name of each arm -> how it is trained. Every arm meets every attack."""
    sample: Sample
    """How generations are drawn."""
    extraction: Extraction = Extraction()
    """The extraction attack."""
    quality: Quality = Quality()
    """The quality measures."""
    statistics: Statistics = Statistics()
    """Intervals."""
    report: Report = Report()
    """What pages show."""

    @field_validator("arms")
    @classmethod
    def _bases_exist(cls, arms: dict[str, Arm]) -> dict[str, Arm]:
        for name, arm in arms.items():
            seen = [name]
            while arm.base is not None:
                if arm.base not in arms:
                    raise ValueError(
                        f"arms.{seen[-1]}.base = {arm.base!r} is not an arm; arms are: {', '.join(arms)}{_nearest(arm.base, arms)}"
                    )
                if arm.base in seen:
                    raise ValueError(f"arms.{name}.base goes round in a circle: {' -> '.join([*seen, arm.base])}")
                seen.append(arm.base)
                arm = arms[arm.base]
        return arms

    @model_validator(mode="after")
    def _arms_train(self) -> Study:
        for name in self.arms:
            self.train_of(name)
        return self

    def train_of(self, arm: str) -> Train:
        """Return the ``train`` block of ``arm``: the study's, with the arm's own keys laid over it."""
        own = self.arms[arm].train
        shared = self.train.model_dump()
        if own.keys() & {"updates", "epochs"}:
            shared.update(updates=None, epochs=None)
        try:
            return Train.model_validate(shared | own)
        except ValidationError as error:
            raise ValueError(_explain(error, prefix=f"arms.{arm}.train", model=Train)) from error


# ---- reading ------------------------------------------------------------------------------------------------------------


def _nearest(word: str, allowed: Any) -> str:
    close = difflib.get_close_matches(str(word), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _fields_at(model: Any, path: tuple[Any, ...]) -> list[str]:
    """Return the keys allowed at ``path`` inside ``model``, following lists, dicts, unions and discriminator tags."""
    candidates: list[Any] = [model]
    for part in path:
        following: list[Any] = []
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                if part in candidate.model_fields:
                    following += _models_in(candidate.model_fields[part].annotation)
                elif any(part in get_args(field.annotation) for field in candidate.model_fields.values()):
                    following.append(candidate)  # a discriminator tag names the class itself
                elif isinstance(part, int) or not candidates[1:]:
                    following.append(candidate)
        candidates = following or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _explain(error: ValidationError, prefix: str = "", model: type[BaseModel] = Study) -> str:
    lines = []
    for problem in error.errors():
        location = problem["loc"]
        key = ".".join(str(part) for part in ((prefix,) if prefix else ()) + location)
        if problem["type"] == "extra_forbidden":
            allowed = _fields_at(model, location[:-1])
            lines.append(f"{key}: unknown key{_nearest(str(location[-1]), allowed)} (allowed here: {', '.join(allowed)})")
        elif problem["type"] == "missing":
            lines.append(f"{key}: missing; it must be given")
        elif problem["type"] == "value_error":
            lines.append(f"{key + ': ' if key else ''}{problem['ctx']['error']}")
        else:
            lines.append(f"{key} = {problem['input']!r}: {problem['msg']}")
    return "\n".join(lines)


def parse(params: dict[str, Any], name: str = "params") -> Study:
    """Return the validated study.

    Raises:
        ConfigError: naming every wrong key, its value and what is allowed.
    """
    try:
        return Study.model_validate(params)
    except ValidationError as error:
        raise ConfigError(f"{name} is not a valid study:\n{_explain(error)}") from error


def load(path: str | Path) -> Study:
    """Read and validate a study file (YAML)."""
    try:
        params = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(params, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, not {type(params).__name__}")
    return parse(params, str(path))


def schema() -> dict[str, Any]:
    """Return the JSON schema of a study."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}


def expand(path: str) -> str:
    """Expand environment variables in a path of a study.

    Raises:
        ConfigError: if a variable is not set.
    """
    for variable in re.findall(r"\$\{?(\w+)\}?", path):
        if variable not in os.environ:
            raise ConfigError(f"{path}: the environment variable {variable} is not set")
    return os.path.expandvars(os.path.expanduser(path))


# ---- what one job depends on --------------------------------------------------------------------------------------------

STEPS = {
    "data/fetch": (),
    "data/split": (),
    "data/classifier": (),
    "data/dedup": (),
    "train": ("arm", "replicate"),
    "sample": ("arm", "replicate"),
    "attack/extraction": ("arm", "replicate"),
    "attack/quality": ("arm", "replicate"),
    "report": (),
}
"""Step -> what addresses one of its jobs."""


def resolve(study: Study, step: str, arm: str | None = None, replicate: int | None = None) -> dict[str, Any]:
    """Return the settings that one job depends on, defaults filled in, as plain JSON values."""
    full = study.model_dump(mode="json")
    data = full["data"]
    settings: dict[str, Any]
    if step == "data/fetch":
        keys = ("source", "classes", "images", "colour", "resize")
        settings = {key: data[key] for key in keys}
    elif step == "data/split":
        settings = {"split": data["split"], "plant": data["plant"]}
    elif step == "data/classifier":
        settings = full["classifier"]
    elif step == "data/dedup":
        settings = full["dedup"]
    elif step == "train":
        assert arm is not None
        settings = {
            "arm": full["arms"][arm] | {"train": study.train_of(arm).model_dump(mode="json")},
            "model": full["model"],
            "diffusion": full["diffusion"],
            "flips": data["flips"],
        }
    elif step == "sample":
        settings = full["sample"]
    elif step == "attack/extraction":
        settings = full["extraction"] | {"flips": data["flips"], "statistics": full["statistics"]}
    elif step == "attack/quality":
        settings = full["quality"] | {"statistics": full["statistics"]}
    elif step == "report":
        settings = {"study": study.study, "arms": list(study.arms), "replicates": study.replicates} | full["report"]
    else:
        raise KeyError(f"unknown step {step!r}; steps are: {', '.join(STEPS)}")
    return {"step": step, "arm": arm, "replicate": replicate, "seed": study.seed, "settings": settings}


def digest(config: dict[str, Any]) -> str:
    """Return the sha256 of a resolved config, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
