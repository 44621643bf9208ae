import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.config import ConfigError
from afterimage.metrics import distances

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 8, 1), (32, 32, 3), (5, 7, 3)])
def test_black_to_white_is_one(shape):
    assert distances.between(np.zeros((2, *shape)), np.ones((2, *shape))).tolist() == [1, 1]
    assert distances.between(
        np.zeros((2, *shape), np.uint8), np.full((2, *shape), 255, np.uint8)
    ).tolist() == [1, 1]


def test_upsampling_leaves_it_unchanged():
    a, b = RNG.random((2, 4, 6, 6, 3))
    grown = [image.repeat(3, axis=1).repeat(3, axis=2) for image in (a, b)]
    np.testing.assert_allclose(distances.between(*grown), distances.between(a, b), rtol=1e-12)


def test_one_differing_tile():
    a = np.zeros((1, 16, 16, 3))
    b = a.copy()
    b[:, 4:8, 12:16] = 0.3
    assert distances.between(a, b, tiles=4)[0] == pytest.approx(0.3, rel=1e-14)
    assert distances.between(a, b)[0] == pytest.approx(0.3 / 4, rel=1e-14)


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 4]), st.booleans())
@settings(max_examples=50, deadline=None)
def test_metric_axioms(seed, tiles, integer):
    a, b, c = np.random.default_rng(seed).random((3, 5, 8, 8, 1))
    if integer:
        a, b, c = (np.rint(x * 255).astype(np.uint8) for x in (a, b, c))
    d = lambda x, y: distances.between(x, y, tiles)  # noqa: E731
    assert (d(a, a) == 0).all()
    assert (d(a, b) == d(b, a)).all()
    assert (d(a, c) <= d(a, b) + d(b, c) + 1e-12).all()
    assert (d(a, b) >= distances.between(a, b) - 1e-15).all()
    assert (d(a, b) > 0).all()


def test_equal_errors_in_all_tiles_make_both_equal():
    a = RNG.random((3, 8, 8, 1)) * 0.5
    b = a + np.tile(RNG.random((3, 2, 2, 1)) * 0.5, (1, 4, 4, 1))
    np.testing.assert_allclose(
        distances.between(a, b, tiles=4), distances.between(a, b), rtol=1e-12
    )


def test_near_copies_keep_their_distance():
    a = np.full((1, 512, 512, 3), 0.75)
    assert distances.between(a, a + 1e-5)[0] == pytest.approx(1e-5, rel=1e-9)


def test_uint8_sums_are_exact_integers():
    a, b = RNG.integers(0, 256, (2, 6, 32, 32, 3), dtype=np.uint8)
    got = distances.squared(distances.cut(a), distances.cut(b))
    assert got.tolist() == [
        int(((x.astype(int) - y) ** 2).sum()) for x, y in zip(a, b, strict=True)
    ]


def test_errors_name_what_is_wrong():
    image = np.zeros((1, 8, 8, 1))
    with pytest.raises(ConfigError, match=r"tiles = 3 must divide .* 8 and 8"):
        distances.between(image, image, tiles=3)
    with pytest.raises(ConfigError, match="cannot be compared"):
        distances.between(image, np.zeros((1, 8, 9, 1)))
    with pytest.raises(ConfigError, match="both sides"):
        distances.between(image, image.astype(np.uint8))
    with pytest.raises(ConfigError, match="int64"):
        distances.between(image.astype(int), image.astype(int))
