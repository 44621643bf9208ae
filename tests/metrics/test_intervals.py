import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from afterimage.config import ConfigError
from afterimage.metrics import intervals


def rng():
    return np.random.default_rng(0)


def test_zero_of_eight():
    share = intervals.share(0, 8, 1000, 0.95, rng())
    assert (share.value, share.low, share.high, share.exact_low) == (0, 0, 0, 0)
    assert share.exact_high == pytest.approx(1 - 0.025 ** (1 / 8))


def test_eight_of_eight_mirrors_it():
    share = intervals.share(8, 8, 1000, 0.95, rng())
    assert (share.value, share.low, share.high, share.exact_high) == (1, 1, 1, 1)
    assert share.exact_low == pytest.approx(0.025 ** (1 / 8))


@given(st.integers(1, 500), st.data(), st.sampled_from([0.8, 0.95]))
@settings(max_examples=40, deadline=None)
def test_intervals_hold_the_value_and_widen_with_confidence(of, data, confidence):
    count = data.draw(st.integers(0, of))
    share = intervals.share(count, of, 200, confidence, rng())
    wider = intervals.share(count, of, 200, 0.99, rng())
    assert 0 <= share.exact_low <= share.value <= share.exact_high <= 1
    assert wider.low <= share.low <= share.high <= wider.high
    assert wider.exact_low <= share.exact_low <= share.exact_high <= wider.exact_high


def test_the_share_bootstrap_is_that_over_units():
    units = np.repeat([1.0, 0.0], [30, 70])
    share = intervals.share(30, 100, 20_000, 0.95, rng())
    each = intervals.resampled(lambda rows: units[rows].mean(), 100, 20_000, rng())
    assert (share.low, share.high) == pytest.approx(intervals.percentile(each, 0.95), abs=0.01)


def test_exact_intervals_cover_as_often_as_they_say():
    counts = rng().binomial(12, 0.2, 2000)
    made = {
        count: intervals.share(int(count), 12, 10, 0.95, rng()) for count in set(counts.tolist())
    }
    covered = np.mean(
        [made[int(count)].exact_low <= 0.2 <= made[int(count)].exact_high for count in counts]
    )
    assert covered >= 0.95


def test_the_normal_interval_ignores_a_shift():
    values = np.random.default_rng(0).normal(7, 2, 100_000)
    low, high = intervals.normal(10, values, 0.95)
    assert (low, high) == pytest.approx((10 - 1.96 * 2, 10 + 1.96 * 2), abs=0.05)


def test_the_basic_interval_takes_a_shift_out():
    values = np.linspace(
        9, 15, 1001
    )  # resamples of a statistic of value 10 that resampling raises by 2
    low, high = intervals.basic(10, values, 0.5)
    assert (low, high) == pytest.approx((20 - 13.5, 20 - 10.5))


@pytest.mark.parametrize(("count", "of"), [(0, 0), (3, 2), (-1, 5)])
def test_shares_that_do_not_exist(count, of):
    with pytest.raises(ConfigError, match="does not exist"):
        intervals.share(count, of, 10, 0.95, rng())


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_exact_limits_are_scipys(confidence):
    counts = np.array([[0, 1, 7], [12, 11, 3]])
    low, high = intervals.exact_limits(counts, 12, confidence)
    expected = [
        [stats.binomtest(int(count), 12).proportion_ci(confidence, "exact") for count in row]
        for row in counts
    ]
    np.testing.assert_allclose(np.stack([low, high], axis=-1), expected)


def test_a_share_of_images_that_always_do_the_same_has_the_spread_of_images():
    """Ten trainings of eight images say no more than one; independent trials say much more."""
    once = intervals.clustered_share(np.array([1] * 5 + [0] * 3), np.ones(8), 0.95)
    same = intervals.clustered_share(np.array([10] * 5 + [0] * 3), np.full(8, 10), 0.95)
    mixed = np.array([6, 7, 6, 5, 7, 6, 7, 6])
    apart = intervals.clustered_share(mixed, np.full(8, 10), 0.95)
    assert apart.value == 50 / 80
    assert same == once
    np.testing.assert_allclose(once, (50 / 80, *intervals.exact_limits(5, 8, 0.95)))
    exact = intervals.exact_limits(50, 80, 0.95)
    np.testing.assert_allclose(apart[1:], exact)  # never less than all trials allow


