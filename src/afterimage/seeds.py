"""Named, independent random streams from one root seed.

A stream is addressed by a path of names, e.g. ``derive(root, "train", "baseline", 0, "noise",
step)``. The address is hashed (BLAKE2b over its canonical JSON), never combined arithmetically or
with Python's own ``hash``, so that streams with different paths are unrelated, and the same path
gives the same numbers on every machine and Python version.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(root: int, *path: str | int) -> int:
    """Return the 63-bit seed of the stream at ``path`` under ``root``."""
    address = json.dumps([int(root), *path], separators=(",", ":")).encode()
    return int.from_bytes(hashlib.blake2b(address, digest_size=8).digest(), "little") >> 1


def numpy_rng(root: int, *path: str | int) -> np.random.Generator:
    """Return a NumPy generator (PCG64) for the stream at ``path``."""
    return np.random.default_rng(derive(root, *path))


def torch_rng(root: int, *path: str | int) -> torch.Generator:
    """Return a torch generator **on the CPU** for the stream at ``path``.

    Noise is always drawn on the CPU and then moved, so that a GPU and a CPU run see the same
    numbers.
    """
    import torch

    return torch.Generator("cpu").manual_seed(derive(root, *path))
