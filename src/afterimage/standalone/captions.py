"""Captions of a set of images: next to image files, in a parquet column, or in an array.

Files next to images are read by ``data.caption_files``. Every image needs one caption, and every
caption an image.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from afterimage import config
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.data import caption_files, folder, hub, parquet, pictures
from afterimage.data.caption_files import COLUMNS, LINES, OBJECT, AmbiguousError, Naming
from afterimage.data.records import Reading
from afterimage.data.walk import walk
from afterimage.diffusion.stored_files import first_line, listed
from afterimage.standalone import images as image_sets
from afterimage.standalone.images import ImageSet

FLAG = "--caption-column"
ARRAY = "captions"
WHERE = (
    f"{LINES}, {OBJECT}, a .txt per image, a parquet column {', '.join(COLUMNS)}, or an array "
    f"{ARRAY} in .npz"
)


def arguments(group: argparse._ArgumentGroup) -> None:
    """Declare the flag."""
    group.add_argument(
        FLAG,
        nargs="+",
        action="extend",
        default=[],
        metavar="[SET=]NAME",
        help="parquet column, or key in a JSON object, with the captions (default: the only one of "
        f"{', '.join(COLUMNS)}); SET is a set of images, e.g. train",
    )


def of(images: ImageSet, args: argparse.Namespace) -> list[str] | None:
    """Return the caption of each image in order; None if the set has no captions.

    Args:
        images: A set as it was read.
        args: The command's arguments.

    Raises:
        AmbiguousError: naming the flag, if several columns, keys or files could hold captions.
        ConfigError: naming the flag, if there is no such column.
        ArtifactError: naming the flag and the images, if captions and images do not match.
    """
    chosen = image_sets.parsed(FLAG, args.caption_column, args)
    wanted = chosen.get(images.name, chosen.get(None))
    source = image_sets.source_of(images.name, args)
    flag = f"--{images.name}"
    if isinstance(source, config.Parquet | config.HuggingFace):
        return _in_parquet(_parquet_files(source, images), images, wanted)
    if isinstance(source, config.ArrayFile):
        return _in_array(Path(config.expand(source.path)), images, wanted)
    if not isinstance(source, config.ImageFolder):
        if wanted is not None and images.name in chosen:
            raise ConfigError(f"{FLAG} = {wanted}: {flag} is no source that has captions ({WHERE})")
        return None
    path = Path(config.expand(source.path))
    if not path.is_dir() and path.suffix.lower() != ".zip":
        return None
    files = folder.loaders_of(path, {})
    names = [name for name in files if pictures.is_image(name)]
    texts = caption_files.beside(files, names, wanted, Naming(flag, FLAG))
    if texts is None:
        return None
    missing = sorted(set(map(_file, map(str, images.names))) - set(texts))
    foreign = sorted(set(texts) - set(names))
    if missing or foreign:
        raise ArtifactError(
            f"{flag}: captions do not match the images: {_differ(missing, foreign)}"
        )
    return [texts[_file(str(name))] for name in images.names]


def _file(name: str) -> str:
    """Return the file of an image's name, which may end in a page or frame: ``a.gif[3]``."""
    return name.rpartition("[")[0] if name.endswith("]") and "[" in name else name


def _differ(missing: list[str], foreign: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"{len(missing)} images have none ({listed(missing)})")
    if foreign:
        parts.append(f"{len(foreign)} captions have no image ({listed(foreign)})")
    return "; ".join(parts)


def _in_array(path: Path, images: ImageSet, wanted: str | None) -> list[str] | None:
    """Return the captions in an ``.npz``, such as those of studies, which have empty ones where
    there are none."""
    with np.load(path, allow_pickle=False) as arrays:
        if wanted is not None and wanted not in arrays:
            raise ConfigError(
                f"{FLAG} = {wanted}: --{images.name} has no such array, but {', '.join(arrays)}"
            )
        texts = arrays.get(wanted or ARRAY, np.array([], str))
    if not texts.astype(bool).any():
        return None
    if texts.dtype.kind != "U" or texts.shape != (len(images.names),):
        raise ArtifactError(
            f"--{images.name}: its array {wanted or ARRAY} is {texts.dtype} {texts.shape}; needed "
            f"is one text for each of {len(images.names)} images"
        )
    return texts.tolist()


# ---- parquet -------------------------------------------------------------------------------------


def _in_parquet(files: list[Path], images: ImageSet, wanted: str | None) -> list[str] | None:
    """Return the captions of parquet rows; None if no column could hold them."""
    flag, cells = f"--{images.name}", list[Any]()
    for path in files:
        try:
            schema = pq.read_schema(path.absolute())
            column = _column(schema, wanted, path, flag)
            if column is None:
                return None
            table = pq.read_table(path.absolute(), columns=[column])
        except ConfigError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ArtifactError(f"{flag}: {path} cannot be read: {first_line(error)}") from error
        cells += table.column(column).to_pylist()
    rows = [int(row) for row in images.images.ids]
    if missing := [str(row) for row in rows if not isinstance(cells[row], str)]:
        raise ArtifactError(
            f"{flag}: captions do not match the images: {len(missing)} rows have none (row "
            f"{listed(missing)}, counted from 0)"
        )
    return [cells[row] for row in rows]


def _parquet_files(source: config.Parquet | config.HuggingFace, images: ImageSet) -> list[Path]:
    """Return the files of a source, in the order in which its images were read; those of a data set
    on the Hub at the same commit."""
    if isinstance(source, config.HuggingFace):
        then = source.model_copy(update={"revision": images.manifest["facts"]["commit"]})
        return [path for _, path, _ in hub.download(then, Reading()).files]
    files: list[Path] = []
    for path in parquet.matching(config.expand(str(source.path))):
        if path.is_dir():
            inside = walk(path, {})
            files += [inside[name] for name in sorted(inside) if parquet.is_parquet(name)]
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def _column(schema: pa.Schema, wanted: str | None, path: Path, flag: str) -> str | None:
    texts = [
        field.name
        for field in schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    if wanted is not None:
        if wanted not in texts:
            raise ConfigError(
                f"{FLAG} = {wanted}: {path} has no column of text of that name; it has "
                f"{listed(texts) or 'none'}"
            )
        return wanted
    usual = [name for name in texts if name in COLUMNS]
    if len(usual) > 1:
        raise AmbiguousError(f"{flag}: {path} has {', '.join(usual)}; {FLAG} chooses one")
    return usual[0] if usual else None
