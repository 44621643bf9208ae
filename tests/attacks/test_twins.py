"""Twins: planted images and never-trained ones in one precision-recall curve."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from sklearn.metrics import precision_recall_curve

from afterimage.attacks.twins import precision_recall

ratios = st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0, np.inf]), min_size=1, max_size=12)


@given(ratios, ratios)
def test_the_curve_is_that_of_scikit_learn(planted, twins):
    planted, twins = np.array(planted), np.array(twins)
    together, level = np.unique(np.concatenate([planted, twins]), return_inverse=True)
    truth = np.repeat([1, 0], [len(planted), len(twins)])
    precision, recall, score = precision_recall_curve(truth, -level)
    curve = precision_recall(planted, twins)
    np.testing.assert_array_equal(curve["precision"], precision)
    np.testing.assert_array_equal(curve["recall"], recall)
    np.testing.assert_array_equal(curve["ratio"], [*together[-score], np.nan])


def test_a_known_curve():
    curve = precision_recall(np.array([0.1, 0.3]), np.array([0.2, np.inf]))
    assert curve["ratio"].tolist()[:4] == [np.inf, 0.3, 0.2, 0.1]
    assert curve["recall"].tolist() == [1, 1, 0.5, 0.5, 0]
    assert curve["precision"].tolist() == [0.5, 2 / 3, 0.5, 1, 1]
