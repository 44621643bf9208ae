"""The data of a study: sources of images, splits, planted duplicates, deduplication, classifier.

A new source is a block here, listed in ``Source``, and the module that its ``reader`` names, with
``contents(source, reading) -> afterimage.data.records.Contents``. Nothing else lists the sources.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from afterimage.config.base import Block, Sha256

ResizeFilter = Literal["bilinear", "box", "bicubic", "lanczos"]
Crop = Literal["centre", "none"]
SMALLEST, LARGEST = 4, 1024
"""Sides in pixels that images can be resized to."""

Shape = tuple[int, int, int]
"""Height, width and channels of an image."""


class SourceBlock(Block):
    """What is known of every source before a file is read."""

    reader: ClassVar[str]
    """Module whose ``contents`` reads the source."""
    known_shape: ClassVar[Shape | None] = None
    """Shape of the images as stored; None if only the files tell."""
    known_labels: ClassVar[range | None] = None
    """Labels of the images; None if only the files tell."""

    @property
    def captioned(self) -> bool:
        """Whether the images have captions."""
        return self.has_columns

    @property
    def has_columns(self) -> bool:
        """Whether captions are in a column, next to which others may hold variants of them."""
        return getattr(self, "caption_column", None) is not None


class SklearnDigits(SourceBlock):
    """The 1,797 8x8 grey digits that scikit-learn ships; needs no network."""

    reader: ClassVar[str] = "afterimage.data.digits"
    known_shape: ClassVar[Shape | None] = (8, 8, 1)
    known_labels: ClassVar[range | None] = range(10)
    licence: ClassVar[str] = (
        "BSD-3-Clause, shipped with scikit-learn (UCI optical digits, CC BY 4.0)"
    )

    kind: Literal["sklearn-digits"]


class Shapes(SourceBlock):
    """Coloured shapes on grey, drawn by rule, with captions such as "a red circle": concepts whose
    combinations are known (after Okawa et al. 2023); needs no network."""

    reader: ClassVar[str] = "afterimage.data.shapes"
    known_shape: ClassVar[Shape | None] = (16, 16, 3)
    known_labels: ClassVar[range | None] = range(16)
    licence: ClassVar[str] = "none: drawn by a program"

    kind: Literal["shapes"]
    each: Annotated[int, Field(ge=1)]
    """Images of each combination of a colour and a shape."""

    @property
    def captioned(self) -> bool:
        """Yes."""
        return True


class HuggingFace(SourceBlock):
    """A data set on the Hugging Face Hub, read from its parquet files at a pinned revision."""

    reader: ClassVar[str] = "afterimage.data.hub"

    kind: Literal["huggingface"]
    dataset: str
    """Id, e.g. ``uoft-cs/cifar10``."""
    revision: Annotated[str, Field(min_length=1)]
    """Commit hash or tag. A branch name is accepted but pins nothing."""
    config: str | None = None
    """Name of the data set's configuration (folder), where it has several."""
    split: str = "train"
    """``train``, ``test``, or several joined by ``+``; a split named test or validation counts as
    the official test split."""
    image_column: str | None = None
    """Column with the images; optional where only one column holds images."""
    label_column: str | Literal[False] | None = None
    """Column with labels: integers, or text, whose sorted values become 0, 1, ... By default
    ``label`` where there is one; false reads no labels."""
    caption_column: str | None = None
    """Column with captions, text; null reads none. Every image needs one."""
    sha256: dict[str, Sha256] = {}
    """Path in the repository -> expected sha256 of every file of the split. With a full commit hash
    as ``revision``, files in the Hub's local cache are then read without network access."""
    licence: str = "see the data set's card"
    """Note kept in the manifest."""

    @property
    def pinned(self) -> bool:
        """Whether the revision is a full commit hash, which no later push can move."""
        return re.fullmatch("[0-9a-f]{40}", self.revision) is not None


class Parquet(SourceBlock):
    """Hub-style parquet files on disk: a struct column with ``bytes``, and a label column."""

    reader: ClassVar[str] = "afterimage.data.parquet"

    kind: Literal["parquet"]
    path: str | list[str]
    """File, folder of parquet files, glob pattern, or a list of them. A path that exists is taken
    literally; in any other, environment variables are expanded."""
    test_path: str | list[str] | None = None
    """Files of the official test split, if it is to be used too."""
    image_column: str | None = None
    """Column with the images; optional where only one column holds images."""
    label_column: str | Literal[False] | None = None
    """Column with labels: integers, or text, whose sorted values become 0, 1, ... By default
    ``label`` where there is one; false reads no labels."""
    caption_column: str | None = None
    """Column with captions, text; null reads none. Every image needs one."""
    sha256: dict[str, Sha256] = {}
    """File name -> expected sha256. A file with another checksum is an error."""
    licence: str = "unknown"
    """Note kept in the manifest."""


