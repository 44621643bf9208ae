"""CIFAR-10 and CIFAR-100 from the python tarballs of their authors (Krizhevsky 2009), without running pickled code.

The batches are Python 2 pickles. They are read straight from the tar, members by their expected names only, by an unpickler
that knows three names of numpy and refuses every other.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from afterimage import config as configs
from afterimage.artifacts import ArtifactError, sha256
from afterimage.data.download import fetch
from afterimage.data.records import Contents, Reading, Record


@dataclass(frozen=True)
class Layout:
    """One published tarball: address, checksum, batch files (name, official test part?) and the key of its labels."""

    url: str
    sha256: str
    batches: tuple[tuple[str, bool], ...]
    label_keys: dict[str, str]


_HOME = "https://www.cs.toronto.edu/~kriz"
LAYOUTS = {
    "cifar10": Layout(
        f"{_HOME}/cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        (
            *((f"cifar-10-batches-py/data_batch_{number}", False) for number in range(1, 6)),
            ("cifar-10-batches-py/test_batch", True),
        ),
        {"fine": "labels", "coarse": "labels"},
    ),
    "cifar100": Layout(
        f"{_HOME}/cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        (("cifar-100-python/train", False), ("cifar-100-python/test", True)),
        {"fine": "fine_labels", "coarse": "coarse_labels"},
    ),
}


def contents(source: configs.ArchiveUrl, reading: Reading) -> Contents:
    """Fetch the tarball, if it is not in the cache, and list its images: the training batches, then the test batch.

    Raises:
        ArtifactError: if it cannot be fetched, has another checksum, or does not hold the batches.
    """
    del reading
    layout = LAYOUTS[source.layout]
    path = fetch(source.url or layout.url, source.sha256 or layout.sha256)
    return Contents(
        _records(path, layout, layout.label_keys[source.labels]), {path.name: sha256(path)}
    )


def _records(path: Path, layout: Layout, label_key: str) -> Iterator[Record]:
    try:
        with tarfile.open(path) as tar:
            members = {member.name: member for member in tar if member.isfile()}
            for name, official_test in layout.batches:
                if name not in members:
                    raise ArtifactError(
                        f"{path} has no file {name}; it has: {', '.join(sorted(members)) or 'none'}"
                    )
                stream = tar.extractfile(members[name])
                assert stream is not None
                pixels, labels = _batch(stream.read(), label_key, f"{path.name}/{name}")
                for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
                    yield Record(
                        partial(np.asarray, image), int(label), f"{name}:{row}", official_test
                    )
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ArtifactError(f"{path} is not a readable tar file: {error}") from error


def _batch(data: bytes, label_key: str, name: str) -> tuple[np.ndarray, list[int]]:
    """Return uint8 (N, 32, 32, 3) and N labels of one batch; its rows are three planes of 32 x 32, red first."""
    batch = load_arrays(data, name)
    if not isinstance(batch, dict) or not {b"data", label_key.encode()} <= batch.keys():
        raise ArtifactError(
            f"{name} is not a CIFAR batch: it needs the keys 'data' and {label_key!r}"
        )
    planes, labels = batch[b"data"], batch[label_key.encode()]
    if (
        not isinstance(planes, np.ndarray)
        or planes.dtype != np.uint8
        or planes.shape != (len(labels), 3 * 32 * 32)
    ):
        raise ArtifactError(f"{name}: 'data' must be uint8 of shape ({len(labels)}, 3072)")
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


_RECONSTRUCT: Any = np.zeros(0).__reduce__()[
    0
]  # numpy's own, under whatever name this version keeps it
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which arrays do not need")
        return _ALLOWED[module, name]


def load_arrays(data: bytes, name: str) -> Any:
    """Unpickle plain values and numpy arrays; Python 2 strings become bytes.

    Raises:
        ArtifactError: if the pickle asks for anything else, or is damaged. Nothing of it is called.
    """
    try:
        return _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
    ) as error:
        raise ArtifactError(f"{name} is refused: {error}") from error
