"""The influence of forgotten images."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from afterimage.attribution import remedied

FORGOTTEN = np.arange(12) % 4 == 0


@given(arrays(np.float64, (3, 12), elements=st.integers(-3, 3).map(float)))
def test_separation_is_the_area_under_the_roc_curve(scores):
    expected = [roc_auc_score(FORGOTTEN, row) for row in scores]
    np.testing.assert_allclose(remedied.separation(scores, FORGOTTEN), expected, atol=1e-12)


def test_images_that_always_lead_are_always_larger_and_share_what_is_theirs():
    scores = np.where(FORGOTTEN, 3.0, -1.0)[None]
    np.testing.assert_array_equal(remedied.separation(scores, FORGOTTEN), [1.0])
    np.testing.assert_array_equal(remedied.separation(-scores, FORGOTTEN), [0.0])
    np.testing.assert_allclose(remedied.share(scores, FORGOTTEN), [9 / 18])
    np.testing.assert_allclose(remedied.share(np.ones((1, 12)), FORGOTTEN), [FORGOTTEN.mean()])
