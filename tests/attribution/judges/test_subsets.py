"""The subsets that networks are retrained on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.artifacts import ArtifactError
from afterimage.attribution.judges.subsets import masks

LABELS = st.lists(st.integers(-1, 3), min_size=4, max_size=60).map(np.array)


@given(LABELS, st.floats(0.2, 0.8), st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_every_subset_has_the_size_and_every_class_its_share(labels, share, seed):
    found = masks(labels, share, 4, seed)
    assert found.shape == (4, len(labels))
    assert found.dtype == bool
    size = round(share * len(labels))
    assert (found.sum(axis=1) == size).all()
    for label in set(labels.tolist()):
        own = labels == label
        assert (np.abs(found[:, own].sum(axis=1) - size * own.sum() / len(labels)) < 1).all()


def test_halves_of_even_classes_are_halves():
    labels = np.repeat([0, 1, 7], [10, 20, 6])
    found = masks(np.random.default_rng(0).permutation(labels), 0.5, 16, 1)
    assert found.sum(axis=1).tolist() == [18] * 16


def test_every_image_has_the_same_chance_also_where_classes_do_not_divide():
    """Classes of 3, 5 and 1 images, of which 4 in 9 are kept; five standard deviations over 4,000
    subsets."""
    found = masks(np.array([0, 0, 0, 1, 1, 1, 1, 1, 2]), 4 / 9, 4000, 2)
    assert np.abs(found.mean(axis=0) - 4 / 9).max() < 5 * np.sqrt(4 / 9 * 5 / 9 / 4000)


def test_pairs_of_one_class_are_kept_together_as_often_as_in_a_random_choice():
    found = masks(np.zeros(6, int), 0.5, 4000, 3).astype(float)
    together = found.T @ found / len(found)
    others = together[~np.eye(6, dtype=bool)]
    assert np.abs(others - 0.5 * 2 / 5).max() < 5 * np.sqrt(0.2 * 0.8 / 4000)


def test_subsets_families_and_seeds_differ_and_more_subsets_leave_the_first():
    """The released index files of the two families hold partly the same subsets."""
    labels = np.arange(40) % 4
    one, other = masks(labels, 0.5, 200, 5), masks(labels, 0.5, 200, 5, "counterfactual")
    both = np.concatenate([one, other, masks(labels, 0.5, 200, 6)])
    assert len(np.unique(both, axis=0)) == 600
    assert np.array_equal(masks(labels, 0.5, 64, 5), one[:64])


@pytest.mark.parametrize(("images", "share"), [(1, 0.5), (3, 0.1), (3, 0.9)])
def test_too_few_images_are_refused(images, share):
    with pytest.raises(ArtifactError, match="some must be kept and some left out"):
        masks(np.zeros(images, int), share, 1, 0)
