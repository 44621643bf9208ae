"""The changes that make planted copies near-duplicates: noise, shifts, crops, colours, encoding."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from afterimage.config import ConfigError

_REDRAWS = 100
_DIRECTIONS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]


def perturb(
    image: np.ndarray, noise: float, brightness: float, rng: np.random.Generator, key: str
) -> np.ndarray:
    """Return a slightly perturbed copy that differs from ``image``.

    Args:
        image: uint8, (H, W, C).
        noise: Standard deviation of Gaussian noise, in units of the full range [0, 1].
        brightness: Half-width of a uniform shift of all values, same unit.
        key: Key of the settings, for the message.

    Raises:
        ConfigError: if the perturbation is so small that the rounded copy keeps equalling the
            image.
    """

    def draw() -> np.ndarray:
        changed = (
            image / 255
            + noise * rng.standard_normal(image.shape)
            + rng.uniform(-brightness, brightness)
        )
        return _rounded(255 * changed)

    return _different(
        image,
        draw,
        f"{key}: noise = {noise} and brightness = {brightness} leave an image unchanged after "
        "rounding to 8 bits; increase them, or omit perturbation to plant exact copies",
    )


def change(
    image: np.ndarray, setting: dict[str, Any], rng: np.random.Generator, key: str
) -> np.ndarray:
    """Return a copy with one change of ``data.plant.perturb`` that differs from ``image``.

    Args:
        image: uint8, (H, W, C) with 1 or 3 channels.
        setting: ``kind`` and its strength.
        key: Key of the setting, for the message.

    Raises:
        ConfigError: if the copy keeps equalling the image, or a crop or shift leaves nothing of it.
    """
    return _different(
        image,
        lambda: _changed(image, setting, rng, key),
        f"{key}: {setting} leaves an image unchanged after rounding to 8 bits; increase it, choose "
        "another kind, or omit perturb to plant exact copies",
    )


def _different(image: np.ndarray, draw: Callable[[], np.ndarray], message: str) -> np.ndarray:
    """Return the first drawn copy that differs from the image; ``ConfigError`` if none does."""
    for _ in range(_REDRAWS):
        copy = draw()
        if not np.array_equal(copy, image):
            return copy
    raise ConfigError(message)


def _changed(
    image: np.ndarray, setting: dict[str, Any], rng: np.random.Generator, key: str
) -> np.ndarray:
    height, width, channels = image.shape
    match setting["kind"]:
        case "noise":
            return _rounded(image + 255 * setting["deviation"] * rng.standard_normal(image.shape))
        case "shift":
            pixels = setting["pixels"]
            if pixels >= min(height, width):
                raise ConfigError(
                    f"{key}: pixels = {pixels} must be less than the side, {min(height, width)}"
                )
            down, right = _DIRECTIONS[rng.integers(len(_DIRECTIONS))]
            padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), "edge")
            top, left = pixels * (1 - down), pixels * (1 - right)
            return padded[top : top + height, left : left + width]
        case "crop":
            lost = [max(1, round(setting["share"] * side)) for side in (height, width)]
            top, left = (int(rng.integers(most + 1)) for most in lost)
            box = (left, top, left + width - lost[1], top + height - lost[0])
            resized = _picture(image).resize((width, height), Image.Resampling.BICUBIC, box)
            return _values(resized, image.shape)
        case "colour":
            strength = setting["strength"]
            return _rounded(image * rng.uniform(1 - strength, 1 + strength, channels))
        case "contrast":
            strength = setting["strength"]
            mean = image.mean()
            return _rounded(mean + (image - mean) * rng.uniform(1 - strength, 1 + strength))
        case "blur":
            blurred = _picture(image).filter(ImageFilter.GaussianBlur(setting["deviation"]))
            return _values(blurred, image.shape)
        case "jpeg":
            file = io.BytesIO()
            _picture(image).save(file, "JPEG", quality=setting["quality"])
            return _values(Image.open(file), image.shape)
        case "mirror":
            return image[:, ::-1].copy()
    raise AssertionError(setting)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _values(picture: Image.Image, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(picture).reshape(shape).copy()
