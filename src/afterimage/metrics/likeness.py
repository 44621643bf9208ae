"""Likeness of two images: high if one is the other but for a small shift, a mirror, its colours or
its encoding, as people judge near-duplicates. Large crops, resized, are missed: tolerating them
costs too much precision (``docs/remedies.md`` has the shares found by kind).

It is the geometric mean of two correlations, each made so that what all images have in common
(brightness, smooth gradients) counts no more than what tells them apart:

- the cosine of whitened principal components, i.e. scores divided by the root of the eigenvalue,
  which are fast to search but tolerate shifts of about a pixel only;
- the registered correlation: both images, tapered at the border, are divided by the amplitude
  spectrum of images in general, to the half, and correlated at all shifts of up to a fifth of the
  side; the largest value counts.

Unrelated images are rarely alike in both: aeroplanes before a plain sky register well but have
different components. Both correlations are at most 1, so a pair of likeness t has a cosine of at
least t^2, and a search by cosine misses no pair. With mirrors, the larger likeness of the image and
its mirror image counts. Components and spectrum come from reference images, which no planted copy
affects; images above 32 pixels are compared as thumbnails.

The threshold follows from a false-pair rate on reference images (``Likeness.threshold``), since
the same likeness means different things in different data sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import faiss
import numpy as np
from PIL import Image
from scipy import fft
from sklearn.decomposition import PCA

from afterimage.config import ConfigError

THUMBNAIL = 32
"""Longest side in pixels at which images are compared."""
COMPONENTS = 256
"""Most principal components; fewer where the reference has fewer than 8 images for each."""
EXPLAINED = 0.97
"""Share of the variance after which further components are left out: they are mostly noise."""
_SHIFT = 5  # the largest shift is side // _SHIFT
_STEP = 16  # cosines are taken at shifts of side // _STEP too, at least a pixel
_TAPER = 6  # the border that is tapered is side / _TAPER wide
_FLOOR = 1e-3  # of the mean power, added so that empty frequencies stay empty
_NEIGHBOURS = 3  # by cosine, of each reference image at each shift
_CALIBRATING = 2000  # most reference images that set the threshold
_SHARES = (0.05, 0.2)  # of the reference images, between which the tail is fitted
_BLOCK = 1024
_ROUNDING = 1e-6  # of float32 correlations; equal images must reach 1
_MOST_PAIRS = 20_000_000


class Alike(NamedTuple):
    """Pairs of rows ``a`` and ``b``, int64 (P,), and their likeness ``score``, float64 (P,)."""

    a: np.ndarray
    b: np.ndarray
    score: np.ndarray


class Likeness:
    """The likeness of images, with components and spectrum of reference images."""

    def __init__(self, reference: np.ndarray, mirrors: bool, seed: int = 0):
        """Fit components and spectrum.

        Args:
            reference: uint8, (M, H, W, C).
            mirrors: Compare mirrored images too.
            seed: Of the randomised decomposition.

        Raises:
            ConfigError: for fewer than 16 reference images, or equal ones only.
        """
        self.mirrors = mirrors
        small = _thumbnails(reference)
        flat = _flat(small)
        most = min(COMPONENTS, len(flat) // 8, flat.shape[1])
        if most < 2 or not flat.std(axis=0).any():
            raise ConfigError(
                f"near-duplicates need at least 16 different reference images, not {len(flat)}"
            )
        pca = PCA(most, random_state=seed).fit(flat)
        explained = np.cumsum(pca.explained_variance_ratio_)
        count = min(most, 1 + int((explained < EXPLAINED).sum()))
        self._mean = pca.mean_
        scale = np.sqrt(pca.explained_variance_[:count])
        self._components = (pca.components_[:count] / scale[:, None]).astype(np.float32)
        self._size = small.shape[1:3]
        self._window = np.multiply.outer(*(_taper(side) for side in self._size))[..., None]
        power = np.zeros((self._size[0], self._size[1] // 2 + 1))
        for part in _slices(len(small)):
            spectra = self._tapered(small[part])
            power += (np.abs(spectra) ** 2).mean(axis=3).sum(axis=0) / len(small)
        self._filter = ((power + _FLOOR * power.mean()) ** -0.25)[..., None].astype(np.float32)

    # ---- searches --------------------------------------------------------------------------------

    def between(self, images: np.ndarray, gallery: np.ndarray, threshold: float) -> Alike:
        """Return all pairs of an image and a gallery image with a likeness of at least
        ``threshold``, sorted.

        Args:
            images: uint8, (N, H, W, C).
            gallery: uint8, (G, H, W, C).
            threshold: In (0, 1].

        Raises:
            ConfigError: for more than 20 million pairs.
        """
        return self._search(_thumbnails(images), _thumbnails(gallery), threshold, within=False)

    def within(self, images: np.ndarray, threshold: float) -> Alike:
        """Return all pairs ``a`` < ``b`` of the images with a likeness of at least ``threshold``,
        sorted; otherwise as ``between``."""
        small = _thumbnails(images)
        return self._search(small, small, threshold, within=True)

    def of(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the likeness of paired images, float64 (P,), in [0, 1].

        Args:
            a: uint8, (P, H, W, C).
            b: Of the same shape.
        """
        a, b = _thumbnails(a), _thumbnails(b)
        right = self._vectors(b)
        rows = np.arange(len(a))
        scores = []
        for side in self._sides(a):
            cosines = [
                np.einsum("pd,pd->p", self._vectors(view), right) for view in self._shifted(side)
            ]
            registered = self._registered(side, b, rows, rows)
            scores.append(_mean(np.max(cosines, axis=0), registered))
        return np.minimum(np.max(scores, axis=0), 1.0)

    def threshold(self, reference: np.ndarray, rate: float, images: int) -> float:
        """Return the likeness that the share ``rate`` of unrelated images have to another image.

        The likeliest neighbours among reference images are the data set's own duplicates, so the
        quantile is extrapolated from likelier shares: one minus the likeness to the nearest image
        follows a power law near zero, as distances to nearest neighbours do, which is fitted at the
        shares 5 % and 20 %. M reference images have fewer neighbours to choose from than the images
        to be searched, so ``rate`` counts as rate x M / images.

        Args:
            reference: uint8, (M, H, W, C), none of them planted; the first 2,000 count.
            rate: In (0, 1).
            images: Number of images to be searched.

        Raises:
            ConfigError: if the reference has no tail, e.g. because most of it are duplicates.
        """
        reference = reference[:_CALIBRATING]
        unlikeness = np.sort(1 - self.nearest(reference, _SHARES[1]))
        low, high = (unlikeness[int(share * len(unlikeness))] for share in _SHARES)
        if not 0 < low < high:
            raise ConfigError(
                f"dedup.likeness.false_pairs: {_SHARES[0]:.0%} of the {len(reference)} reference "
                "images are duplicates of each other, or all are equally alike: no threshold can "
                "be derived from them"
            )
        slope = np.log(high / low) / np.log(_SHARES[1] / _SHARES[0])
        share = rate * len(reference) / images
        return float(1 - low * (share / _SHARES[0]) ** slope)

    def nearest(self, images: np.ndarray, share: float) -> np.ndarray:
        """Return the likeness of each image to the other image most like it, float64 (N,).

        Args:
            images: uint8, (N, H, W, C), N >= 2.
            share: Of the images: exact for the likeliest ones, at most the truth for all others.
        """
        small = _thumbnails(images)
        index = self._index(small)
        blocks = []
        for sided, side in enumerate(self._sides(small)):
            for view in self._shifted(side):
                cosine, other = index.search(self._vectors(view), min(_NEIGHBOURS + 1, len(small)))
                row = np.repeat(np.arange(len(small)), cosine.shape[1])
                blocks.append((row, other.ravel(), np.full(len(row), sided), cosine.ravel()))
        row, other, mirror, cosine = _best_cosine(blocks)
        real = row != other
        row, other, mirror, cosine = row[real], other[real], mirror[real], cosine[real]

        # Pairs of high cosine come first, until none that is left can be among the likeliest.
        least = len(small) - min(len(small), max(1, round(share * len(small))))
        order = np.argsort(-cosine, kind="stable")
        best = np.zeros(len(small))
        sides = self._sides(small)
        for part in _slices(len(order)):
            if cosine[order[part][0]] <= np.partition(best, least)[least] ** 2:
                break
            for number, side in enumerate(sides):
                some = order[part][mirror[order[part]] == number]
                registered = self._registered(side, small, row[some], other[some])
                score = _mean(cosine[some], registered)
                np.maximum.at(best, row[some], score)
                np.maximum.at(best, other[some], score)
        return np.minimum(best, 1.0)

    # ---- the parts of a search -------------------------------------------------------------------

    def _search(
        self, images: np.ndarray, gallery: np.ndarray, threshold: float, within: bool
    ) -> Alike:
        index = self._index(gallery)
        found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
        total = 0
        for part in _slices(len(images)):
            for side in self._sides(images[part]):
                blocks = []
                for view in self._shifted(side):
                    limits, cosine, other = index.range_search(
                        self._vectors(view), threshold**2 - _ROUNDING
                    )
                    row = np.repeat(
                        np.arange(len(side)), np.diff(limits.astype(np.int64)).astype(np.int64)
                    )
                    keep = part.start + row < other if within else slice(None)
                    blocks.append((row[keep], other[keep], np.zeros(len(row[keep])), cosine[keep]))
                row, other, _, cosine = _best_cosine(blocks)
                score = _mean(cosine, self._registered(side, gallery, row, other))
                alike = score >= threshold - _ROUNDING
                total += int(alike.sum())
                if total > _MOST_PAIRS:
                    raise ConfigError(
                        f"more than {_MOST_PAIRS:,} pairs of images count as near-duplicates; "
                        "choose a stricter threshold"
                    )
                found.append((part.start + row[alike], other[alike], score[alike]))
        a, b, score = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.lexsort((-score, b, a))  # of an image and its mirror image the better
        a, b, score = a[order], b[order], score[order]
        first = np.ones(len(a), bool)
        first[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
        return Alike(a[first], b[first], np.minimum(score[first], 1.0))

    def _index(self, images: np.ndarray) -> faiss.IndexFlatIP:
        index = faiss.IndexFlatIP(len(self._components))
        index.add(self._vectors(images))
        return index

    def _sides(self, images: np.ndarray) -> list[np.ndarray]:
        return [images, images[:, :, ::-1]] if self.mirrors else [images]

    def _shifted(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the images at nine places, the border repeated where a shift exposes it."""
        height, width = self._size
        down, right = (max(1, side // _STEP) for side in self._size)
        padded = np.pad(images, ((0, 0), (down, down), (right, right), (0, 0)), "edge")
        for top in (0, down, 2 * down):
            for left in (0, right, 2 * right):
                yield padded[:, top : top + height, left : left + width]

    def _vectors(self, images: np.ndarray) -> np.ndarray:
        """Return whitened components of thumbnails, float32 (N, D), of unit length or zero."""
        vectors = np.empty((len(images), len(self._components)), np.float32)
        for part in _slices(len(images)):
            vectors[part] = (_flat(images[part]) - self._mean) @ self._components.T
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)

    def _registered(
        self, a: np.ndarray, b: np.ndarray, rows: np.ndarray, others: np.ndarray
    ) -> np.ndarray:
        """Return the registered correlation of the thumbnails in ``rows`` of a and ``others`` of
        b, float64 (P,)."""
        height, width = (side // _SHIFT for side in self._size)
        down, right = (np.arange(-most, most + 1) for most in (height, width))
        best = np.empty(len(rows))
        for part in _slices(len(rows)):
            product = np.conj(self._spectra(a[rows[part]])) * self._spectra(b[others[part]])
            correlation = fft.irfft2(product.sum(axis=3), s=self._size, axes=(1, 2))
            best[part] = correlation[:, down][:, :, right].max(axis=(1, 2))
        return best

    def _spectra(self, images: np.ndarray) -> np.ndarray:
        """Return filtered spectra of thumbnails, complex64 (N, H, W // 2 + 1, C), scaled so that
        the correlation of an image with itself is 1, or zero for plain images."""
        spectra = self._tapered(images) * self._filter
        filtered = fft.irfft2(spectra, s=self._size, axes=(1, 2))
        length = np.sqrt((filtered**2).sum(axis=(1, 2, 3), keepdims=True))
        return np.divide(spectra, length, out=np.zeros_like(spectra), where=length > _ROUNDING)

    def _tapered(self, images: np.ndarray) -> np.ndarray:
        values = images.astype(np.float32)
        values -= values.mean(axis=(1, 2), keepdims=True)  # of integers: exactly 0 in plain images
        return fft.rfft2(values / 255 * self._window, axes=(1, 2))


def _best_cosine(
    blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, others, mirror and the largest cosine of every pair of the blocks, once."""
    row, other, mirror, cosine = (np.concatenate(column) for column in zip(*blocks, strict=True))
    order = np.lexsort((-cosine, mirror, other, row))
    row, other, mirror, cosine = (each[order] for each in (row, other, mirror, cosine))
    first = np.ones(len(row), bool)
    first[1:] = (np.diff(row) != 0) | (np.diff(other) != 0) | (np.diff(mirror) != 0)
    return row[first], other[first].astype(np.int64), mirror[first], cosine[first]


def _mean(cosine: np.ndarray, registered: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(cosine, 0.0) * np.maximum(registered, 0.0))


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """Return the images, reduced where a side is longer than ``THUMBNAIL``."""
    height, width = images.shape[1:3]
    longest = max(height, width)
    if longest <= THUMBNAIL:
        return images
    size = tuple(max(1, round(side * THUMBNAIL / longest)) for side in (width, height))
    small = np.empty((len(images), size[1], size[0], images.shape[3]), np.uint8)
    for row, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        reduced = np.asarray(picture.resize(size, Image.Resampling.BOX))
        small[row] = reduced.reshape(small.shape[1:])
    return small


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255


def _taper(side: int) -> np.ndarray:
    """Return weights that rise linearly from the border over a sixth of the side, (side,)."""
    rise = np.minimum(1, (np.arange(side) + 0.5) * _TAPER / side)
    return np.minimum(rise, rise[::-1]).astype(np.float32)


def _slices(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))
