"""Ranking: known answers, scikit-learn's numbers, resamples as counts."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from sklearn.metrics import average_precision_score, roc_auc_score

from afterimage.metrics import ranking

few = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 40.0]), min_size=1, max_size=8)


def of(statistic, positives, negatives):
    levels = ranking.Levels(np.array(positives), np.array(negatives))
    return statistic(levels.count(levels.positives), levels.count(levels.negatives))


def test_auc_of_separate_equal_and_reversed_scores():
    low, high = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5])
    assert ranking.roc_auc(low, high) == 1
    assert ranking.roc_auc(high, low) == 0
    assert ranking.roc_auc(low, low) == 0.5
    assert ranking.roc_auc(np.ones(4), np.ones(7)) == 0.5


@pytest.mark.parametrize(
    ("positives", "negatives", "area", "precision"),
    [
        ([0.1, 0.2, 0.3], [0.9, 2, np.inf], 1, 1),
        ([np.inf] * 5, [np.inf] * 5, 0.5, 0.5),
        ([1.0, 3], [2.0, 4], 0.75, 0.5 * 1 + 0.5 * 2 / 3),
        ([1.0, 1], [2.0, 2], 1, 1),
    ],
)
def test_known_answers(positives, negatives, area, precision):
    assert of(ranking.area, positives, negatives) == area
    assert of(ranking.average_precision, positives, negatives) == pytest.approx(precision)


@given(few, few)
def test_both_are_those_of_sklearn(positives, negatives):
    truth = np.repeat([1, 0], [len(positives), len(negatives)])
    scores = -np.array(positives + negatives)
    assert ranking.roc_auc(np.array(positives), np.array(negatives)) == pytest.approx(
        roc_auc_score(truth, scores), abs=1e-12
    )
    assert of(ranking.average_precision, positives, negatives) == pytest.approx(
        average_precision_score(truth, scores), abs=1e-12
    )


@given(few, few, st.integers(0, 99))
def test_a_resample_is_counts_at_the_levels_of_the_whole(positives, negatives, seed):
    rng = np.random.default_rng(seed)
    levels = ranking.Levels(np.array(positives), np.array(negatives))
    rows = rng.integers(len(positives), size=5), rng.integers(len(negatives), size=6)
    drawn = [np.array(positives)[rows[0]], np.array(negatives)[rows[1]]]
    counts = levels.count(levels.positives[rows[0]]), levels.count(levels.negatives[rows[1]])
    assert ranking.area(*counts) == pytest.approx(ranking.roc_auc(*drawn), abs=1e-12)
    assert ranking.average_precision(*counts) == pytest.approx(
        of(ranking.average_precision, *drawn), abs=1e-12
    )
