"""Bitwise reproducible runs on the same device with the same number of threads."""

from __future__ import annotations

import os

import torch


def same_bits(deterministic: bool = True) -> None:
    """Restrict torch to deterministic algorithms, in this process from now on.

    Args:
        deterministic: ``train.deterministic``; False restricts it on a CPU alone.
    """
    if not deterministic and torch.accelerator.is_available():
        return
    # cuBLAS reads its variable when it starts; memory need not be filled for that.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Same as `use_deterministic_algorithms(True)`, which would import torch's compilers as well.
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
