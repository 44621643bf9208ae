"""Splitting a training set into shards, each the data of one model (Liu et al., ECCV 2024, section
3.1).

Shards are disjoint and complete: if K does not divide the number of images, some shards hold one
more (the released code drops the remainder). An image is a row of the training set, so that planted
copies of one image may end up in several shards; ``by_source`` keeps them together.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from afterimage.config import ConfigError

Sharding = Literal["balanced", "balanced_in_order", "random", "contiguous", "by_source"]


def assign(
    labels: np.ndarray,
    sources: np.ndarray,
    shards: int,
    sharding: Sharding,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the shard of every image, int64, (N,), in [0, K).

    Args:
        labels: int64, (N,); images without a label (-1) count as one class.
        sources: int64, (N,): the original of each image; copies share it.
        shards: K.
        sharding: How to assign them. ``balanced``: class-balanced at random; sizes, too, differ
            by at most one. ``balanced_in_order``: blocks of each class, in the order of the
            training set. ``random``: regardless of class. ``contiguous``: blocks of the training
            set. ``by_source``: sources at random, those with most copies first, each to the
            shard with the fewest images; sizes differ by no more than the copies of one source.
        rng: Used by ``balanced``, ``random`` and ``by_source``.

    Raises:
        ConfigError: if a shard would be empty.
    """
    shard = np.empty(len(labels), np.int64)
    match sharding:
        case "balanced":  # dealt like cards, one class after the other
            shuffled = rng.permutation(len(labels))
            dealt = shuffled[np.argsort(labels[shuffled], kind="stable")]
            shard[dealt] = np.arange(len(labels)) % shards
        case "balanced_in_order":
            for label in np.unique(labels):
                rows = np.flatnonzero(labels == label)
                shard[rows] = _blocks(len(rows), shards)
        case "random":
            shard[rng.permutation(len(labels))] = _blocks(len(labels), shards)
        case "contiguous":
            shard = _blocks(len(labels), shards)
        case "by_source":
            _, source, copies = np.unique(sources, return_inverse=True, return_counts=True)
            shuffled = rng.permutation(len(copies))
            shard_of_source = np.empty(len(copies), np.int64)
            sizes = np.zeros(shards, np.int64)
            for index in shuffled[np.argsort(-copies[shuffled], kind="stable")]:
                smallest = sizes.argmin()
                shard_of_source[index] = smallest
                sizes[smallest] += copies[index]
            shard = shard_of_source[source]
    empty = shards - len(np.unique(shard))
    if empty:
        raise ConfigError(
            f"shards = {shards}: {empty} of them get none of the {len(labels)} training images "
            f"({sharding})"
        )
    return shard


def _blocks(images: int, shards: int) -> np.ndarray:
    """Return the shard of each of ``images`` consecutive positions, cut into blocks whose sizes
    differ by at most one."""
    return np.arange(images) * shards // images


def redistribute(shard: np.ndarray, moving: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the shards after the ``moving`` images have traded places.

    Every shard receives as many images as it gives away, so that sizes stay. No image returns to
    its own shard, unless one shard gives away more than all others together: then some of its
    images must stay.

    Args:
        shard: int64, (N,): the shard of each image.
        moving: bool, (N,): mask of the images that are to change shards.
        rng: Determines which image goes where.
    """
    shuffled = rng.permutation(np.flatnonzero(moving))
    if len(shuffled) == 0:
        return shard
    grouped = shuffled[np.argsort(shard[shuffled], kind="stable")]
    largest = np.bincount(shard[grouped]).max()
    changed = shard.copy()
    changed[grouped] = np.roll(shard[grouped], largest)
    return changed
