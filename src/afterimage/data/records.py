"""The interface of every reader of a source: labelled images in the source's order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from afterimage.artifacts import ArtifactError

STUDY = {
    "source": "data.source",
    "path": "data.source.path",
    "test_path": "data.source.test_path",
    "sha256": "data.source.sha256",
    "config": "data.source.config",
    "image_column": "data.source.image_column",
    "label_column": "data.source.label_column",
    "caption_column": "data.source.caption_column",
    "captions": "text.captions",
    "caption_files": "data.source.captions",
    "array": "data.source.array",
    "label_array": "data.source.label_array",
    "classes": "data.classes",
    "colour": "data.colour",
    "resize": "data.resize",
}
"""Setting -> its key in a study, for messages."""


@dataclass(frozen=True)
class Reading:
    """How a source is to be read.

    Attributes:
        labels: Whether labels are needed. If not, they are neither read nor checked, and all -1.
        names: Setting -> its name in messages: its key in a study, or a command's flag. Keys as in
            ``STUDY``.
        captions: Name of a variant of the captions -> the column to read it from.
        look: Whether only shapes, labels and captions are looked at, quickly: no file is hashed or
            downloaded (``Contents.raw_files`` is empty), and a loaded image may be blank.
    """

    labels: bool = True
    names: Mapping[str, str] = field(default_factory=lambda: STUDY)
    captions: Mapping[str, str] = field(default_factory=dict)
    look: bool = False


@dataclass(frozen=True)
class Record:
    """One file or row of a source, not yet loaded.

    Attributes:
        load: Returns the encoded file as bytes, or uint8 pixels of shape (H, W, 1 or 3). May raise
            OSError or ValueError.
        label: Class, or -1 without one.
        name: Location of the image, for messages and manifests: a file name, or a file name and a
            row.
        official_test: Whether the image belongs to the source's official test split.
        caption: Text, empty where the source has captions but not for this image; None where it
            has none.
        variants: Name of each of ``Reading.captions`` -> its text, empty where there is none.
    """

    load: Callable[[], bytes | np.ndarray]
    label: int
    name: str
    official_test: bool = False
    caption: str | None = None
    variants: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """All images of a source, and what is known about it.

    Attributes:
        records: The files or rows, in order.
        raw_files: Name -> sha256 of every file that the records are read from.
        class_names: Name of class 0, 1, ..., if the source names its classes.
        files_are_rows: Whether each record is a separate file, whose name belongs in the manifest,
            and whose pages and frames are images.
        skip_bad: Whether to skip unreadable images and images of another shape (and name them)
            instead of stopping.
        ignored: Parts of the source that are not readable images: ``name`` and ``reason`` of each.
        choices: Setting -> the choice made for it: ``taken``, ``given`` (whether the user gave it)
            and ``others`` (the candidates not taken).
        facts: Anything else for the manifest, e.g. the commit that a revision resolved to.
    """

    records: Iterable[Record]
    raw_files: dict[str, str]
    class_names: list[str] | None = None
    files_are_rows: bool = False
    skip_bad: bool = False
    ignored: list[dict[str, str]] = field(default_factory=list)
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


POINTERS = {
    b"version https://git-lfs.github.com/spec/": (
        "a git-lfs pointer, not the file itself: `git lfs pull` fetches it"
    ),
    b"/annex/objects/": "a git-annex pointer, not the file itself: `git annex get` fetches it",
}
"""First bytes of the pointer that a clone holds instead of a large file -> its description."""


def pointer(head: bytes) -> str | None:
    """Return the description of a pointer that begins with ``head``; None for any other file."""
    return next((text for mark, text in POINTERS.items() if head.startswith(mark)), None)


def refuse_pointer(path: Path) -> None:
    """Check that a file is not the pointer of a clone without git-lfs or git-annex.

    Raises:
        ArtifactError: if it is one, or cannot be opened.
    """
    try:
        with path.open("rb") as stream:
            description = pointer(stream.read(64))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if description:
        raise ArtifactError(f"{path} is {description}")
