"""What cheaper scores cost in quality, on scores whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from afterimage.attribution import acceleration
from afterimage.attribution.judges import lds, subsets

SCORES = arrays(np.float64, (3, 20), elements=st.floats(-5, 5), unique=True)


def test_agreement_is_the_mean_of_spearmans_correlations_over_queries():
    one, other = np.random.default_rng(0).normal(size=(2, 4, 30))
    expected = np.mean([spearmanr(*pair).statistic for pair in zip(one, other, strict=True)])
    assert acceleration.agreement(one, other) == pytest.approx(expected)
    assert acceleration.agreement(one, np.exp(one)) == pytest.approx(1)
    assert acceleration.agreement(one, -one) == pytest.approx(-1)


def test_a_query_whose_scores_are_all_the_same_has_no_agreement():
    one, other = np.random.default_rng(0).normal(size=(2, 2, 30))
    other[1] = 1.0
    assert acceleration.agreement(one, other) == pytest.approx(
        spearmanr(one[0], other[0]).statistic
    )
    assert np.isnan(acceleration.agreement(one[1:], other[1:]))


def test_the_first_images_found():
    one = np.array([[5.0, 4, 3, 2, 1, 0], [0.0, 1, 2, 3, 4, 5]])
    other = np.array([[5.0, 4, 0, 1, 2, 3], [5.0, 4, 3, 2, 1, 0]])
    assert acceleration.top_overlap(one, other, 2) == pytest.approx((1 + 0) / 2)
    assert acceleration.top_overlap(one, other, 3) == pytest.approx((2 / 3 + 0) / 2)
    assert acceleration.top_overlap(one, other, 6) == 1


@given(SCORES, SCORES)
def test_two_stages_of_the_same_scores_keep_the_ranking(cheap, careful):
    _, ranks = acceleration.rank_in_two_stages(cheap, cheap, 0.2)
    np.testing.assert_array_equal(np.argsort(ranks), np.argsort(cheap))
    scores, ranks = acceleration.rank_in_two_stages(cheap, careful, 0.2)
    for query in range(3):
        shortlist = np.argsort(-cheap[query])[:4]
        np.testing.assert_array_equal(
            np.flatnonzero(scores[query]), np.sort(shortlist[careful[query, shortlist] != 0])
        )
        order = np.argsort(-ranks[query])
        np.testing.assert_array_equal(order[:4], shortlist[np.argsort(-careful[query, shortlist])])
        np.testing.assert_array_equal(order[4:], np.argsort(-cheap[query])[4:])


def test_a_shortlist_of_all_that_matters_loses_nothing():
    """Where only three images count, and the first stage finds them, two stages predict additive
    losses perfectly."""
    rng = np.random.default_rng(1)
    weights = np.zeros((2, 40))
    weights[:, :3] = [[3, 2, 1], [1, 5, 2]]
    masks = subsets.masks(np.zeros(40, np.int64), 0.5, 16, 0)
    cheap = weights + rng.uniform(0, 0.1, weights.shape)
    scores, _ = acceleration.rank_in_two_stages(cheap, weights, 3 / 40)
    losses = -masks.astype(float) @ weights.T
    np.testing.assert_allclose(lds.spearman(lds.predictions(scores, masks), losses), 1)
