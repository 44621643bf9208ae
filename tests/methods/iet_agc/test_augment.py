"""The changes that IET-AGC+ makes to images."""

import torch

from afterimage.methods.iet_agc.augment import BRIGHTNESS, SHIFT, vary


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_plain_image_only_changes_its_brightness():
    levels = vary(torch.full((400, 3, 6, 10), 0.1), seeded())
    assert torch.equal(levels, levels[:, :1, :1, :1].expand_as(levels))
    change = levels[:, 0, 0, 0] - 0.1
    assert change.abs().max() <= BRIGHTNESS + 1e-6
    assert change.min() < -0.9 * BRIGHTNESS
    assert change.max() > 0.9 * BRIGHTNESS
    assert vary(torch.ones(9, 1, 4, 4), seeded()).max() == 1


def test_a_point_is_moved_by_an_eighth_at_most_and_mirrored_half_of_the_time():
    images = torch.full((400, 1, 17, 16), -1.0)
    images[:, 0, 8, 3] = 1
    found = vary(images, seeded())
    points = (found == found.amax((2, 3), keepdim=True)).nonzero()
    assert len(points) == 400
    rows, columns = points[:, 2], points[:, 3]
    mirrored = columns > 7
    assert 150 < mirrored.sum() < 250
    assert (
        {int(r) - 8 for r in rows}
        == set(range(-2, 3))
        == set(range(-round(17 * SHIFT), round(17 * SHIFT) + 1))
    )
    assert {int(c) - (12 if m else 3) for c, m in zip(columns, mirrored, strict=True)} == set(
        range(-2, 3)
    )


def test_draws_do_not_depend_on_the_images():
    one = torch.rand(8, 1, 4, 4) * 2 - 1
    other = one.clone()
    other[3:] = 0
    assert torch.equal(vary(one, seeded())[:3], vary(other, seeded())[:3])
    assert not torch.equal(vary(one, seeded()), vary(one, seeded(4)))
