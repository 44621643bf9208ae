"""Read a data source of any kind into one array of images, with a manifest of what was read.

The source's block names the module that reads it (``config.data.SourceBlock.reader``).
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from afterimage import config as configs
from afterimage import scratch
from afterimage.artifacts import ArtifactError
from afterimage.config.data import Crop, ResizeFilter
from afterimage.data import pictures, zips
from afterimage.data.pictures import Colour, Transform
from afterimage.data.records import STUDY, Contents, Reading, Record
from afterimage.images import Images

FRAMES = "further frames of an image in a row"

Each = Callable[[str, np.ndarray], np.ndarray]
"""Takes the name and the pixels, uint8 (H, W, 1 or 3), of an image as it is read, and returns the
pixels to keep."""


class _Loaded(NamedTuple):
    """An image that was read, without its record, which may hold the bytes of the file."""

    id: int
    name: str
    label: int
    official_test: bool
    caption: str | None
    variants: Mapping[str, str]
    pixels: np.ndarray


def read(
    source: configs.Source,
    classes: list[int] | None = None,
    colour: Colour = "keep",
    resize: int | None = None,
    resize_filter: ResizeFilter = "bilinear",
    crop: Crop = "centre",
    labels: bool = True,
    names: Mapping[str, str] = STUDY,
    each: Each | None = None,
    captions: Mapping[str, str] | None = None,
) -> tuple[Images, dict[str, Any]]:
    """Read all images of ``source``, or those of ``classes``.

    Args:
        source: One of the source blocks of the study.
        classes: Labels to keep; None keeps all.
        colour: ``keep`` leaves grey images grey and makes all others RGB.
        resize: Side length in pixels; None keeps the size.
        resize_filter: Interpolation of the resize.
        crop: ``centre`` resizes the shorter side and crops the longer to its centre; ``none``
            squashes the image into the square.
        labels: Whether labels are needed; otherwise they are neither read nor checked, and all are
            -1.
        names: Names of the settings in messages: a study's keys, or a command's flags. Keys as in
            ``records.STUDY``.
        each: Called with each image, in order, after the transform; what it returns takes the
            image's place. So only that is held of a large image.
        captions: Name of a variant of the captions -> the column to read it from.

    Returns:
        The images, whose ``ids`` are positions in the source (unreadable files and images of other
        classes count as one image each), and a manifest of plain JSON values:

        - ``source``, ``licence``, ``raw_files`` (name -> sha256), ``class_names`` (or None),
          ``image_shape`` [H, W, C], ``facts``
        - ``captions``: number of different captions; None where the source has none
        - ``names``: for sources with one file per image, or with names, the name of each row, in
          order, with a page or frame as ``file[number from 0]``; otherwise None
        - ``variants``, with ``captions``: name of each variant -> the text of each row, in order
        - ``skipped``: images that could not be used: ``name`` and ``reason`` of each
        - ``ignored``: files, pages and frames that do not count as images: ``name`` and ``reason``
          of each
        - ``frames``: file -> number of images, for files that hold several
        - ``choices``: setting -> ``taken``, ``given`` and ``others``, for sources that may have
          several columns or arrays
        - ``transparent``: number of images whose transparency was dropped
        - ``resize``: ``side``, ``filter``, ``crop`` and ``images``, the number of images whose
          size changed; or None

    Raises:
        ConfigError: if the source cannot be found as described, or has none of the classes.
        ArtifactError: if files are damaged, have a wrong checksum, or hold images of several
            shapes.
    """
    with named(names):
        return _read(
            source,
            classes,
            Transform(colour, resize, resize_filter, crop),
            Reading(labels, names, captions or {}),
            each,
        )


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Begin messages about a source with its name in ``names``."""
    try:
        yield
    except (configs.ConfigError, ArtifactError) as error:
        message = str(error)
        if message.startswith(names["source"]):
            raise
        raise type(error)(f"{names['source']}: {message}") from error


def contents_of(source: configs.Source, reading: Reading) -> Contents:
    """Return what the reader of a source says of it."""
    contents: Contents = importlib.import_module(source.reader).contents(source, reading)
    return contents


