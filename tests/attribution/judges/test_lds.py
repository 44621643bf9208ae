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
    return lds.lds(lds.predictions(scores, kept), truth, 100, 0.95, rng())


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


def test_resamples_are_those_of_the_rows():
    """Some hold a single value of a query, which is then left out."""
    one, other = np.round(rng().normal(size=(9, 4))), rng(1).normal(size=(9, 4))
    rows = rng(2).integers(9, size=(50, 9))
    counts = np.array([np.bincount(row, minlength=9) for row in rows], float)
    expected = [np.nanmean(lds.spearman(one[row], other[row])) for row in rows]
    assert lds._resampled(one, other, counts) == pytest.approx(expected)


def test_a_query_seen_a_hundred_times_is_no_more_certain_than_once(kept):
    """An interval over queries would have no width."""
    scores, truth = rng(2).normal(size=(1, IMAGES)), rng(3).normal(size=(SUBSETS, 1))
    once = score(scores, kept, truth)
    often = score(np.repeat(scores, 100, axis=0), kept, np.repeat(truth, 100, axis=1))
    assert (often.value, often.low, often.high) == pytest.approx((once.value, once.low, once.high))
    assert once.high - once.low > 0.3


def test_intervals_cover_the_score_over_all_subsets():
    """Truth and prediction share half their variance, and queries that part: Spearman's rho is 6 /
    pi asin(1 / 4)."""
    expected, covered = 6 / math.pi * math.asin(1 / 4), 0
    for trial in range(200):
        shared = rng(trial).normal(size=(40, 1))
        predicted, truth = (shared + part for part in rng(1000 + trial).normal(size=(2, 40, 3)))
        found = lds.lds(predicted, truth, 200, 0.9, rng(trial))
        covered += found.low <= expected <= found.high
    assert 0.82 < covered / 200 < 0.97


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
    found = lds.choose_regulariser(predicted, truth, [0.1, 1.0, 10.0], 50, 0.95, rng())
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
    before = lds.choose_regulariser(predicted, truth, [0.1, 1.0, 10.0], 50, 0.95, rng())
    later = truth.copy()
    later[SUBSETS // 2 :] = rng(9).normal(size=later[SUBSETS // 2 :].shape)
    changed = lds.choose_regulariser(predicted, later, [0.1, 1.0, 10.0], 50, 0.95, rng())
    assert changed.regulariser == before.regulariser
    earlier = truth.copy()
    earlier[: SUBSETS // 2] += 0.01 * rng(9).normal(size=earlier[: SUBSETS // 2].shape)
    assert lds.choose_regulariser(predicted, earlier, [0.1, 1.0, 10.0], 50, 0.95, rng()) == before


def test_a_regulariser_that_orders_few_queries_well_is_not_chosen_for_these():
    truth = rng(1).normal(size=(SUBSETS, QUERIES))
    sparse, good = np.zeros_like(truth), truth + 0.3 * rng(2).normal(size=truth.shape)
    sparse[:, 0] = truth[:, 0]
    assert (
        lds.choose_regulariser(
            np.array([sparse, good]), truth, [1.0, 2.0], 20, 0.95, rng()
        ).regulariser
        == 2.0
    )


def test_where_choice_and_oracle_agree_so_do_their_intervals():
    predicted, truth = planted()
    found = lds.choose_regulariser(predicted[1:], truth, [1.0, 10.0], 50, 0.95, rng())
    assert found.regulariser == found.oracle_regulariser
    assert found.score == found.oracle


# ---- the ceiling (DAS known answer 13) -----------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
def test_the_ceiling_is_what_the_expected_losses_score(seeds):
    """Losses of a network: what the subset does, of variance 1, and the seed's noise, of variance
    2."""
    expected = rng(1).normal(size=(300, 60))
    losses = expected + math.sqrt(2) * rng(2).normal(size=(seeds, 300, 60))
    best = lds.ceiling(losses, 20, 0.95, rng())
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
    perfect = lds.lds(expected, losses.mean(axis=0), 10, 0.95, rng())
    assert perfect.value / best.value == pytest.approx(1, abs=0.03)


def test_the_formula_of_two_seeds():
    """A correlation of 1/2 between two seeds is one of 2/3 between two means of two, and sqrt(2/3)
    with the expectation."""
    losses = np.array([[0.0, 1, 2], [0, 2, 1]])[:, :, None]
    best = lds.ceiling(losses, 20, 0.95, rng())
    assert (best.between_seeds, best.reliability, best.value) == pytest.approx(
        (1 / 2, 2 / 3, math.sqrt(2 / 3))
    )


def test_seeds_that_agree_leave_nothing_unpredictable():
    losses = np.repeat(rng().normal(size=(1, SUBSETS, QUERIES)), 2, axis=0)
    assert vars(lds.ceiling(losses, 20, 0.95, rng())) == pytest.approx(
        {"between_seeds": 1, "reliability": 1, "value": 1, "low": 1, "high": 1}
    )


def test_seeds_that_disagree_leave_nothing_to_predict():
    losses = rng().normal(size=(1, SUBSETS, QUERIES))
    best = lds.ceiling(np.concatenate([losses, -losses]), 20, 0.95, rng())
    assert (best.between_seeds, best.reliability, best.value, best.high) == (
        pytest.approx(-1),
        0,
        0,
        0,
    )


def test_one_seed_has_no_ceiling():
    with pytest.raises(ConfigError, match=r"attribution\.seeds = 1"):
        lds.ceiling(rng().normal(size=(1, SUBSETS, QUERIES)), 20, 0.95, rng())