class ImageFolder(SourceBlock):
    """A folder of image files, or a zip of one, with or without one sub-folder per class; or a
    single image file. Every page or frame of a file is an image of its own."""

    reader: ClassVar[str] = "afterimage.data.folder"

    kind: Literal["image_folder"]
    path: str
    """Folder, zip or image file. Environment variables are expanded; links to folders are
    followed."""
    on_bad_file: Literal["fail", "skip"] = "fail"
    """What to do about unreadable files and, without ``resize``, files that differ in size from
    most: they are counted and named either way."""
    captions: Literal["metadata.jsonl", "captions.json", "txt"] | None = None
    """Files next to the images with their captions; null reads none. ``metadata.jsonl``: an object
    with ``file_name`` and the caption per line. ``captions.json``: file name -> caption, or a list
    of such objects. ``txt``: a text file for each image, of the same name but for the ending. Every
    image needs a caption, and every caption an image."""
    caption_column: str | None = None
    """Key of the captions in the objects; by default the only one of ``text``, ``caption`` and
    ``prompt``."""
    licence: str = "unknown"
    """Note kept in the manifest."""

    @model_validator(mode="after")
    def _objects_have_keys(self) -> ImageFolder:
        if self.caption_column is not None and not self.has_columns:
            raise ValueError(
                f"caption_column = {self.caption_column!r} is a key of objects, but captions = "
                f"{self.captions!r}; allowed are 'metadata.jsonl' and 'captions.json'"
            )
        return self

    @property
    def captioned(self) -> bool:
        """Whether ``captions`` says where captions are."""
        return self.captions is not None

    @property
    def has_columns(self) -> bool:
        """Whether captions are values of objects with keys."""
        return self.captions in ("metadata.jsonl", "captions.json")


class ArrayFile(SourceBlock):
    """One ``.npz`` with images (uint8, N x H x W x C) and optionally labels and ``ids``."""

    reader: ClassVar[str] = "afterimage.data.arrays"

    kind: Literal["npz"]
    path: str
    """The file. Environment variables are expanded."""
    array: str | None = None
    """Array with the images; by default ``images``, or else the only array shaped like images."""
    label_array: str | None = None
    """Array with integer labels; by default ``labels``, or ``arr_1`` next to images in ``arr_0``,
    the names that ADM's sampler uses."""
    licence: str = "unknown"
    """Note kept in the manifest."""


Source = Annotated[
    SklearnDigits | Shapes | HuggingFace | Parquet | ImageFolder | ArrayFile,
    Field(discriminator="kind"),
]


class Perturbation(Block):
    """A slight change to each planted copy, which makes it a near-duplicate."""

    noise: Annotated[float, Field(ge=0, le=0.2)] = 0.0
    """Standard deviation of Gaussian noise, in units of the full range [0, 1]."""
    brightness: Annotated[float, Field(ge=0, le=0.2)] = 0.0
    """Half-width of a uniform shift of all values, in the same unit."""


class Noise(Block):
    """Gaussian noise."""

    kind: Literal["noise"]
    deviation: Annotated[float, Field(gt=0, le=0.2)]
    """Standard deviation, in units of the full range [0, 1]."""


class Shift(Block):
    """A shift in one of eight directions; the border is repeated where it is exposed."""

    kind: Literal["shift"]
    pixels: Annotated[int, Field(ge=1, le=16)]
    """By how much."""


class Cropped(Block):
    """A crop at a random place, resized to the image's size."""

    kind: Literal["crop"]
    share: Annotated[float, Field(gt=0, le=0.5)]
    """Share of each side that is cut off, at least a pixel."""


class Colour(Block):
    """Each channel multiplied by a factor of its own: another colour, or brightness in grey."""

    kind: Literal["colour"]
    strength: Annotated[float, Field(gt=0, le=0.5)]
    """Half-width around 1 of the uniform factor."""


class Contrast(Block):
    """All deviations from the image's mean multiplied by one factor."""

    kind: Literal["contrast"]
    strength: Annotated[float, Field(gt=0, le=0.5)]
    """Half-width around 1 of the uniform factor."""


class Blur(Block):
    """A Gaussian blur."""

    kind: Literal["blur"]
    deviation: Annotated[float, Field(gt=0, le=4)]
    """Standard deviation in pixels."""


