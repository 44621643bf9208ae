"""Copying at equal quality: paths with known answers, and how often its intervals are right."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.special import expit

from afterimage.metrics import equal_quality, replicates

numbers = st.floats(-5, 5, allow_nan=False)
some_paths = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=7)


def of(path):
    return np.array(path, float).T


def test_on_a_path_that_improves_it_is_the_path():
    quality, copying = np.array([3.0, 2.0, 1.0]), np.array([-4.0, -2.0, 2.0])
    at = np.array([0.9, 1.0, 1.25, 2.0, 2.5, 3.0, 9.0])
    found = equal_quality.least_copying(quality, copying, at)
    np.testing.assert_allclose(found, [np.nan, 2, 1, -2, -3, -4, -4])


def test_of_a_path_that_turns_the_better_side_counts():
    """Trained on, the network copies more and draws worse: whoever stops does so before."""
    quality, copying = np.array([3.0, 1.0, 2.0]), np.array([-4.0, 0.0, 3.0])
    np.testing.assert_allclose(
        equal_quality.least_copying(quality, copying, np.array([1.0, 2.0])), [0, -2]
    )


def test_unlearning_goes_the_other_way():
    quality, copying = np.array([1.0, 2.0]), np.array([0.0, -2.0])
    np.testing.assert_allclose(equal_quality.least_copying(quality, copying, np.array([1.5])), [-1])


@given(some_paths, st.lists(numbers, min_size=1, max_size=5))
@example([(0.0, 0.0), (5e-324, 0.0)], [1.0])
def test_a_worse_quality_never_costs_copies_and_reversal_changes_nothing(path, at):
    quality, copying = of(path)
    at = np.sort(np.array(at))
    least = equal_quality.least_copying(quality, copying, at)
    reached = least[~np.isnan(least)]
    assert (np.diff(reached) <= 1e-9).all()
    assert np.isnan(least[at < quality.min()]).all()
    assert not np.isnan(least[at >= quality.min()]).any()
    back = equal_quality.least_copying(quality[::-1], copying[::-1], at)
    np.testing.assert_allclose(least, back, atol=1e-9)


@given(some_paths, numbers)
def test_a_path_moved_by_a_constant_differs_by_it(path, shift):
    quality, copying = of(path)
    found = equal_quality.difference(quality, copying + shift, quality, copying)
    if quality.min() < quality.max():
        assert found.value == pytest.approx(shift, abs=1e-9)
        assert (found.best, found.worst) == (quality.min(), quality.max())
    else:
        assert np.isnan(found.value)


def test_only_qualities_that_both_reach_are_compared():
    plain = np.array([4.0, 2.0, 1.0]), np.array([-4.0, 0.0, 2.0])
    late = np.array([6.0, 3.0]), np.array([-6.0, -3.0])  # 1 below plain's -2 at 3; -4 at 4
    found = equal_quality.difference(*late, *plain)
    assert (found.best, found.worst) == (3, 4)
    assert found.other == pytest.approx(-2)
    assert found.value == pytest.approx(-0.5)  # -1 at 3, 0 at 4, linear
    assert np.isnan(equal_quality.difference(np.array([9.0, 8]), np.zeros(2), *plain).value)


# ---- simulated -----------------------------------------------------------------------------------


def simulated(rng, trainings, truth, slower, noise):
    """Return the difference of each training: plain training's copies rise as its distance falls,
    the remedy's by ``truth`` less at any distance, and it improves more slowly. Counts are
    binomial, distances noisy, and trainings differ, half of it shared by both arms."""
    spent = 0.125 ** (1 - np.arange(6) / 5)
    shared = rng.normal(0, 0.3, trainings)
    values = []
    for k in range(trainings):
        states = []
        for shift, pace in ((truth, slower), (0.0, 1.0)):
            distance = -0.8 * np.log(spent * pace)
            odds = -1 - 2.2 * distance + shift + shared[k] + rng.normal(0, 0.15)
            counts = rng.binomial(512, expit(odds))
            seen = distance + rng.normal(0, noise, 6) + rng.normal(0, noise / 2)
            states += [seen, replicates.log_odds(counts, np.full(6, 512))]
        values.append(equal_quality.difference(*states).value)
    return np.array(values)


@pytest.mark.parametrize("noise", [0.03, 0.08])
@pytest.mark.parametrize("slower", [1.0, 0.4])
@pytest.mark.parametrize("truth", [0.0, -0.7])
def test_intervals_cover_and_an_arm_that_only_learns_slower_has_no_advantage(truth, slower, noise):
    rng = np.random.default_rng(0)
    values = np.array([simulated(rng, 5, truth, slower, noise) for _ in range(1000)])
    estimate = replicates.mean(values)
    low, high = estimate.interval(0.95)[1:]
    assert 0.93 <= ((low <= truth) & (truth <= high)).mean() <= 0.97
    assert abs(values.mean() - truth) < 0.05
