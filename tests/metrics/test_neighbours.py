import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.config import ConfigError
from afterimage.metrics import distances, neighbours
from afterimage.metrics.neighbours import Gallery


@pytest.fixture(scope="module", autouse=True)
def floats():
    """Galleries are searched by floats here, however large; ``test_integer_search`` has the other
    way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_INTEGER_FROM", np.inf)
        yield


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
    """Hundreds of images within float32 error of the same distance: only exact differences give
    their order."""
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


class OtherDevice:
    """Stands for faiss with one GPU: a flat index whose distances are another processor's."""

    def __init__(self, index, rounded):
        self.index, self.rounded, self.asked = index, rounded, []

    def add(self, vectors):
        self.index.add(vectors)

    def search(self, vectors, count):
        self.asked.append((len(vectors), count))
        distances, rows = self.index.search(self.rounded(vectors), count)
        return np.maximum(distances - 1e-6 * distances, 0), rows


@pytest.fixture
def device(monkeypatch):
    """Call with a rounding of the queries to let faiss see one GPU; holds the indexes that were
    made on it."""
    made = []

    def start(rounded=np.asarray):
        def index_cpu_to_gpu(resources, number, index, options):
            assert number == 0
            assert options.use_cuvs is False
            made.append(OtherDevice(index, rounded))
            return made[-1]

        monkeypatch.setattr(neighbours.faiss, "get_num_gpus", lambda: 1)
        monkeypatch.setattr(neighbours.faiss, "index_cpu_to_gpu", index_cpu_to_gpu, raising=False)
        for name in ("StandardGpuResources", "GpuClonerOptions"):
            monkeypatch.setattr(neighbours.faiss, name, type(name, (), {}), raising=False)
        return made

    return start


def halves(vectors):
    return vectors.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("rounded", [np.asarray, halves])
def test_a_gpu_changes_nothing_even_one_that_computes_in_halves(device, integer, rounded):
    gallery = images(0, 300, (8, 8, 3), integer)
    queries = images(1, 70, (8, 8, 3), integer)
    queries[:20] = gallery[40:60]
    gallery[200:205] = gallery[40]
    wanted = Gallery(gallery).nearest(queries, 9, flips=True)
    made = device(rounded)
    found = Gallery(gallery).nearest(queries, 9, flips=True, block=40)
    np.testing.assert_array_equal(found.rows, wanted.rows)
    np.testing.assert_array_equal(found.distances, wanted.distances)
    assert [index.index.ntotal for index in made] == [300], "the gallery goes to the GPU once"
    assert made[0].asked == [(40, 9 + 32), (40, 9 + 32), (30, 9 + 32), (30, 9 + 32)]


def test_distances_beyond_the_bound_are_not_trusted(device):
    """A GPU that swaps near and far images: only the check of the proposed pairs can notice."""
    gallery, queries = images(0, 300, (4, 4, 1)), images(1, 20, (4, 4, 1))
    made = device()
    search = Gallery(gallery)
    search.nearest(queries, 1)
    far = np.full((20, 3 + 32), 1e9, np.float32)
    made[0].search = lambda vectors, count: (far, np.tile(np.arange(count), (len(vectors), 1)))
    found = search.nearest(queries, 3)
    np.testing.assert_array_equal(found.rows, brute(queries, gallery, 3)[0])
    assert found.screened == 20


def test_more_proposals_than_a_gpu_selects_come_from_the_cpu(device):
    gallery = images(0, 2100, (2, 2, 1))
    made = device()
    found = Gallery(gallery).nearest(gallery[:3], 2030)
    assert made == []
    np.testing.assert_array_equal(found.rows, brute(gallery[:3], gallery, 2030)[0])


def test_a_gpu_that_fails_is_named_once_and_the_cpu_searches(device, monkeypatch):
    gallery, queries = images(0, 100), images(1, 10)
    device()
    asked = []

    def full(*arguments):
        asked.append(arguments)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(neighbours.faiss, "index_cpu_to_gpu", full, raising=False)
    with pytest.warns(UserWarning, match="the CPU does it with the same result: out of memory"):
        found = Gallery(gallery).nearest(queries, 3, block=4)
    assert len(asked) == 1
    np.testing.assert_array_equal(found.rows, brute(queries, gallery, 3)[0])