class Jpeg(Block):
    """Encoding as JPEG."""

    kind: Literal["jpeg"]
    quality: Annotated[int, Field(ge=1, le=100)]
    """Pillow's quality."""


class Mirror(Block):
    """A horizontal mirror image."""

    kind: Literal["mirror"]


Change = Annotated[
    Noise | Shift | Cropped | Colour | Contrast | Blur | Jpeg | Mirror,
    Field(discriminator="kind"),
]


class Plant(Block):
    """One group of planted duplicates."""

    copies: Annotated[int, Field(ge=2)]
    """Number of times that each image of the group, with its caption if it has one, occurs in the
    training set; or what ``repeat`` says of it."""
    repeat: Literal["both", "image", "caption"] = "both"
    """What occurs so often (Somepalli et al. 2023, "Understanding and mitigating copying in
    diffusion models"). both: the image with its caption. image: the image, each time with another
    caption, those of images that are not trained on. caption: the caption, each time with another
    image; the group's image itself once. Unplanted images are the fourth case, neither."""
    images: Annotated[int, Field(ge=1)]
    """Number of different images in the group."""
    perturbation: Perturbation | None = None
    """None plants exact copies; otherwise every copy but the first is slightly perturbed."""
    perturb: list[Change] = []
    """Changes that the copies but the first have in turn: the second copy the first change, and so
    on, from the start again after the last. Deduplication is scored on each kind."""

    @model_validator(mode="after")
    def _one_way_of_perturbing(self) -> Plant:
        if self.perturbation is not None and self.perturb:
            raise ValueError(
                "perturbation and perturb cannot both be given; noise is a kind of both"
            )
        if self.repeat == "caption" and (self.perturbation is not None or self.perturb):
            raise ValueError(
                "repeat = 'caption' makes no copies of an image that perturbation or perturb could "
                "change"
            )
        if len(self.perturb) > self.copies - 1:
            raise ValueError(
                f"perturb names {len(self.perturb)} changes, but copies = {self.copies} leaves "
                f"{self.copies - 1} copies to be changed"
            )
        return self


class Split(Block):
    """Sizes of the training, held-out, reference and fusion splits, drawn from the study's seed."""

    train: Annotated[int, Field(ge=2)]
    """Number of training images, including planted copies."""
    holdout: Annotated[int, Field(ge=2)]
    """Real images that no model and no feature network sees: the control of every attack."""
    reference: Annotated[int, Field(ge=2)] | None = None
    """Real images for reference statistics and for the feature classifier; None uses all that
    remain."""
    fusion: Annotated[int, Field(ge=0)] = 0
    """Real images that arms with ``dual_fusion`` mix into their training images; in no other split,
    so that no generation is measured against an image that its arm was trained on. Needs
    ``reference``."""
    official: bool = False
    """Draw training images only from the source's official training split, and all others only from
    its official test split."""

    @model_validator(mode="after")
    def _leaves_images_for_fusion(self) -> Split:
        if self.fusion and self.reference is None:
            raise ValueError(
                f"fusion = {self.fusion} needs split.reference: without it the reference takes all "
                "images that remain"
            )
        return self


