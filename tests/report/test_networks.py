"""What several networks tell together: closed forms, and intervals that cover."""

import math

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp, ttest_ind

from afterimage.attribution.judges import lds
from afterimage.report import networks


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def spearman(pearson: float) -> float:
    """Return Spearman's correlation of normal values with a correlation."""
    return 6 / math.pi * math.asin(pearson / 2)


def test_the_mean_of_one_network_has_the_usual_interval():
    values = rng().normal(0.5, 1, 9)
    usual = ttest_1samp(values, 0)
    found = networks.mean([values], 0.9)
    assert found == pytest.approx((values.mean(), *usual.confidence_interval(0.9), usual.pvalue))


def test_errors_of_networks_add_up_as_those_of_welch():
    """The mean of two is half the difference of the first and minus the second."""
    first, second = rng(1).normal(1, 1, 6), rng(2).normal(3, 5, 20)
    welch = ttest_ind(first, -second, equal_var=False)
    found = networks.mean([first, second], 0.95)
    ends = welch.confidence_interval(0.95)
    expected = ((first.mean() + second.mean()) / 2, ends.low / 2, ends.high / 2, welch.pvalue)
    assert found == pytest.approx(expected)


def test_how_far_networks_lie_apart_is_not_in_the_interval():
    """It is of these networks: moving one of them moves the mean alone."""
    first, second = rng(1).normal(size=8), rng(2).normal(size=8)
    near, far = (networks.mean([first, second + by], 0.95) for by in (0, 10))
    assert far.value == pytest.approx(near.value + 5)
    assert far.high - far.low == pytest.approx(near.high - near.low)


@pytest.mark.parametrize("units", [[np.ones(4)], [np.ones(4), np.full(3, 2.0)]])
def test_without_spread_there_is_no_width_and_no_p_value(units):
    found = networks.mean(units, 0.95)
    assert found.low == found.value == found.high
    assert math.isnan(found.p)


@pytest.mark.parametrize("units", [[np.ones(1)], [rng().normal(size=5), np.ones(1)]])
def test_a_single_unit_of_a_network_has_no_error(units):
    found = networks.mean(units, 0.95)
    assert np.isfinite(found.value)
    assert np.isnan([found.low, found.high, found.p]).all()


def test_the_ends_of_a_ratio_are_the_ratios_that_just_differ_from_none():
    x, y = ([rng(seed + k).normal(mean, 1, 12) for k in (0, 1)] for seed, mean in ((1, 6), (5, 3)))
    found = networks.ratio(x, y, 0.95)
    assert found.value == pytest.approx(np.mean(x) / np.mean(y))
    (_, freedom) = networks._error(
        [networks._squared_error(a - found.value * b) for a, b in zip(x, y, strict=True)], x
    )
    for end in (found.low, found.high):
        rest = [a - end * b for a, b in zip(x, y, strict=True)]
        error = math.sqrt(sum(values.var(ddof=1) / 12 for values in rest)) / 2
        assert abs(np.mean(rest)) / error == pytest.approx(t.ppf(0.975, freedom))
    assert found.low < found.value < found.high


def test_a_denominator_that_may_be_nothing_leaves_a_ratio_without_bounds():
    x, y = rng(1).normal(5, 1, 10), rng(2).normal(0.2, 1, 10)
    y += 0.2 - y.mean()
    found = networks.ratio([x], [y], 0.95)
    assert found.value == pytest.approx(x.mean() / 0.2)
    assert (found.low, found.high) == (-math.inf, math.inf)
    value, *ends, _ = networks.ratio([x], [-y], 0.95)
    assert np.isnan(value)
    assert ends == [-math.inf, math.inf]
    assert np.isnan(networks.ratio([x], [np.full(10, np.nan)], 0.95)[:3]).all()


def drawn(strength: float, subsets: int, queries: int, seed: int) -> np.ndarray:
    """Return scores' predictions and the losses under two seeds, float64 (3, subsets, queries).

    All are the effect of the subsets plus independent noise, of which a tenth of the variance is
    shared by all queries; the larger ``strength``, the larger the effect.
    """

    def normal(count: int) -> np.ndarray:
        own = rng(seed)
        shared = own.normal(size=(count, subsets, 1))
        return math.sqrt(0.1) * shared + math.sqrt(0.9) * own.normal(size=(count, subsets, queries))

    values = normal(4)
    return strength * values[0] + values[1:]


@pytest.mark.parametrize("subsets", [8, 16, 32])
def test_intervals_cover_the_mean_score_of_two_networks(subsets):
    """Their scores differ, as those of networks do. With 8 subsets and scores near 0.6 the jackknife
    of one network is wider than need be (97 %), and so is this."""
    strengths, trials, covered, narrower = (0.5, 1.0), 1000, 0, 0
    truth = np.mean([spearman(s**2 / math.sqrt((1 + s**2) * (0.5 + s**2))) for s in strengths])
    for trial in range(trials):
        units = []
        for k, strength in enumerate(strengths):
            predicted, *losses = drawn(strength, subsets, 32, 10 * trial + k)
            units.append(lds.correlate(predicted, np.mean(losses, axis=0)).units())
        found = networks.mean(units, 0.95)
        covered += found.low <= truth <= found.high
        alone = networks.mean(units[:1], 0.95)
        narrower += found.high - found.low < alone.high - alone.low
    assert 0.93 <= covered / trials <= 0.97
    assert narrower > 0.9 * trials


@pytest.mark.parametrize(("subsets", "most"), [(8, 0.985), (16, 0.97), (32, 0.97)])
def test_intervals_cover_the_share_of_the_ceiling(subsets, most):
    """With 8 subsets they are a little wider than they need be: 97 to 98 % of 1,500 trials."""
    strengths, trials, covered = (0.9, 1.4), 600, 0
    scores = [spearman(s**2 / math.sqrt((1 + s**2) * (0.5 + s**2))) for s in strengths]
    between = [spearman(s**2 / (1 + s**2)) for s in strengths]
    ceilings = [math.sqrt(2 * rho / (1 + rho)) for rho in between]
    for trial in range(trials):
        units, best = [], []
        for k, strength in enumerate(strengths):
            predicted, *losses = drawn(strength, subsets, 32, 10 * trial + k)
            units.append(lds.correlate(predicted, np.mean(losses, axis=0)).units())
            best.append(lds.ceiling(np.array(losses), 0.95).units)
        found = networks.ratio(units, best, 0.95)
        covered += found.low <= np.mean(scores) / np.mean(ceilings) <= found.high
    assert 0.93 <= covered / trials <= most


def test_intervals_of_the_ratio_of_rises_cover_it():
    """16 generations of two networks; a generation with a large rise has one for every choice."""
    trials, covered = 2000, 0
    for trial in range(trials):
        own = rng(trial)
        levels = [own.gamma(2.0, size=16) for _ in range(2)]
        y = [level + own.normal(0, 1, 16) for level in levels]
        x = [2 * level + own.normal(0, 1, 16) for level in levels]
        found = networks.ratio(x, y, 0.95)
        covered += found.low <= 2 <= found.high
    assert 0.93 <= covered / trials <= 0.97
