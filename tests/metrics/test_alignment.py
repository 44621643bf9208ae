"""Text alignment: known answers, chance, and what the encoder learns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterimage.metrics.alignment import TextEncoder

COLOURS = ["red", "green", "blue", "grey"]
AXES = np.eye(4)[[0, 1, 2, 3]]


def pairs(count: int, seed: int = 0, noise: float = 0.1):
    """Captions of a colour and a word that means nothing, and features with an axis per colour."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(4, size=count)
    captions = np.array([f"A {COLOURS[c].upper()} thing, {'xyz'[rng.integers(3)]}" for c in colour])
    return captions, AXES[colour] + noise * rng.normal(size=(count, 4)), colour


@pytest.fixture
def encoder():
    captions, features, _ = pairs(200)
    return TextEncoder(captions, features)


def test_images_of_what_was_asked_for_are_aligned(encoder):
    """Of twelve different captions two more have the colour of one's own."""
    captions, features, _ = pairs(300, seed=1, noise=0.01)
    assert len(set(captions)) == 12
    each = encoder.alignment(features, captions)
    assert (each >= 9 / 11).all()
    assert each.mean() > 0.88


def test_images_of_another_colour_are_not(encoder):
    captions, _, colour = pairs(300, seed=1)
    wrong = encoder.alignment(AXES[(colour + 1) % 4], captions)
    assert wrong.mean() < 0.5


def test_chance_is_one_half(encoder):
    rng = np.random.default_rng(2)
    captions, features, _ = pairs(4000, seed=3)
    each = encoder.alignment(features, rng.permutation(captions))
    assert abs(each.mean() - 0.5) < 4 * each.std() / len(each) ** 0.5


def test_words_that_no_reference_caption_has_tell_nothing(encoder):
    """All such captions are the same to it: ties count half."""
    features = np.random.default_rng(0).normal(size=(3, 4))
    assert encoder.alignment(features, np.array(["einhorn", "drache", "fee"])).tolist() == [0.5] * 3


@given(st.lists(st.sampled_from(["red", "green", "blue one", "grey x"]), min_size=4, max_size=12))
def test_an_image_is_measured_alone(captions):
    """Whatever the order, and however often others occur."""
    encoder = TextEncoder(*pairs(50)[:2])
    captions = np.array([*captions, "red", "green"])
    features = np.random.default_rng(4).normal(size=(len(captions), 4))
    each = encoder.alignment(features, captions)
    order = np.random.default_rng(5).permutation(len(captions))
    np.testing.assert_allclose(encoder.alignment(features[order], captions[order]), each[order])
    twice = encoder.alignment(np.tile(features, (2, 1)), np.tile(captions, 2))
    np.testing.assert_allclose(twice, np.tile(each, 2))
    assert ((each >= 0) & (each <= 1)).all()


def test_a_hand_made_ranking():
    """Embeddings along the axes; an image at 30 degrees from the first, 60 from the second."""
    encoder = TextEncoder(
        np.array(["a", "b", "c", "d"]), np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    )
    angle = np.deg2rad(30)
    image = np.array([[np.cos(angle), np.sin(angle)]] * 4)
    asked = np.array(["a", "b", "c", "d"])
    # By cosine a, b, d, c: b's fits better than d's by sin against -sin.
    np.testing.assert_allclose(encoder.alignment(image, asked), [1, 2 / 3, 0, 1 / 3])


def test_the_origin_of_the_space_does_not_matter():
    captions, features, _ = pairs(100)
    asked, shown, _ = pairs(60, seed=1)
    near, far = (
        TextEncoder(captions, features + offset).alignment(shown + offset, asked)
        for offset in (0.0, 5.0)
    )
    np.testing.assert_allclose(near, far)


def test_captions_without_a_word_are_refused():
    with pytest.raises(ValueError, match="empty vocabulary"):
        TextEncoder(np.array(["?!", "..."]), np.zeros((2, 3)))
