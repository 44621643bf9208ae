"""Arrays of any size: memory-mapped where they are large, and walked through in blocks of rows.

Ten thousand images of 512 x 512 take 8 GB, and as much again in every selection of them. The
projected gradients of 50,000 images at 10 timesteps take 8 GB with 4,096 coordinates, and 16 GB in
the float64 basis of their eigenvectors. A memory-mapped array has its values in a file without a
name in the folder for temporary files (``TMPDIR``), which the system gives back at the end of the
process; what is not in use need not be in memory.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import DTypeLike

from afterimage.artifacts import ArtifactError

LARGEST_IN_MEMORY = 2**28
"""Bytes of the largest array that is not memory-mapped."""
BLOCK = 2**27
"""Bytes of a block of rows in float64."""


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return an array to be filled, memory-mapped if it is larger than ``LARGEST_IN_MEMORY``.

    Raises:
        ArtifactError: if the folder for temporary files has no room for it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not size or size <= LARGEST_IN_MEMORY:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        try:
            # Without its blocks, a full disk would kill the process where the array is written.
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise ArtifactError(
                f"{tempfile.gettempdir()} has no room for an array of {size / 2**30:.1f} GB "
                f"({error.strerror}); TMPDIR names another folder"
            ) from error
        return np.memmap(file, dtype, "r+", shape=shape)


def taken(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return a copy of some rows of an array (positions or a mask), ``array[rows]``."""
    positions = np.arange(len(array))[rows]
    result = empty((len(positions), *array.shape[1:]), array.dtype)
    for some in blocks(len(result), math.prod(result.shape[1:])):
        result[some] = array[positions[some]]
    return result


def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays of one dtype one after the other, along their first dimension."""
    lengths = [len(array) for array in arrays]
    result = empty((sum(lengths), *arrays[0].shape[1:]), arrays[0].dtype)
    np.concatenate(arrays, out=result)
    return result


def stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays of one shape and dtype as the rows of one."""
    result = empty((len(arrays), *arrays[0].shape), arrays[0].dtype)
    np.stack(arrays, out=result)
    return result


class Pile:
    """A place for arrays of uint8 that come one by one, of any shape and any number."""

    def __init__(self) -> None:
        self._room = np.empty(0, np.uint8)
        self._used = self._rooms = 0

    def keep(self, array: np.ndarray) -> np.ndarray:
        """Return a copy of an array, uint8: of the first ones in memory, of later ones in files."""
        if self._used + array.size > len(self._room):
            # As much room again as there is, in memory; beyond what is kept there, in a file.
            size = max(array.size, min(self._rooms, LARGEST_IN_MEMORY))
            if self._rooms + size > LARGEST_IN_MEMORY:
                size = max(size, LARGEST_IN_MEMORY + 1)
            self._room, self._used = empty((size,), np.uint8), 0
            self._rooms += size
        start, self._used = self._used, self._used + array.size
        kept = self._room[start : self._used].reshape(array.shape)
        kept[...] = array
        return kept


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of consecutive rows, together all, of at most ``BLOCK`` bytes in float64.

    Args:
        rows: Number of rows.
        width: Numbers of a row; a block has at least one row.
    """
    size = max(1, BLOCK // (8 * max(1, width)))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
