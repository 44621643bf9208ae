"""The linear data-modelling score on planted truth, its intervals, its ceiling, and the regulariser
chosen for it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from afterimage.attribution.judges import lds
from afterimage.attribution.judges.subsets import masks
from afterimage.config import ConfigError

SUBSETS, QUERIES, IMAGES = 64, 8, 30


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def kept() -> np.ndarray:
    return masks(np.arange(IMAGES) % 3, 0.5, SUBSETS, 1)


def score(scores: np.ndarray, kept: np.ndarray, truth: np.ndarray) -> lds.Score:
    return lds.lds(lds.predictions(scores, kept), truth, 0.95)


# ---- the score (DAS known answer 12) -------------------------------------------------------------


def test_additive_losses_are_predicted_by_their_own_weights(kept):
    """Losses -sum of weights of the kept images: the weights score 1, in every resample too; with
    the sign turned -1."""
    weights = rng().normal(size=(QUERIES, IMAGES))
    truth = -(kept @ weights.T) + rng(1).normal(size=QUERIES)
    exact, turned = score(weights, kept, truth), score(-weights, kept, truth)
    assert vars(exact) == pytest.approx({"value": 1, "low": 1, "high": 1, "undefined": 0})
    assert vars(turned) == pytest.approx({"value": -1, "low": -1, "high": -1, "undefined": 0})


def test_a_turned_sign_turns_the_score_whatever_it_is(kept):
    scores, truth = rng(2).normal(size=(QUERIES, IMAGES)), rng(3).normal(size=(SUBSETS, QUERIES))
    one, other = score(scores, kept, truth), score(-scores, kept, truth)
    assert one.value == pytest.approx(-other.value)
    assert 0 < abs(one.value) < 0.3


def test_random_scores_are_worth_nothing(kept):
    """Each query's correlation has mean 0 and standard deviation 1 / sqrt(M - 1)."""
    found = lds.spearman(
        lds.predictions(rng(4).normal(size=(2000, IMAGES)), kept),
        rng(5).normal(size=(SUBSETS, 2000)),
    )
    assert abs(found.mean()) < 5 / math.sqrt((SUBSETS - 1) * 2000)
    assert found.std() == pytest.approx(1 / math.sqrt(SUBSETS - 1), rel=0.08)


def test_noise_in_the_losses_lowers_the_score(kept):
    weights = rng().normal(size=(QUERIES, IMAGES))
    truth = -(kept @ weights.T)
    noisy = truth + truth.std() * rng(6).normal(size=truth.shape)
    assert (
        0.5 < score(weights, kept, noisy).value < 0.85
    )  # 1 / sqrt 2 in expectation, for Pearson's correlation


def test_queries_that_order_nothing_are_counted_and_leave_the_others_as_they_are(kept):
    """Equal scores (not only 0), equal losses, and a score that is NaN; the interval is that
    of the others."""
    scores, truth = rng(7).normal(size=(QUERIES, IMAGES)), rng(8).normal(size=(SUBSETS, QUERIES))
    others = score(scores[3:], kept, truth[:, 3:])
    scores[0], truth[:, 1], scores[2, 5] = 0.1, 0.7, np.nan
    found = score(scores, kept, truth)
    assert found.undefined == 3
    assert (found.value, found.low, found.high) == pytest.approx(
        (others.value, others.low, others.high)
    )
    nothing = score(np.full((2, IMAGES), 0.1), kept, truth[:, :2])
    assert nothing.undefined == 2
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()


def test_predictions_are_sums_over_the_kept_images_up_to_a_shift(kept):
    scores = rng().normal(size=(2, 3, QUERIES, IMAGES)).astype(np.float32)
    found = lds.predictions(scores, kept)
    expected = -np.array([scores.astype(float)[..., row].sum(axis=-1) for row in kept])
    assert found.shape == (2, 3, SUBSETS, QUERIES)
    shift = found - np.moveaxis(expected, 0, -2)
    assert np.abs(shift - shift[..., :1, :]).max() < 1e-12


def test_subsets_of_different_sizes_are_refused():
    with pytest.raises(ConfigError, match="the same size"):
        lds.predictions(np.ones((1, 3)), np.array([[True, False, False], [True, True, False]]))


# ---- rank correlation ----------------------------------------------------------------------------

FEW_VALUES = arrays(np.float64, (7, 3), elements=st.integers(-2, 2).map(float))
DIFFERENT = arrays(np.float64, (7, 3), elements=st.floats(-5, 5, width=16), unique=True)


