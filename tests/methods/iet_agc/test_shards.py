"""How a training set is split into shards, and how images change shards."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterimage.config import ConfigError
from afterimage.methods.iet_agc.shards import assign, redistribute

LABELS = st.lists(st.integers(-1, 3), min_size=12, max_size=60).map(np.array)
SHARDS = st.integers(1, 6)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("sharding", ["balanced", "random", "contiguous"])
@given(labels=LABELS, shards=SHARDS)
def test_every_image_lies_in_one_shard_and_sizes_differ_by_one_at_most(sharding, labels, shards):
    """IET-AGC invariant 10: one number per image is disjoint and complete."""
    found = assign(labels, shards, sharding, rng())
    sizes = np.bincount(found, minlength=shards)
    assert found.min() >= 0
    assert len(sizes) == shards
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("sharding", ["balanced", "balanced_in_order"])
@given(labels=LABELS, shards=SHARDS)
def test_classes_are_balanced_within_one(sharding, labels, shards):
    """IET-AGC invariant 10. Every class is cut, so that no shard can go empty here."""
    labels = np.concatenate([labels, np.arange(24) % 4])
    found = assign(labels, shards, sharding, rng())
    for label in np.unique(labels):
        counts = np.bincount(found[labels == label], minlength=shards)
        assert counts.max() - counts.min() <= 1


def test_released_shards_are_blocks_of_each_class_in_order():
    """Liu et al.: shard i has images [n i, n (i + 1)) of every class."""
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    assert assign(labels, 2, "balanced_in_order", rng()).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert assign(labels, 2, "contiguous", rng()).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    grouped = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert assign(grouped, 2, "balanced_in_order", rng()).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert assign(grouped, 2, "contiguous", rng()).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("sharding", "moves"), [("balanced", True), ("random", True), ("contiguous", False)]
)
def test_the_generator_decides_where_chance_does(sharding, moves):
    labels = np.arange(40) % 4
    one, same, other = (
        assign(labels, 4, sharding, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert np.array_equal(one, other) != moves


@pytest.mark.parametrize(
    ("labels", "sharding"),
    [([0, 1], "balanced"), ([0, 1], "random"), ([0, 1, 2, 3], "balanced_in_order")],
)
def test_a_shard_without_images_is_refused(labels, sharding):
    with pytest.raises(
        ConfigError, match=r"shards = 3: \d of them get none of the \d training images"
    ):
        assign(np.array(labels), 3, sharding, rng())


@given(data=st.data(), shards=SHARDS)
def test_redistribution_moves_what_it_may_and_keeps_sizes(data, shards):
    shard = np.array(data.draw(st.lists(st.integers(0, shards - 1), min_size=1, max_size=40)))
    moving = np.array(data.draw(st.lists(st.booleans(), min_size=len(shard), max_size=len(shard))))
    before = shard.copy()
    changed = redistribute(shard, moving, rng())
    assert np.array_equal(shard, before)
    assert np.array_equal(
        np.bincount(changed, minlength=shards), np.bincount(shard, minlength=shards)
    )
    assert np.array_equal(changed[~moving], shard[~moving])
    given_by = np.bincount(shard[moving], minlength=shards)
    must_stay = max(0, 2 * given_by.max() - given_by.sum())
    assert (changed[moving] == shard[moving]).sum() == must_stay
