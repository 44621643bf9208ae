"""Arrays of any size: memory-mapped where they are large, and walked through in blocks of rows.

The projected gradients of 50,000 images at 10 timesteps take 8 GB with 4,096 coordinates, and 16 GB
in the float64 basis of their eigenvectors. A memory-mapped array has its values in a file without a
name in the folder for temporary files (``TMPDIR``), which the system gives back at the end of the
process; what is not in use need not be in memory.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator

import numpy as np

LARGEST_IN_MEMORY = 2**28
"""Bytes of the largest array that is not memory-mapped."""
BLOCK = 2**27
"""Bytes of a block of rows in float64."""


def empty(shape: tuple[int, ...], dtype: type[np.floating]) -> np.ndarray:
    """Return an array to be filled, memory-mapped if it is larger than ``LARGEST_IN_MEMORY``."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not size or size <= LARGEST_IN_MEMORY:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of consecutive rows, together all, of at most ``BLOCK`` bytes in float64.

    Args:
        rows: Number of rows.
        width: Numbers of a row; a block has at least one row.
    """
    size = max(1, BLOCK // (8 * max(1, width)))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