@given(st.one_of(FEW_VALUES, DIFFERENT), FEW_VALUES)
@settings(max_examples=40, deadline=None)
def test_rank_correlation_is_that_of_scipy_ties_included(one, other):
    found = lds.spearman(one, other)
    for a, b, value in zip(one.T, other.T, found, strict=True):
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


@given(DIFFERENT, DIFFERENT)
@settings(max_examples=20, deadline=None)
def test_only_the_order_counts(one, other):
    found = lds.spearman(one, other)
    assert lds.spearman(np.exp(one), other**3) == pytest.approx(found)
    assert (np.abs(found) <= 1 + 1e-12).all()


def test_leading_dimensions_are_other_predictions():
    predicted, truth = (
        rng().normal(size=(2, 4, SUBSETS, QUERIES)),
        rng(1).normal(size=(SUBSETS, QUERIES)),
    )
    found = lds.spearman(predicted, truth)
    assert found.shape == (2, 4, QUERIES)
    assert found[1, 2] == pytest.approx(lds.spearman(predicted[1, 2], truth))


def test_the_score_of_dattri_is_the_same(kept):
    metric = pytest.importorskip(
        "dattri.metric", reason="dattri is not installed; it is compared with where it is"
    )
    import torch

    scores, truth = rng(2).normal(size=(QUERIES, IMAGES)), rng(3).normal(size=(SUBSETS, QUERIES))
    rows = torch.from_numpy(np.array([np.flatnonzero(row) for row in kept]))
    theirs, _ = metric.lds(torch.from_numpy(scores.T), (torch.from_numpy(truth), rows))
    ours = lds.spearman(lds.predictions(scores, kept), truth)
    assert ours == pytest.approx(-theirs.numpy())  # they leave the sign to the user


# ---- intervals over subsets (DAS known answer 14) ------------------------------------------------


def test_correlations_without_a_subset_are_those_of_the_others():
    """Some queries have the same value in all subsets but one, and no correlation without it."""
    one, other = np.round(rng().normal(size=(9, 4))), rng(1).normal(size=(9, 4))
    one[:, 3], one[5, 3] = 0, 1
    found = lds.correlate(one, other)
    assert found.all_subsets == pytest.approx(lds.spearman(one, other))
    for subset in range(9):
        expected = lds.spearman(np.delete(one, subset, axis=0), np.delete(other, subset, axis=0))
        assert found.without[subset] == pytest.approx(expected, nan_ok=True)
        assert np.isnan(expected[3]) == (subset == 5)
    assert np.isfinite(list(vars(lds.score_of(found, 0.95)).values())).all()


def test_a_query_seen_a_hundred_times_is_no_more_certain_than_once(kept):
    """An interval over queries would have no width."""
    scores, truth = rng(2).normal(size=(1, IMAGES)), rng(3).normal(size=(SUBSETS, 1))
    once = score(scores, kept, truth)
    often = score(np.repeat(scores, 100, axis=0), kept, np.repeat(truth, 100, axis=1))
    assert (often.value, often.low, often.high) == pytest.approx((once.value, once.low, once.high))
    assert once.high - once.low > 0.3


def drawn(
    rho: float, shared: float, subsets: int, seed: int, draws: int = 2, queries: int = 64
) -> np.ndarray:
    """Return normal values of which each pair of draws has Spearman's correlation ``rho`` for every
    query, float64 (draws, subsets, queries); queries share a part of the variance."""
    common = 2 * math.sin(math.pi * rho / 6)

    def values(size: int) -> np.ndarray:
        parts = rng(seed + size).normal(size=(draws + 1, subsets, size))
        return math.sqrt(common) * parts[0] + math.sqrt(1 - common) * parts[1:]

    return math.sqrt(shared) * values(1) + math.sqrt(1 - shared) * values(queries)


@pytest.mark.parametrize(
    ("subsets", "rho", "shared"),
    [(8, 0.58, 0.3), (8, 0.29, 0.1), (8, 0.29, 0.3), (32, 0.58, 0.05), (32, 0.29, 0.3)],
)
def test_intervals_cover_the_score_over_all_subsets(subsets, rho, shared):
    """With as many queries as studies have. 500 trials of 95 % cover 93 to 97 % in 96 % of
    cases; bootstrap intervals by percentiles cover 50 to 90 % here, basic ones 88 to 96 %."""
    trials = 500
    scores = [lds.lds(*drawn(rho, shared, subsets, 1000 * t), 0.95) for t in range(trials)]
    covered = np.mean([score.low <= rho <= score.high for score in scores])
    assert 0.93 <= covered <= 0.97
    assert np.mean([score.value for score in scores]) < rho


