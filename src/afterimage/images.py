"""Sets of images in memory and in files, one row per image.

Pixels may be many times what fits into memory: those of a large set are mapped, from its file when
it is opened, and from a file without a name where rows of it are taken (``scratch``). Then a row is
read when it is asked for.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afterimage import scratch
from afterimage.artifacts import ArtifactError, check_file


@dataclass(frozen=True)
class Images:
    """A set of images.

    Attributes:
        pixels: uint8, (N, H, W, C) with C = 1 or 3; 0..255 represents [0, 1]. Memory-mapped where
            they are large.
        ids: int64 or text, (N,), unique: identifies the row.
        labels: int64, (N,); -1 without a label.
        sources: like ``ids``, (N,): the original image of the row. Planted copies of one image
            share it.
        official_test: bool, (N,): the row comes from the source's official test split.
        captions: text, (N,); empty without a caption.
        caption_sources: like ``ids``, (N,): the image that the row's caption was written for: its
            source, unless images and captions are planted apart (``data.planting``).
    """

    pixels: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    sources: np.ndarray
    official_test: np.ndarray
    captions: np.ndarray
    caption_sources: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.pixels)
        if (
            self.pixels.dtype != np.uint8
            or self.pixels.ndim != 4
            or self.pixels.shape[-1] not in (1, 3)
        ):
            raise ArtifactError(
                f"images must be uint8 of shape (N, H, W, 1 or 3), not {self.pixels.dtype} "
                f"{self.pixels.shape}"
            )
        names = ("ids", "labels", "sources", "official_test", "captions", "caption_sources")
        for name in names:
            if getattr(self, name).shape != (n,):
                raise ArtifactError(
                    f"{name} has shape {getattr(self, name).shape}, but there are {n} images"
                )
        if len(np.unique(self.ids)) != n:
            raise ArtifactError("image ids are not unique")

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def of(
        cls,
        pixels: np.ndarray,
        ids: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        sources: np.ndarray | None = None,
        official_test: np.ndarray | None = None,
        captions: np.ndarray | None = None,
        caption_sources: np.ndarray | None = None,
    ) -> Images:
        """Build a set from uint8 pixels, (N, H, W, C); ids count up, labels are -1, captions empty
        and each row is its own source, which its caption is of, by default."""
        n = len(pixels)
        ids = np.arange(n, dtype=np.int64) if ids is None else np.asarray(ids)
        sources = ids if sources is None else np.asarray(sources)
        return cls(
            pixels=pixels,
            ids=ids,
            labels=np.full(n, -1, np.int64) if labels is None else np.asarray(labels, np.int64),
            sources=sources,
            official_test=np.zeros(n, bool)
            if official_test is None
            else np.asarray(official_test, bool),
            captions=np.full(n, "") if captions is None else np.asarray(captions, str),
            caption_sources=sources if caption_sources is None else np.asarray(caption_sources),
        )

    def take(self, rows: np.ndarray) -> Images:
        """Return some of the rows (positions or a mask)."""
        return Images(
            scratch.taken(self.pixels, rows),
            self.ids[rows],
            self.labels[rows],
            self.sources[rows],
            self.official_test[rows],
            self.captions[rows],
            self.caption_sources[rows],
        )

    def save(self, path: Path) -> None:
        """Write one ``.npz`` without pickled objects, and without compression: it can be mapped."""
        with Path(path).open("wb") as stream:
            np.savez(
                stream,
                images=self.pixels,
                ids=self.ids,
                labels=self.labels,
                sources=self.sources,
                official_test=self.official_test,
                captions=self.captions,
                caption_sources=self.caption_sources,
            )


def contents(pixels: np.ndarray) -> np.ndarray:
    """Return a 16-byte digest of each image's bytes, (N,): equal for byte-identical images."""
    return np.array(
        [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels], dtype="V16"
    )


def folded(captions: np.ndarray) -> np.ndarray:
    """Return captions, text (N,), without regard to case and white space: equal ones are one
    caption."""
    return np.array([" ".join(caption.casefold().split()) for caption in captions.tolist()], str)


def different(pixels: np.ndarray, flips: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest row of each different image, ascending, and its number of rows, both int64.

    Args:
        pixels: (N, H, W, C). Images that differ in any byte are different.
        flips: An image equals its mirror image.
    """
    digests = contents(pixels)
    if flips:
        mirrored = contents(pixels[:, :, ::-1])
        _, numbers = np.unique(np.concatenate([digests, mirrored]), return_inverse=True)
        digests = numbers.reshape(2, -1).min(axis=0)
    _, first, times = np.unique(digests, return_index=True, return_counts=True)
    order = np.argsort(first)
    return first[order], times[order]


def load_images(path: Path, check: bool = True) -> Images:
    """Open a stored image set, first checking the file against the ``run.json`` of its store. Large
    pixels are not read but mapped.

    Raises:
        ArtifactError: if the file is missing, truncated, or not the one that ``run.json``
            describes.
    """
    path = Path(path)
    if check:
        check_file(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            member = arrays.zip.getinfo("images.npy")
            mapped = None
            if member.file_size > scratch.LARGEST_IN_MEMORY:
                mapped = _mapped(path, member)
            return Images(
                arrays["images"] if mapped is None else mapped,
                arrays["ids"],
                arrays["labels"],
                arrays["sources"],
                arrays["official_test"],
                arrays["captions"],
                arrays["caption_sources"],
            )
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ArtifactError(f"{path} cannot be read as an image set: {error}") from error


def _mapped(path: Path, member: zipfile.ZipInfo) -> np.ndarray | None:
    """Map an array of an ``.npz``, as a private copy: nothing is written to the file. None if it is
    compressed or stored column by column, so that it has to be read."""
    if member.compress_type != zipfile.ZIP_STORED:
        return None
    with path.open("rb") as stream:
        stream.seek(member.header_offset + _LOCAL_HEADER.size - 4)
        stream.seek(sum(struct.unpack("<2H", stream.read(4))), 1)
        if np.lib.format.read_magic(stream) != (1, 0):
            return None
        shape, columns, dtype = np.lib.format.read_array_header_1_0(stream)
        if columns or dtype.hasobject:
            return None
        return np.memmap(path, dtype, "c", stream.tell(), shape)


_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
"""What is in front of a file in a zip, but for its name and what is ``extra``, whose lengths are
its last two numbers."""
