"""What every source kind gives: labelled images, one by one, in the source's own order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Record:
    """One image of a source, not yet loaded.

    Attributes:
        load: Returns the encoded file as bytes, or uint8 pixels of shape (H, W, 1 or 3). May raise OSError or ValueError.
        label: Class, -1 where there is none.
        name: Where the image stands, for messages and manifests: a file name, or a file name and a row.
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
        records: The images; a record's position is its id.
        raw_files: Name -> sha256 of every file that the records are read from.
        class_names: Name of class 0, 1, ... where the source has names.
        files_are_rows: Each record is a file of its own, whose name a manifest should keep.
        skip_bad: Leave out unreadable and oddly shaped images (and name them) instead of stopping.
        ignored: Files of the source that are not images.
        facts: Whatever else a manifest should say, e.g. the commit that a revision stood for.
    """

    records: Iterable[Record]
    raw_files: dict[str, str]
    class_names: list[str] | None = None
    files_are_rows: bool = False
    skip_bad: bool = False
    ignored: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