@pytest.mark.parametrize("subsets", [8, 32])
def test_intervals_of_the_ceiling_cover_it(subsets):
    rho, trials = 0.4, 300
    losses = (drawn(rho, 0.3, subsets, 1000 * t) for t in range(trials))
    ceilings = [lds.ceiling(each, 0.95) for each in losses]
    best = math.sqrt(2 * rho / (1 + rho))
    covered = np.mean([ceiling.low <= best <= ceiling.high for ceiling in ceilings])
    assert 0.92 <= covered <= 0.98


@pytest.mark.parametrize("subsets", [2, 3])
def test_two_subsets_have_no_interval(subsets):
    """Without one of them there is nothing to rank."""
    score = lds.lds(*rng().normal(size=(2, subsets, QUERIES)), 0.95)
    assert np.isfinite(score.value)
    assert np.isnan([score.low, score.high]).all() == (subsets == 2)


def test_units_hold_the_jackknife_of_scores_and_differences():
    """Their mean is the score without its bias, and Student's interval of them the jackknife's."""
    truth, one, other = drawn(0.5, 0.3, 9, 0, draws=3)
    first, second = lds.correlate(one, truth), lds.correlate(other, truth)
    for correlations in (first, first.minus(second)):
        jackknife, units = correlations.jackknife(), correlations.units()
        assert units.shape == (9,)
        assert units.mean() == pytest.approx(jackknife.value)
        assert units.std(ddof=1) / 3 == pytest.approx(jackknife.error)
    paired = first.minus(second).units()
    assert paired == pytest.approx(first.units() - second.units())


# ---- differences ---------------------------------------------------------------------------------


def test_differences_are_paired_by_subset():
    """What the choice of subsets does to both scores cancels: the interval is narrower than either
    score's, and covers no difference as often as it should."""
    trials, covered, narrower, small = 300, 0, 0, 0
    for trial in range(trials):
        truth, signal, *noise = drawn(0.5, 0.3, 8, 1000 * trial, draws=4)
        one, other = (lds.correlate(signal + 0.3 * each, truth) for each in noise)
        found = lds.difference(one, other, 0.95)
        alone = lds.score_of(one, 0.95)
        covered += found.low <= 0 <= found.high
        narrower += found.high - found.low < alone.high - alone.low
        small += found.p < 0.05
    assert 0.92 <= covered / trials <= 0.98
    assert small == trials - covered
    assert narrower > 0.9 * trials


def test_a_difference_has_the_sign_of_the_better_score_and_only_queries_of_both(kept):
    weights = rng().normal(size=(QUERIES, IMAGES))
    truth = -(kept @ weights.T) + rng(6).normal(size=(SUBSETS, QUERIES))
    guesses = rng(7).normal(size=weights.shape)
    weights[0], guesses[1] = 1, 1
    better, worse = (
        lds.correlate(lds.predictions(scores, kept), truth) for scores in (weights, guesses)
    )
    found, turned = lds.difference(better, worse, 0.95), lds.difference(worse, better, 0.95)
    both = (better.all_subsets - worse.all_subsets)[2:]
    assert found.value == pytest.approx(both.mean())
    assert 0 < found.low < found.value < found.high
    assert found.p < 0.001
    assert (turned.value, turned.low, turned.high, turned.p) == pytest.approx(
        (-found.value, -found.high, -found.low, found.p)
    )


def test_scores_that_are_the_same_are_not_found_to_differ_nor_to_agree(kept):
    """Without any spread there is no p-value, however large the difference."""
    weights = rng().normal(size=(QUERIES, IMAGES))
    truth = -(kept @ weights.T)
    exact, turned = (
        lds.correlate(lds.predictions(scores, kept), truth) for scores in (weights, -weights)
    )
    same, opposite = lds.difference(exact, exact, 0.95), lds.difference(exact, turned, 0.95)
    assert (same.value, opposite.value) == pytest.approx((0, 2))
    assert np.isnan([same.p, opposite.p]).all()


# ---- the regulariser (DAS known answer 15) -------------------------------------------------------


