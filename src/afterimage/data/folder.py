"""Image files in a folder, or in a zip of one, with or without one sub-folder per class. A zip is read where it lies."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath

from afterimage import config as configs
from afterimage.artifacts import ArtifactError, sha256
from afterimage.data.records import Contents, Record

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
"""Files with another ending are listed as ignored."""


def contents(source: configs.ImageFolder) -> Contents:
    """List the image files of a folder or zip in sorted order.

    A label is the position of the file's top folder among the sorted folder names; without sub-folders labels are -1. Hidden
    files are left out. A zip that holds one top folder and nothing else is read as that folder.

    Raises:
        ConfigError: if there is no such folder or zip, no image in it, or images both beside and inside sub-folders.
        ArtifactError: if the file is not a zip.
    """
    path = Path(configs.expand(source.path))
    if path.is_dir():
        found = {file.relative_to(path).as_posix(): file.read_bytes for file in path.rglob("*") if file.is_file()}
        loaders: dict[str, Callable[[], bytes]] = {name: found[name] for name in _visible(found)}
    elif path.is_file():
        loaders = _zipped(path)
    else:
        raise configs.ConfigError(f"data.source.path = {source.path}: no such folder or zip file")

    names = [name for name in loaders if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not names:
        raise configs.ConfigError(
            f"data.source.path = {source.path}: no image file among {len(loaders)} files; endings are {', '.join(sorted(SUFFIXES))}"
        )
    flat = [name for name in names if "/" not in name]
    if flat and len(flat) < len(names):
        raise configs.ConfigError(
            f"data.source.path = {source.path}: {len(flat)} images lie beside class folders and {len(names) - len(flat)} inside; "
            f"e.g. {flat[0]}"
        )
    classes = sorted({name.split("/")[0] for name in names}) if not flat else []
    label = {name: classes.index(name.split("/")[0]) if classes else -1 for name in names}
    return Contents(
        [Record(loaders[name], label[name], name) for name in names],
        raw_files={name: sha256(path / name) for name in names} if path.is_dir() else {path.name: sha256(path)},
        class_names=classes or None,
        files_are_rows=True,
        skip_bad=source.on_bad_file == "skip",
        ignored=[name for name in loaders if name not in label],
    )


def _visible(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/")))


def _zipped(path: Path) -> dict[str, Callable[[], bytes]]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ArtifactError(f"{path} is neither a folder nor a zip file: {error}") from error
    members = {info.filename: partial(archive.read, info) for info in archive.infolist() if not info.is_dir()}
    names = _visible(members)
    tops = {name.split("/")[0] for name in names}
    strip = len(f"{tops.pop()}/") if len(tops) == 1 and all("/" in name for name in names) else 0
    return {name[strip:]: members[name] for name in names}
