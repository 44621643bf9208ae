"""Image files in a folder, or in a zip of one, with or without one sub-folder per class.

A zip is read in place, never unpacked.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from afterimage import config as configs
from afterimage.artifacts import ArtifactError, sha256
from afterimage.data import caption_files, zips
from afterimage.data.caption_files import Naming, Texts
from afterimage.data.pictures import SUFFIXES, is_image
from afterimage.data.records import Contents, Reading, Record, refuse_pointer
from afterimage.data.walk import HIDDEN, walk
from afterimage.diffusion.stored_files import listed

NO_IMAGE = "not images by their ending"
PARTS = {
    "train",
    "training",
    "test",
    "testing",
    "val",
    "valid",
    "validation",
    "dev",
    "eval",
    "holdout",
}
"""Names of folders that hold the splits of a data set, not its classes."""

Loader = Callable[[], bytes]


def contents(source: configs.ImageFolder, reading: Reading) -> Contents:
    """List the image files of a folder or zip in sorted order, or a single image file.

    A label is the position of the file's top folder among the sorted folder names; without
    sub-folders labels are -1. Links are followed. A zip that holds one top folder and nothing else
    is read as that folder.

    Raises:
        AbsentError: if there is no such folder or file.
        ConfigError: if there is no image in it, or only folders of ``PARTS``, or, with labels,
            images both next to and inside sub-folders; if there are no files with captions as
            ``captions`` says.
        ArtifactError: if the file is not a zip, or a folder cannot be listed.
    """
    path = Path(configs.expand(source.path))
    if not path.is_dir() and not path.is_file():
        raise configs.AbsentError(
            f"{reading.names['path']} = {source.path}: no such folder, zip or image file"
        )
    ignored: dict[str, str] = {}
    loaders = loaders_of(path, ignored)
    names = sorted(name for name in loaders if is_image(name))
    captions, variants, written = _captions(source, loaders, names, reading)
    ignored |= {name: NO_IMAGE for name in loaders if not is_image(name) and name not in written}
    if not names:
        raise configs.ConfigError(
            f"{reading.names['path']} = {source.path}: no image file {_among(ignored)}"
        )
    flat = [name for name in names if "/" not in name]
    tops = sorted({name.split("/")[0] for name in names if "/" in name})
    if len(tops) > 1 and not flat and all(top.lower() in PARTS for top in tops):
        raise configs.ConfigError(
            f"{reading.names['path']} = {source.path}: its folders {', '.join(tops)} are parts of "
            f"a data set, not classes; name one of them, e.g. {source.path}/{tops[0]}"
        )
    classes: list[str] = []
    if reading.labels and len(flat) < len(names):
        if flat:
            raise configs.ConfigError(
                f"{reading.names['path']} = {source.path}: {len(flat)} images are next to class "
                f"folders and {len(names) - len(flat)} inside; e.g. {flat[0]}"
            )
        classes = tops
    try:
        raw = {} if reading.look else _hashes(path, loaders, [*names, *sorted(written)])
    except OSError as error:
        raise ArtifactError(f"{error.filename} cannot be read: {error.strerror}") from error
    label = {name: classes.index(name.split("/")[0]) if classes else -1 for name in names}
    return Contents(
        [
            Record(
                loaders[name],
                label[name],
                name,
                caption=None if captions is None else captions.get(name, ""),
                variants={variant: texts.get(name, "") for variant, texts in variants.items()},
            )
            for name in names
        ],
        raw_files=raw,
        class_names=classes or None,
        files_are_rows=True,
        skip_bad=source.on_bad_file == "skip",
        ignored=[{"name": name, "reason": ignored[name]} for name in sorted(ignored)],
    )


def loaders_of(path: Path, ignored: dict[str, str]) -> dict[str, Loader]:
    """Return name -> loader of the files of a folder or a zip, or of a single image.

    Args:
        path: The folder or file.
        ignored: Receives name -> reason of every file that is left out.

    Raises:
        ArtifactError: if a file is not a zip, or a folder cannot be listed.
    """
    if path.is_dir():
        return {name: file.read_bytes for name, file in walk(path, ignored).items()}
    return {path.name: path.read_bytes} if is_image(path.name) else _zipped(path, ignored)


def _hashes(path: Path, loaders: Mapping[str, Loader], names: list[str]) -> dict[str, str]:
    """Return the sha256 of the files that images and captions are read from: of a zip, its own."""
    if path.is_file() and not is_image(path.name):
        return {path.name: sha256(path)}
    return {name: hashlib.sha256(loaders[name]()).hexdigest() for name in names}


def _captions(
    source: configs.ImageFolder, files: Mapping[str, Loader], images: list[str], reading: Reading
) -> tuple[Texts | None, dict[str, Texts], set[str]]:
    """Return the captions, their variants, and the files that they are in; None without captions.

    Raises:
        ConfigError: if there is no such file.
        ArtifactError: if a file cannot be read, or a caption has no image.
    """
    kind = source.captions
    if kind is None:
        return None, {}, set()
    written = set(caption_files.holders(kind, files, images))
    key = f"{reading.names['caption_files']} = {kind}"
    if not written:
        raise configs.ConfigError(f"{key}: there is no such file in {source.path}")

    def texts(column: str | None, setting: str) -> Texts:
        naming = Naming(reading.names["source"], setting)
        found = caption_files.of_kind(kind, files, images, column, naming)
        if foreign := sorted(found.keys() - set(images)):
            raise ArtifactError(f"{key}: {len(foreign)} captions have no image: {listed(foreign)}")
        return {name: text.strip() for name, text in found.items()}

    variants = {
        variant: texts(column, f"{reading.names['captions']}.{variant}.column")
        for variant, column in reading.captions.items()
    }
    return texts(source.caption_column, reading.names["caption_column"]), variants, written


def _among(ignored: dict[str, str]) -> str:
    """Return the kinds of files that were found instead of images."""
    kinds: Counter[str] = Counter()
    for name, reason in ignored.items():
        kinds[
            PurePosixPath(name).suffix or "without an ending" if reason == NO_IMAGE else reason
        ] += 1
    listed = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common(10)) or "nothing"
    return f"among {len(ignored)} files ({listed}); endings are {', '.join(sorted(SUFFIXES))}"


# ---- zips ----------------------------------------------------------------------------------------


def _zipped(path: Path, ignored: dict[str, str]) -> dict[str, Loader]:
    """Return name -> loader of all files in a zip; hidden files go into ``ignored``.

    Names are relative to the top folder, if all files are in one.
    """
    refuse_pointer(path)
    try:
        archive = zips.opened(path)
        for info in archive.infolist():
            if not is_image(info.filename):
                zips.same_name(archive, info)
    except zips.DAMAGE as error:
        raise ArtifactError(
            f"{path} is neither a folder, an image nor a sound zip file: {error}"
        ) from error
    members = {
        info: PurePosixPath(info.filename).as_posix()
        for info in archive.infolist()
        if not info.is_dir()
    }
    repeated = [name for name, count in Counter(members.values()).items() if count > 1]
    if repeated:
        raise ArtifactError(
            f"{path} holds {len(repeated)} names more than once, e.g. {repeated[0]}"
        )
    loaders: dict[str, Loader] = {}
    hidden: set[str] = set()
    for info, name in members.items():
        parts = name.split("/")
        depth = next(
            (
                i
                for i, part in enumerate(parts, 1)
                if part.startswith((".", "__MACOSX")) and part != ".."
            ),
            None,
        )
        if depth is None:
            loaders[name] = partial(archive.read, info)
        else:
            hidden.add("/".join(parts[:depth]))
    tops = {name.split("/")[0] for name in loaders}
    top = f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in loaders) else ""
    ignored |= {name.removeprefix(top): HIDDEN for name in hidden}
    return {name.removeprefix(top): load for name, load in loaders.items()}
