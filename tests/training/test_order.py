"""What makes an update is a pure function of (seed, update)."""

import numpy as np
import pytest
import torch

from afterimage.training.order import Order

PATH = ("train", "arm", 0)


@pytest.mark.parametrize(("images", "batch"), [(10, 4), (7, 7), (3, 8), (64, 1), (13, 5)])
def test_every_epoch_sees_every_image_once(images, batch):
    order = Order(1, PATH, images, batch)
    epochs = 5
    seen = np.concatenate([order.rows(s) for s in range(order.updates(epochs))])
    assert all(len(order.rows(s)) == batch for s in range(order.updates(epochs)))
    for epoch in range(epochs):
        assert sorted(seen[epoch * images : (epoch + 1) * images]) == list(range(images))


def test_epochs_are_shuffled_differently():
    order = Order(1, PATH, 50, 50)
    assert not np.array_equal(order.rows(0), order.rows(1))
    assert not np.array_equal(order.rows(0), np.arange(50))


def test_budget_in_epochs_is_rounded_up():
    assert Order(1, PATH, 10, 4).updates(1) == 3
    assert Order(1, PATH, 10, 4).updates(2) == 5
    assert Order(1, PATH, 3, 8).updates(1) == 1


def test_updates_can_be_asked_for_in_any_order():
    forward, backward = Order(1, PATH, 13, 5), Order(1, PATH, 13, 5)
    ahead = [forward.rows(s) for s in range(20)]
    back = [backward.rows(s) for s in reversed(range(20))][::-1]
    np.testing.assert_array_equal(ahead, back)
    first = torch.rand(4, generator=forward.generator(7))
    assert torch.equal(first, torch.rand(4, generator=forward.generator(7)))


@pytest.mark.parametrize("other", [(2, PATH), (1, ("train", "arm", 1)), (1, ("train", "brm", 0))])
def test_seed_arm_and_replicate_each_change_the_order_and_the_noise(other):
    a, b = Order(1, PATH, 100, 50), Order(*other, 100, 50)
    assert not np.array_equal(a.rows(0), b.rows(0))
    assert not torch.equal(
        torch.rand(4, generator=a.generator(0)), torch.rand(4, generator=b.generator(0))
    )
    assert a.dropout_seed(0) != b.dropout_seed(0)
