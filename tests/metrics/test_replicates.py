"""Differences over replicates: agreement with scipy, Holm's worked example, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from afterimage.metrics import replicates
from afterimage.metrics.intervals import exact_limits

NAN = math.nan
RNG = np.random.default_rng(0)
ARM, CONTROL = RNG.normal(size=(2, 3, 4, 6)) * np.array([[1.0], [2.0], [0.5], [3.0]])


@pytest.mark.parametrize(
    ("compare", "oracle"),
    [
        (replicates.paired, lambda a, b: stats.ttest_rel(a, b, axis=-1)),
        (replicates.welch, lambda a, b: stats.ttest_ind(a, b, axis=-1, equal_var=False)),
    ],
)
def test_differences_are_those_of_scipys_t_tests(compare, oracle):
    found, expected = compare(ARM, CONTROL), oracle(ARM, CONTROL)
    np.testing.assert_allclose(found.p_value(), expected.pvalue)
    interval = found.interval(0.9)
    np.testing.assert_allclose(interval.value, ARM.mean(-1) - CONTROL.mean(-1))
    limits = expected.confidence_interval(0.9)
    np.testing.assert_allclose((interval.low, interval.high), (limits.low, limits.high))


def test_missing_replicates_do_not_count():
    arm, control = ARM[0, 0].copy(), CONTROL[0, 0].copy()
    arm[1], control[4] = NAN, NAN
    both = [0, 2, 3, 5]
    found = replicates.paired(arm, control)
    assert found.p_value() == pytest.approx(stats.ttest_rel(arm[both], control[both]).pvalue)
    found = replicates.welch(arm, control)
    expected = stats.ttest_ind(np.delete(arm, 1), np.delete(control, 4), equal_var=False)
    assert found.p_value() == pytest.approx(expected.pvalue)
    assert np.isnan(replicates.paired(np.array([1.0, NAN]), np.array([2.0, 3.0])).error)
    assert np.isnan(replicates.mean(np.array([NAN, NAN])).value)


@pytest.mark.parametrize("compare", [replicates.paired, replicates.welch])
def test_values_without_spread_are_unmeasured(compare):
    """Not even where the floating-point numbers of equal differences differ."""
    zeros = np.zeros(5)
    assert np.isnan(compare(zeros, zeros).interval(0.95).low)
    assert np.isnan(compare(zeros, zeros).p_value())
    assert np.isnan(compare(zeros + 0.3, zeros + 0.1).error)
    assert not np.isnan(compare(zeros, np.arange(5.0)).error)
    almost = replicates.paired(np.array([0.3, 0.4, 0.9]), np.array([0.2, 0.3, 0.8]))
    assert np.isnan(almost.error)
    almost = replicates.paired(np.array([0.3, 0.1 + 0.2]), np.array([0.3, 0.3]))
    assert np.isnan(almost.error)


def test_holms_p_values():
    """By hand: 0.01 x 4, 0.025 x 3, 0.03 x 2 but no less than the one before, 0.9."""
    p_values = np.array([[0.03, 0.01, 0.9, 0.025], [0.6, 0.5, 0.7, NAN]])
    np.testing.assert_allclose(
        replicates.holm(p_values), [[0.075, 0.04, 0.9, 0.075], [1, 1, 1, NAN]]
    )
    alone = replicates.holm(np.array([0.01, NAN, NAN]))
    assert alone[0] == pytest.approx(0.03)  # what cannot be measured counts in the family
    assert replicates.holm(np.array([])).size == 0


def test_the_detectable_difference_has_the_power_that_it_names():
    for freedom, level, power in ((4, 0.05, 0.8), (1, 0.05, 0.8), (8, 0.05 / 17, 0.9)):
        shift = replicates.detectable(2.0, freedom, level, power) / 2
        critical = stats.t.isf(level / 2, freedom)
        seen = stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)
        assert seen == pytest.approx(power, abs=1e-6)
    assert np.isnan(replicates.detectable(NAN, 4, 0.05))


def test_a_mean_share_is_never_surer_than_its_pooled_counts():
    of = np.full((3, 3), 512)
    found = replicates.mean_share(np.array([[0, 0, 0], [256, 256, 257], [0, 20, 500]]), of, 0.95)
    assert np.isnan([found.low[0], found.high[0]]).all()
    low, high = exact_limits(769, 3 * 512, 0.95)
    assert (found.low[1], found.high[1]) == (low, high)
    assert (found.low[2], found.high[2]) == (0, 1)
    np.testing.assert_allclose(found.value, [0, 769 / 1536, 520 / 1536])


@pytest.mark.parametrize("spread", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("rate", [0.0005, 0.002, 0.01, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("trainings", [3, 5, 10])
def test_intervals_of_mean_shares_cover_as_often_as_they_say(trainings, rate, spread):
    """The truth is the mean share of trainings; tables without spread have no interval."""
    rng, tables = np.random.default_rng(0), 2000
    odds = special.logit(rate)
    shares = special.expit(odds + spread * rng.standard_normal((tables, trainings)))
    found = replicates.mean_share(rng.binomial(512, shares), np.full(shares.shape, 512), 0.95)
    truth = special.expit(odds + spread * rng.standard_normal(100_000)).mean()
    measured = ~np.isnan(found.low)
    covered = ((found.low <= truth) & (truth <= found.high))[measured].mean()
    assert covered >= 0.9


def test_log_odds_of_known_shares():
    found = replicates.log_odds(np.array([0, 5, 10]), np.array([10, 10, 10]))
    np.testing.assert_allclose(found, [np.log(0.5 / 10.5), 0, np.log(10.5 / 0.5)])


def test_log_odds_leave_open_what_zeros_leave_open():
    none, some = np.zeros(5), np.array([90, 80, 99, 85, 95])
    of = np.full(5, 512)
    change = replicates.log_odds_difference(none, of, some, of, 0.95, True)
    assert change.low == -np.inf
    highest = special.logit(exact_limits(0, 5 * 512, 0.95)[1]) - special.logit(some.sum() / 2560)
    assert highest < change.high < 0  # at least what an exact limit says, and still less
    both = replicates.log_odds_difference(none, of, none, of, 0.95, False)
    assert (both.low, both.high) == (-np.inf, np.inf)
    whole = replicates.log_odds_difference(of, of, some, of, 0.95, True)
    assert whole.high == np.inf
    mirrored = replicates.log_odds_difference(some, of, none, of, 0.95, True)
    np.testing.assert_allclose((mirrored.low, mirrored.high), (-change.high, -change.low))


@pytest.mark.parametrize("is_paired", [True, False])
@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("rate", [0.0005, 0.002, 0.01, 0.17, 0.4, 0.995])
@pytest.mark.parametrize("trainings", [3, 5])
def test_intervals_of_log_odds_cover_as_often_as_they_say(trainings, rate, spread, is_paired):
    """The truth is the mean log-odds of trainings. Conservative for small counts and no spread."""
    rng, tables = np.random.default_rng(1), 2000
    rates = rate, 0.17
    counts = [
        rng.binomial(
            512,
            special.expit(special.logit(p) + spread * rng.standard_normal((tables, trainings))),
        )
        for p in rates
    ]
    of = np.full((tables, trainings), 512)
    found = replicates.log_odds_difference(counts[0], of, counts[1], of, 0.95, is_paired)
    truth = special.logit(rates[0]) - special.logit(rates[1])
    covered = ((found.low <= truth) & (truth <= found.high)).mean()
    assert covered >= 0.935
    if spread and 0.01 < rate < 0.99:
        assert covered <= 0.975
