"""Likeness: what it finds in images with the structure of photographs, and what it does not."""

import numpy as np
import pytest
from PIL import Image

from afterimage.config import ConfigError
from afterimage.data import changes
from afterimage.metrics import likeness
from afterimage.metrics.likeness import Likeness
from afterimage.plan import data as plan


def smooth(count, seed, side=32):
    """Random images with coarse and fine structure, uint8 (N, side, side, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    fine = rng.integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    size = (side, side)
    return np.stack(
        [
            np.asarray(Image.fromarray(a).resize(size, Image.Resampling.BICUBIC)) // 2
            + np.asarray(Image.fromarray(b).resize(size, Image.Resampling.BICUBIC)) // 2
            for a, b in zip(coarse, fine, strict=True)
        ]
    )


@pytest.fixture(scope="module")
def reference():
    return smooth(600, 1)


@pytest.fixture(scope="module")
def measure(reference):
    return Likeness(reference, mirrors=True)


@pytest.mark.parametrize(
    "setting",
    [
        {"kind": "shift", "pixels": 1},
        {"kind": "shift", "pixels": 2},
        {"kind": "shift", "pixels": 3},
        {"kind": "colour", "strength": 0.3},
        {"kind": "contrast", "strength": 0.3},
        {"kind": "blur", "deviation": 0.7},
        {"kind": "jpeg", "quality": 50},
        {"kind": "mirror"},
        {"kind": "noise", "deviation": 0.05},
    ],
    ids=lambda setting: "-".join(map(str, setting.values())),
)
def test_changed_copies_are_found_and_no_other(measure, reference, setting):
    images, rng = smooth(60, 2), np.random.default_rng(0)
    copies = np.stack([changes.change(image, setting, rng, "key") for image in images])
    threshold = measure.threshold(reference, 0.01, 60)
    found = measure.between(copies, images, threshold)
    right = found.a == found.b
    assert right.sum() >= 54
    assert (~right).sum() <= 3


def test_the_search_finds_what_comparing_all_pairs_finds(measure, reference):
    images, gallery = smooth(12, 3), np.concatenate([smooth(12, 3), smooth(20, 4)])
    gallery[:6, :, :] = gallery[:6, :, ::-1]
    a, b = (rows.ravel() for rows in np.meshgrid(range(12), range(32), indexing="ij"))
    likeness = measure.of(images[a], gallery[b])
    threshold = float(np.quantile(likeness, 0.9))
    found = measure.between(images, gallery, threshold)
    expected = likeness >= threshold - 1e-6
    assert np.array_equal(np.stack([found.a, found.b]), np.stack([a[expected], b[expected]]))
    np.testing.assert_allclose(found.score, likeness[expected], atol=1e-5)
    within = measure.within(gallery, threshold)
    assert (within.a < within.b).all()


def test_equal_images_have_likeness_one_and_plain_ones_none(measure):
    images = smooth(5, 5)
    np.testing.assert_allclose(measure.of(images, images), 1, atol=1e-5)
    plain = np.full((5, 32, 32, 3), 90, np.uint8)
    assert (measure.of(plain, images) == 0).all()


def test_mirror_images_count_only_where_asked(reference):
    images = smooth(20, 6)
    with_mirrors, without = (
        Likeness(reference, mirrors).of(images, images[:, :, ::-1]) for mirrors in (True, False)
    )
    assert with_mirrors.min() > 0.99
    assert without.max() < 0.6


@pytest.mark.parametrize("rate", [0.03, 0.1])
def test_independent_images_meet_the_threshold_at_the_stated_rate(rate):
    """Six sets of 300, each with a reference of its own: within a factor of 2.5."""
    shares = []
    for seed in range(6):
        reference, images = smooth(400, 100 + seed, 16), smooth(300, 200 + seed, 16)
        measure = Likeness(reference, mirrors=False)
        found = measure.within(images, measure.threshold(reference, rate, 300))
        shares.append(len(np.union1d(found.a, found.b)) / 300)
    assert rate / 2.5 <= np.mean(shares) <= rate * 2.5


def test_duplicates_in_the_reference_do_not_move_the_threshold(reference):
    measure = Likeness(reference, mirrors=False)
    doubled = reference.copy()
    doubled[:6] = doubled[6:12]
    plain, dirty = (measure.threshold(images, 0.01, 600) for images in (reference, doubled))
    assert dirty == pytest.approx(plain, abs=0.02)
    assert dirty < 0.95


def test_references_that_tell_nothing_are_refused(measure, reference):
    with pytest.raises(ConfigError, match="at least 16 different reference images, not 8"):
        Likeness(reference[:8], mirrors=False)
    with pytest.raises(ConfigError, match="at least 16"):
        Likeness(np.zeros((40, 8, 8, 1), np.uint8), mirrors=False)
    with pytest.raises(ConfigError, match="false_pairs: 5% of the 200 reference images are dup"):
        measure.threshold(np.repeat(reference[:100], 2, axis=0), 0.01, 100)


def test_large_images_are_compared_as_thumbnails():
    reference, images = smooth(300, 1, 96), smooth(10, 2, 96)
    measure = Likeness(reference, mirrors=False)
    assert (measure.of(images, np.roll(images, 3, axis=2)) > 0.7).all()


def test_the_plan_counts_the_components_and_shifts_that_are_searched(measure, reference):
    assert plan.LIKENESS_COMPONENTS == likeness.COMPONENTS
    assert len(list(measure._shifted(reference[:2]))) == plan.LIKENESS_SHIFTS
