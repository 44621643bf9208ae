"""Timesteps, noise and probes follow from what they are for, and from nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.attribution.gradients.noise import (
    gaussian_noise,
    random_signs,
    shared_noise,
    timestep_grid,
)
from afterimage.config import ConfigError

SHAPE = (1, 4, 4)


def test_regular_timesteps_are_the_published_ones():
    assert timestep_grid(10, 1000, "regular", 0) == [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]
    assert timestep_grid(3, 10, "regular", 0) == [0, 3, 6]


@settings(deadline=None)
@given(total=st.integers(1, 1000), share=st.floats(0, 1), seed=st.integers(0, 50))
def test_stratified_timesteps_fall_one_into_each_part(total, share, seed):
    count = max(1, round(share * total))
    found = timestep_grid(count, total, "stratified", seed)
    edges = [part * total // count for part in range(count + 1)]
    assert all(low <= t < high for low, t, high in zip(edges, found, edges[1:], strict=False))
    assert len(found) == count


def test_stratified_timesteps_cover_their_parts_and_follow_the_seed():
    drawn = np.array([timestep_grid(4, 20, "stratified", seed) for seed in range(100)])
    assert [set(column) for column in drawn.T] == [
        set(range(low, low + 5)) for low in (0, 5, 10, 15)
    ]
    assert timestep_grid(4, 20, "stratified", 7) == drawn[7].tolist()


@pytest.mark.parametrize("grid", ["regular", "stratified"])
def test_more_timesteps_than_the_model_has_are_refused(grid):
    with pytest.raises(
        ConfigError, match=r"features.timesteps = 11 is more than the model's 10 timesteps"
    ):
        timestep_grid(11, 10, grid, 0)


def signs(seed, image_set, ids, t, shape):
    (drawn,) = random_signs(seed, image_set, ids, t, shape)
    return drawn


@pytest.mark.parametrize("draw", [gaussian_noise, signs])
def test_what_an_image_gets_does_not_depend_on_the_others(draw):
    together = draw(3, "train", np.array([4, 9, 2]), 100, SHAPE)
    assert together.shape == (3, *SHAPE)
    assert together.dtype == torch.float32
    assert torch.equal(together[1:2], draw(3, "train", np.array([9]), 100, SHAPE))


@pytest.mark.parametrize("draw", [gaussian_noise, signs])
def test_each_part_of_the_address_counts(draw):
    drawn = [
        draw(*address, SHAPE)
        for address in ((3, "train", np.array([4]), 100), (2, "train", np.array([4]), 100))
    ]
    drawn += [
        draw(*address, SHAPE)
        for address in ((3, "holdout", np.array([4]), 100), (3, "train", np.array(["4"]), 100))
    ]
    drawn += [draw(3, "train", np.array([4]), 101, SHAPE)]
    assert all(not torch.equal(one, other) for i, one in enumerate(drawn) for other in drawn[:i])


def test_noise_is_standard_normal_and_probes_are_signs_apart_from_it():
    ids = np.arange(400)
    noise, probe = (
        gaussian_noise(0, "train", ids, 5, SHAPE),
        signs(0, "train", ids, 5, SHAPE),
    )
    assert set(probe.unique().tolist()) == {-1.0, 1.0}
    bound = 5 / np.sqrt(noise.numel())
    assert abs(noise.mean()) < bound
    assert abs(noise.square().mean() - 1) < bound * np.sqrt(2)
    assert abs(probe.mean()) < bound
    assert abs((noise * probe).mean()) < bound


def test_more_probes_leave_the_first_ones_as_they_are_and_are_apart_from_them():
    ids = np.arange(200)
    few, many = (random_signs(0, "train", ids, 5, SHAPE, probes) for probes in (2, 4))
    assert many.shape == (4, 200, *SHAPE)
    assert torch.equal(many[:2], few)
    products = torch.einsum("rbchw,sbchw->rs", many, many) / few[0].numel()
    assert (products - torch.eye(4)).abs().max() < 5 / np.sqrt(few[0].numel())


def test_shared_noise_is_that_of_its_timestep_and_draw():
    drawn = [
        shared_noise(*address, SHAPE) for address in ((0, 0, 5), (1, 0, 5), (0, 1, 5), (0, 0, 6))
    ]
    assert torch.equal(drawn[0], shared_noise(0, 0, 5, SHAPE))
    assert all(not torch.equal(one, other) for i, one in enumerate(drawn) for other in drawn[:i])
    large = shared_noise(0, 0, 5, (400, *SHAPE[1:]))
    assert abs(large.mean()) < 5 / np.sqrt(large.numel())
    assert large.std() == pytest.approx(1, abs=5 / np.sqrt(large.numel()))
