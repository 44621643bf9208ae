"""What every source kind gives: labelled images, one by one, in the source's own order; and how it
is asked for them."""

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
    "array": "data.source.array",
    "label_array": "data.source.label_array",
    "classes": "data.classes",
    "colour": "data.colour",
    "resize": "data.resize",
}
"""Setting -> its key in a study, as messages name it."""


@dataclass(frozen=True)
class Reading:
    """How a source is to be read.

    Attributes:
        labels: Labels are wanted. Where they are not, they are neither read nor checked, and all
            are -1.
        names: Setting -> what it is called where it was given: the keys of ``STUDY``, or a
            command's flags.
    """

    labels: bool = True
    names: Mapping[str, str] = field(default_factory=lambda: STUDY)


@dataclass(frozen=True)
class Record:
    """One file or row of a source, not yet loaded.

    Attributes:
        load: Returns the encoded file as bytes, or uint8 pixels of shape (H, W, 1 or 3). May raise
            OSError or ValueError.
        label: Class, -1 where there is none.
        name: Where the image stands, for messages and manifests: a file name, or a file name and a
            row.
        official_test: The image comes from the source's official test part.
    """

    load: Callable[[], bytes | np.ndarray]
    label: int
    name: str
    official_test: bool = False


@dataclass(frozen=True)
class Contents:
    """All images of a source and what is known of it.

    Attributes:
        records: The files or rows, in order.
        raw_files: Name -> sha256 of every file that the records are read from.
        class_names: Name of class 0, 1, ... where the source has names.
        files_are_rows: Each record is a file of its own, whose name a manifest should keep; its
            pages and frames are images.
        skip_bad: Leave out unreadable and oddly shaped images (and name them) instead of stopping.
        ignored: What of the source is no image that can be read: ``name`` and ``reason`` of each.
        choices: Setting -> what was taken for it: ``taken``, ``given`` (by the user), ``others``
            (what was there too).
        facts: Whatever else a manifest should say, e.g. the commit that a revision stood for.
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
"""First bytes of what a clone holds in place of a large file -> what to say of it."""


def pointer(head: bytes) -> str | None:
    """Return what to say of a file that begins with ``head``, if it only stands for another."""
    return next((said for mark, said in POINTERS.items() if head.startswith(mark)), None)


def refuse_pointer(path: Path) -> None:
    """Check that a file is itself.

    Raises:
        ArtifactError: if it is the pointer that a clone without git-lfs or git-annex has in its
            place, or cannot be opened.
    """
    try:
        with path.open("rb") as stream:
            said = pointer(stream.read(64))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if said:
        raise ArtifactError(f"{path} is {said}")