def _read(
    source: configs.Source,
    classes: list[int] | None,
    transform: Transform,
    reading: Reading,
    each: Each | None,
) -> tuple[Images, dict[str, Any]]:
    # Decode every image of the requested classes; note unusable images.
    contents = contents_of(source, reading)
    loaded: list[_Loaded] = []
    bad: list[dict[str, str]] = []
    ignored = list(contents.ignored)
    frames: dict[str, int] = {}
    labels: Counter[int] = Counter()
    transparent = resized = row = 0
    pile = scratch.Pile()
    for record in contents.records:
        first, row = row, row + 1
        labels[record.label] += 1
        if classes is not None and record.label not in classes:
            continue
        try:
            decoded = list(pictures.decode(record.load(), transform))
        except (*pictures.DAMAGE, *zips.DAMAGE) as error:
            bad.append({"name": record.name, "reason": str(error) or type(error).__name__})
            continue
        for picture in decoded:
            name = record.name if picture.frame is None else f"{record.name}[{picture.frame}]"
            left_out = picture.left_out or (
                FRAMES if picture.frame and not contents.files_are_rows else ""
            )
            if left_out or picture.pixels is None:
                ignored.append({"name": name, "reason": left_out})
                continue
            pixels = picture.pixels if each is None else each(name, picture.pixels)
            loaded.append(
                _Loaded(
                    first + (picture.frame or 0),
                    name,
                    record.label,
                    record.official_test,
                    record.caption,
                    record.variants,
                    pile.keep(pixels),
                )
            )
            transparent += picture.transparent
            resized += picture.resized
        if contents.files_are_rows and len(decoded) > 1:
            row = first + len(decoded)
            frames[record.name] = sum(picture.pixels is not None for picture in decoded)

    # Refuse classes that do not exist, and unreadable images unless they may be skipped.
    absent = sorted(set(classes or []) - set(labels))
    if absent:
        raise configs.ConfigError(
            f"{reading.names['classes']} = {classes}: no image has label "
            f"{', '.join(map(str, absent))}; labels of this source are "
            f"{', '.join(map(str, sorted(labels)))}"
        )
    if bad and not contents.skip_bad:
        raise ArtifactError(
            f"{len(bad)} of {len(bad) + len(loaded)} images cannot be read: {_first(bad)}"
        )
    if not loaded:
        raise ArtifactError(
            f"the source {source.kind!r} has no readable image"
            + (f": {_first(bad)}" if bad else "")
        )

    # All images must have one shape, or those of the most frequent shape are kept.
    shape, odd = _common_shape([(entry.name, entry.pixels.shape) for entry in loaded])
    if odd and not contents.skip_bad:
        shapes = Counter(entry.pixels.shape for entry in loaded)
        counts = ", ".join(
            f"{_shape(size)} ({count} images)" for size, count in shapes.most_common(10)
        )
        raise ArtifactError(
            f"images have {len(shapes)} different shapes: {counts}; set "
            f"{reading.names['resize']} for one size, {reading.names['colour']} for one number "
            f"of channels. {len(odd)} differ from most: {_first(odd)}"
        )
    bad += odd
    loaded = [entry for entry in loaded if entry.pixels.shape == shape]

    # A source with captions has one for every image that is kept.
    refuse_silent(loaded, reading)
    captions = [entry.caption for entry in loaded]
    variants = {name: [entry.variants[name] for entry in loaded] for name in reading.captions}

    # Build the arrays and the manifest.
    images = Images.of(
        scratch.stacked([entry.pixels for entry in loaded]),
        ids=np.array([entry.id for entry in loaded], np.int64),
        labels=np.array([entry.label if reading.labels else -1 for entry in loaded], np.int64),
        official_test=np.array([entry.official_test for entry in loaded], bool),
        captions=None if None in captions else np.array(captions),
    )
    side = transform.side
    return images, {
        "source": source.model_dump(mode="json"),
        "licence": source.licence,
        "raw_files": contents.raw_files,
        "class_names": contents.class_names if reading.labels else None,
        "captions": None if None in captions else len(set(captions)),
        "skipped": bad,
        "ignored": ignored,
        "frames": frames,
        "choices": contents.choices,
        "transparent": transparent,
        "resize": side
        and {"side": side, "filter": transform.filter, "crop": transform.crop, "images": resized},
        "image_shape": list(shape),
        "facts": contents.facts,
        "names": [entry.name for entry in loaded] if contents.files_are_rows else None,
    } | ({"variants": variants} if variants else {})


def refuse_silent(images: Sequence[_Loaded | Record], reading: Reading) -> None:
    """Refuse images without a caption, or without a text of a variant.

    Raises:
        ArtifactError: naming the first of them.
    """
    silent = {"": [image.name for image in images if image.caption == ""]}
    for variant, column in reading.captions.items():
        without = [image.name for image in images if not image.variants[variant]]
        silent[f" in column {column}"] = without
    for where, names in silent.items():
        if names:
            raise ArtifactError(
                f"{len(names)} of {len(images)} images have no caption{where}: "
                + ", ".join(names[:10])
                + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            )


def _common_shape(
    shapes: list[tuple[str, tuple[int, ...]]],
) -> tuple[tuple[int, ...], list[dict[str, str]]]:
    """Return the most frequent shape, and name and reason of the images that differ from it."""
    common = Counter(shape for _, shape in shapes).most_common(1)[0][0]
    odd = [
        {"name": name, "reason": f"shape {_shape(shape)}, most have {_shape(common)}"}
        for name, shape in shapes
        if shape != common
    ]
    return common, odd


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _first(bad: list[dict[str, str]], most: int = 10) -> str:
    listed = "; ".join(f"{entry['name']} ({entry['reason']})" for entry in bad[:most])
    return listed + (f"; and {len(bad) - most} more" if len(bad) > most else "")
