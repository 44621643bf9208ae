"""What counts as the same picture, on images whose duplicates are known."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from afterimage.config import ConfigError
from afterimage.metrics import distances, near_duplicates


@pytest.fixture(scope="module")
def digits():
    pictures = np.rint(load_digits().images / 16 * 255).astype(np.uint8)[..., None]
    return pictures[np.random.default_rng(0).permutation(len(pictures))]


def noisy(pictures, most, seed=0):
    noise = np.random.default_rng(seed).integers(-most, most + 1, pictures.shape)
    return np.clip(pictures.astype(int) + noise, 0, 255).astype(np.uint8)


def encoded(pictures, quality):
    def once(picture):
        file = io.BytesIO()
        Image.fromarray(picture.squeeze()).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(io.BytesIO(file.getvalue())))[..., None]

    return np.stack([once(picture) for picture in pictures])


def by_hand(images, gallery, flips):
    """All pairs, written out: nearest row, exact, relative distance."""
    sides = [gallery, gallery[:, :, ::-1]] if flips else [gallery]

    def away(image):
        return np.min(
            [distances.between(np.broadcast_to(image, side.shape), side) for side in sides], axis=0
        )

    rows, exact, relative = [], [], []
    for image in images:
        gaps = away(image)
        row = int(gaps.argmin())
        others = away(gallery[row])
        first = [
            r for r in range(len(gallery)) if not (away(gallery[r])[:r] == 0).any()
        ]  # the first of equal ones
        mean = np.sort([others[r] for r in first if others[r] > 0])[
            : near_duplicates.NEIGHBOURS
        ].mean()
        ratio = gaps[row] / mean
        rows.append(row if ratio <= near_duplicates.NEAR else -1)
        exact.append(gaps[row] == 0)
        relative.append(ratio)
    return np.array(rows), np.array(exact), np.array(relative)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.booleans())
def test_it_is_the_definition_written_out(seed, flips):
    rng = np.random.default_rng(seed)
    gallery = rng.integers(0, 256, (8, 3, 3, 1), dtype=np.uint8)
    gallery = gallery[rng.integers(8, size=12)]
    gallery[rng.integers(12)] = gallery[0, :, ::-1]
    gallery = np.concatenate([gallery, rng.integers(0, 256, (2, 3, 3, 1), dtype=np.uint8)])
    images = np.concatenate(
        [noisy(gallery[rng.integers(14, size=4)], most, seed) for most in (0, 20, 60)]
    )
    images[::2] = images[::2, :, ::-1]
    answer = near_duplicates.find(images, gallery, flips)
    rows, exact, relative = by_hand(images, gallery, flips)
    np.testing.assert_array_equal(answer.rows, rows)
    np.testing.assert_array_equal(answer.exact, exact)
    np.testing.assert_allclose(answer.relative, relative, rtol=1e-12)


def test_copies_and_light_changes_are_found_and_other_digits_are_not(digits):
    train, other = digits[:1000], digits[1000:]
    assert (near_duplicates.find(other, train, flips=False).rows == -1).all()
    rows = np.arange(500)
    for changed, share in (
        (train[rows], 1),
        (noisy(train[rows], 2), 1),
        (noisy(train[rows], 8), 1),
        (encoded(train[rows], 90), 1),
        (encoded(train[rows], 75), 0.6),
        (np.clip(np.rint(train[rows] * 1.05), 0, 255).astype(np.uint8), 0.99),
    ):
        answer = near_duplicates.find(changed, train, flips=False)
        assert set(answer.rows[answer.rows != rows].tolist()) <= {-1}
        assert (answer.rows == rows).mean() >= share
        assert np.array_equal(answer.exact, (changed == train[rows]).all(axis=(1, 2, 3)))


@pytest.mark.parametrize("size", [10, 60, 300])
def test_few_in_a_thousand_independent_images_look_like_a_small_gallery(digits, size):
    left_out = [
        near_duplicates.find(np.delete(digits, rows, axis=0), digits[rows], flips=False).rows >= 0
        for rows in (
            np.random.default_rng(seed).choice(len(digits), size, replace=False)
            for seed in range(8)
        )
    ]
    assert np.concatenate(left_out).mean() < 0.001


def test_mirror_images_count_with_flips_only(digits):
    train, mirrored = digits[:300], digits[:50, :, ::-1]
    with_flips, without = (near_duplicates.find(mirrored, train, flips) for flips in (True, False))
    assert with_flips.rows.tolist() == list(range(50))
    assert with_flips.exact.all()
    assert not without.exact.any()
    assert (without.rows == -1).mean() > 0.9


def test_copies_in_the_gallery_change_nothing_but_the_row(digits):
    images = np.concatenate([noisy(digits[:20], 4), digits[300:320]])
    plain = near_duplicates.find(images, digits[:100], flips=True)
    copies = np.concatenate(
        [digits[:100], np.repeat(digits[:10], 60, axis=0), digits[:100, :, ::-1]]
    )
    crowded = near_duplicates.find(images, copies, flips=True)
    for name, each in vars(plain).items():
        np.testing.assert_array_equal(each, getattr(crowded, name))


def test_galleries_of_one_and_two_images(digits):
    alone = near_duplicates.find(digits[:3], np.repeat(digits[:1], 4, axis=0), flips=False)
    assert alone.rows.tolist() == [0, -1, -1]
    assert alone.exact.tolist() == [True, False, False]
    assert alone.relative.tolist() == [0, np.inf, np.inf]
    pair = near_duplicates.find(noisy(digits[:3], 4), digits[:2], flips=False)
    assert pair.rows.tolist() == [0, 1, -1]
    mirrored = near_duplicates.find(
        digits[:2], np.stack([digits[0], digits[0, :, ::-1]]), flips=True
    )
    assert mirrored.rows.tolist() == [0, -1]


def test_no_images_and_no_gallery(digits):
    assert near_duplicates.find(digits[:0], digits[:5], flips=True).rows.shape == (0,)
    with pytest.raises(ConfigError, match="a gallery needs images"):
        near_duplicates.find(digits[:5], digits[:0], flips=False)
    with pytest.raises(ConfigError):
        near_duplicates.find(digits[:5], digits[:5, :4], flips=False)
