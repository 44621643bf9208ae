"""Image data sets in the parquet form of the Hugging Face Hub.

The form: one row per image, a struct column with the encoded image under ``bytes`` (or a plain
binary column), and a label column of integers or text. ``contents`` reads files on disk;
``contents_of`` reads any list of files.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from afterimage import config as configs
from afterimage.artifacts import ArtifactError, sha256
from afterimage.data import pictures
from afterimage.data.records import STUDY, Contents, Reading, Record, refuse_pointer
from afterimage.data.walk import walk

SUFFIXES = (".parquet", ".pq")
"""Endings of parquet files, in lower case."""
_PARTS = ("train", "validation", "val", "valid", "test", "holdout")
_ROWS_AT_ONCE = 1024


def contents(source: configs.Parquet, reading: Reading) -> Contents:
    """Read parquet files on disk.

    Raises:
        AbsentError: if there is no such file.
        ConfigError: if a column or a file named in ``sha256`` does not exist, or if several columns
            could hold the images.
        ArtifactError: if a file has another checksum or is not a parquet file.
    """
    ignored: dict[str, str] = {}
    train = _expand("path", source.path, reading, ignored)
    test = (
        _expand("test_path", source.test_path, reading, ignored)
        if source.test_path is not None
        else []
    )
    root = os.path.commonpath([path.resolve().parent for path in train + test])
    located = [
        (path.resolve().relative_to(root).as_posix(), path, path in test)
        for path in dict.fromkeys(train + test)
    ]
    key = reading.names["sha256"]
    unknown = sorted(source.sha256.keys() - {path.name for _, path, _ in located})
    if unknown:
        raise configs.ConfigError(
            f"{key} names {', '.join(unknown)}, but the files are "
            f"{', '.join(name for name, _, _ in located)}"
        )
    for _, path, _ in located:
        refuse_pointer(path)
    raw = {} if reading.look else {name: sha256(path) for name, path, _ in located}
    for name, path, _ in located if raw else []:
        expected = source.sha256.get(path.name)
        if expected is not None and raw[name] != expected.lower():
            raise ArtifactError(f"{path} has sha256 {raw[name]}, but {key} expects {expected}")
    return contents_of(located, source, reading, raw, ignored)


def _expand(
    key: str, patterns: str | list[str], reading: Reading, ignored: dict[str, str]
) -> list[Path]:
    """Return the files of paths and patterns. A path that exists is never taken for a pattern."""
    files: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        text = configs.expand(pattern)
        paths = matching(text)
        if not paths:
            raise configs.AbsentError(
                f"{reading.names[key]} = {pattern}: no such file, and it matches no file"
            )
        for path in paths:
            files += _in_folder(path, key, reading, ignored) if path.is_dir() else [path]
    return files


def _in_folder(folder: Path, key: str, reading: Reading, ignored: dict[str, str]) -> list[Path]:
    files = walk(folder, ignored)
    names = sorted(name for name in files if is_parquet(name))
    ignored |= {name: "not parquet files by their ending" for name in files if not is_parquet(name)}
    setting = f"{reading.names[key]} = {folder}"
    if not names:
        raise configs.ConfigError(
            f"{setting}: no parquet file among {len(files)} files; endings are "
            f"{', '.join(SUFFIXES)}"
        )
    parts = {part for name in names for part in _PARTS if is_part(part, name)}
    if len(parts) > 1:
        raise configs.ConfigError(
            f"{setting}: its files belong to several splits ({', '.join(sorted(parts))}); name "
            "the files of one"
        )
    return [files[name] for name in names]


def matching(text: str) -> list[Path]:
    """Return the path if it exists, or else all matches; existing parent folders are literal."""
    path = Path(text)
    exists = next(part for part in (path, *path.parents) if part.exists())
    rest = path.relative_to(exists)
    if exists == path:
        return [path]
    return [
        Path(match)
        for match in sorted(glob.glob(os.path.join(glob.escape(str(exists)), rest), recursive=True))
    ]


def is_parquet(name: str) -> bool:
    """Return whether a file's suffix is that of parquet, in upper or lower case."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def is_part(part: str, name: str) -> bool:
    """Return whether a file belongs to a split, by its name or a folder's.

    Names are ``[folder/]split-00000-of-00001.parquet`` or ``folder/split/0000.parquet``.
    """
    *parents, file = name.split("/")
    return (
        bool(re.fullmatch(rf"{re.escape(part)}(-.*)?", PurePosixPath(file).stem)) or part in parents
    )


