"""The formulas of the attack on numbers that can be checked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage import config
from afterimage.attacks import adaptive, calibration, mq
from afterimage.attacks.target import Target
from afterimage.config import ConfigError
from afterimage.images import different

LEVELS = np.array([0, 0.2, 0.4, 1]).reshape(4, 1, 1, 1)
CANDIDATE = np.full((1, 1, 1, 1), 0.1)


def target(images, flips=False, **keys):
    return Target(images, config.Extraction(**keys), flips)


# ---- the adaptive distance -----------------------------------------------------------------------


@pytest.mark.parametrize(("include_self", "expected"), [(True, 1.0), (False, 0.375)])
def test_ratio_anchored_at_the_training_image(include_self, expected):
    scores = target(LEVELS, neighbours=3, include_self=include_self).score(CANDIDATE)
    assert scores.row.tolist() == [0]  # a tie of levels 0 and 0.2
    assert adaptive.ratio(scores.relative["training"], 0.5) == pytest.approx([expected], rel=1e-12)
    assert adaptive.flagged(scores.relative["training"], 0.5).tolist() == [True]


def test_ratio_anchored_at_the_candidate():
    scores = target(LEVELS, neighbours=3).score(CANDIDATE)
    assert adaptive.ratio(scores.relative["candidate"], 0.5) == pytest.approx([1.2], rel=1e-12)
    assert adaptive.flagged(scores.relative["candidate"], 0.5).tolist() == [False]


def test_neighbours_that_are_all_copies_give_defined_ratios():
    images = np.concatenate([np.repeat(LEVELS[:1], 4, axis=0), LEVELS[1:]])
    queries = np.concatenate([LEVELS[:1], CANDIDATE / 2])
    scores = target(images, neighbours=3, gallery="all").score(queries)
    assert scores.row.tolist() == [0, 0]
    assert scores.relative["training"].tolist() == [0, np.inf]
    assert scores.relative["candidate"][0] == 0
    assert scores.zero_means == {"training": 2, "candidate": 1}
    distinct = target(images, neighbours=3, gallery="distinct").score(queries)
    assert distinct.zero_means["training"] == 0
    assert distinct.relative["training"][1] == pytest.approx(0.05 / np.mean([0.2, 0.4, 1]))


def test_fewer_images_than_neighbours():
    attacked = target(LEVELS, neighbours=50, mq_neighbours=50)
    assert (attacked.neighbours, attacked.mq_neighbours) == (3, 4)
    one = target(np.repeat(LEVELS[:1], 5, axis=0), gallery="distinct")
    assert (one.neighbours, one.score(LEVELS[:1]).relative["training"].tolist()) == (0, [0])
    with pytest.raises(ConfigError, match="at least 1 training image"):
        target(LEVELS[:0])


def test_a_mirrored_copy_is_found_only_with_flips():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    mirrored = images[7:8, :, ::-1]
    assert target(images, flips=True).score(mirrored).distance.tolist() == [0]
    assert target(images, flips=True).score(mirrored).row.tolist() == [7]
    assert target(images).score(mirrored).distance[0] > 0.1
    assert (
        target(images, flips=True).score(mirrored).mq == target(images).score(mirrored).mq
    )  # MQ knows no mirror images


def test_flips_count_among_the_neighbours_too():
    half = np.zeros((2, 4, 4, 1))
    half[0, :, :2] = half[1, :, 2:] = 1  # mirror images of each other
    images = np.concatenate([half, np.full((1, 4, 4, 1), 0.5)])
    scores = target(images, flips=True, neighbours=1).score(images[:1])
    assert scores.zero_means["training"] == 1


def test_the_tiled_distance_sees_what_a_plain_background_hides():
    images = np.full((3, 16, 16, 1), 0.2)
    images[1, :4, :4] = 0.6
    images[2] += 0.15
    query = images[:1].copy()
    query[0, 4:8, 4:8] = 0.4
    scores = target(images, distance="tiled", tiles=4, neighbours=2).score(query)
    assert scores.distance[0] == pytest.approx(0.15)  # plainly row 0 is nearer: 0.05
    assert scores.row.tolist() == [2]


def test_contents_are_told_apart_by_bytes():
    images = np.zeros((6, 2, 2, 1), np.uint8)
    images[[1, 4]] = 5
    images[3, 0, 0] = 1
    first, times = different(images)
    assert first.tolist() == [0, 1, 3]
    assert times.tolist() == [3, 2, 1]


def test_values_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        target(LEVELS * 255)
    with pytest.raises(ConfigError, match="compared images"):
        target(LEVELS).score(CANDIDATE - 1)
    with pytest.raises(ConfigError, match="training images"):
        target(np.where(LEVELS == 1, np.nan, LEVELS))


# ---- eidetic memorization ------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.sampled_from(["distinct", "all"]))
@settings(max_examples=20, deadline=None)
def test_an_inserted_copy_raises_k_by_one(seed, gallery):
    images = np.random.default_rng(seed).random((20, 4, 4, 1))
    before = target(images, gallery=gallery).rows_within(images[:1], 0.3)
    after = target(np.concatenate([images, images[:1]]), gallery=gallery).rows_within(
        images[:1], 0.3
    )
    assert before[0] >= 1  # itself
    assert after[0] == before[0] + 1


def test_k_counts_neighbours_within_delta():
    images = np.array([0, 0.1, 0.3, 0.9]).reshape(4, 1, 1, 1)
    assert target(images).rows_within(images, 0.2).tolist() == [2, 3, 2, 1]


# ---- MQ ------------------------------------------------------------------------------------------


def test_mq_ratio_known_answers():
    one_of_fifty = np.sqrt([[1] + 49 * [4]])
    assert mq.ratios(one_of_fifty) == pytest.approx([50 / 197], rel=1e-12)
    assert mq.ratios(one_of_fifty) != pytest.approx(
        [50 / 99], rel=1e-3
    )  # what unsquared distances would give
    assert mq.ratios(np.full((1, 50), 3.0)) == pytest.approx([1])
    assert mq.ratios(np.array([[0.0, 1, 2], [0, 0, 0]])).tolist() == [0, 0]


def test_mq_ratio_from_images():
    """One image at squared distance 1 and forty-nine at 4, farther ones beyond the fifty."""
    images = np.zeros((60, 8, 8, 1))
    flat = images.reshape(60, 64)
    flat[0, 0] = 0.25
    flat[np.arange(1, 50), np.arange(1, 50)] = 0.5
    flat[50:, :50] = 0.9 + np.arange(10)[:, None] / 100
    scores = target(images).score(np.zeros((1, 8, 8, 1)))
    assert scores.mq == pytest.approx([50 / 197], rel=1e-12)


def test_mq_of_the_training_set_is_all_of_it_and_of_noise_none_of_it():
    rng = np.random.default_rng(0)
    attacked = target(rng.integers(0, 256, (200, 16, 16, 3), dtype=np.uint8))
    own = attacked.score(attacked.images)
    noise = attacked.score(rng.integers(0, 256, (200, 16, 16, 3), dtype=np.uint8))
    for tau in config.Extraction().mq_thresholds:
        assert mq.below(own.mq, tau).all()
    assert not mq.below(noise.mq, 0.5).any()


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_mq_is_a_monotone_count_of_ratios_in_0_1(seed):
    ratio = mq.ratios(np.sort(np.random.default_rng(seed).random((30, 50)), axis=1))
    assert ((ratio >= 0) & (ratio <= 1)).all()
    counts = [mq.below(ratio, tau).sum() for tau in np.linspace(0, 1, 11)]
    assert counts == sorted(counts)


def test_mq_takes_its_own_neighbours_and_plain_distance():
    rng = np.random.default_rng(0)
    images, queries = rng.random((30, 4, 4, 1)), rng.random((5, 4, 4, 1))
    expected = target(images, mq_neighbours=10).score(queries).mq
    for keys in ({"neighbours": 3}, {"distance": "tiled", "tiles": 2}, {"gallery": "distinct"}):
        np.testing.assert_array_equal(
            target(images, mq_neighbours=10, **keys).score(queries).mq, expected
        )
    np.testing.assert_array_equal(
        target(images, True, mq_neighbours=10).score(queries).mq, expected
    )


# ---- calibration ---------------------------------------------------------------------------------

distances_of_holdout = st.lists(
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.3, np.inf]), min_size=1, max_size=40
)


@given(distances_of_holdout, st.sampled_from([0, 0.001, 0.05, 0.1, 0.29, 0.5, 0.99]))
@settings(max_examples=200, deadline=None)
def test_calibrated_alpha_keeps_the_rate_and_no_larger_one_does(values, rate):
    values = np.array(values)
    alpha = calibration.largest_alpha(values, rate)
    assert adaptive.flagged(values, alpha).mean() <= rate
    assert np.isfinite(alpha)
    if 0 < alpha < np.finfo(float).max:
        assert adaptive.flagged(values, np.nextafter(alpha, np.inf)).mean() > rate
    elif alpha == 0:
        assert (values == 0).mean() > rate


def test_the_rate_is_counted_in_decimals():
    values = np.arange(1.0, 101)
    assert calibration.largest_alpha(values, 0.29) == np.nextafter(
        30, 0
    )  # 0.29 * 100 is a little under 29 in binary


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_a_cross_fitted_rate_is_the_rate_out_of_sample(rate):
    """Half of m uniform scores set alpha at rate r: others are flagged at (floor(r m / 2) + 1) / (m
    / 2 + 1) on average."""
    rng = np.random.default_rng(0)
    crossed = [calibration.cross_fit(rng.random(100), rate, seed) for seed in range(200)]
    wanted = (int(rate * 50) + 1) / 51
    assert np.mean([each.flagged.mean() for each in crossed]) == pytest.approx(wanted, abs=0.004)
    assert np.mean([each.alpha for each in crossed]) == pytest.approx(wanted, abs=0.004)


def test_every_held_out_image_controls_in_some_halving():
    scores = np.arange(1.0, 41.0)
    crossed = calibration.cross_fit(scores, 0.1, 3)
    assert ((crossed.flagged >= 0) & (crossed.flagged <= 1)).all()
    assert (
        crossed.flagged[0] > 0.3
    )  # the smallest score is flagged by most halves that it is not in
    assert (crossed.flagged[20:] == 0).all()
    assert calibration.cross_fit(scores[:19], 0.1, 3).alpha == 0
    assert (calibration.halves(40, 3, 1) != calibration.halves(40, 3, 2)).any()


def test_halves_are_seeded_and_disjoint():
    half = calibration.halves(101, seed=1)
    assert half.sum() == 50
    assert (half == calibration.halves(101, seed=1)).all()
    assert (half != calibration.halves(101, seed=2)).any()
    with pytest.raises(ConfigError, match="at least 2 held-out images"):
        calibration.halves(1, seed=1)


# ---- metamorphic relations -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def smooth(oracles):
    images = oracles.smooth_images(140, seed=3)
    queries = np.clip(images[:50] + np.random.default_rng(0).normal(0, 0.05, (50, 8, 8, 1)), 0, 1)
    return images, queries


def same(a, b):
    np.testing.assert_array_equal(a.distance, b.distance)
    np.testing.assert_array_equal(a.mq, b.mq)
    for anchor in adaptive.ANCHORS:
        np.testing.assert_array_equal(a.relative[anchor], b.relative[anchor])


@pytest.mark.parametrize(
    "keys", [{}, {"distance": "tiled", "tiles": 2}, {"gallery": "distinct", "include_self": True}]
)
@pytest.mark.parametrize("flips", [False, True])
def test_block_size_changes_nothing(smooth, keys, flips):
    images, queries = smooth
    whole = target(images, flips, block=1000, **keys).score(queries)
    for block in (1, 7, 64):
        parts = target(images, flips, block=block, **keys).score(queries)
        same(parts, whole)
        np.testing.assert_array_equal(parts.row, whole.row)


def test_the_order_of_training_images_changes_nothing(smooth):
    images = np.rint(smooth[0] * 255).astype(np.uint8)
    queries = np.rint(smooth[1] * 255).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    whole, shuffled = target(images).score(queries), target(images[order]).score(queries)
    same(whole, shuffled)
    np.testing.assert_array_equal(order[shuffled.row], whole.row)


def test_a_training_image_beyond_all_neighbours_changes_nothing(smooth):
    images, queries = np.clip(smooth[0] * 0.2, 0, 1), np.clip(smooth[1] * 0.2, 0, 1)
    images, queries = (np.rint(x * 255).astype(np.uint8) for x in (images, queries))
    far = np.full((1, 8, 8, 1), 255, np.uint8)
    same(target(images).score(queries), target(np.concatenate([images, far])).score(queries))


def test_scaling_pixels_scales_distances_and_leaves_ratios(smooth):
    images, queries = smooth
    whole, half = target(images).score(queries), target(images / 2).score(queries / 2)
    np.testing.assert_array_equal(half.distance, whole.distance / 2)
    np.testing.assert_array_equal(half.row, whole.row)
    np.testing.assert_allclose(half.mq, whole.mq, rtol=1e-12)
    for anchor in adaptive.ANCHORS:
        np.testing.assert_allclose(half.relative[anchor], whole.relative[anchor], rtol=1e-12)