def planted() -> tuple[np.ndarray, np.ndarray]:
    """Three regularisers: the first predicts the first half of the subsets well, the second the
    second half, the third nothing."""
    truth = rng(1).normal(size=(SUBSETS, QUERIES))
    noise = rng(2).normal(size=(3, SUBSETS, QUERIES)) * np.array([0.1, 0.6, 9])[:, None, None]
    noise[0, SUBSETS // 2 :] *= 10
    return truth + noise, truth


def test_the_regulariser_is_chosen_on_one_half_and_reported_on_the_other():
    predicted, truth = planted()
    found = lds.choose_regulariser(predicted, truth, [0.1, 1.0, 10.0], 0.95)
    second = slice(SUBSETS // 2, None)
    assert (found.regulariser, found.oracle_regulariser) == (0.1, 1.0)
    assert found.score.value == pytest.approx(
        lds.spearman(predicted[0, second], truth[second]).mean()
    )
    assert found.oracle.value == pytest.approx(
        lds.spearman(predicted[1, second], truth[second]).mean()
    )
    assert found.oracle.value > found.score.value
    assert found.score.low < found.score.value < found.score.high


def test_the_reported_half_has_no_say_in_the_choice_and_the_other_none_in_the_report():
    predicted, truth = planted()
    before = lds.choose_regulariser(predicted, truth, [0.1, 1.0, 10.0], 0.95)
    later = truth.copy()
    later[SUBSETS // 2 :] = rng(9).normal(size=later[SUBSETS // 2 :].shape)
    changed = lds.choose_regulariser(predicted, later, [0.1, 1.0, 10.0], 0.95)
    assert changed.regulariser == before.regulariser
    earlier = truth.copy()
    earlier[: SUBSETS // 2] += 0.01 * rng(9).normal(size=earlier[: SUBSETS // 2].shape)
    assert lds.choose_regulariser(predicted, earlier, [0.1, 1.0, 10.0], 0.95) == before


def test_a_regulariser_that_orders_few_queries_well_is_not_chosen_for_these():
    truth = rng(1).normal(size=(SUBSETS, QUERIES))
    sparse, good = np.zeros_like(truth), truth + 0.3 * rng(2).normal(size=truth.shape)
    sparse[:, 0] = truth[:, 0]
    assert (
        lds.choose_regulariser(np.array([sparse, good]), truth, [1.0, 2.0], 0.95).regulariser == 2.0
    )


def test_where_choice_and_oracle_agree_so_do_their_intervals():
    predicted, truth = planted()
    found = lds.choose_regulariser(predicted[1:], truth, [1.0, 10.0], 0.95)
    assert found.regulariser == found.oracle_regulariser
    assert found.score == found.oracle


# ---- the ceiling (DAS known answer 13) -----------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
def test_the_ceiling_is_what_the_expected_losses_score(seeds):
    """Losses of a network: what the subset does, of variance 1, and the seed's noise, of variance
    2."""
    expected = rng(1).normal(size=(300, 60))
    losses = expected + math.sqrt(2) * rng(2).normal(size=(seeds, 300, 60))
    best = lds.ceiling(losses, 0.95)
    attained = lds.spearman(expected, losses.mean(axis=0)).mean()
    again = expected + math.sqrt(2) * rng(3).normal(size=(seeds, 300, 60))
    assert best.value == pytest.approx(attained, abs=0.02)
    assert best.reliability == pytest.approx(
        lds.spearman(again.mean(axis=0), losses.mean(axis=0)).mean(), abs=0.03
    )
    half = seeds // 2
    assert best.between_seeds == pytest.approx(
        6 / math.pi * math.asin(0.5 * half / (half + 2)), abs=0.02
    )
    assert best.low < best.value < best.high
    perfect = lds.lds(expected, losses.mean(axis=0), 0.95)
    assert perfect.value / best.value == pytest.approx(1, abs=0.03)


def test_the_formula_of_two_seeds():
    """A correlation of 1/2 between two seeds is one of 2/3 between two means of two, and sqrt(2/3)
    with the expectation."""
    losses = np.array([[0.0, 1, 2], [0, 2, 1]])[:, :, None]
    best = lds.ceiling(losses, 0.95)
    assert (best.between_seeds, best.reliability, best.value) == pytest.approx(
        (1 / 2, 2 / 3, math.sqrt(2 / 3))
    )


def test_seeds_that_agree_leave_nothing_unpredictable():
    losses = np.repeat(rng().normal(size=(1, SUBSETS, QUERIES)), 2, axis=0)
    best = lds.ceiling(losses, 0.95)
    found = (best.between_seeds, best.reliability, best.value, best.low, best.high)
    assert found == pytest.approx((1, 1, 1, 1, 1))
    assert best.units == pytest.approx(np.ones(SUBSETS))


def test_seeds_that_disagree_leave_nothing_to_predict():
    losses = rng().normal(size=(1, SUBSETS, QUERIES))
    best = lds.ceiling(np.concatenate([losses, -losses]), 0.95)
    assert (best.between_seeds, best.reliability, best.value, best.high) == (
        pytest.approx(-1),
        0,
        0,
        0,
    )


def test_one_seed_has_no_ceiling():
    with pytest.raises(ConfigError, match=r"attribution\.seeds = 1"):
        lds.ceiling(rng().normal(size=(1, SUBSETS, QUERIES)), 0.95)