class Data(Block):
    """The images of a study: source, size, splits and planted duplicates."""

    source: Source
    """Where the images come from."""
    classes: list[int] | None = None
    """Labels to keep; None keeps all."""
    images: Annotated[int, Field(ge=4)] | None = None
    """Number of images to keep, drawn with the study's seed; None keeps all."""
    colour: Literal["keep", "grey", "rgb"] = "keep"
    """Keep the channels, or convert all images to grey or to RGB."""
    resize: Annotated[int, Field(ge=SMALLEST, le=LARGEST)] | None = None
    """Side length in pixels that all images are resized to; None keeps the size."""
    resize_filter: ResizeFilter = "bilinear"
    """Interpolation of ``resize``, always antialiased. Most trainers use ``bilinear``, the default
    of torchvision's Resize."""
    crop: Crop = "centre"
    """``centre`` resizes the shorter side and crops the longer to its centre; ``none`` squashes the
    image into the square."""
    flips: bool = False
    """Train with random horizontal flips. The attacks then compare with mirrored images too."""
    split: Split
    """Sizes of the splits."""
    plant: list[Plant] = []
    """Groups of duplicates to plant in the training split; empty plants none."""
    plantings: Annotated[int, Field(ge=1)] = 1
    """Number of plantings: training sets of the same images of which others are planted. Replicate
    r is trained on planting r modulo this number, so that intervals over replicates are not those
    of a single choice of planted images."""

    @model_validator(mode="after")
    def _plantings_differ(self) -> Data:
        if self.plantings > 1 and not self.plant:
            raise ValueError(
                f"plantings = {self.plantings}: nothing is planted (plant is empty), so that all "
                "would be the same; allowed is 1"
            )
        return self

    @model_validator(mode="after")
    def _plants_fit(self) -> Data:
        planted = sum(p.copies * p.images for p in self.plant)
        if planted > self.split.train:
            raise ValueError(
                f"plant asks for {planted} training images (the sum of copies x images), more than "
                f"split.train = {self.split.train}"
            )
        twins = sum(p.images for p in self.plant)
        if self.images is not None:
            lent = sum((p.copies - 1) * p.images for p in self.plant if p.repeat == "image")
            needed = self.distinct + twins + lent
            needed += self.split.holdout + (self.split.reference or 2) + self.split.fusion
            if needed > self.images:
                captions = f"{lent} whose captions copies have, " if lent else ""
                fusion = f", {self.split.fusion} fusion" if self.split.fusion else ""
                raise ValueError(
                    f"images = {self.images} is too few: {self.distinct} distinct for training, "
                    f"{twins} twins, {captions}{self.split.holdout} holdout and "
                    f"{self.split.reference or 'at least 2'} reference{fusion} need {needed}"
                )
        return self

    def image_shape(self, assumed: Shape) -> Shape:
        """Return the shape of an image, as far as it is known before anything is read.

        Args:
            assumed: Stands in for the stored shape where only the files tell it.
        """
        height, width, channels = self.source.known_shape or assumed
        if self.resize is not None:
            height = width = self.resize
        return height, width, {"keep": channels, "grey": 1, "rgb": 3}[self.colour]

    @property
    def known_labels(self) -> list[int] | None:
        """Labels of the images that are kept; None where only the files tell them."""
        known = self.source.known_labels
        return self.classes or (None if known is None else list(known))

    @property
    def distinct(self) -> int:
        """Number of different source images in the training set."""
        return self.split.train - sum(
            (p.copies - 1) * p.images for p in self.plant if p.repeat != "caption"
        )


class PerceptualHash(Block):
    """64-bit DCT hash; two images are near when few bits differ."""

    max_bits: Annotated[int, Field(ge=0, le=32)] = 2
    """Largest Hamming distance of a duplicate pair."""


class Embedding(Block):
    """Cosine neighbours in a feature space, proposed by faiss."""

    features: Literal["pixels", "pca", "classifier"] = "pca"
    """Centred pixels, their principal components, or the features of the study's own classifier,
    which mistakes images of one class for near-duplicates."""
    components: Annotated[int, Field(ge=1)] = 32
    """Number of principal components, with ``features: pca``."""
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.98
    """Smallest cosine similarity of a duplicate pair."""


class Likeness(Block):
    """Pairs alike but for a shift, a mirror, colours or encoding (``metrics.likeness``)."""

    false_pairs: Annotated[float, Field(gt=0, lt=0.5)] = 0.003
    """Share of the training images that would have a near-duplicate if all were as unrelated as the
    reference images are; sets the threshold."""
    mirrors: bool = True
    """Whether a mirror image is a near-duplicate."""


class Dedup(Block):
    """How near-duplicates are found in the training set (Carlini et al. 2023, section 7.1)."""

    methods: Annotated[
        list[Literal["exact", "phash", "embedding", "likeness", "caption"]], Field(min_length=1)
    ] = ["exact", "likeness"]
    """Detectors whose pairs are joined into groups. All are scored against the planted duplicates,
    whichever are used; but ``likeness``, which takes longer, only where it is used, and
    ``caption``, equal captions, only where images have captions."""
    same_caption: bool = False
    """Join only images that have the same caption too: duplicates of image and caption."""
    likeness: Likeness = Likeness()
    """The detector that comes closest to what people call duplicates."""
    phash: PerceptualHash = PerceptualHash()
    """The perceptual hash detector."""
    embedding: Embedding = Embedding()
    """The embedding detector."""
    keep: Literal["first", "medoid"] = "first"
    """Which image of a group is kept: the one with the lowest id, or the one closest to all
    others."""


class Classifier(Block):
    """The small network whose features measure quality and propose duplicates; trained on the
    reference split only."""

    channels: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [32, 64]
    """Width of each convolutional block."""
    features: Annotated[int, Field(ge=2)] = 64
    """Width of the penultimate layer, i.e. the dimension of the feature space."""
    epochs: Annotated[int, Field(ge=1)] = 30
    """Passes over the training share of the reference split."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images per update."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """AdamW's step size."""
