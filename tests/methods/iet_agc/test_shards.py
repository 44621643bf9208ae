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


def split(labels: np.ndarray, shards: int, sharding: str) -> np.ndarray:
    """Return the shards of images of which no two are copies."""
    return assign(labels, np.arange(len(labels)), shards, sharding, rng())


@pytest.mark.parametrize("sharding", ["balanced", "random", "contiguous", "by_source"])
@given(labels=LABELS, shards=SHARDS)
def test_every_image_lies_in_one_shard_and_sizes_differ_by_one_at_most(sharding, labels, shards):
    """IET-AGC invariant 10: one number per image is disjoint and complete."""
    found = split(labels, shards, sharding)
    sizes = np.bincount(found, minlength=shards)
    assert found.min() >= 0
    assert len(sizes) == shards
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("sharding", ["balanced", "balanced_in_order"])
@given(labels=LABELS, shards=SHARDS)
def test_classes_are_balanced_within_one(sharding, labels, shards):
    """IET-AGC invariant 10. Every class is cut, so that no shard can go empty here."""
    labels = np.concatenate([labels, np.arange(24) % 4])
    found = split(labels, shards, sharding)
    for label in np.unique(labels):
        counts = np.bincount(found[labels == label], minlength=shards)
        assert counts.max() - counts.min() <= 1


def test_released_shards_are_blocks_of_each_class_in_order():
    """Liu et al.: shard i has images [n i, n (i + 1)) of every class."""
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    assert split(labels, 2, "balanced_in_order").tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert split(labels, 2, "contiguous").tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    grouped = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert split(grouped, 2, "balanced_in_order").tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert split(grouped, 2, "contiguous").tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("sharding", "moves"),
    [("balanced", True), ("random", True), ("contiguous", False), ("by_source", True)],
)
def test_the_generator_decides_where_chance_does(sharding, moves):
    labels = np.arange(40) % 4
    one, same, other = (
        assign(labels, np.arange(40) // 2, 4, sharding, np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert np.array_equal(one, other) != moves


@pytest.mark.parametrize(
    ("labels", "sharding"),
    [
        ([0, 1], "balanced"),
        ([0, 1], "random"),
        ([0, 1, 2, 3], "balanced_in_order"),
        ([0, 1], "by_source"),
    ],
)
def test_a_shard_without_images_is_refused(labels, sharding):
    with pytest.raises(
        ConfigError, match=r"shards = 3: \d of them get none of the \d training images"
    ):
        split(np.array(labels), 3, sharding)


@given(sources=st.lists(st.integers(0, 20), min_size=30, max_size=80).map(np.array))
def test_copies_stay_together_by_source_and_sizes_differ_by_one_source_at_most(sources):
    sources = np.concatenate([sources, [21, 22, 23]])  # a source for each shard
    shard = assign(np.zeros(len(sources), np.int64), sources, 3, "by_source", rng())
    for source in np.unique(sources):
        assert len(np.unique(shard[sources == source])) == 1
    sizes = np.bincount(shard, minlength=3)
    assert sizes.sum() == len(sources)
    assert sizes.max() - sizes.min() <= np.bincount(sources).max()


def test_by_source_evens_out_with_single_images():
    """Known answer: 16, 8, 4, 2 copies and 18 singles make three shards of 16."""
    copies = [16, 8, 4, 2] + [1] * 18
    shard = assign(np.zeros(48, np.int64), np.repeat(np.arange(22), copies), 3, "by_source", rng())
    assert np.bincount(shard).tolist() == [16, 16, 16]


def test_copies_are_parted_where_rows_are_dealt():
    sources = np.repeat(np.arange(10), 4)
    shard = assign(np.zeros(40, np.int64), sources, 4, "balanced", rng())
    assert any(len(np.unique(shard[sources == source])) > 1 for source in range(10))


def test_fewer_sources_than_shards_are_refused():
    with pytest.raises(ConfigError, match=r"shards = 3: 2 of them get none .*by_source"):
        assign(np.zeros(9, np.int64), np.zeros(9, np.int64), 3, "by_source", rng())


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
