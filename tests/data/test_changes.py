"""Changes of planted copies: each does what it says, by as much as it is told."""

from __future__ import annotations

import numpy as np
import pytest

from afterimage.config import ConfigError
from afterimage.data import changes


def test_noise_has_the_asked_size():
    grey = np.full((64, 64, 1), 128, np.uint8)
    rng = np.random.default_rng(0)
    noisy = changes.perturb(grey, 0.02, 0.0, rng, "key").astype(float) - 128
    assert noisy.std() / 255 == pytest.approx(
        0.02, rel=0.05
    )  # 4,096 draws: the error of the deviation is about 1.1%
    assert abs(noisy.mean()) / 255 < 0.001
    shifts = [
        changes.perturb(grey, 0.0, 0.1, rng, "key").astype(float).ravel() - 128 for _ in range(400)
    ]
    assert all(np.ptp(shift) == 0 for shift in shifts)
    assert np.abs(shifts).max() <= 26
    assert min(shift[0] for shift in shifts) < -20
    assert max(shift[0] for shift in shifts) > 20


def test_each_change_does_what_it_says():
    rng = np.random.default_rng(0)
    image = rng.integers(20, 200, (12, 10, 3), dtype=np.uint8)

    def changed(**setting):
        copy = changes.change(image, setting, rng, "key")
        assert copy.shape == image.shape
        assert copy.dtype == np.uint8
        return copy

    assert np.array_equal(changed(kind="mirror"), image[:, ::-1])
    offsets = set()
    for _ in range(100):
        copy = changed(kind="shift", pixels=2)
        (offset,) = [
            (down, right)
            for down in (-2, 0, 2)
            for right in (-2, 0, 2)
            if np.array_equal(copy[2:-2, 2:-2], image[2 - down : 10 - down, 2 - right : 8 - right])
        ]
        offsets.add(offset)
    assert len(offsets) == 8
    assert (0, 0) not in offsets
    gain = changed(kind="colour", strength=0.2) / image
    assert np.ptp(gain, axis=(0, 1)).max() < 0.06  # one factor for a channel, but for rounding
    assert np.abs(gain.mean(axis=(0, 1)) - 1).max() <= 0.21
    contrast = changed(kind="contrast", strength=0.2).astype(float)
    assert contrast.mean() == pytest.approx(image.mean(), abs=0.1)
    assert 0.79 <= contrast.std() / image.std() <= 1.21
    assert changed(kind="blur", deviation=1).std() < image.std() * 0.8
    noise = changed(kind="noise", deviation=0.02).astype(float) - image
    assert noise.std() / 255 == pytest.approx(0.02, rel=0.15)
    wide = np.tile(np.arange(40, dtype=np.uint8)[:, None, None] * 6, (1, 40, 1))
    crop = changes.change(wide, {"kind": "crop", "share": 0.25}, rng, "key").astype(float)
    assert np.diff(crop[:, 0, 0])[5:-5].mean() == pytest.approx(6 * 30 / 40, rel=0.02)


def test_a_change_without_effect_is_an_error():
    plain = np.full((8, 8, 3), 9, np.uint8)
    for setting in (
        {"kind": "mirror"},
        {"kind": "shift", "pixels": 1},
        {"kind": "blur", "deviation": 1},
    ):
        with pytest.raises(ConfigError, match=r"data\.plant\.0\.perturb\.1: .* unchanged"):
            changes.change(plain, setting, np.random.default_rng(0), "data.plant.0.perturb.1")
    with pytest.raises(ConfigError, match=r"key: pixels = 8 must be less than the side, 8"):
        changes.change(plain, {"kind": "shift", "pixels": 8}, np.random.default_rng(0), "key")


def test_values_are_clipped_not_wrapped():
    rng = np.random.default_rng(0)
    for value in (0, 255):
        changed = changes.perturb(
            np.full((20, 20, 1), value, np.uint8), 0.05, 0.0, rng, "key"
        ).astype(int)
        assert np.abs(changed - value).max() < 100
