"""Images in one ``.npz`` file: ``images`` (uint8, N x H x W x C or N x H x W), and optionally ``labels`` and ``ids``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from afterimage import config as configs
from afterimage.artifacts import ArtifactError, sha256
from afterimage.data.records import Contents, Record


def contents(source: configs.ArrayFile) -> Contents:
    """Read the arrays; pickled objects are refused. Names of the images are their ``ids``, or else their rows.

    Raises:
        ConfigError: if there is no such file, or no array ``images`` in it.
        ArtifactError: if the file is damaged, or arrays have a wrong type, shape or length.
    """
    path = Path(configs.expand(source.path))
    if not path.is_file():
        raise configs.ConfigError(f"data.source.path = {source.path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("images", "labels", "ids") if name in stored}
            present = list(stored)
    except (OSError, ValueError, EOFError, BadZipFile, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read as an .npz file of plain arrays: {error}") from error
    if "images" not in arrays:
        raise configs.ConfigError(f"{path} has no array named images; it has: {', '.join(present) or 'none'}")
    images = arrays["images"]
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ArtifactError(
            f"{path}: images must be uint8 of shape (N, H, W, 1 or 3) or (N, H, W), not {images.dtype} {arrays['images'].shape}"
        )
    for name in ("labels", "ids"):
        if name in arrays and arrays[name].shape != (len(images),):
            raise ArtifactError(f"{path}: {name} has shape {arrays[name].shape}, but there are {len(images)} images")
    labels = arrays.get("labels", np.full(len(images), -1))
    if not np.issubdtype(labels.dtype, np.integer):
        raise ArtifactError(f"{path}: labels must be integers, not {labels.dtype}")
    ids = arrays.get("ids", np.arange(len(images)))
    records = [
        Record(partial(np.asarray, image), int(label), str(id_)) for image, label, id_ in zip(images, labels, ids, strict=True)
    ]
    return Contents(records, {path.name: sha256(path)}, files_are_rows="ids" in arrays)
