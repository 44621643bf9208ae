"""Captions of image files in files next to them.

They are in a ``metadata.jsonl`` (an object with ``file_name`` and the caption per line), a
``captions.json`` (file name -> caption, or a list of such objects) or a text file of the same name
as each image. File names are relative to the folder of the first two, which any sub-folder may have.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.data import zips
from afterimage.diffusion.stored_files import first_line, listed

COLUMNS = ("text", "caption", "prompt")
"""Names of captions, in parquet files and in JSON objects."""

LINES, OBJECT, TEXT = "metadata.jsonl", "captions.json", "txt"
"""Kinds of files: two names, and an ending."""


class AmbiguousError(ConfigError):
    """Several columns, keys or files could hold the captions."""


class Naming(NamedTuple):
    """What messages call things by.

    Attributes:
        images: The images' setting.
        column: The setting that chooses a key of JSON objects.
    """

    images: str
    column: str


Texts = dict[str, str]
"""Name of an image, relative to its folder, to its caption."""
Files = Mapping[str, Callable[[], bytes]]
"""Name of a file -> loader of its bytes."""


def beside(files: Files, images: Sequence[str], column: str | None, naming: Naming) -> Texts | None:
    """Return the captions next to image files, of the only kind that is there; None without any.

    Args:
        files: All files of the folder.
        images: Names of those that are images.
        column: Key of JSON objects; None takes the only one of ``COLUMNS``.
        naming: For messages.

    Raises:
        AmbiguousError: if several kinds, or several keys of an object, could be the captions.
        ArtifactError: if a file cannot be read.
    """
    kinds = {
        "a .txt per image" if kind == TEXT else kind: texts
        for kind in (LINES, OBJECT, TEXT)
        if (texts := of_kind(kind, files, images, column, naming))
    }
    if len(kinds) > 1:
        raise AmbiguousError(
            f"{naming.images}: captions are in {' and in '.join(kinds)}; keep one of them"
        )
    return next(iter(kinds.values()), None)


def of_kind(
    kind: str, files: Files, images: Sequence[str], column: str | None, naming: Naming
) -> Texts:
    """Return the captions in the files of one kind; arguments and errors as those of ``beside``."""
    texts: Texts = {}
    for name, image in holders(kind, files, images).items():
        text = _text(files[name], name, naming)
        if image is not None:
            texts[image] = text.strip()
            continue
        where = f"{naming.images}: {name}"
        entries = (_lines if kind == LINES else _object)(text, column, where, naming)
        folder = name[: -len(kind)]
        _add(texts, ((folder + file, caption) for file, caption in entries), where)
    return texts


def holders(kind: str, files: Files, images: Sequence[str]) -> dict[str, str | None]:
    """Return the files of a kind -> the image that a text file is of, None for other kinds."""
    if kind != TEXT:
        return dict.fromkeys(name for name in files if PurePosixPath(name).name == kind)
    stems = {str(PurePosixPath(name).with_suffix("")): name for name in images}
    return {
        name: stems[stem]
        for name in files
        if PurePosixPath(name).suffix.lower() == f".{TEXT}"
        and (stem := str(PurePosixPath(name).with_suffix(""))) in stems
    }


def _text(load: Callable[[], bytes], name: str, naming: Naming) -> str:
    try:
        return load().decode("utf-8-sig")
    except (*zips.DAMAGE, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{naming.images}: {name} cannot be read: {first_line(error)}"
        ) from error


def _lines(text: str, column: str | None, where: str, naming: Naming) -> Iterable[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{where}, line {number}"
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ArtifactError(f"{place} is not JSON: {error}") from error
            if (pair := _entry(entry, column, place, naming)) is not None:
                yield pair


def _object(text: str, column: str | None, where: str, naming: Naming) -> Iterable[tuple[str, str]]:
    try:
        value = json.loads(text, object_pairs_hook=_Pairs)
    except ValueError as error:
        raise ArtifactError(f"{where} is not JSON: {error}") from error
    if isinstance(value, list) and not isinstance(value, _Pairs):
        for number, entry in enumerate(value):
            place = f"{where}, entry {number}"
            if (pair := _entry(_plain(entry), column, place, naming)) is not None:
                yield pair
        return
    if not isinstance(value, _Pairs) or not all(isinstance(text, str) for _, text in value):
        raise ArtifactError(
            f"{where}: allowed are an object (file name -> caption) or a list of objects with "
            "file_name and a caption"
        )
    yield from value


class _Pairs(list):
    """A JSON object as its pairs, which a dict would lose where a name is repeated."""


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, _Pairs) else value


def _entry(entry: Any, column: str | None, where: str, naming: Naming) -> tuple[str, str] | None:
    """Return file and caption of one JSON object; None if it has no caption."""
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise ArtifactError(f"{where}: an object with file_name is needed")
    keys = [key for key in COLUMNS if key in entry] if column is None else [column]
    if len(keys) > 1:
        raise AmbiguousError(f"{where} has {', '.join(keys)}; {naming.column} chooses one")
    if not keys:
        return None
    if not isinstance(text := entry.get(keys[0]), str):
        raise ArtifactError(
            f"{where}: {keys[0]} is {text!r}, no text; keys are {listed(sorted(entry))}"
        )
    return entry["file_name"], text


def _add(texts: Texts, entries: Iterable[tuple[str, str]], where: str) -> None:
    """Add captions; a file that is named twice is an error."""
    pairs = [(PurePosixPath(file).as_posix(), text) for file, text in entries]
    counts = Counter(file for file, _ in pairs)
    if repeated := sorted(file for file in counts if counts[file] > 1 or file in texts):
        raise ArtifactError(f"{where} names {listed(repeated)} more than once")
    texts |= dict(pairs)
