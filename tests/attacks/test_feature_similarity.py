"""Copies by similarity of features: known answers, and the rate of false reports of two answers."""

import numpy as np
import pytest
from scipy.stats import binom

from afterimage.attacks import feature_similarity, verdict

RATE = 0.001


def at(*degrees):
    """Return unit features in the plane, (1, N, 2)."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)[None]


def compare(generations, train, holdout=None, contents=None, **changed):
    settings = {
        "contents": np.arange(train.shape[1]) if contents is None else np.array(contents),
        "low_detail": np.zeros(generations.shape[1], bool),
        "holdout_low_detail": None if holdout is None else np.zeros(holdout.shape[1], bool),
        "rate": RATE,
        "seed": 0,
        "confidence": verdict.CONFIDENCE,
    }
    return feature_similarity.compare(generations, train, holdout, **settings | changed)


@pytest.fixture(scope="module")
def features():
    """Training, unseen and new images, unrelated; the first 12 new ones are nearly training
    images."""
    rng = np.random.default_rng(0)
    train, holdout, generations = (rng.standard_normal((1, n, 16)) for n in (200, 300, 100))
    generations[0, :12] = train[0, 30:42] + 0.01
    return generations, train, holdout


def test_the_most_similar_training_image_and_its_cosine():
    result = compare(at(10, 100, 185), at(0, 90, 130))
    assert result.generations.rows.tolist() == [0, 1, 2]
    np.testing.assert_allclose(
        result.generations.similarities, np.cos(np.radians([10, 10, 55])), atol=1e-12
    )
    np.testing.assert_allclose(
        result.generations.distances, 1 - np.cos(np.radians([10, 10, 55])), atol=1e-12
    )


def test_the_background_leaves_out_equal_images_and_counts_them_once():
    """Training images at 0, 0 (the same image), 60 and 150 degrees."""
    result = compare(at(0), at(0, 0, 60, 150), contents=[7, 7, 3, 5])
    np.testing.assert_allclose(sorted(result.background), [0, 0.5, 0.5], atol=1e-12)
    assert compare(at(0), at(0, 0), contents=[7, 7]).background is None


def test_of_an_image_and_its_mirror_image_the_larger_similarity_counts():
    views = np.concatenate([at(10, 80), at(85, 20)])
    train = np.concatenate([at(0, 90), at(200, 200)])  # mirror images of training images: unused
    result = compare(views, train)
    assert result.generations.rows.tolist() == [1, 1]
    np.testing.assert_allclose(
        result.generations.similarities, np.cos(np.radians([5, 10])), atol=1e-12
    )


def test_copies_are_shown_and_counted(features):
    result = compare(*features)
    assert result.verdict.outcome == verdict.SHOWN
    assert result.flagged[:12].all()
    assert result.flagged[12:].sum() <= result.verdict.false_alarms
    assert result.generations.rows[:12].tolist() == list(range(30, 42))
    assert 0 < result.verdict.copies <= 12
    # The level lies between unseen images and copies, and few unseen images are above it.
    assert result.level == pytest.approx(result.holdout.similarities.max(), abs=0.05)
    assert result.above_level[:12].all()
    assert result.above_level[12:].mean() < 0.02
    assert result.holdout_above_level.mean() < 0.02


def test_a_stricter_answer_counts_fewer_copies(features):
    usual, strict = compare(*features), compare(*features, confidence=0.999)
    assert strict.verdict.copies < usual.verdict.copies
    assert (usual.verdict.confidence, strict.verdict.confidence) == (0.95, 0.999)


def test_no_copies_are_shown_without_copies(features):
    generations, train, holdout = features
    result = compare(generations[:, 12:], train, holdout)
    assert result.verdict.outcome == verdict.NOT_SHOWN
    assert not result.flagged.any()


def test_blank_and_blurred_images_are_no_copies(features):
    generations, train, holdout = features
    low = np.arange(100) < 12
    assert compare(generations, train, holdout, low_detail=low).verdict.outcome == verdict.NOT_SHOWN


def test_without_held_out_images_nothing_is_calibrated_or_shown(features):
    generations, train, _ = features
    result = compare(generations, train)
    assert (result.holdout, result.level, result.above_level) == (None, None, None)
    assert result.verdict.outcome == verdict.CANNOT_TELL
    assert "no held-out images were given" in result.verdict.sentence


def test_few_held_out_images_calibrate_no_level(features):
    generations, train, holdout = features
    assert compare(generations, train, holdout[:, :19]).level is None
    assert compare(generations, train, holdout[:, :20]).level is not None


def test_held_out_images_that_were_all_left_out_are_not_taken_for_none(features):
    generations, train, holdout = features
    result = compare(generations, train, holdout[:, :0])
    assert "no held-out image is left" in result.verdict.sentence


def test_a_space_that_sees_no_difference_cannot_tell(features):
    """Without this, "not shown" would stand there, though no copy could have been seen."""
    alike = [np.ones((1, n, 4)) for n in (100, 200, 300)]
    result = compare(*alike)
    assert result.verdict.outcome == verdict.CANNOT_TELL
    assert "300 of 300 held-out images have the features of a training image" in (
        result.verdict.sentence
    )
    # A single one of many takes no power away.
    generations, train, holdout = features
    holdout = holdout.copy()
    holdout[0, 0] = train[0, 0]
    assert compare(generations[:, 12:], train, holdout).verdict.outcome == verdict.NOT_SHOWN


def test_two_answers_report_copies_in_at_most_5_of_100_audits_without_copies():
    """The answers are independent here, which is the worst case of the two."""
    audits, rng = 600, np.random.default_rng(0)
    half = 1 - (1 - verdict.CONFIDENCE) / 2
    reports = 0
    for _ in range(audits):
        train, holdout, generations = (rng.standard_normal((1, n, 6)) for n in (40, 150, 150))
        similar = compare(generations, train, holdout, confidence=half)
        pixels, _ = verdict.decide(
            rng.random(150),
            rng.random(150),
            np.arange(150),
            np.zeros(150, bool),
            0,
            40,
            half,
        )
        reports += verdict.SHOWN in (similar.verdict.outcome, pixels.outcome)
    # The band is exact but for the discreteness of ranks, so a rate far below 5 % would be a fault.
    assert binom.ppf(0.001, audits, 0.03) <= reports <= binom.ppf(0.999, audits, 0.05)
