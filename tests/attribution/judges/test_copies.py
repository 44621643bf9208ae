"""Planted copies: what counts as found, and that leverages betray them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.attribution.attributors.inner_products import cosine
from afterimage.attribution.attributors.spectrum import Spectrum
from afterimage.attribution.judges.copies import leverage_auc, recall
from afterimage.config import ConfigError

SOURCES = np.array([7, 7, 7, 3, 4, 5, 5, 6])


def test_recall_counts_the_copies_among_the_first_m():
    scores = np.array(
        [
            [9, 8, 7, 6, 5, 4, 3, 2],  # all three copies of 7 first
            [9, 8, 1, 6, 5, 4, 3, 2],  # two of them among the first three
            [3, 2, 1, 0, 0, 9, 8, 0],  # both copies of 5 first
            [1, 1, 1, 1, 1, 1, 1, 2],  # 6 first
        ],
        float,
    )
    table = recall(scores, SOURCES, np.array([7, 7, 5, 6]))
    assert table["copies"].tolist() == [3, 3, 2, 1]
    assert table["recall"].tolist() == pytest.approx([1, 2 / 3, 1, 1])
    assert table["chance"].tolist() == pytest.approx([3 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert table["source"].tolist() == [7, 7, 5, 6]
    assert table["query"].tolist() == [0, 1, 2, 3]


def test_scores_that_say_nothing_have_the_recall_of_chance():
    table = recall(np.zeros((2, 8)), SOURCES, np.array([7, 6]))
    np.testing.assert_allclose(table["recall"], table["chance"])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=8, max_size=8),
    st.sampled_from([7, 5, 6]),
    st.integers(0, 99),
)
def test_ties_count_as_on_average_over_their_orders(values, source, seed):
    scores = np.array([values], float)
    m = SOURCES.tolist().count(source)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(400):
        order = np.lexsort((rng.random(8), -scores[0]))
        found.append((SOURCES[order[:m]] == source).mean())
    got = recall(scores, SOURCES, np.array([source]))["recall"][0]
    assert got == pytest.approx(np.mean(found), abs=0.13)  # 5 standard errors of 400 draws at most
    order = rng.permutation(8)
    assert recall(scores[:, order], SOURCES[order], np.array([source]))["recall"][
        0
    ] == pytest.approx(got)


def test_a_query_whose_source_is_not_there_is_an_error():
    with pytest.raises(ConfigError, match="query 1 shows source 99"):
        recall(np.zeros((2, 8)), SOURCES, np.array([7, 99]))


def test_no_queries_give_an_empty_table():
    assert recall(np.zeros((0, 8)), SOURCES, np.zeros(0, np.int64)).columns.tolist() == [
        "query",
        "source",
        "copies",
        "recall",
        "chance",
    ]


def planted(noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, sources and copies of the rows of 30 images, the first ones planted 4, 3 and 2
    times, in 400 coordinates."""
    rng = np.random.default_rng(0)
    sources = np.repeat(np.arange(30), [4, 3, 2] + [1] * 27)
    features = rng.standard_normal((30, 400))[sources]
    return (
        features + noise * rng.standard_normal(features.shape),
        sources,
        np.bincount(sources)[sources],
    )


def test_leverage_is_one_over_the_number_of_copies():
    """DAS known answer 16."""
    features, _, copies = planted(noise=0)
    leverage = Spectrum(features).leverage(1e-6)
    np.testing.assert_allclose(leverage, 1 / copies, rtol=1e-4)
    assert leverage_auc(leverage, copies) == 1
    assert leverage_auc(-leverage, copies) == 0
    assert leverage_auc(np.ones(len(copies)), copies) == 0.5


def test_copies_that_differ_a_little_are_found_by_gradients_and_flagged_by_leverage():
    """DAS known answer 16: gradients of a generated copy recover all copies."""
    features, sources, copies = planted(noise=0.2)
    generated = features[[0, 4, 7]] + 0.3 * np.random.default_rng(1).standard_normal((3, 400))
    query_sources = sources[[0, 4, 7]]
    for scores in (cosine(generated, features), Spectrum(features).kernel(generated)(1.0)):
        assert recall(scores, sources, query_sources)["recall"].tolist() == [1, 1, 1]
    assert leverage_auc(Spectrum(features).leverage(0.1), copies) == 1


@pytest.mark.parametrize("copies", [np.ones(5, int), np.full(5, 2)])
def test_leverage_needs_images_of_both_kinds(copies):
    with pytest.raises(ConfigError, match="with and without copies"):
        leverage_auc(np.arange(5.0), copies)
