"""Nearest images, exactly: a fast float32 search proposes, float64 differences decide, and a bound
certifies.

Float32 searches compute |q|^2 + |g|^2 - 2qg and are off by up to E = gamma (|q| + |g|)^2, where
gamma = m u / (1 - m u), u = 2^-24 and m is a little over the number of values (Higham 2002, section
3.1; it holds for every order of summation). So if the k-th exact distance among the proposals is
below the last proposal's float32 distance less E, no image that was not proposed can be among the k
nearest. Where that fails, and always for tiled distances, every image whose float32 distance less E
is not above the k-th exact distance found so far is compared exactly.

Where faiss sees a GPU, the proposals come from a flat index there, in float32 too (faiss leaves
TF32 off). All that follows is the same, so the result is. The bound is checked on every pair
proposed; a query with one beyond it is screened.

Vectors are centred before the search, which makes E small; integer pixels are centred by integers,
which loses nothing.
The result depends on the images alone: not on the block size, nor on the number of threads.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np

from afterimage.config import ConfigError
from afterimage.metrics import distances

_EXTRA = 32  # proposals beyond the wanted number
_PAIR_VALUES = 2**18  # values of image pairs compared at once: stays in the processor's cache
_SCREEN_PAIRS = 2**22  # float32 distances held at once by the screen
_UNIT = 2.0**-24
_GPU_PROPOSALS = 2048  # the most that faiss selects on a GPU


@dataclass(frozen=True)
class Nearest:
    """The nearest gallery images of each query, nearest first, ties by the lower row.

    Attributes:
        rows: int64, (Q, k), gallery rows.
        distances: float64, (Q, k), normalised l2 or tiled l2.
        screened: How many of the searches were decided by the screen, not by the first proposals.
    """

    rows: np.ndarray
    distances: np.ndarray
    screened: int


class Gallery:
    """Images to be searched.

    Holds a float32 copy of them; all else is bounded: by the block of queries for proposals, by
    constants for comparisons.
    """

    def __init__(self, images: np.ndarray, tiles: int = 1):
        """Prepare the search.

        Args:
            images: uint8 or floating and finite, (N, H, W, C), N >= 1.
            tiles: Tiles per side of the tiled distance; 1 is normalised l2.

        Raises:
            ConfigError: for no images, values that are not finite, or tiles that do not divide the
                sides.
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
        self._vectors = np.empty(self._cut.shape, np.float32)
        for part in _slices(len(images), 1024):
            self._vectors[part] = self._centred(self._cut[part])
        self._norms = _squared_norms(self._vectors)  # (N, T)
        self._gpu: faiss.Index | None = None  # made by the first search on a GPU
        self._gpu_failed = False
        m = self._cut.shape[2] + 16
        self._gamma = m * _UNIT / (1 - m * _UNIT)

    def __len__(self) -> int:
        return len(self.images)

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
            queries: Of the gallery's kind and shape, (Q, H, W, C).
            k: How many.
            exclude: int, (Q,): for each query one gallery row that does not count (its own, for
                images of the gallery).
            flips: Compare the mirrored query too; per gallery image the smaller distance counts.
            block: Queries at once.

        Raises:
            ConfigError: for queries of another kind, values that are not finite, or more neighbours
                than there are images.
        """
        there = len(self) - (exclude is not None)
        if not 1 <= k <= there:
            raise ConfigError(
                f"{k} neighbours are asked for, but the gallery has {there} images to choose from"
            )
        self._check(queries)
        rows = np.empty((len(queries), k), np.int64)
        squares = np.empty((len(queries), k))
        screened = 0
        for part in _slices(len(queries), block):
            own = None if exclude is None else exclude[part]
            found = self._search(queries[part], k, own)
            if flips:
                found = _merge(found, self._search(queries[part, :, ::-1], k, own))
            rows[part], squares[part] = found[0], found[1]
            screened += found[2]
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
        """Count the gallery images at a distance of at most ``radius`` of each query, int64 (Q,).

        Args:
            queries: Of the gallery's kind and shape, (Q, H, W, C).
            radius: In the unit of the distance.
            weights: int64, (N,): how often each gallery image counts; by default once.
            block: Queries at once.
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

    # ---- the parts of a search -------------------------------------------------------------------

    def _check(self, queries: np.ndarray) -> None:
        distances.check_alike(queries, self.images)
        if not self._integer and not np.isfinite(queries).all():
            raise ConfigError("query images hold values that are not finite")

    def _centred(self, cut: np.ndarray) -> np.ndarray:
        return np.subtract(cut, self._centre, dtype=np.float64).astype(np.float32)

    def _search(
        self, queries: np.ndarray, k: int, exclude: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Return rows, sums of squares (largest tile) and the number of screened queries, for one
        block."""
        cut = distances.cut(queries, self.tiles)
        if self.tiles > 1:
            return *self._screen(cut, k, exclude), len(cut)
        wanted = min(len(self), k + (exclude is not None) + _EXTRA)
        vectors = self._centred(cut).reshape(len(cut), -1)
        proposed, rows = self._propose(vectors, wanted)
        rows = rows.astype(np.int64)
        squares = self._exact(cut, np.repeat(np.arange(len(cut)), wanted), rows.ravel()).reshape(
            rows.shape
        )
        reach = np.sqrt(_squared_norms(vectors[:, None])[:, 0]) + np.sqrt(self._norms.max())
        error = self._gamma * reach**2
        beyond = (np.abs(proposed - squares) > error[:, None]).any(axis=1)
        if exclude is not None:
            squares[rows == exclude[:, None]] = np.inf
        rows, squares = _first(rows, squares, k)
        if wanted == len(self):
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
            except (
                RuntimeError
            ) as error:  # all that faiss raises; mostly too little memory on the device
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
        """Search all images: every one whose lower bound is not above the k-th distance found so
        far is compared exactly."""
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
        """Return a bound from below on the squared distance of all pairs, float32 (Q, N), and half
        its gap to one from above, (Q,)."""
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
    options.use_cuvs = False  # builds with cuVS would compute distances by its kernels, whose rounding has no stated bound
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
    for part in _slices(len(vectors), 1024):
        wide = vectors[part].astype(np.float64)
        norms[part] = np.einsum("...d,...d->...", wide, wide)
    return norms


def _first(rows: np.ndarray, squares: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` smallest of each line, ties by the lower row."""
    order = np.lexsort((rows, squares))[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(squares, order, axis=1)


def _merge(
    a: tuple[np.ndarray, np.ndarray, int], b: tuple[np.ndarray, np.ndarray, int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the nearest of two searches of the same gallery; an image found by both counts once,
    at the smaller distance."""
    k = a[0].shape[1]
    rows, squares = np.concatenate([a[0], b[0]], axis=1), np.concatenate([a[1], b[1]], axis=1)
    order = np.lexsort((squares, rows))
    rows, squares = (
        np.take_along_axis(rows, order, axis=1),
        np.take_along_axis(squares, order, axis=1),
    )
    squares[:, 1:][rows[:, 1:] == rows[:, :-1]] = np.inf
    return *_first(rows, squares, k), a[2] + b[2]
