"""The same bits on every run with the same device and number of threads."""

from __future__ import annotations

import os

import torch


def same_bits() -> None:
    """Have torch take deterministic algorithms only, in this process from now on."""
    # cuBLAS reads its variable when it starts; memory need not be filled for that.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # As `use_deterministic_algorithms(True)`, which imports torch's compilers for a setting of
    # theirs.
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