@pytest.mark.parametrize("trials", [1, 5])
def test_zeros_bound_a_share_by_the_number_of_images(trials):
    none = intervals.clustered_share(np.zeros(8), np.full(8, trials), 0.95)
    assert tuple(none) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 8)))
    whole = intervals.clustered_share(np.full(8, trials), np.full(8, trials), 0.95)
    assert tuple(whole) == pytest.approx((1, 0.025 ** (1 / 8), 1))
    assert intervals.clustered_share(np.array([2]), np.array([5]), 0.95).high > 0.97


@pytest.mark.parametrize("likeness", [0.0, 0.2, 0.5, 0.8])
@pytest.mark.parametrize(("images", "rate"), [(8, 0.1), (8, 0.3), (8, 0.6), (32, 0.6)])
def test_intervals_of_the_copies_curve_cover_as_often_as_they_say(images, rate, likeness):
    """Images in five trainings, with a given intraclass correlation: 95 % or more, where trials
    taken for independent cover 65 to 97 %."""
    rng, curves = np.random.default_rng(0), 2000
    spread = (1 - likeness) / max(likeness, 1e-6)
    rates = rng.beta(rate * spread, (1 - rate) * spread, (curves, images))
    counts = np.sort(rng.binomial(5, rates if likeness else rate, (curves, images)), axis=1)
    different, which = np.unique(counts, axis=0, return_inverse=True)
    limits = [intervals.clustered_share(row, np.full(images, 5), 0.95) for row in different]
    covered = np.array([each.low <= rate <= each.high for each in limits])[which]
    assert covered.mean() >= 0.94


@pytest.mark.parametrize(("count", "of"), [([], []), ([1], [0]), ([3], [2]), ([-1], [2])])
def test_clustered_shares_that_do_not_exist(count, of):
    with pytest.raises(ConfigError, match="do not exist"):
        intervals.clustered_share(np.array(count), np.array(of), 0.95)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
@pytest.mark.parametrize(("cases", "controls"), [(10, 30), (50, 200)])
def test_intervals_of_an_auc_cover_as_often_as_they_say(cases, controls, shift):
    stream = rng()
    true = stats.norm.cdf(shift / 2**0.5)
    covered = []
    for _ in range(500):
        areas = stream.normal(shift, 1, cases)[:, None] > stream.normal(0, 1, controls)
        interval = intervals.auc(float(areas.mean()), cases, controls, 0.95)
        covered.append(interval.low <= true <= interval.high)
    assert np.mean(covered) > 0.93


def test_an_auc_of_one_is_not_certain():
    """Fewer cases allow lower areas; the limits of 0 mirror those of 1."""
    few, many = intervals.auc(1.0, 3, 4, 0.95), intervals.auc(1.0, 30, 40, 0.95)
    assert 0.5 < few.low < many.low < 1 == few.high == many.high
    assert intervals.auc(0.0, 3, 4, 0.95).high == pytest.approx(1 - few.low)


@pytest.mark.parametrize(("count", "quantile"), [(59, 0.95), (80, 0.95), (400, 0.95), (30, 0.5)])
def test_limits_of_a_quantile_hold_for_any_distribution(count, quantile):
    """Both tails miss at most 2.5 %, whatever the values are drawn from; here exponential ones."""
    truth, draws = stats.expon.ppf(quantile), 4000
    limits = np.array(
        [
            intervals.quantile_limits(values, quantile, 0.95)
            for values in rng().exponential(size=(draws, count))
        ]
    )
    most = stats.binom.ppf(0.999, draws, 0.025)
    assert (limits[:, 0] > truth).sum() <= most
    assert (limits[:, 1] < truth).sum() <= most
    assert (limits[:, 0] > truth).any()  # they are not wider than they need to be


def test_too_few_values_do_not_bound_a_quantile():
    """The largest of n values is below the 95 % quantile with probability 0.95^n: 0.048 of 59."""
    assert intervals.quantile_limits(np.arange(59.0), 0.95, 0.9)[1] == 58
    assert intervals.quantile_limits(np.arange(58.0), 0.95, 0.9)[1] == np.inf
    assert intervals.quantile_limits(np.arange(3.0), 0.05, 0.9)[0] == -np.inf
