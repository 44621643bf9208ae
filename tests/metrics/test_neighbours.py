import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.config import ConfigError
from afterimage.metrics import distances, neighbours
from afterimage.metrics.neighbours import Gallery


def brute(queries, gallery, k, tiles=1, exclude=None, flips=False):
    """All pairs, one at a time."""
    rows, values = [], []
    whole = distances.cut(gallery, tiles)
    for i, query in enumerate(queries):
        views = [query, query[:, ::-1]] if flips else [query]
        squares = [
            distances.squared(np.repeat(distances.cut(v[None], tiles), len(whole), axis=0), whole)
            for v in views
        ]
        smaller = np.min(squares, axis=0)
        if exclude is not None:
            smaller[exclude[i]] = np.inf
        order = np.lexsort((np.arange(len(gallery)), smaller))[:k]
        rows.append(order)
        values.append(distances.normalise(smaller[order], whole.shape[2], gallery.dtype))
    return np.array(rows), np.array(values)


def images(seed, count, shape=(8, 8, 1), integer=True, levels=256):
    values = np.random.default_rng(seed).integers(0, levels, (count, *shape)) * (
        255 // (levels - 1)
    )
    return values.astype(np.uint8) if integer else values / 255


@given(
    seed=st.integers(0, 2**32),
    integer=st.booleans(),
    levels=st.sampled_from([2, 4, 256]),
    tiles=st.sampled_from([1, 2]),
    flips=st.booleans(),
    own=st.booleans(),
    size=st.integers(2, 120),
    k=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_equals_brute_force_with_ties_and_copies(seed, integer, levels, tiles, flips, own, size, k):
    gallery = images(seed, size, (2, 4, 1), integer, levels)  # few values: many ties and copies
    k = min(k, size - own)
    queries = gallery[: size // 2 + 1] if own else images(seed + 1, 9, (2, 4, 1), integer, levels)
    exclude = np.arange(len(queries)) if own else None
    found = Gallery(gallery, tiles).nearest(queries, k, exclude=exclude, flips=flips, block=7)
    rows, values = brute(queries, gallery, k, tiles, exclude, flips)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.distances, values)


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("tiles", [1, 4])
def test_block_size_changes_nothing(integer, tiles):
    gallery = images(0, 300, (8, 8, 3), integer)
    queries = images(1, 70, (8, 8, 3), integer)
    queries[:20] = gallery[40:60]
    gallery[200:205] = gallery[40]
    search = Gallery(gallery, tiles)
    results = [
        search.nearest(queries, 9, flips=True, block=block) for block in (1, 7, 64, 70, 1000)
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].rows, other.rows)
        np.testing.assert_array_equal(results[0].distances, other.distances)
    radius = float(np.median(results[0].distances))
    counts = [search.count_within(queries, radius, block=block) for block in (1, 7, 64, 1000)]
    assert all((counts[0] == other).all() for other in counts[1:])


def test_the_certificate_refuses_what_float32_cannot_tell_apart():
    """Hundreds of images within float32 error of the same distance: only exact differences give their order."""
    rng = np.random.default_rng(0)
    base = rng.random((1, 8, 8, 1))
    gallery = base + 1e-9 * rng.standard_normal((400, 8, 8, 1))
    queries = base + 0.3 * rng.random((5, 8, 8, 1))
    found = Gallery(np.concatenate([gallery, rng.random((200, 8, 8, 1))])).nearest(queries, 5)
    rows, values = brute(queries, gallery, 5)
    assert found.screened == 5
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.distances, values)


def test_most_searches_are_certified_by_the_first_proposals():
    found = Gallery(images(0, 2000, (16, 16, 3))).nearest(images(1, 100, (16, 16, 3)), 50)
    assert found.screened <= 20


def test_near_copies_of_bright_images_are_told_apart():
    gallery = np.full((40, 64, 64, 3), 0.75)
    gallery += np.linspace(1e-6, 4e-5, 40)[:, None, None, None]
    found = Gallery(gallery).nearest(np.full((1, 64, 64, 3), 0.75), 3)
    assert found.rows.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(found.distances[0], [1e-6, 2e-6, 3e-6], rtol=1e-6)


@given(
    seed=st.integers(0, 2**32),
    integer=st.booleans(),
    tiles=st.sampled_from([1, 2]),
    rank=st.integers(0, 59),
)
@settings(max_examples=40, deadline=None)
def test_count_within_equals_brute_force_at_the_boundary(seed, integer, tiles, rank):
    gallery, queries = (
        images(seed, 60, integer=integer, levels=4),
        images(seed + 1, 5, integer=integer, levels=4),
    )
    every = np.array(
        [distances.between(np.broadcast_to(q, gallery.shape), gallery, tiles) for q in queries]
    )
    radius = np.sort(every[0])[rank]  # exactly at one pair's distance
    assert (
        Gallery(gallery, tiles).count_within(queries, radius).tolist()
        == (every <= radius).sum(axis=1).tolist()
    )


def test_real_images_are_certified_and_exact(real_data):
    import io

    import pandas as pd
    from PIL import Image

    table = pd.read_parquet(real_data / "cifar10-jpeg75" / "test.parquet", columns=["img"])[
        "img"
    ].iloc[:2100]
    real = np.stack(
        [np.asarray(Image.open(io.BytesIO(picture["bytes"])).convert("RGB")) for picture in table]
    )
    gallery, queries = real[:2000], real[2000:].copy()
    queries[:30] = gallery[:30]
    queries[:30, 5, 5, 0] ^= 1  # near-copies: one value changed by one
    found = Gallery(gallery).nearest(queries, 50)
    rows, values = brute(queries, gallery, 50)
    assert found.screened <= 5
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.distances, values)
    assert found.rows[:30, 0].tolist() == list(range(30))
    np.testing.assert_allclose(found.distances[:30, 0], 1 / 255 / np.sqrt(3072), rtol=1e-12)


def test_large_galleries_are_screened_in_parts(monkeypatch):
    gallery, queries = images(0, 90, levels=4), images(1, 20, levels=4)
    whole = Gallery(gallery, 2).nearest(queries, 5)
    monkeypatch.setattr(neighbours, "_SCREEN_PAIRS", 200)
    monkeypatch.setattr(neighbours, "_PAIR_VALUES", 100)
    parts = Gallery(gallery, 2).nearest(queries, 5)
    np.testing.assert_array_equal(whole.rows, parts.rows)


def test_errors_name_what_is_wrong():
    gallery = images(0, 5)
    with pytest.raises(ConfigError, match=r"5 neighbours .* 4 images"):
        Gallery(gallery).nearest(gallery, 5, exclude=np.arange(5))
    with pytest.raises(ConfigError, match="cannot be compared"):
        Gallery(gallery).nearest(images(0, 2, (8, 8, 3)), 1)
    with pytest.raises(ConfigError, match="not finite"):
        Gallery(gallery / 255).nearest(np.full((1, 8, 8, 1), np.nan), 1)
    with pytest.raises(ConfigError, match="must divide"):
        Gallery(gallery, 3)
    with pytest.raises(ConfigError, match="gallery needs images"):
        Gallery(gallery[:0])
