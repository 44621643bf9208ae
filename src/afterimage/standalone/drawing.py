"""Draw images into a folder, batch by batch: a drawing that was interrupted goes on from there.

The folder has a PNG per image (``000000.png``, ...) and ``drawing.json``, which says what they
depend on and what was observed while they were drawn. A batch of which an image is missing is drawn
again as a whole, so that the images are the same bytes as those of an uninterrupted drawing.
Another drawing replaces one whose audit is finished, and is refused by one that was interrupted.
"""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from afterimage import artifacts, progress
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.data import pictures
from afterimage.data.pictures import Transform

FOLDER = "drawn"
RECORD = "drawing.json"
CAPTIONS = "metadata.jsonl"

_OURS = re.compile(r"\.?(?:\d{6,}\.png|drawing\.json|metadata\.jsonl)(?:\.\d+\.partial)?")

Draw = Callable[[np.ndarray], np.ndarray]
"""Ids of a batch, (n,), to its images, uint8, (n, H, W, 1 or 3)."""


def files(out: Path) -> set[str]:
    """Return the names, relative to ``out``, of the files of a drawing in it."""
    folder = out / FOLDER
    if not (folder / RECORD).is_file():
        return set()
    return {f"{FOLDER}/{path.name}" for path in folder.iterdir() if _OURS.fullmatch(path.name)}


@dataclass(frozen=True)
class Earlier:
    """What an earlier run left in the folder.

    Attributes:
        seen: What it observed while drawing; empty if there is none, or it is another drawing.
        difference: The settings in which it is another drawing, which is to be replaced; else
            empty.
    """

    seen: dict[str, Any]
    difference: str = ""


def earlier(out: Path, made_from: dict[str, Any]) -> Earlier:
    """Return what an earlier run left in ``out``.

    Raises:
        ConfigError: naming the settings that differ, if it is another drawing, which was
            interrupted.
    """
    record = out / FOLDER / RECORD
    if not record.is_file():
        return Earlier({})
    try:
        values = json.loads(record.read_text())
        settings, seen, audited = values["made_from"], values["observed"], values["audited"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--out {out}: {FOLDER}/{RECORD} is damaged; remove {out / FOLDER}: {error!r}"
        ) from error
    if settings == made_from:
        return Earlier(seen)
    difference = artifacts.difference(settings, made_from)
    if not audited:
        raise ConfigError(
            f"--out {out}: the images in {FOLDER}/ are of another drawing, which was interrupted: "
            f"{difference}; name another folder, or remove {out / FOLDER}"
        )
    return Earlier({}, difference)


def audited(out: Path) -> None:
    """Note that the audit of the drawing in ``out`` is finished: another drawing may replace it."""
    record = out / FOLDER / RECORD
    artifacts.write_json(record, json.loads(record.read_text()) | {"audited": True})


def name_of(row: int) -> str:
    """Return the file of an image."""
    return f"{row:06d}.png"


def draw(
    out: Path,
    made_from: dict[str, Any],
    before: Earlier,
    count: int,
    batch_size: int,
    batch: Draw,
) -> int:
    """Draw the images that are missing; return how many were there already.

    Args:
        out: The command's folder; images are kept in its ``drawn/``.
        made_from: Everything that an image depends on, besides its id.
        before: What ``earlier`` returned; ``batch`` adds to what was seen.
        count: Number of images, with ids from 0.
        batch_size: Images per batch.
        batch: Draws the images of a batch.
    """
    folder = out / FOLDER
    for path in folder.glob("*") if before.difference else folder.glob(".*.partial"):
        if _OURS.fullmatch(path.name):
            path.unlink()
    batches = [
        np.arange(first, min(first + batch_size, count)) for first in range(0, count, batch_size)
    ]
    missing = [
        ids for ids in batches if not all((folder / name_of(row)).is_file() for row in ids.tolist())
    ]
    there = count - sum(map(len, missing))
    if there and missing:
        print(
            f"{there} of {count} generations are in {folder} already; the drawing goes on",
            file=sys.stderr,
        )
    with Progress(count, there) as report:
        for ids in missing:
            images = batch(ids)
            record = {"made_from": made_from, "observed": before.seen, "audited": False}
            artifacts.write_json(folder / RECORD, record)
            for row, image in zip(ids.tolist(), images, strict=True):
                artifacts.write_atomically(folder / name_of(row), _png(image))
            report.advance(len(ids))
    return there


def captions(out: Path, count: int, rows: Sequence[dict[str, Any]]) -> None:
    """Write what each image was drawn from, in the form that image folders have on the Hub."""
    lines = [
        json.dumps({"file_name": name_of(row), **rows[row]}, ensure_ascii=False) + "\n"
        for row in range(count)
    ]
    artifacts.write_atomically(out / FOLDER / CAPTIONS, "".join(lines).encode())


def read(out: Path, count: int, transform: Transform, first: int = 0) -> np.ndarray:
    """Return ``count`` drawn images from row ``first`` on, uint8, (N, H, W, 1 or 3), each
    transformed as it is read.

    Raises:
        ArtifactError: naming the file, if an image is damaged or has another shape than the first.
    """
    pixels: np.ndarray | None = None
    for row in range(count):
        path = out / FOLDER / name_of(first + row)
        try:
            (picture,) = pictures.decode(path.read_bytes(), transform)
        except pictures.DAMAGE as error:
            raise ArtifactError(
                f"{path} is damaged; remove it to have it drawn again: {error}"
            ) from error
        assert picture.pixels is not None
        if pixels is None:
            pixels = np.empty((count, *picture.pixels.shape), np.uint8)
        if picture.pixels.shape != pixels.shape[1:]:
            raise ArtifactError(f"{path} has another size than {name_of(first)}")
        pixels[row] = picture.pixels
    assert pixels is not None
    return pixels


def _png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, "png")
    return stream.getvalue()


class Progress:
    """Images drawn, images per second and the time left: a bar on a terminal, else lines."""

    def __init__(self, count: int, there: int) -> None:
        self.count, self.there, self.done = count, there, there
        self.started = self.printed = time.monotonic()

    def __enter__(self) -> Progress:
        self.bar = tqdm(
            total=self.count, initial=self.there, desc="drawn", unit=" images", disable=None
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def advance(self, images: int) -> None:
        """Report that images were drawn."""
        self.done += images
        self.bar.update(images)
        now = time.monotonic()
        if self.bar.disable and self.done < self.count and now - self.printed >= progress.EVERY:
            self.printed = now
            rate = (self.done - self.there) / (now - self.started)
            left = progress.span((self.count - self.done) / rate)
            print(
                f"drawn {self.done} of {self.count} generations "
                f"({100 * self.done // self.count} %), {rate:.3g} images/s, {left} left",
                file=sys.stderr,
                flush=True,
            )
