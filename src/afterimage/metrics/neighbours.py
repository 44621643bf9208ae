"""Exact nearest neighbours: a fast float32 search proposes, float64 differences decide, and a bound
certifies.

Float32 searches compute |q|^2 + |g|^2 - 2qg with an error of up to E = gamma (|q| + |g|)^2, where
gamma = m u / (1 - m u), u = 2^-24 and m is slightly more than the number of values (Higham 2002,
section 3.1; it holds for every order of summation). So if the k-th exact distance among the
proposals is below the last proposal's float32 distance less E, no image outside the proposals can
be among the k nearest. Otherwise, and always for tiled distances, a screen compares exactly every
image whose float32 distance less E does not exceed the k-th exact distance so far.

If faiss sees a GPU, the proposals come from a flat index there, in float32 too (faiss leaves TF32
off). Everything after that is the same, and so is the result. The bound is checked on every
proposed pair; a query with a pair beyond it is screened.

Without a GPU, large galleries of uint8 images are searched by integer products
(``integer_search``), if the processor does them right. These are exact, so the result is the same again.

Vectors are centred before the search, which makes E small; integer pixels are centred by integers,
which is exact. The result depends on the images alone, not on the block size or the number of
threads.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import faiss
import numpy as np

from afterimage import scratch
from afterimage.config import ConfigError
from afterimage.metrics import distances

if TYPE_CHECKING:
    from afterimage.metrics.integer_search import IntegerGallery

_EXTRA = 32  # proposals beyond the k requested
_PAIR_VALUES = 2**18  # values of image pairs compared at once: fits the processor's cache
_QUERY_VALUES = 2**27  # values of a block of queries, at most
_SCREEN_PAIRS = 2**22  # float32 distances held at once by the screen
_UNIT = 2.0**-24
_GPU_PROPOSALS = 2048  # the maximum that faiss selects on a GPU
_INTEGER_FROM = 2**20  # values of a gallery from which on integers are worth the import of torch


@dataclass(frozen=True)
class Nearest:
    """The nearest gallery images of each query, nearest first, ties by the lower row.

    Attributes:
        rows: int64, (Q, k), gallery rows.
        distances: float64, (Q, k), normalised l2 or tiled l2.
        screened: Number of searches decided by the screen, not by the first proposals.
    """

    rows: np.ndarray
    distances: np.ndarray
    screened: int


class Gallery:
    """A searchable set of images.

    Holds a copy of them in float32, or in int8 where integers decide, memory-mapped where it is
    large (``scratch``); all other memory is bounded: by the block of queries for proposals, by constants for comparisons.
    """

    def __init__(self, images: np.ndarray, tiles: int = 1):
        """Prepare the search.

        Args:
            images: uint8 or floating and finite, (N, H, W, C), N >= 1.
            tiles: Tiles per side of the tiled distance; 1 is normalised l2.

        Raises:
            ConfigError: for an empty gallery, values that are not finite, or tiles that do not
                divide the sides.
        """
        if images.ndim != 4 or not images.size:
            raise ConfigError(f"a gallery needs images of shape (N, H, W, C), not {images.shape}")
        self.images = images
        self.tiles = tiles
        self._cut = distances.cut(images, tiles)
        self._integer = images.dtype == np.uint8
        if not self._integer and not np.isfinite(images).all():
            raise ConfigError("gallery images hold values that are not finite")
        mean = images.reshape(len(images), -1).mean(axis=0, dtype=np.float64)
        self._centre = distances.cut(
            (np.rint(mean) if self._integer else mean).reshape(1, *images.shape[1:]), tiles
        )[0]
        self._gpu: faiss.Index | None = None  # built by the first search on a GPU
        self._gpu_failed = False
        m = self._cut.shape[2] + 16
        self._gamma = m * _UNIT / (1 - m * _UNIT)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def _vectors(self) -> np.ndarray:
        """The centred images, float32 (N, T, d)."""
        return self._centred(self._cut)

    @cached_property
    def _norms(self) -> np.ndarray:
        """Their squared norms, float64 (N, T)."""
        return _squared_norms(self._vectors)

    @cached_property
    def _integers(self) -> IntegerGallery | None:
        """The images as integers; None where they are none, are few, or where integer products are
        not right."""
        if not self._integer or self.images.size < _INTEGER_FROM:
            return None
        from afterimage.metrics import integer_search

        values = self._cut.shape[2]
        if not integer_search.trusted(values):
            return None
        return integer_search.IntegerGallery(self._cut)

    def nearest(
        self,
        queries: np.ndarray,
        k: int,
        *,
        exclude: np.ndarray | None = None,
        flips: bool = False,
        block: int = 1024,
    ) -> Nearest:
        """Find the ``k`` nearest images of each query.

        Args:
            queries: Of the gallery's dtype and shape, (Q, H, W, C).
            k: Number of neighbours.
            exclude: int, (Q,): for each query one gallery row to ignore (its own, for images of
                the gallery).
            flips: Compare the mirrored query too; the smaller distance to a gallery image counts.
            block: Queries per block, at most.

        Raises:
            ConfigError: for queries of another dtype or shape, values that are not finite, or more
                neighbours than images.
        """
        available = len(self) - (exclude is not None)
        if not 1 <= k <= available:
            raise ConfigError(
                f"{k} neighbours are asked for, but the gallery has {available} images to choose "
                "from"
            )
        self._check(queries)
        rows = np.empty((len(queries), k), np.int64)
        squares = np.empty((len(queries), k))
        screened = 0
        block = min(block, max(1, _QUERY_VALUES // self.images[0].size))
        for part in _slices(len(queries), block):
            ignored = None if exclude is None else exclude[part]
            nearest = self._search(queries[part], k, ignored)
            if flips:
                nearest = _merge(nearest, self._search(queries[part, :, ::-1], k, ignored))
            rows[part], squares[part] = nearest[0], nearest[1]
            screened += nearest[2]
        return Nearest(
            rows, distances.normalise(squares, self._cut.shape[2], self.images.dtype), screened
        )

    def count_within(
        self,
        queries: np.ndarray,
        radius: float,
        *,
        weights: np.ndarray | None = None,
        block: int = 1024,
    ) -> np.ndarray:
        """Count the gallery images within a distance of ``radius`` of each query, int64 (Q,).

        Args:
            queries: Of the gallery's dtype and shape, (Q, H, W, C).
            radius: In units of the distance.
            weights: int64, (N,): multiplicity of each gallery image; by default 1.
            block: Queries per block.
        """
        self._check(queries)
        weights = np.ones(len(self), np.int64) if weights is None else weights
        counts = np.zeros(len(queries), np.int64)
        limit = radius**2 * self._cut.shape[2] * (255**2 if self._integer else 1)
        for part in _slices(len(queries), min(block, self._screen_rows())):
            cut = distances.cut(queries[part], self.tiles)
            low, widest = self._lower_bounds(cut)
            query, row = np.divmod(np.flatnonzero(low <= limit * (1 + 1e-12)), len(self))
            unsure = low[query, row] + 2 * widest[query] > limit * (1 - 1e-12)
            exact = distances.normalise(
                self._exact(cut, query[unsure], row[unsure]), self._cut.shape[2], self.images.dtype
            )
            within = ~unsure
            within[unsure] = exact <= radius
            np.add.at(counts[part], query[within], weights[row[within]])
        return counts

    # ---- stages of a search ----------------------------------------------------------------------

    def _check(self, queries: np.ndarray) -> None:
        distances.check_alike(queries, self.images)
        if not self._integer and not np.isfinite(queries).all():
            raise ConfigError("query images hold values that are not finite")

    def _centred(self, cut: np.ndarray) -> np.ndarray:
        centred = scratch.empty(cut.shape, np.float32)
        for some in scratch.blocks(len(cut), cut[:1].size):
            centred[some] = np.subtract(cut[some], self._centre, dtype=np.float64)
        return centred

    def _search(
        self, queries: np.ndarray, k: int, exclude: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Return rows, sums of squares (largest tile) and the number of screened queries, for one
        block."""
        cut = distances.cut(queries, self.tiles)
        on_gpu = self.tiles == 1 and not self._gpu_failed and faiss.get_num_gpus()
        if not on_gpu and self._integers is not None:
            return *self._integers.nearest(cut, k, exclude), 0
        if self.tiles > 1:
            return *self._screen(cut, k, exclude), len(cut)
        proposals = min(len(self), k + (exclude is not None) + _EXTRA)
        vectors = self._centred(cut).reshape(len(cut), -1)
        proposed, rows = self._propose(vectors, proposals)
        rows = rows.astype(np.int64)
        squares = self._exact(cut, np.repeat(np.arange(len(cut)), proposals), rows.ravel()).reshape(
            rows.shape
        )
        reach = np.sqrt(_squared_norms(vectors[:, None])[:, 0]) + np.sqrt(self._norms.max())
        error = self._gamma * reach**2
        beyond = (np.abs(proposed - squares) > error[:, None]).any(axis=1)
        if exclude is not None:
            squares[rows == exclude[:, None]] = np.inf
        rows, squares = _first(rows, squares, k)
        if proposals == len(self):
            return rows, squares, 0
        failed = np.flatnonzero(beyond | (squares[:, -1] >= proposed[:, -1] - error))
        if len(failed):
            rows[failed], squares[failed] = self._screen(
                cut[failed], k, None if exclude is None else exclude[failed]
            )
        return rows, squares, len(failed)

    def _propose(self, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return squared float32 distances and rows of the ``count`` gallery images nearest to each
        vector, nearest first."""
        gallery = self._vectors.reshape(len(self), -1)
        if count <= _GPU_PROPOSALS and not self._gpu_failed:
            try:
                if self._gpu is None and faiss.get_num_gpus():
                    self._gpu = _gpu_index(gallery)
                if self._gpu is not None:
                    return self._gpu.search(vectors, count)
            # faiss raises nothing else; the usual cause is too little memory on the device.
            except RuntimeError as error:
                self._gpu, self._gpu_failed = None, True
                warnings.warn(
                    "no neighbour search on the GPU, the CPU does it with the same result: "
                    f"{error}",
                    stacklevel=2,
                )
        return faiss.knn(vectors, gallery, count)

    def _screen(
        self, cut: np.ndarray, k: int, exclude: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search all images: every image whose lower bound does not exceed the k-th distance so far
        is compared exactly."""
        rows = np.empty((len(cut), k), np.int64)
        squares = np.empty((len(cut), k))
        for part in _slices(len(cut), self._screen_rows()):
            low, _ = self._lower_bounds(cut[part])
            if exclude is not None:
                low[np.arange(len(low)), exclude[part]] = np.inf
            first = np.argpartition(low, k - 1, axis=1)[:, :k]
            exact = self._exact(
                cut[part], np.repeat(np.arange(len(low)), k), first.ravel()
            ).reshape(first.shape)
            for i, bound in enumerate(exact.max(axis=1)):
                candidates = np.flatnonzero(low[i] <= bound)
                values = self._exact(cut[part], np.full(len(candidates), i), candidates)
                best = _first(candidates[None], values[None], k)
                rows[part.start + i], squares[part.start + i] = best[0][0], best[1][0]
        return rows, squares

    def _screen_rows(self) -> int:
        return max(1, _SCREEN_PAIRS // len(self))

    def _lower_bounds(self, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a lower bound on the squared distance of all pairs, float32 (Q, N), and half its
        gap to an upper bound, (Q,)."""
        vectors = self._centred(cut)
        norms = _squared_norms(vectors)
        widest = np.zeros(len(cut))
        low = None
        for tile in range(cut.shape[1]):
            error = (
                self._gamma * (np.sqrt(norms[:, tile]) + np.sqrt(self._norms[:, tile].max())) ** 2
            )
            squares = vectors[:, tile] @ self._vectors[:, tile].T
            squares *= -2
            squares += self._norms[:, tile].astype(np.float32)
            squares += (norms[:, tile] - error).astype(np.float32)[:, None]
            low = squares if low is None else np.maximum(low, squares, out=low)
            widest = np.maximum(widest, error)
        assert low is not None
        return low, widest

    def _exact(self, cut: np.ndarray, query: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Return the sum of squares (largest tile) of each pair of a query and a gallery row,
        float64 (P,)."""
        out = np.empty(len(query))
        for part in _slices(len(query), max(1, _PAIR_VALUES // self.images[0].size)):
            out[part] = distances.squared(cut[query[part]], self._cut[row[part]])
        return out


def _gpu_index(vectors: np.ndarray) -> faiss.Index:
    """Return a flat index of float32 vectors, (N, D), in the memory of the first GPU that faiss
    sees."""
    options = faiss.GpuClonerOptions()
    # Builds with cuVS would use its kernels, whose rounding has no documented bound.
    options.use_cuvs = False
    index = faiss.index_cpu_to_gpu(
        faiss.StandardGpuResources(), 0, faiss.IndexFlatL2(vectors.shape[1]), options
    )
    index.add(vectors)
    return index


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def _squared_norms(vectors: np.ndarray) -> np.ndarray:
    """Return float64 squared norms of float32 vectors over their last axis."""
    norms = np.empty(vectors.shape[:-1])
    for part in scratch.blocks(len(vectors), vectors[:1].size):
        wide = vectors[part].astype(np.float64)
        norms[part] = np.einsum("...d,...d->...", wide, wide)
    return norms


def _first(rows: np.ndarray, squares: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` smallest of each row, ties by the lower gallery row."""
    order = np.lexsort((rows, squares))[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(squares, order, axis=1)


def _merge(
    a: tuple[np.ndarray, np.ndarray, int], b: tuple[np.ndarray, np.ndarray, int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the nearest of two searches of the same gallery; an image in both counts once, at the
    smaller distance."""
    k = a[0].shape[1]
    rows, squares = np.concatenate([a[0], b[0]], axis=1), np.concatenate([a[1], b[1]], axis=1)
    order = np.lexsort((squares, rows))
    rows, squares = (
        np.take_along_axis(rows, order, axis=1),
        np.take_along_axis(squares, order, axis=1),
    )
    squares[:, 1:][rows[:, 1:] == rows[:, :-1]] = np.inf
    return *_first(rows, squares, k), a[2] + b[2]
