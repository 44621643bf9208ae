"""Image data sets in the parquet form of the Hugging Face Hub, from disk or from the Hub itself.

The form: one row per image, a struct column with the encoded image under ``bytes`` (or a plain binary column), and an integer
label column.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from afterimage import config as configs
from afterimage.artifacts import ArtifactError, sha256
from afterimage.data.records import Contents, Record

_ROWS_AT_ONCE = 1024


def local(source: configs.Parquet) -> Contents:
    """Read parquet files on disk.

    Raises:
        ConfigError: if a pattern matches no file, or a column or a file named in ``sha256`` is not there.
        ArtifactError: if a file has another checksum or is no parquet file.
    """
    train = _expand("data.source.path", source.path)
    test = _expand("data.source.test_path", source.test_path) if source.test_path is not None else []
    root = os.path.commonpath([path.resolve().parent for path in train + test])
    named = [(path.resolve().relative_to(root).as_posix(), path, path in test) for path in dict.fromkeys(train + test)]
    unknown = sorted(source.sha256.keys() - {path.name for _, path, _ in named})
    if unknown:
        raise configs.ConfigError(
            f"data.source.sha256 names {', '.join(unknown)}, but the files are {', '.join(name for name, _, _ in named)}"
        )
    raw = {name: sha256(path) for name, path, _ in named}
    for name, path, _ in named:
        expected = source.sha256.get(path.name)
        if expected is not None and raw[name] != expected.lower():
            raise ArtifactError(f"{path} has sha256 {raw[name]}, but data.source.sha256 expects {expected}")
    return Contents(_records(named, source), raw)


def _expand(key: str, patterns: str | list[str]) -> list[Path]:
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = sorted(glob.glob(configs.expand(pattern), recursive=True))
        if not matches:
            raise configs.ConfigError(f"{key}: {pattern} matches no file")
        found += map(Path, matches)
    return found


def hub(source: configs.HuggingFace) -> Contents:
    """Download the parquet files of the wanted split from the Hugging Face Hub, or take them from its cache.

    ``HF_ENDPOINT``, ``HF_HOME`` and ``HF_TOKEN`` mean what they mean to ``huggingface_hub``.

    Raises:
        ConfigError: if the data set, the revision, the configuration or the split does not exist.
        ArtifactError: if the Hub cannot be reached.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi(library_name="afterimage")
    named: list[tuple[str, Path, bool]] = []
    try:
        info = api.dataset_info(source.dataset, revision=source.revision)
        stored = sorted(file.rfilename for file in info.siblings or [] if file.rfilename.endswith(".parquet"))
        for part in source.split.split("+"):
            for name in _files_of(part, stored, source):
                path = api.hf_hub_download(source.dataset, name, repo_type="dataset", revision=info.sha)
                named.append((name, Path(path), part in ("test", "validation")))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise configs.ConfigError(f"data.source: {source.dataset} at revision {source.revision}: {error}") from error
    except (HTTPError, OSError) as error:
        raise ArtifactError(f"{source.dataset} cannot be fetched from the Hub: {error}") from error
    raw = {name: sha256(path) for name, path, _ in named}
    return Contents(_records(named, source), raw, facts={"commit": info.sha or source.revision})


def _files_of(part: str, stored: list[str], source: configs.HuggingFace) -> list[str]:
    """Return the files of one split: ``[folder/]part-00000-of-00001.parquet`` or ``folder/part/0000.parquet``."""
    found: dict[str, str] = {}
    for name in stored:
        parents, stem = name.split("/")[:-1], Path(name).stem
        if re.fullmatch(rf"{re.escape(part)}(-.*)?", stem) or part in parents:
            found[name] = "/".join(parent for parent in parents if parent != part)
    if source.config is not None:
        found = {name: folder for name, folder in found.items() if source.config in folder.split("/")}
    if not found:
        raise configs.ConfigError(
            f"data.source: {source.dataset} has no parquet file of split {part!r}"
            + (f" in configuration {source.config!r}" if source.config else "")
            + f"; it has: {', '.join(stored) or 'none'}"
        )
    if len(set(found.values())) > 1:
        raise configs.ConfigError(
            f"data.source.config = {source.config}: several configurations have a split {part!r}: "
            f"{', '.join(sorted(set(found.values())))}; name one"
        )
    return list(found)


def _records(named: list[tuple[str, Path, bool]], source: configs.Parquet | configs.HuggingFace) -> Iterator[Record]:
    for name, path, official_test in named:
        try:
            with pq.ParquetFile(path) as file:
                image = _image_column(file.schema_arrow, source.image_column, path)
                label = _label_column(file.schema_arrow, source.label_column, path)
                row = 0
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[image] + ([label] if label else [])):
                    cells = batch.column(image).to_pylist()
                    labels = batch.column(label).to_pylist() if label else [None] * len(cells)
                    for cell, value in zip(cells, labels, strict=True):
                        yield Record(partial(_bytes, cell), -1 if value is None else value, f"{name}:{row}", official_test)
                        row += 1
        except (pa.ArrowInvalid, OSError) as error:
            raise ArtifactError(f"{path} is not a readable parquet file: {error}") from error


def _bytes(cell: Any) -> bytes:
    if isinstance(cell, dict):
        if cell["bytes"] is None:
            raise ValueError(f"no bytes, only the path {cell['path']!r}" if cell.get("path") else "no bytes")
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


def _image_column(schema: pa.Schema, wanted: str | None, path: Path) -> str:
    structs_first = sorted(schema, key=lambda column: not pa.types.is_struct(column.type))
    fitting = [column.name for column in structs_first if _holds_images(column.type)]
    if wanted is None and fitting:
        return fitting[0]
    if wanted is not None and wanted in fitting:
        return wanted
    problem = f"data.source.image_column = {wanted}: {path} has no such column with images"
    if wanted is None:
        problem = f"data.source.image_column: {path} has no column with images"
    raise configs.ConfigError(f"{problem} (struct with bytes, or binary); {_columns(schema)}")


def _label_column(schema: pa.Schema, wanted: str | None, path: Path) -> str | None:
    name = wanted or "label"
    if name not in schema.names:
        if wanted is None:
            return None
        raise configs.ConfigError(f"data.source.label_column = {wanted}: {path} has no such column; {_columns(schema)}")
    if not pa.types.is_integer(schema.field(name).type):
        raise configs.ConfigError(
            f"data.source.label_column = {name}: {path} has {schema.field(name).type} there, but labels must be integers; "
            f"{_columns(schema)}"
        )
    return name
