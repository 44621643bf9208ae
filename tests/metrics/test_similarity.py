"""The replication score on features whose cosines are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from afterimage import scratch
from afterimage.config import ConfigError
from afterimage.metrics import similarity
from afterimage.metrics.similarity import nearest, replication, top1
from afterimage.metrics.spaces import CentredPixels, mean_pixels, pixels
from afterimage.plan import attack as plan
from afterimage.plan.cost import memory

VECTORS = arrays(
    np.float64, (7, 3), elements=st.floats(-2, 2).filter(lambda x: x == 0 or abs(x) > 1e-3)
)


def test_generations_that_are_training_images_score_one():
    """Replication score, known answer 9: gen = train gives R = 1."""
    features = np.random.default_rng(0).standard_normal((50, 8))
    found = top1(features * 3, features)
    np.testing.assert_allclose(found, 1)
    assert replication(found) == pytest.approx(1)


def test_orthogonal_features_score_zero():
    """Replication score, known answer 9."""
    assert replication(top1(np.eye(6)[:3], np.eye(6)[3:])) == 0
    assert top1(np.zeros((1, 6)), np.eye(6)).tolist() == [0]


@given(VECTORS, VECTORS, st.permutations(range(7)))
def test_order_and_length_do_not_matter(features, gallery, order):
    """Replication score, known answer 9: permuting rows leaves R."""
    found = top1(features, gallery)
    assert (np.abs(found) <= 1 + 1e-12).all()
    np.testing.assert_allclose(top1(features[order], gallery), found[order], atol=1e-12)
    np.testing.assert_allclose(top1(features, 5 * gallery[order]), found, atol=1e-12)


def test_images_of_one_source_are_not_compared():
    """Replication score, known answer 9: the background leaves out each image itself, and its
    copies."""
    angles = np.radians([0, 0, 60, 150])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(top1(features, features), 1)
    sources = np.arange(4)
    np.testing.assert_allclose(
        top1(features, features, sources, sources), [1, 1, 0.5, 0], atol=1e-12
    )
    copies = np.array([0, 0, 1, 2])
    np.testing.assert_allclose(
        top1(features, features, copies, copies), [0.5, 0.5, 0.5, 0], atol=1e-12
    )
    with pytest.raises(ConfigError, match="other images"):
        top1(features[:2], features[:2], copies[:2], copies[:2])


def test_the_score_is_the_95th_percentile():
    """Replication score, known answer 9: of 0, 1, ..., 100 it is 95."""
    assert replication(np.arange(101)[::-1]) == 95


def test_blocks_change_nothing():
    features, gallery = np.random.default_rng(1).standard_normal((2, 2100, 4))
    np.testing.assert_allclose(top1(features, gallery)[::700], top1(features[::700], gallery))


def test_rows_that_are_computed_on_demand_are_compared_in_blocks(monkeypatch):
    """With several blocks on both sides, of which no one is a whole set; the lowest of equally
    similar rows counts, whichever blocks they are in."""
    rng = np.random.default_rng(2)
    images, gallery = (rng.integers(0, 256, (count, 2, 3, 1), np.uint8) for count in (23, 40))
    gallery[31] = gallery[2] = images[5]
    origin = mean_pixels(gallery)
    whole = nearest(pixels(images) - origin, pixels(gallery) - origin, np.arange(23), np.arange(40))
    monkeypatch.setattr(similarity, "_BYTES", 8 * 6 * 4)
    monkeypatch.setattr(scratch, "BLOCK", 8 * 6 * 7)
    asked = []

    class Watched(CentredPixels):
        def __getitem__(self, rows):
            asked.append(rows.stop - rows.start)
            return super().__getitem__(rows)

    views = Watched(images, origin), Watched(gallery, origin)
    found = nearest(*views, np.arange(23), np.arange(40))
    np.testing.assert_array_equal(found[0], whole[0])
    np.testing.assert_allclose(found[1], whole[1], rtol=0, atol=1e-14)
    assert found[0][5] == 2
    assert max(asked) == 7


def test_planning_knows_the_blocks():
    assert (plan.SIMILARITY_ROWS, plan.SIMILARITY_BYTES) == (similarity._ROWS, similarity._BYTES)
    assert memory.BLOCK == scratch.BLOCK


def test_a_block_without_a_comparable_image_leaves_the_others(monkeypatch):
    """The first block of the gallery has images of the query's own source alone."""
    monkeypatch.setattr(scratch, "BLOCK", 8 * 2 * 2)
    gallery = np.array([[1.0, 0], [1, 0], [0, 1], [-1, 0]])
    rows, cosines = nearest(gallery[:1], gallery, np.zeros(1, int), np.array([0, 0, 1, 2]))
    assert (rows.tolist(), cosines.tolist()) == ([2], [0.0])


def test_of_equally_similar_images_the_first_is_the_nearest():
    rows, cosines = nearest(np.eye(3)[[2, 0]], np.eye(3)[[1, 0, 2, 0, 2]])
    assert rows.tolist() == [2, 1]
    np.testing.assert_allclose(cosines, 1)
    with pytest.raises(ConfigError, match="images to compare with"):
        nearest(np.eye(3), np.empty((0, 3)))


def test_cosines_of_float32_are_computed_in_float64():
    features = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    assert np.abs(top1(features, features) - 1).max() < 1e-14
