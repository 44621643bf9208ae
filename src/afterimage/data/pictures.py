"""Decode images: supported formats, number of images in a file, colour, and the trainers' resize.

The resize is that of ``torchvision.transforms`` for a Pillow image, ``Resize(side,
antialias=True)`` and ``CenterCrop(side)``, and gives the same pixels. Its other path, for tensors
of uint8, rounds differently and may differ by one step of 255.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from afterimage.config.data import Crop, ResizeFilter
from afterimage.data.records import pointer

FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX"),
    *("PNG", "PPM", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP"),
)
"""Pillow's raster formats that it reads without other programs."""
Image.init()
_OPENED = tuple(kind for kind in FORMATS if kind in Image.OPEN)
"""The subset that this Pillow can open; an MPO is opened as the JPEG that it begins with."""
SUFFIXES = frozenset(
    suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS
)
"""Suffixes of image files, in lower case."""

DAMAGE = (
    *(
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        RuntimeError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ),
    *(TypeError, KeyError, IndexError, MemoryError, OverflowError, ZeroDivisionError),
)
"""Exceptions that Pillow raises on a damaged image: its own, and those of its readers, which do not
validate the numbers in a file."""

PREVIEW = "further pictures inside a JPEG"
REDUCED = "reduced copies of another page"

_GREY = {"1", "L", "LA", "La"}
_COLOUR = {"RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"}
_FILTERS: dict[ResizeFilter, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

Colour = Literal["keep", "grey", "rgb"]


@dataclass(frozen=True)
class Transform:
    """The conversion of every image.

    Attributes:
        colour: ``keep`` leaves grey images grey and makes all others RGB.
        side: Side length in pixels after the resize; None keeps the size.
        filter: Interpolation of the resize, always antialiased.
        crop: ``centre`` resizes the shorter side and cuts the middle out of the longer; ``none``
            squashes into the square.
    """

    colour: Colour = "keep"
    side: int | None = None
    filter: ResizeFilter = "bilinear"
    crop: Crop = "centre"


@dataclass(frozen=True)
class Picture:
    """One image of a file.

    Attributes:
        frame: Its page or frame; None if the file contains only one.
        pixels: uint8, (H, W, 1 or 3); None if the page does not count as an image.
        left_out: The reason, in that case.
        transparent: Some of it was not opaque; the transparency was dropped.
        resized: Its size changed.
    """

    frame: int | None
    pixels: np.ndarray | None
    left_out: str = ""
    transparent: bool = False
    resized: bool = False


def is_image(name: str) -> bool:
    """Return whether a file's suffix is that of an image, in upper or lower case."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def is_encoded(raw: bytes) -> bool:
    """Return whether bytes begin like an image."""
    try:
        Image.open(io.BytesIO(raw), formats=_OPENED)
    except DAMAGE:
        return False
    return True


def decode(raw: bytes | np.ndarray, transform: Transform) -> Iterator[Picture]:
    """Decode a file, or take uint8 pixels of shape (H, W, 1 or 3), and yield the images in it.

    Raises:
        ValueError: if it is not an image, or has more than 8 bits per channel.
        DAMAGE: whatever Pillow raises on a damaged image.
    """
    if isinstance(raw, np.ndarray):
        yield _picture(None, Image.fromarray(raw[..., 0] if raw.shape[-1] == 1 else raw), transform)
        return
    if description := pointer(raw):
        raise ValueError(description)
    try:
        image = Image.open(io.BytesIO(raw), formats=_OPENED)
    except Image.UnidentifiedImageError as error:
        # Pillow's message contains the buffer's address, which differs from run to run.
        raise ValueError("not an image that can be read") from error
    count = getattr(image, "n_frames", 1)
    for frame in range(count):
        image.seek(frame)
        number = frame if count > 1 else None
        if frame and image.format == "MPO":
            yield Picture(number, None, PREVIEW)
        elif frame and isinstance(image, TiffImageFile) and image.tag_v2.get(_SUBFILE, 0) & 1:
            yield Picture(number, None, REDUCED)
        else:
            yield _picture(number, ImageOps.exif_transpose(image), transform)


_SUBFILE = 254
"""TIFF's tag NewSubfileType, whose lowest bit marks a reduced copy of another page."""


def _picture(frame: int | None, image: Image.Image, transform: Transform) -> Picture:
    if image.mode not in _GREY | _COLOUR:
        raise ValueError(f"pixel mode {image.mode} is not 8 bit")
    transparent = image.has_transparency_data and bool(
        (np.asarray(image.convert("RGBA"))[..., 3] < 255).any()
    )
    image = image.convert("L" if image.mode in _GREY else "RGB")
    if transform.colour != "keep":
        image = image.convert({"grey": "L", "rgb": "RGB"}[transform.colour])
    size = image.size
    if transform.side is not None:
        image = resize(image, transform.side, transform.filter, transform.crop)
    pixels = np.asarray(image)
    return Picture(
        frame,
        pixels if pixels.ndim == 3 else pixels[..., None],
        "",
        transparent,
        image.size != size,
    )


def resize(image: Image.Image, side: int, filter: ResizeFilter, crop: Crop) -> Image.Image:
    """Return a square image, as torchvision's ``Resize`` and ``CenterCrop`` make it of a Pillow
    image."""
    if crop == "none":
        return image.resize((side, side), _FILTERS[filter])
    return centre(shorter_side(image, side, filter), side)


def shorter_side(image: Image.Image, side: int, filter: ResizeFilter) -> Image.Image:
    """Return an image whose shorter side is ``side``, as torchvision's ``Resize`` makes it."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(side * long / short)
    return image.resize((side, longer) if width <= height else (longer, side), _FILTERS[filter])


def centre(image: Image.Image, side: int) -> Image.Image:
    """Return the square in the middle of an image, as torchvision's ``CenterCrop`` cuts it."""
    width, height = image.size
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))
