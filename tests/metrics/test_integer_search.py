"""The search by integer products against all pairs, and its check of the processor."""

import os
import platform
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.metrics import distances, integer_search, neighbours
from afterimage.metrics.integer_search import IntegerGallery
from afterimage.metrics.neighbours import Gallery

needs_integers = pytest.mark.skipif(
    not integer_search.trusted(64), reason="this processor multiplies int8 wrongly"
)


def every_square(queries, gallery):
    """All pairs of cut images, over their worst tile, by differences of integers."""
    difference = queries[:, None].astype(np.int64) - gallery[None]
    return (difference**2).sum(axis=3).max(axis=2)


def first(squares, k):
    order = np.argsort(squares, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(squares, order, axis=1)


def tiles_of(seed, shape, levels):
    values = np.linspace(0, 255, levels).round().astype(np.uint8)
    return np.random.default_rng(seed).choice(values, shape)


@needs_integers
@given(
    seed=st.integers(0, 2**32),
    levels=st.sampled_from([2, 3, 256]),
    tiles=st.sampled_from([1, 4]),
    values=st.integers(2, 9),
    size=st.integers(2, 90),
    k=st.integers(1, 90),
    own=st.booleans(),
    large=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_equals_all_pairs_with_ties_by_the_lower_row(
    seed, levels, tiles, values, size, k, own, large
):
    gallery = tiles_of(seed, (size, tiles, values), levels)
    k = min(k, size - own)
    queries = gallery[:20] if own else tiles_of(seed + 1, (7, tiles, values), levels)
    exclude = np.arange(len(queries)) if own else None
    squares = every_square(queries, gallery)
    if own:
        squares[exclude, exclude] = 2**31 - 1
    most = (1, 3) if large else (integer_search.LARGEST, integer_search._VALUES)
    with mock.patch.multiple(integer_search, LARGEST=most[0], _VALUES=most[1]):
        rows, found = IntegerGallery(gallery).nearest(queries, k, exclude)
    wanted_rows, wanted = first(squares, k)
    np.testing.assert_array_equal(rows, wanted_rows)
    np.testing.assert_array_equal(found, wanted)


@needs_integers
def test_the_largest_image_of_extreme_values_does_not_overflow():
    black = np.zeros((1, 1, integer_search.LARGEST), np.uint8)
    rows, found = IntegerGallery(np.concatenate([black, black + 255])).nearest(black + 255, 2, None)
    assert rows.tolist() == [[1, 0]]
    assert found.tolist() == [[0, 255**2 * integer_search.LARGEST]]
    assert 255**2 * (integer_search.LARGEST + 1) > 2**31 - 1, "it is the largest"


@needs_integers
def test_larger_images_of_extreme_values_do_not_overflow_either():
    values = 5 * integer_search.LARGEST
    black = np.zeros((1, 1, values), np.uint8)
    gallery = np.concatenate([black, black + 255, black + 128])
    rows, found = IntegerGallery(gallery).nearest(black + 255, 3, None)
    assert rows.tolist() == [[1, 2, 0]]
    assert found.tolist() == [[0, 127**2 * values, 255**2 * values]]
    norms = integer_search._squared_norms(
        integer_search._signed(gallery), integer_search.torch.int64
    )
    assert norms.tolist() == [[128**2 * values, 127**2 * values, 0]]


@needs_integers
def test_parts_change_nothing(monkeypatch):
    gallery, queries = tiles_of(0, (50, 4, 12), 3), tiles_of(1, (23, 4, 12), 3)
    whole = IntegerGallery(gallery).nearest(queries, 9, np.arange(23))
    monkeypatch.setattr(integer_search, "_PAIRS", 150)
    parts = IntegerGallery(gallery).nearest(queries, 9, np.arange(23))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("tiles", [1, 4])
def test_large_searches_are_done_by_integers_with_the_same_result(monkeypatch, tiles):
    rng = np.random.default_rng(0)
    gallery = rng.integers(0, 256, (300, 8, 8, 3)).astype(np.uint8)
    queries = rng.integers(0, 256, (70, 8, 8, 3)).astype(np.uint8)
    queries[:20], gallery[200:205] = gallery[40:60], gallery[40]
    by_floats = Gallery(gallery, tiles).nearest(queries, 9, flips=True, block=40)
    monkeypatch.setattr(neighbours, "_INTEGER_FROM", 0)
    if integer_search.trusted(64 * 3 // tiles**2):
        monkeypatch.setattr(Gallery, "_vectors", property(lambda self: pytest.fail("floats")))
    by_integers = Gallery(gallery, tiles).nearest(queries, 9, flips=True, block=40)
    np.testing.assert_array_equal(by_floats.rows, by_integers.rows)
    np.testing.assert_array_equal(by_floats.distances, by_integers.distances)


def test_what_integers_get_wrong_is_searched_by_floats(monkeypatch):
    monkeypatch.setattr(neighbours, "_INTEGER_FROM", 0)
    monkeypatch.setattr(integer_search, "trusted", lambda values: False)
    monkeypatch.setattr(integer_search, "IntegerGallery", lambda cut: pytest.fail("integers"))
    gallery = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1)).astype(np.uint8)
    assert Gallery(gallery).nearest(gallery, 1).rows[:, 0].tolist() == list(range(60))


def test_floating_images_are_never_searched_by_integers(monkeypatch):
    monkeypatch.setattr(neighbours, "_INTEGER_FROM", 0)
    gallery = np.random.default_rng(0).random((60, 8, 8, 1))
    found = Gallery(gallery).nearest(gallery + 1e-9, 1)
    assert found.rows[:, 0].tolist() == list(range(60))
    assert (found.distances > 0).all()


PROGRAM = """
import numpy as np
from afterimage.metrics import integer_search, neighbours
neighbours._INTEGER_FROM = 0
rng = np.random.default_rng(0)
gallery = np.where(rng.random((400, 16, 16, 3)) < 0.5, 0, 255).astype(np.uint8)
found = neighbours.Gallery(gallery).nearest(gallery, 3)
wanted = ((gallery.reshape(400, 1, -1).astype(float) - gallery.reshape(1, 400, -1)) ** 2).sum(2)
assert (found.rows == np.argsort(wanted, axis=1, kind="stable")[:, :3]).all()
print(integer_search.trusted(768))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instructions are those of x86-64")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "DEFAULT"])
def test_processors_that_multiply_wrongly_are_noticed(instructions):
    """oneDNN restricted to instructions without VNNI saturates sums of two products, as processors
    without VNNI do; the search must be right either way."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    program = [sys.executable, "-c", PROGRAM]
    printed = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    if instructions != "DEFAULT":
        assert printed.stdout == "False\n"


def test_the_check_compares_extreme_values(monkeypatch):
    """Products whose sums of pairs saturate at 16 bits, as the kernels for AVX2 compute them."""
    torch = integer_search.torch

    def saturating(a, b):
        pairs = (
            a.to(torch.int32).reshape(len(a), -1, 2)[..., None]
            * b.to(torch.int32).reshape(-1, 2, b.shape[1])[None]
        ).sum(dim=2)
        return pairs.clamp(-(2**15), 2**15 - 1).sum(dim=1, dtype=torch.int32)

    integer_search.trusted.cache_clear()
    try:
        assert integer_search.trusted(16) == _right_here()
        integer_search.trusted.cache_clear()
        monkeypatch.setattr(torch, "_int_mm", saturating)
        assert not integer_search.trusted(16)
    finally:
        integer_search.trusted.cache_clear()


def _right_here():
    torch = integer_search.torch
    extreme = torch.full((8, 16), -128, dtype=torch.int8)
    return bool((torch._int_mm(extreme, extreme.t()) == 16 * 128**2).all())


@needs_integers
def test_distances_are_those_of_differences():
    """The largest differences of single tiles, not of whole images."""
    gallery = tiles_of(3, (40, 16, 16, 1), 256)
    cut = distances.cut(gallery, 4)
    _, found = IntegerGallery(cut).nearest(cut[:5], 40, None)
    pairs = [distances.squared(np.repeat(cut[i : i + 1], 40, axis=0), cut) for i in range(5)]
    np.testing.assert_array_equal(found, np.sort(pairs, axis=1))