# ---- rows ----------------------------------------------------------------------------------------

_DAMAGE = (
    pa.ArrowException,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
)
"""Exceptions that pyarrow raises on a damaged file: its own, and Python's when it converts bytes to
names, types and values."""


@dataclass(frozen=True)
class _File:
    """A parquet file and its columns."""

    name: str
    path: Path
    official_test: bool
    image: str
    label: str | None
    caption: str | None
    variants: Mapping[str, str]


def contents_of(
    named: list[tuple[str, Path, bool]],
    source: configs.Parquet | configs.HuggingFace,
    reading: Reading,
    raw: dict[str, str],
    ignored: dict[str, str] | None = None,
    facts: dict[str, Any] | None = None,
) -> Contents:
    files: list[_File] = []
    others: set[str] = set()
    texts: set[str | None] = set()
    kinds: dict[bool, Path] = {}
    for name, path, official_test in named:
        with _opened(path) as file:
            image, left = _image_column(file, source.image_column, path, reading)
            label = _label_column(file.schema_arrow, source.label_column, path, reading)
            if label is not None:
                text = _is_text(file.schema_arrow.field(label).type)
                kinds[text] = path
                texts |= (
                    set(file.read(columns=[label]).column(label).to_pylist()) if text else set()
                )
            schema, key = file.schema_arrow, reading.names["caption_column"]
            caption = source.caption_column
            if caption is not None:
                _check_text(schema, caption, path, key)
            for variant, column in reading.captions.items():
                _check_text(schema, column, path, f"{reading.names['captions']}.{variant}.column")
        files.append(_File(name, path, official_test, image, label, caption, reading.captions))
        others |= set(left)
    if len(kinds) > 1:
        key = reading.names["label_column"]
        raise configs.ConfigError(
            f"{key}: labels are text in {kinds[True]}, integers in {kinds[False]}; name a column "
            "of one kind"
        )
    classes = sorted(text for text in texts if text is not None)
    choices = {}
    for key, configured, columns in (
        ("image_column", source.image_column, [file.image for file in files]),
        (
            "label_column",
            source.label_column,
            [file.label for file in files if file.label is not None],
        ),
    ):
        if columns:
            rest = sorted(others) if key == "image_column" else []
            choices[key] = {
                "taken": ", ".join(dict.fromkeys(columns)),
                "given": configured is not None,
                "others": rest,
            }
    return Contents(
        _records(files, classes, reading.look),
        raw,
        class_names=classes or None,
        ignored=[
            {"name": name, "reason": reason} for name, reason in sorted((ignored or {}).items())
        ],
        choices=choices,
        facts=facts or {},
    )


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file by its absolute path: pyarrow expands a leading ``~`` to the home folder."""
    try:
        with pq.ParquetFile(path.absolute(), page_checksum_verification=True) as file:
            yield file
    except (configs.ConfigError, ArtifactError):
        raise
    except _DAMAGE as error:
        raise ArtifactError(f"{path} is not a readable parquet file: {error}") from error


def _records(files: list[_File], classes: list[str], look: bool) -> Iterator[Record]:
    codes: dict[Any, int] = {text: code for code, text in enumerate(classes)}
    for file in files:
        with _opened(file.path) as rows:
            row = 0
            image = None if look else file.image
            columns = [name for name in (image, file.label, file.caption) if name is not None]
            columns += file.variants.values()
            columns = list(dict.fromkeys(columns))
            for batch in rows.iter_batches(_ROWS_AT_ONCE, columns=columns):
                absent = [None] * batch.num_rows
                cells, labels, captions = (
                    absent if name is None else batch.column(name).to_pylist()
                    for name in (image, file.label, file.caption)
                )
                variants = {
                    variant: [(text or "").strip() for text in batch.column(name).to_pylist()]
                    for variant, name in file.variants.items()
                }
                for place, (cell, value, text) in enumerate(
                    zip(cells, labels, captions, strict=True)
                ):
                    yield Record(
                        partial(_alone, file, row) if look else partial(_bytes, cell),
                        -1 if value is None else codes.get(value, value),
                        f"{file.name}:{row}",
                        file.official_test,
                        None if file.caption is None else (text or "").strip(),
                        {variant: texts[place] for variant, texts in variants.items()},
                    )
                    row += 1


def _alone(file: _File, row: int) -> bytes:
    """Return the image of one row, of a file that is not read otherwise."""
    with _opened(file.path) as rows:
        batches = rows.iter_batches(1, columns=[file.image])
        [cell] = next(islice(batches, row, None)).column(file.image).to_pylist()
        return _bytes(cell)


def _bytes(cell: Any) -> bytes:
    if isinstance(cell, dict):
        if cell["bytes"] is None:
            raise ValueError(
                f"no bytes, only the path {cell['path']!r}" if cell.get("path") else "no bytes"
            )
        return cell["bytes"]
    if cell is None:
        raise ValueError("no bytes")
    return cell


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _is_binary(kind.field(position).type)
    return _is_binary(kind)


def _columns(schema: pa.Schema) -> str:
    return "columns are " + ", ".join(f"{column.name} ({column.type})" for column in schema)


def _image_column(
    file: pq.ParquetFile, wanted: str | None, path: Path, reading: Reading
) -> tuple[str, list[str]]:
    """Return the column with the images, and all other columns that could hold images."""
    schema, key = file.schema_arrow, reading.names["image_column"]
    fitting = [column.name for column in schema if _holds_images(column.type)]
    if wanted is None and len(fitting) > 1:
        fitting = [
            name for name in fitting if fitting.count(name) == 1 and _begins_with_image(file, name)
        ] or fitting
    if wanted is None and len(fitting) > 1:
        raise configs.ConfigError(
            f"{key}: {path} has {len(fitting)} columns with images: {', '.join(fitting)}; name one "
            f"({_columns(schema)})"
        )
    column_name = fitting[0] if wanted is None and fitting else wanted
    if column_name is None or fitting.count(column_name) != 1:
        problem = f"{key} = {wanted}: {path} has no such column with images"
        if wanted is None:
            problem = f"{key}: {path} has no column with images"
        elif wanted in fitting:
            problem = f"{key} = {wanted}: {path} has several columns of that name"
        raise configs.ConfigError(
            f"{problem} (struct with bytes, or binary; addresses and paths are not followed); "
            f"{_columns(schema)}"
        )
    return column_name, [
        column.name
        for column in schema
        if column.name != column_name and _holds_images(column.type)
    ]


def _begins_with_image(file: pq.ParquetFile, name: str) -> bool:
    """Return whether the first value of a column is an image."""
    for batch in file.iter_batches(1, columns=[name]):
        for cell in batch.column(name).to_pylist():
            raw = cell["bytes"] if isinstance(cell, dict) else cell
            if raw:
                return pictures.is_encoded(raw)
    return False


def _label_column(
    schema: pa.Schema, wanted: str | Literal[False] | None, path: Path, reading: Reading
) -> str | None:
    name, key = wanted or "label", reading.names["label_column"]
    if not reading.labels or wanted is False or (wanted is None and name not in schema.names):
        return None
    if schema.names.count(name) != 1:
        number = "several columns of that name" if name in schema.names else "no such column"
        raise configs.ConfigError(f"{key} = {name}: {path} has {number}; {_columns(schema)}")
    kind = schema.field(name).type
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind)):
        raise configs.ConfigError(
            f"{key} = {name}: {path} has {kind} there, but labels must be integers or text; name "
            "another column"
            + (" (or false, to read no labels)" if reading.names is STUDY else "")
            + f"; {_columns(schema)}"
        )
    return name


def _check_text(schema: pa.Schema, wanted: str, path: Path, key: str) -> None:
    """Refuse a column that is not there, or that is no text."""
    if schema.names.count(wanted) != 1:
        number = "several columns of that name" if wanted in schema.names else "no such column"
        raise configs.ConfigError(f"{key} = {wanted}: {path} has {number}; {_columns(schema)}")
    if not _is_text(schema.field(wanted).type):
        raise configs.ConfigError(
            f"{key} = {wanted}: {path} has {schema.field(wanted).type} there, but captions must be "
            f"text; {_columns(schema)}"
        )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )
