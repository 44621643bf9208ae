import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
