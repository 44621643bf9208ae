"""Where the images come from, and what is done to them once: sources, parts, planted duplicates, deduplication."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from afterimage.config.base import Block

ResizeFilter = Literal["bilinear", "box", "bicubic", "lanczos"]
Crop = Literal["centre", "none"]
SMALLEST, LARGEST = 4, 1024
"""Sides in pixels that images can be resized to."""


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
    """Column with the images; may be left out where only one column holds images."""
    label_column: str | Literal[False] | None = None
    """Column with labels: integers, or text, whose sorted values become 0, 1, ... By default ``label`` where there is one;
    false reads none."""
    licence: str = "see the data set's card"
    """Note kept in the manifest."""


class Parquet(Block):
    """Hub-style parquet files on disk: a struct column with ``bytes``, and a label column."""

    kind: Literal["parquet"]
    path: str | list[str]
    """File, folder of parquet files, glob pattern, or a list of them. What exists as it stands is taken as it stands; in
    anything else environment variables are expanded."""
    test_path: str | list[str] | None = None
    """Files of the official test part, if it is to be used too."""
    image_column: str | None = None
    """Column with the images; may be left out where only one column holds images."""
    label_column: str | Literal[False] | None = None
    """Column with labels: integers, or text, whose sorted values become 0, 1, ... By default ``label`` where there is one;
    false reads none."""
    sha256: dict[str, str] = {}
    """File name -> expected sha256. A file with another checksum is an error."""
    licence: str = "unknown"
    """Note kept in the manifest."""


class ImageFolder(Block):
    """A folder, or a zip of one, of image files, with or without one sub-folder per class; or a single image file. Every
    page or frame of a file is an image of its own."""

    kind: Literal["image_folder"]
    path: str
    """Folder, zip or image file. Environment variables are expanded. Links to folders are followed."""
    on_bad_file: Literal["fail", "skip"] = "fail"
    """What to do about unreadable files and, without ``resize``, files of another size than most: counted and named either way."""
    licence: str = "unknown"
    """Note kept in the manifest."""


class ArrayFile(Block):
    """One ``.npz`` with images (uint8, N x H x W x C) and optionally labels and ``ids``."""

    kind: Literal["npz"]
    path: str
    """The file. Environment variables are expanded."""
    array: str | None = None
    """Array with the images; by default ``images``, or else the only one that has the form of images."""
    label_array: str | None = None
    """Array with integer labels; by default ``labels``, or ``arr_1`` beside images in ``arr_0``, as ADM's sampler names them."""
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
    resize: Annotated[int, Field(ge=SMALLEST, le=LARGEST)] | None = None
    """Side length in pixels that all images are resized to; None keeps the size."""
    resize_filter: ResizeFilter = "bilinear"
    """What ``resize`` weighs pixels with; all are antialiased. ``bilinear`` is what trainers use (torchvision's Resize)."""
    crop: Crop = "centre"
    """``centre`` resizes the shorter side and cuts the middle out of the longer; ``none`` squashes the image into the square."""
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
