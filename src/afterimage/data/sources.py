"""Reading a data source of any kind into one array of images, with a manifest of what was read.

A new source kind is a block in ``config/data.py`` and a function here in ``READERS`` that returns ``records.Contents``.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.resources import as_file, files
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from PIL import Image, ImageOps

from afterimage import config as configs
from afterimage.artifacts import ArtifactError, Images, sha256
from afterimage.data import archive, arrays, folder, parquet
from afterimage.data.records import Contents, Record

_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, struct.error, zlib.error, BadZipFile)
"""What Pillow, the zip reader and the readers here raise on a damaged image."""
_GREY = {"1", "L", "LA", "La"}
_COLOUR = {"RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"}


def _digits(source: configs.SklearnDigits) -> Contents:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    with as_file(files("sklearn.datasets.data") / "digits.csv.gz") as path:
        raw = {path.name: sha256(path)}
    rows = enumerate(zip(pixels, digits.target, strict=True))
    records = [Record(partial(np.asarray, image), int(label), f"row {row}") for row, (image, label) in rows]
    return Contents(records, raw, class_names=[str(name) for name in digits.target_names])


READERS: dict[str, Callable[[Any], Contents]] = {
    "sklearn-digits": _digits,
    "huggingface": parquet.hub,
    "parquet": parquet.local,
    "image_folder": folder.contents,
    "npz": arrays.contents,
    "archive_url": archive.contents,
}
"""Source kind -> reader."""


def _pixels(raw: bytes | np.ndarray, colour: str, resize: int | None) -> np.ndarray:
    """Decode one image; return uint8, (H, W, 1 or 3).

    Transparency is dropped. A resize takes the largest square in the middle and averages over areas (Pillow's box filter).
    """
    if isinstance(raw, bytes):
        image: Image.Image = ImageOps.exif_transpose(Image.open(io.BytesIO(raw)))
    else:
        image = Image.fromarray(raw[..., 0] if raw.shape[-1] == 1 else raw)
    if image.mode not in _GREY | _COLOUR:
        raise ValueError(f"pixel mode {image.mode} is not 8 bit")
    image = image.convert("L" if image.mode in _GREY else "RGB")
    if resize is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.resize((resize, resize), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    if colour != "keep":
        image = image.convert({"grey": "L", "rgb": "RGB"}[colour])
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def read(
    source: configs.Source,
    classes: list[int] | None = None,
    colour: Literal["keep", "grey", "rgb"] = "keep",
    resize: int | None = None,
) -> tuple[Images, dict[str, Any]]:
    """Read all images of ``source``, or those of ``classes``.

    Args:
        source: One of the source blocks of the study.
        classes: Labels to keep; None keeps all.
        colour: ``keep`` leaves grey images grey and makes all others RGB.
        resize: Side length in pixels after an area resize of the centre square; None keeps the size.

    Returns:
        The images, whose ``ids`` are their row numbers in the source (unreadable files and other classes counted), and a
        manifest of plain JSON values: ``source``, ``licence``, ``raw_files`` (name -> sha256), ``class_names`` (or None),
        ``skipped`` (a list of ``name`` and ``reason``), ``ignored`` (files that are no images), ``image_shape`` [H, W, C],
        ``facts``, and ``names``: for sources with one file per image, the file of each row of the returned images, in the
        order of the rows; otherwise None.

    Raises:
        ConfigError: if the source cannot be found as described, or has none of the classes.
        ArtifactError: if files are damaged, have a wrong checksum, or hold images of several shapes.
    """
    contents = READERS[source.kind](source)
    loaded: list[tuple[int, Record, np.ndarray]] = []
    bad: list[dict[str, str]] = []
    labels: Counter[int] = Counter()
    for row, record in enumerate(contents.records):
        labels[record.label] += 1
        if classes is not None and record.label not in classes:
            continue
        try:
            loaded.append((row, record, _pixels(record.load(), colour, resize)))
        except (*_UNREADABLE, Image.DecompressionBombError) as error:
            # Pillow names the buffer that it was given, which says nothing and differs from run to run.
            reason = "not an image that can be read" if isinstance(error, Image.UnidentifiedImageError) else str(error)
            bad.append({"name": record.name, "reason": reason or type(error).__name__})
    absent = sorted(set(classes or []) - set(labels))
    if absent:
        raise configs.ConfigError(
            f"data.classes = {classes}: no image has label {', '.join(map(str, absent))}; "
            f"labels of this source are {', '.join(map(str, sorted(labels)))}"
        )
    if bad and not contents.skip_bad:
        raise ArtifactError(f"{len(bad)} of {len(bad) + len(loaded)} images cannot be read: {_first(bad)}")
    if not loaded:
        raise ArtifactError(f"the source {source.kind!r} has no readable image" + (f": {_first(bad)}" if bad else ""))

    shapes = Counter(pixels.shape for _, _, pixels in loaded)
    shape = shapes.most_common(1)[0][0]
    if len(shapes) > 1:
        odd = [
            {"name": record.name, "reason": f"shape {_shape(pixels.shape)}, most have {_shape(shape)}"}
            for _, record, pixels in loaded
            if pixels.shape != shape
        ]
        if not contents.skip_bad:
            counts = ", ".join(f"{_shape(one)} ({count} images)" for one, count in shapes.most_common(10))
            raise ArtifactError(
                f"images have {len(shapes)} different shapes: {counts}; set data.resize for one size, data.colour for one "
                f"number of channels. {len(odd)} differ from most: {_first(odd)}"
            )
        bad += odd
        loaded = [entry for entry in loaded if entry[2].shape == shape]

    images = Images.of(
        np.stack([pixels for _, _, pixels in loaded]),
        ids=np.array([row for row, _, _ in loaded], np.int64),
        labels=np.array([record.label for _, record, _ in loaded], np.int64),
        official_test=np.array([record.official_test for _, record, _ in loaded], bool),
    )
    return images, {
        "source": source.model_dump(mode="json"),
        "licence": getattr(source, "licence", "BSD-3-Clause, shipped with scikit-learn (UCI optical digits, CC BY 4.0)"),
        "raw_files": contents.raw_files,
        "class_names": contents.class_names,
        "skipped": bad,
        "ignored": contents.ignored,
        "image_shape": list(shape),
        "facts": contents.facts,
        "names": [record.name for _, record, _ in loaded] if contents.files_are_rows else None,
    }


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _first(bad: list[dict[str, str]], most: int = 10) -> str:
    named = "; ".join(f"{entry['name']} ({entry['reason']})" for entry in bad[:most])
    return named + (f"; and {len(bad) - most} more" if len(bad) > most else "")
