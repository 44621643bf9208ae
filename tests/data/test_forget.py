"""Which training images a set names: a class, words of captions, ids with all their copies, or what
the extraction attack found."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError, ForgetSet
from afterimage.data import forget
from afterimage.images import Images


@pytest.fixture
def train() -> Images:
    """Six originals in ten rows: copies are not next to each other, and sources are not
    positions."""
    sources = np.array([50, 10, 20, 10, 30, 10, 40, 20, 60, 30])
    return Images.of(np.zeros((10, 4, 4, 1), np.uint8), labels=sources // 10 % 4, sources=sources)


@pytest.fixture
def extraction(tmp_path):
    """Return a function that writes what the attack leaves, by column: the sources that it
    extracts from the first half of the generations. From the second half it extracts all."""

    def write(anchor: str = "training", **extracted):
        resolved = {
            "step": "attack/extraction",
            "arm": "base",
            "replicate": 0,
            "seed": 1,
            "settings": {"anchor": anchor},
        }
        table = pd.DataFrame({"nearest_source": [10, 20, 30, 40, 50, 60] * 2})
        for column in (
            "training_fixed",
            "training_calibrated",
            "candidate_fixed",
            "candidate_calibrated",
        ):
            shown = table["nearest_source"].isin(extracted.get(column, []))
            table[f"flagged_{column}"] = shown | (table.index >= 6)
        with artifacts.step(resolved, tmp_path / "attack", {}, ("afterimage.seeds",)) as step:
            table.to_parquet(step.folder / "pairs.parquet", index=False)
        return tmp_path / "attack"

    return write


def chosen(train: Images, extraction=None, **settings) -> list[int]:
    return np.flatnonzero(
        forget.rows(train, "wanted", ForgetSet(**settings).model_dump(mode="json"), extraction)
    ).tolist()


def test_a_label_names_its_class(train):
    assert chosen(train, label=1) == [0, 1, 3, 5]
    assert chosen(train, label=3) == [4, 9]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("cat", [0, 1, 4]),
        ("CAT", [0, 1, 4]),
        ("black  cat", [0, 4]),
        ("cat black", []),
        ("a", [1, 2]),
        ("c++", [3]),
        ("c", [3]),
        ("été", [5]),
    ],
)
def test_words_are_whole_words_next_to_each_other_whatever_their_case(words, found):
    captions = ["Black cat", "a cat.", "cats, a dog", "C++ (logo)", "black\tCat-like", "en ÉTÉ"]
    assert np.flatnonzero(forget.mentions(np.array(captions), words)).tolist() == found


def test_words_name_their_images_with_all_copies(train):
    """A copy may have another caption."""
    captions = np.array(["a dog", "a cat", *["a dog"] * 4, "the cat", *["dogs"] * 3])
    captioned = dataclasses.replace(train, captions=captions)
    assert chosen(captioned, caption="cat") == [1, 3, 5, 6]
    message = "forget.wanted is empty: 'bird' is in the captions of none of the 10 training images"
    with pytest.raises(ArtifactError, match=message):
        chosen(captioned, caption="bird")
    everything = dataclasses.replace(train, captions=np.array(["a dog"] * 10))
    message = "forget.wanted is the whole training set: 'dog' is in the captions of all 10 training"
    with pytest.raises(ArtifactError, match=message):
        chosen(everything, caption="dog")


@pytest.mark.parametrize(
    ("ids", "rows"), [([3], [1, 3, 5]), ([6], [6]), ([7, 5], [1, 2, 3, 5, 7]), ([2, 7], [2, 7])]
)
def test_ids_name_their_sources_with_all_copies(ids, rows, train):
    assert chosen(train, ids=ids) == rows


def test_ids_are_names_and_not_positions(train):
    """As after deduplication, which leaves gaps."""
    kept = train.take(np.array([0, 2, 3, 9]))
    assert chosen(kept, ids=[9]) == [3]
    with pytest.raises(
        ConfigError, match=r"forget.wanted.ids: 1 is not a row of the training split \(0 to 9\)"
    ):
        chosen(kept, ids=[9, 1])


def test_extracted_images_are_those_of_the_headline_anchor_and_the_asked_threshold(
    train, extraction
):
    found = {
        "training_fixed": [20],
        "training_calibrated": [10, 40],
        "candidate_fixed": [30],
        "candidate_calibrated": [60],
    }
    store = extraction(**found)
    assert chosen(train, store, extracted_from="base") == [1, 3, 5, 6]
    assert chosen(train, store, extracted_from="base", alpha="fixed") == [2, 7]
    store = extraction("candidate", **found)
    assert chosen(train, store, extracted_from="base") == [8]
    assert chosen(train, store, extracted_from="base", alpha="fixed") == [4, 9]


@pytest.mark.parametrize(("generations", "first"), [(2, 1), (5, 2), (8, 4)])
def test_no_generation_both_chooses_a_set_and_judges_it(generations, first):
    assert forget.choosing(generations).tolist() == [True] * first + [False] * (generations - first)


def test_a_changed_table_is_refused(train, extraction):
    store = extraction(training_calibrated=[10])
    table = pd.read_parquet(store / "pairs.parquet")
    table.assign(flagged_training_calibrated=True).to_parquet(store / "pairs.parquet")
    with pytest.raises(ArtifactError, match="truncated or changed"):
        chosen(train, store, extracted_from="base")


def test_an_empty_set_is_refused_with_its_reason(train, extraction):
    with pytest.raises(
        ArtifactError,
        match=r"forget.wanted is empty: label 7 is that of none of the 10 training images",
    ):
        chosen(train, label=7)
    with pytest.raises(
        ArtifactError,
        match=r"empty: the attack on the first half of the generations of 'base' \(alpha fixed\) "
        "found none of the 10 training images",
    ):
        chosen(train, extraction(training_calibrated=[10]), extracted_from="base", alpha="fixed")
    with pytest.raises(ArtifactError, match=r"of 'base' \(alpha calibrated\) found none of the 4"):
        chosen(
            train.take(np.array([1, 3, 5, 6])),
            extraction(training_calibrated=[20]),
            extracted_from="base",
        )


def test_a_set_of_everything_is_refused(train, extraction):
    with pytest.raises(ArtifactError, match=r"forget\.wanted is the whole training set"):
        chosen(
            train, extraction(training_calibrated=[10, 20, 30, 40, 50, 60]), extracted_from="base"
        )
    with pytest.raises(ArtifactError, match="whole training set"):
        chosen(train.take(np.array([1, 3, 5])), ids=[1])
