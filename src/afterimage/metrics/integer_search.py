"""Exact nearest neighbours of uint8 images by integer matrix products.

Pixels less 128 are int8, and |q - g|^2 = |q|^2 + |g|^2 - 2qg. Each term and each partial sum fits
into int32 as long as an image, or a tile of the tiled distance, has at most ``LARGEST`` values. Of
larger ones, the products of parts are added in int64. So all distances
are exact: there is no error to bound, and nothing to compare a second time.

The product is that of ``torch._int_mm``, which is several times as fast as float32 where the
processor has instructions for it (VNNI, AMX). On processors without them its kernels add pairs of
products in 16 bits, with saturation, and return wrong numbers without a word. So nothing is
searched in this way before ``trusted`` has multiplied extreme values and compared the products.
(Vectors of a single value are multiplied wrongly by torch 2.13 on any processor.)
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import torch

from afterimage import scratch

LARGEST = (2**31 - 1) // 255**2
"""Values whose sum of squared differences fits into int32."""

_PAIRS = 2**23  # distances held at once: 32 MiB in int32
_COLUMNS = 4096  # images in one product, which the processor's cache then holds
_VALUES = 2**15  # values of images in one product, at most
_CHECKED = (64, 1000)  # shape of the products that are checked


@cache
def trusted(values: int) -> bool:
    """Return whether integer products over ``values`` values, or the first ``LARGEST`` of them, are
    right on this processor.

    Half of the checked rows are of extreme values, all products of which have one sign: sums of
    pairs of these are the first to leave 16 bits.
    """
    rng = np.random.default_rng(0)
    shapes = ((count, min(values, LARGEST)) for count in _CHECKED)
    queries, gallery = (rng.choice(np.array([-128, 127], np.int8), shape) for shape in shapes)
    queries[::2], gallery[::2] = -128, -128
    products = torch._int_mm(torch.from_numpy(queries), torch.from_numpy(gallery).t())
    return bool(
        np.array_equal(products.numpy(), queries.astype(np.float64) @ gallery.astype(np.float64).T)
    )


class IntegerGallery:
    """Images, prepared for comparison by integer products.

    Holds a copy of them in int8; all other memory is bounded by a constant.

    Args:
        cut: Images cut into tiles (``distances.cut``), uint8 (N, T, d).
    """

    def __init__(self, cut: np.ndarray) -> None:
        values = cut.shape[2]
        self._dtype = torch.int32 if values <= LARGEST else torch.int64
        edges = np.linspace(0, values, 1 + -(-values // _VALUES)).astype(int).tolist()
        self._parts = [slice(*part) for part in pairwise(edges)]  # none of a single value
        self._tiles = _signed(cut)
        self._norms = _squared_norms(self._tiles, self._dtype)

    def nearest(
        self, cut: np.ndarray, k: int, exclude: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ``k`` nearest images of each query, nearest first, ties by the lower row.

        Args:
            cut: Queries cut into tiles, uint8 (Q, T, d).
            k: At most N, or N - 1 with ``exclude``.
            exclude: int, (Q,): a row to ignore for each query.

        Returns:
            Rows, int64 (Q, k), and sums of squared differences over the worst tile, float64 (Q, k).
        """
        rows, squares = np.empty((len(cut), k), np.int64), np.empty((len(cut), k))
        step = max(1, _PAIRS // self._tiles.shape[1])
        for start in range(0, len(cut), step):
            part = slice(start, start + step)
            found = self._squares(cut[part])
            if exclude is not None:
                never = torch.iinfo(found.dtype).max
                found[torch.arange(len(found)), torch.from_numpy(exclude[part])] = never
            rows[part], squares[part] = _smallest(found, k)
        return rows, squares

    def _squares(self, cut: np.ndarray) -> torch.Tensor:
        """Return the squared distances of all pairs over their worst tile, (Q, N), int32 or
        int64."""
        queries = _signed(cut)
        norms = _squared_norms(queries, self._dtype)
        worst = torch.zeros((len(cut), self._tiles.shape[1]), dtype=self._dtype)
        for tile, gallery in enumerate(self._tiles):
            for start in range(0, len(gallery), _COLUMNS):
                part = slice(start, start + _COLUMNS)
                squares = self._products(queries[tile], gallery[part])
                squares.mul_(-2).add_(self._norms[tile, part]).add_(norms[tile][:, None])
                torch.maximum(worst[:, part], squares, out=worst[:, part])
        return worst

    def _products(self, queries: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        """Return the products of int8 rows (Q, d) and (N, d), (Q, N), int32 or int64."""
        first, *others = self._parts
        products = torch._int_mm(queries[:, first], gallery[:, first].t()).to(self._dtype)
        for part in others:
            products += torch._int_mm(queries[:, part], gallery[:, part].t())
        return products


def _signed(cut: np.ndarray) -> torch.Tensor:
    """Return uint8 tiles (N, T, d) less 128, int8 (T, N, d)."""
    count, tiles, values = cut.shape
    signed = scratch.empty((tiles, count, values), np.int8)
    for some in scratch.blocks(count, tiles * values):
        signed[:, some] = (cut[some] ^ 128).view(np.int8).swapaxes(0, 1)
    return torch.from_numpy(signed)


def _squared_norms(tiles: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the squared norms of int8 tiles (T, N, d), (T, N)."""
    count, number, values = tiles.shape
    norms = torch.empty((count, number), dtype=dtype)
    for some in scratch.blocks(number, count * values):
        part = tiles[:, some].to(torch.int32)
        norms[:, some] = (part * part).sum(dim=2, dtype=dtype)
    return norms


def _smallest(squares: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return columns and values of the ``k`` smallest of each row, ties by the lower column."""
    values, columns = torch.topk(squares, min(k + 1, squares.shape[1]), largest=False)
    least, where = values.numpy(), columns.numpy()
    # topk takes any of several equal values: where the first that is left out equals the last that
    # is not, all of them are looked at.
    tied = least[:, k - 1 : k] == least[:, k : k + 1]  # no columns where all are taken
    least, where = least[:, :k], where[:, :k]
    for row in np.flatnonzero(tied.any(axis=1)):
        candidates = np.flatnonzero(squares[row].numpy() <= least[row, k - 1])
        chosen = np.lexsort((candidates, squares[row].numpy()[candidates]))[:k]
        where[row], least[row] = candidates[chosen], squares[row].numpy()[candidates[chosen]]
    order = np.lexsort((where, least))
    return np.take_along_axis(where, order, axis=1), np.take_along_axis(least, order, axis=1)
