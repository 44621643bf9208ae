"""Inner products and cosines of all pairs of two sets of long vectors, summed in float64."""

from __future__ import annotations

import numpy as np

_BLOCK = 4096
"""Coordinates summed at a time; bounds the memory of the float64 copies."""


def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the inner products of the rows of ``a``, (n, k), and ``b``, (m, k), float64 (n, m)."""
    total = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], _BLOCK):
        columns = slice(start, start + _BLOCK)
        left = a[:, columns].astype(np.float64)
        right = left if b is a else b[:, columns].astype(np.float64)
        total += left @ right.T
    return total


def norms(a: np.ndarray) -> np.ndarray:
    """Return the Euclidean norm of each row of ``a``, (n, k), float64 (n,)."""
    return np.sqrt(np.einsum("nk,nk->n", a, a, dtype=np.float64))


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return ``a / b``, broadcast, and 0 where ``b`` is 0."""
    a, b = np.broadcast_arrays(a, b)
    return np.divide(a, b, out=np.zeros(a.shape), where=b != 0)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosines of the rows of ``a``, (n, k), and ``b``, (m, k), float64 (n, m).

    The cosine with a row of zeros is 0.
    """
    return divide(inner(a, b), np.outer(norms(a), norms(b)))
