"""Images in one ``.npz`` file: uint8, N x H x W x C or N x H x W, with optional labels and ids."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from afterimage import config as configs
from afterimage.artifacts import ArtifactError, sha256
from afterimage.data import zips
from afterimage.data.records import Contents, Reading, Record, refuse_pointer

_DAMAGE = (*zips.DAMAGE, MemoryError, OverflowError, TypeError, SyntaxError)
"""Exceptions that zipfile, and numpy reading an array's header, raise on a damaged file."""


def contents(source: configs.ArrayFile, reading: Reading) -> Contents:
    """Read the arrays; pickled objects are refused. Images are named by their ``ids``, or by row.

    Raises:
        AbsentError: if there is no such file.
        ConfigError: if several arrays could hold the images.
        ArtifactError: if the file is damaged, or arrays have a wrong type, shape or length.
    """
    path = Path(configs.expand(source.path))
    if not path.is_file():
        raise configs.AbsentError(f"{reading.names['path']} = {source.path}: no such file")
    refuse_pointer(path)
    # Choose the arrays by their headers, then load only these.
    try:
        with zips.opened(path) as archive:
            for info in archive.infolist():
                zips.same_name(archive, info)
            forms = {
                name.removesuffix(".npy"): _form(archive, name)
                for name in archive.namelist()
                if name.endswith(".npy")
            }
            name = _image_array(forms, source, reading, path)
            labelled = _label_array(forms, name, source, reading, path)
            array_of = {
                "images": name,
                "labels": labelled,
                "ids": "ids" if "ids" in forms else None,
            }
            arrays = {
                role: _array(archive, f"{array}.npy")
                for role, array in array_of.items()
                if array is not None and not (reading.look and role == "images")
            }
            if reading.look:
                arrays["images"] = np.zeros(*forms[name])
    except configs.ConfigError:
        raise
    except _DAMAGE as error:
        raise ArtifactError(
            f"{path} cannot be read as an .npz file of plain arrays: "
            f"{error or type(error).__name__}"
        ) from error

    # Check shapes and types before any image is used.
    images = _checked(arrays["images"], name, path)
    for role in ("labels", "ids"):
        if role in arrays and arrays[role].shape != (len(images),):
            raise ArtifactError(
                f"{path}: {array_of[role]} has shape {arrays[role].shape}, but there are "
                f"{len(images)} images in {name}"
            )
    labels = arrays.get("labels", np.full(len(images), -1))
    if not np.issubdtype(labels.dtype, np.integer):
        raise ArtifactError(
            f"{path}: labels must be integers, not {labels.dtype} ({reading.names['label_array']})"
        )
    ids = arrays.get("ids", np.arange(len(images)))
    records = [
        Record(partial(np.asarray, image), int(label), str(id_))
        for image, label, id_ in zip(images, labels, ids, strict=True)
    ]
    choices = {
        "array": _choice(name, source.array, forms.keys() - set(array_of.values()) - {"labels"})
    }
    if labelled is not None:
        choices["label_array"] = _choice(labelled, source.label_array, [])
    raw = {} if reading.look else {path.name: sha256(path)}
    return Contents(records, raw, files_are_rows="ids" in arrays, choices=choices)


def _choice(taken: str, given: str | None, others: Iterable[str]) -> dict[str, Any]:
    return {"taken": taken, "given": given is not None, "others": sorted(others)}


# ---- which arrays --------------------------------------------------------------------------------

Form = tuple[tuple[int, ...], np.dtype]
"""Shape and type of an array."""


def _image_array(
    forms: dict[str, Form], source: configs.ArrayFile, reading: Reading, path: Path
) -> str:
    flag = reading.names["array"]
    if source.array is not None:
        if source.array not in forms:
            raise configs.ConfigError(
                f"{flag} = {source.array}: {path} has no such array; {_listed(forms)}"
            )
        return source.array
    if "images" in forms:
        return "images"
    fitting = [
        name for name, (shape, kind) in forms.items() if kind == np.uint8 and _is_images(shape)
    ]
    fitting = fitting or [name for name, (shape, _) in forms.items() if len(shape) in (3, 4)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise configs.ConfigError(
            f"{flag}: {path} has {len(fitting)} arrays that may be the images: "
            f"{', '.join(fitting)}; name one ({_listed(forms)})"
        )
    raise configs.ConfigError(
        f"{flag}: {path} has no array named images, and none with the shape of images "
        f"(N x H x W x C); {_listed(forms)}"
    )


def _label_array(
    forms: dict[str, Form], images: str, source: configs.ArrayFile, reading: Reading, path: Path
) -> str | None:
    if not reading.labels:
        return None
    if source.label_array is not None:
        if source.label_array not in forms:
            name = reading.names["label_array"]
            raise configs.ConfigError(
                f"{name} = {source.label_array}: {path} has no such array; {_listed(forms)}"
            )
        return source.label_array
    if "labels" in forms:
        return "labels"
    shape, kind = forms.get("arr_1", ((), np.dtype(float)))
    count = forms[images][0][:1]
    return (
        "arr_1"
        if images == "arr_0" and shape == count and np.issubdtype(kind, np.integer)
        else None
    )


def _listed(forms: dict[str, Form]) -> str:
    listed = ", ".join(f"{name} ({kind} {shape})" for name, (shape, kind) in forms.items())
    return f"it has: {listed or 'none'}"


def _is_images(shape: tuple[int, ...]) -> bool:
    """Return whether a shape is (N, H, W, 1 or 3) or (N, H, W); (H, W, 1 or 3) is one image."""
    return (len(shape) == 4 and shape[-1] in (1, 3)) or (
        len(shape) == 3 and shape[-1] not in (1, 3)
    )


def _checked(images: np.ndarray, name: str, path: Path) -> np.ndarray:
    if images.dtype != np.uint8 or not _is_images(images.shape):
        raise ArtifactError(
            f"{path}: {name} must be uint8 of shape (N, H, W, 1 or 3) or (N, H, W), not "
            f"{images.dtype} {images.shape}"
        )
    return images[..., None] if images.ndim == 3 else images


# ---- reading -------------------------------------------------------------------------------------


def _form(archive: zipfile.ZipFile, member: str) -> Form:
    """Return the shape and type of an array from its header."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, _, kind = np.lib.format.read_array_header_1_0(stream)
        else:  # 3.0 differs from 2.0 only in the encoding of field names, which images lack
            shape, _, kind = np.lib.format.read_array_header_2_0(stream)
    return shape, kind


def _array(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    """Return an array. It is read to its end, where zipfile verifies the checksum."""
    if _form(archive, member)[1].hasobject:
        raise ValueError(
            f"{member} holds pickled Python objects, which could run code and are never loaded"
        )
    with archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read():
            raise ValueError(f"{member} is longer than its header says")
    return array
