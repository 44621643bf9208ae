"""Known concepts: which images count, which combinations are held out, and closed forms of areas."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from afterimage.artifacts import ArtifactError
from afterimage.attribution.judges.concepts import COLUMNS, areas, words_of
from afterimage.metrics.ranking import roc_auc
from afterimage.report import networks

CONCEPTS = {"colour": ["red", "blue"], "shape": ["circle", "square"]}
TRAIN = np.array(
    ["a red square", "a blue circle", "a blue square", "A  RED square", "blue, and red", "nothing"]
)


def test_a_caption_has_a_concept_if_it_has_one_of_its_words():
    assert words_of(TRAIN, CONCEPTS["colour"]).tolist() == [0, 1, 1, 0, -1, -1]
    assert words_of(TRAIN, CONCEPTS["shape"]).tolist() == [1, 0, 1, 1, -1, -1]
    assert words_of(np.array(["redder", "not so red"]), ["red", "so"]).tolist() == [-1, -1]


def table(scores: list[list[float]], *queries: str) -> pd.DataFrame:
    return areas(np.array(scores, float), TRAIN, np.array(queries), CONCEPTS)


def test_an_area_is_of_images_with_the_word_against_those_with_another():
    # The last two images have no colour or shape of their own, and count nowhere; the circle does
    # not count for the colour, nor do red images for the shape.
    found = table([[3, 5, 2, 4, 9, 9], [1, 1, 1, 1, 9, 9]], "a red circle", "a blue circle")
    assert list(found.columns) == COLUMNS
    rows = found.set_index(["query", "concept"])
    assert rows.loc[(0, "colour"), "area"] == 1.0  # 3 and 4 against 2
    assert rows.loc[(0, "shape"), "area"] == 1.0  # 5 against 2
    assert rows.loc[(1, "colour"), "area"] == 0.5
    assert np.isnan(rows.loc[(1, "shape"), "area"])  # all circles are blue
    assert rows["word"].tolist() == ["red", "circle", "blue", "circle"]


def test_a_score_that_knows_the_colour_alone_says_nothing_of_shapes():
    """Not of a held out combination either, whose shape is never of its colour."""
    words = [f"a {c} {s}" for c in CONCEPTS["colour"] for s in CONCEPTS["shape"]]
    words += [f"a green {shape}" for shape in CONCEPTS["shape"]]
    train = np.array([text for text in words if text != "a red circle"] * 10)
    concepts = CONCEPTS | {"colour": ["red", "blue", "green"]}
    queries = np.array(["a red circle", "a blue square"])
    colours = concepts["colour"]
    scores = words_of(queries, colours)[:, None] == words_of(train, colours)
    found = areas(scores.astype(float), train, queries, concepts).set_index(["query", "concept"])
    assert found["area"].tolist() == [1.0, 0.5, 1.0, 0.5]
    assert found["combination"].tolist() == ["held out"] * 2 + ["trained"] * 2


def test_a_combination_without_a_training_image_is_held_out():
    found = table([[0] * 6] * 3, "a red circle", "a blue circle", "something red")
    assert found["combination"].tolist()[:4] == ["held out"] * 2 + ["trained", "related"]
    # Without a shape, nothing is known of the combination; the colour counts all the same.
    assert found.loc[found["query"] == 2, "concept"].tolist() == ["colour"]
    assert found.loc[found["query"] == 2, "combination"].isna().all()
    alone = table([[3, 1, 2, 4, 9, 9]], "something red")
    assert alone["combination"].isna().all()
    assert alone["images_error"].notna().all()


def test_queries_without_any_word_have_no_rows():
    assert list(table([[0] * 6], "nothing").columns) == COLUMNS
    assert table([[0] * 6], "nothing").empty


def test_a_word_of_no_training_image_is_named():
    concepts = {"colour": ["red", "green"]}
    with pytest.raises(ArtifactError, match=r"concepts\.colour: 'green' .* none of the 6"):
        areas(np.zeros((1, 6)), TRAIN, np.array(["a red square"]), concepts)


def test_areas_are_those_under_the_curve_with_ties():
    scores = np.random.default_rng(0).integers(0, 4, (1, 40)).astype(float)
    words = np.arange(40) % 3
    train = np.array(["red", "blue", "nothing"])[words]
    found = areas(scores, train, np.array(["red"]), {"colour": ["red", "blue"]})
    assert found["area"][0] == pytest.approx(roc_auc(scores[0, words == 1], scores[0, words == 0]))


def test_the_error_over_images_is_that_of_other_images():
    """The spread of the area over other training images, for 30 queries with the same scores."""
    rng, found, estimated = np.random.default_rng(0), [], []
    words = np.arange(90) % 3
    train = np.array(["red", "blue", "blue"])[words]
    for _ in range(400):
        scores = np.tile(rng.normal(size=90) + 0.8 * (words == 0), (30, 1))
        table = areas(scores, train, np.array(["red"] * 30), {"colour": ["red", "blue"]})
        found.append(table["area"].mean())
        estimated.append(table["images_error"][0])
    assert np.mean(estimated) == pytest.approx(np.std(found), rel=0.1)


@pytest.mark.parametrize(("own", "shared"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("signal", [0.0, 1.0])
def test_intervals_hold_the_area_of_other_queries_and_images(own, shared, signal):
    """Scores are the sum of what an image has for all queries and of what it has for one alone, and
    some queries are told better than others; 8 queries of one kind, 30 images with their word."""
    rng, held, trials = np.random.default_rng(1), 0, 300
    words = np.arange(120) % 4
    train = np.array(["red", "blue", "green", "yellow"])[words]
    concepts = {"colour": ["red", "blue", "green", "yellow"]}

    def draw(queries):
        strength = signal * rng.uniform(0.5, 1.5, (queries, 1))
        noise = own * rng.normal(size=(queries, 120)) + shared * rng.normal(size=120)
        return strength * (words == 0) + noise

    strengths = signal * np.linspace(0.5, 1.5, 1001)
    truth = norm.cdf(strengths / np.sqrt(2 * (own**2 + shared**2))).mean()
    for _ in range(trials):
        table = areas(draw(8), train, np.array(["red"] * 8), concepts)
        error = [table["images_error"][0]]
        _, low, high, _ = networks.mean([table["area"].to_numpy()], 0.95, error)
        held += low <= truth <= high
    assert 0.91 <= held / trials <= 1.0


def test_scores_that_say_nothing_have_the_area_of_chance():
    rng = np.random.default_rng(0)
    words = [f"a {c} {s}" for c in CONCEPTS["colour"] for s in CONCEPTS["shape"]]
    train, queries = (np.array(words)[rng.integers(4, size=n)] for n in (300, 200))
    found = areas(rng.normal(size=(200, 300)), train, queries, CONCEPTS)
    assert len(found) == 400
    # The standard deviation of an area of 150 against 150 by chance is 0.033.
    assert found["area"].mean() == pytest.approx(0.5, abs=5 * 0.033 / np.sqrt(400))
    # One that knows the colour alone.
    colour = words_of(queries, CONCEPTS["colour"])[:, None] == words_of(train, CONCEPTS["colour"])
    mean = areas(colour.astype(float), train, queries, CONCEPTS).groupby("concept")["area"].mean()
    assert mean["colour"] == 1.0
    assert mean["shape"] == pytest.approx(0.5, abs=0.05)
