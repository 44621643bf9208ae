"""Shapes: every combination equally often, drawn the same each time, and as their captions say."""

import re

import numpy as np
import pytest
import yaml

from afterimage.config import Shapes, Study
from afterimage.data import sources
from afterimage.data.shapes import BACKGROUND, COLOURS, SHAPES, drawn


def test_every_combination_occurs_equally_often():
    images, manifest = sources.read(Shapes(kind="shapes", each=3))
    assert images.pixels.shape == (48, 16, 16, 3)
    captions, times = np.unique(images.captions, return_counts=True)
    assert sorted(captions) == sorted(f"a {c} {s}" for c in COLOURS for s in SHAPES)
    assert set(times) == {3}
    for label, name in enumerate(manifest["class_names"]):
        assert set(images.captions[images.labels == label]) == {f"a {name}"}
    assert len(np.unique(images.pixels.reshape(48, -1), axis=0)) == 48
    again, _ = sources.read(Shapes(kind="shapes", each=5))
    np.testing.assert_array_equal(again.pixels[:48], images.pixels)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_picture_shows_what_its_caption_says(colour, shape):
    for number in range(20):
        pixels = drawn(colour, shape, 16, number).astype(int)
        covered = np.abs(pixels - BACKGROUND).sum(axis=-1) > 60
        assert not covered[[0, -1]].any()  # wholly inside
        assert not covered[:, [0, -1]].any()
        mean = pixels[covered].mean(axis=0)
        nearest = min(COLOURS, key=lambda name: _angle(mean, COLOURS[name]))
        assert nearest == colour
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        box = covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        share = box.mean()
        low, high = {"square": (0.9, 1), "circle": (0.65, 0.95), "triangle": (0.4, 0.75)}.get(
            shape, (0.3, 0.68)
        )
        assert low <= share <= high, (number, share)


def _angle(mean, colour):
    """Return 1 - the cosine of two colours less grey: their shade does not count."""
    a, b = (np.asarray(each, float) - np.mean(each) for each in (mean, colour))
    return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.fixture
def study(root):
    """The study of the shapes, as plain values."""
    return yaml.safe_load((root / "studies/shapes-tiny.yaml").read_text())


def test_the_source_has_captions_but_no_columns(study):
    study["text"]["captions"] = {"general": {"kind": "column", "column": "category"}}
    with pytest.raises(ValueError, match="'shapes' has no columns"):
        Study.model_validate(study)


@pytest.mark.parametrize(
    ("concepts", "arm", "message"),
    [
        ({"colour": ["red"]}, {}, "concepts.colour"),
        ({"colour": ["red", " Red"]}, {}, "concepts.colour: 'red' is a word of 'colour' already"),
        ({"a": ["red", "blue"], "b": ["x", "red"]}, {}, "concepts.b: 'red' is a word of 'a'"),
        ({"a": ["red", "blue"]}, {"captions": "fixed"}, "is trained with captions = 'fixed'"),
        ({"a": ["red", "blue"]}, {"condition": "none"}, "is not trained with condition = 'text'"),
    ],
)
def test_concepts_that_cannot_be_judged_are_refused(study, concepts, arm, message):
    study["text"]["captions"] = {"fixed": {"kind": "fixed", "caption": "an image"}}
    study["arms"]["composed"] |= arm
    study["arms"]["plain"] |= arm if "condition" in arm else {}
    study["arms"]["other"] = {"method": "baseline", "condition": "text"}
    study["attribution"]["concepts"] = concepts
    with pytest.raises(ValueError, match=re.escape(message)):
        Study.model_validate(study)
