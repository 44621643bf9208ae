"""Plantings in the styles of Somepalli et al. 2023: the image with its caption, the image with
other captions, the caption with other images, and neither; all counted exactly."""

import numpy as np
import pandas as pd
import pytest

from afterimage import config
from afterimage.attacks import path, twins
from afterimage.config import ConfigError
from afterimage.data import dedup, planting
from afterimage.data.split import split
from afterimage.images import Images, contents

SHARED = 20
"""Images of the pool that have no caption of their own."""
PLANT = [
    {"copies": 3, "images": 2, "perturbation": None, "repeat": "both"},
    {"copies": 4, "images": 3, "perturbation": None, "repeat": "image"},
    {"copies": 5, "images": 2, "perturbation": None, "repeat": "caption"},
    {
        "copies": 2,
        "images": 2,
        "perturbation": {"noise": 0.05, "brightness": 0.0},
        "repeat": "image",
    },
]
FURTHER = 3 * 3 + 4 * 2 + 1 * 2
"""Images that lend or carry captions."""


def pool(size: int, shared: int = SHARED) -> Images:
    """Random images; the first ``shared`` have one of four captions, in two spellings."""
    texts = [f"{'Kind' if n % 3 else 'kind'}  {n % 4}" for n in range(shared)]
    texts += [f"picture {n}" for n in range(shared, size)]
    return Images.of(
        np.random.default_rng(1).integers(0, 256, (size, 6, 6, 1), np.uint8),
        ids=1000 + np.arange(size),
        labels=np.arange(size) % 2,
        captions=np.array(texts),
    )


def settings(plant, train: int = 80) -> dict:
    return {
        "split": {"train": train, "holdout": 5, "reference": 5, "fusion": 0, "official": False},
        "plant": plant,
        "plantings": 1,
        "flips": False,
    }


def drawn(plant, train: int = 80, seed: int = 0) -> tuple[Images, planting.Planting]:
    """Draw a planting from a pool of exactly the size that it needs."""
    unplanted = train - sum(group["copies"] * group["images"] for group in plant)
    size = unplanted + 2 * sum(group["images"] for group in plant)
    size += sum(planting.further_images(group) for group in plant)
    made = pool(size)
    alone = np.ones(size, bool)
    return made, planting.draw(made, alone, settings(plant, train), seed, 0)


@pytest.fixture(scope="module")
def made():
    return drawn(PLANT)


def of_style(index: pd.DataFrame, place: int) -> pd.DataFrame:
    """Return the rows of the twins of a group."""
    ends = np.cumsum([0] + [group["images"] for group in PLANT])
    return index[index["part"] == "twin"].iloc[ends[place] : ends[place + 1]]


def test_images_and_captions_occur_as_often_as_planted(made):
    """Counted by their bytes, in the training set itself; a perturbed copy has other bytes."""
    everything, found = made
    train = found.train
    assert len(train) == 80
    bytes_of = dict(zip(everything.ids.tolist(), contents(everything.pixels), strict=True))
    caption_of = dict(zip(everything.ids.tolist(), everything.captions, strict=True))
    expected = [(3, 3), (4, 1), (1, 5), (1, 1)]
    for place, counts in enumerate(expected):
        for source in of_style(found.index, place)["twin_of"]:
            images = (contents(train.pixels) == bytes_of[source]).sum()
            assert (images, (train.captions == caption_of[source]).sum()) == counts


def test_the_index_says_how_often_image_and_caption_occur(made):
    _, found = made
    index, train = found.index, found.train
    rows = index[index["part"] == "train"].set_index("id").loc[train.ids]
    copies = pd.Series(train.sources).value_counts()
    np.testing.assert_array_equal(rows["copies"], copies.loc[train.sources])
    spelled = pd.Series([" ".join(text.lower().split()) for text in train.captions.tolist()])
    times = spelled.value_counts()
    np.testing.assert_array_equal(rows["caption_copies"], times.loc[spelled])
    np.testing.assert_array_equal(rows["caption_source"], train.caption_sources)
    numbers = {"both": 6, "image": 12 + 4, "caption": 2, "carrier": 8, "neither": 80 - 32}
    assert rows["repeat"].value_counts().to_dict() == numbers
    carried = rows[rows["repeat"].isin(["caption", "carrier"])]
    assert (carried["copies"] == 1).all()
    assert (carried["copy"] == 0).all()
    assert (carried["caption_copies"] == 5).all()
    assert len(set(carried["source"])) == 10
    assert (rows.loc[rows["repeat"] == "image", "caption_copies"] == 1).all()
    perturbed = rows["perturbed"].to_numpy()
    assert perturbed.sum() == 2
    assert (rows["repeat"][perturbed] == "image").all()


def test_twins_say_what_their_counterparts_do(made):
    _, found = made
    expected = [("both", 3, 3), ("image", 4, 1), ("caption", 1, 5), ("image", 2, 1)]
    for place, (repeat, copies, captions) in enumerate(expected):
        rows = of_style(found.index, place)
        assert (rows["repeat"] == repeat).all()
        assert (rows["copies"] == copies).all()
        assert (rows["caption_copies"] == captions).all()
        assert (rows["caption_source"] == rows["source"]).all()
    truth = twins.read(found.index, found.twins)
    assert truth.times.tolist() == [3, 3, 4, 4, 4, 5, 5, 2, 2]
    assert truth.copies.tolist() == [3, 3, 4, 4, 4, 1, 1, 2, 2]
    assert truth.with_captions().sources.tolist() == truth.sources[:2].tolist()
    carrier = found.index.loc[found.index["repeat"] == "carrier", "source"].iloc[0]
    table = truth.of([truth.sources[6], -1, carrier, truth.sources[2]])
    expected = [[1, "caption", 5], [1, "neither", 1], [1, "carrier", 5], [4, "image", 4]]
    assert table.to_numpy().tolist() == expected


def test_captions_of_copies_are_lent_by_images_that_are_not_trained_on(made):
    everything, found = made
    train = found.train
    foreign = train.caption_sources != train.sources
    assert foreign.sum() == 9 + 2 + 8
    shown = set(train.sources.tolist()) | set(found.twins.ids.tolist())
    lenders = set(everything.ids.tolist()) - shown
    assert len(lenders) == 9 + 2
    lent = set(train.caption_sources.tolist()) - set(train.sources.tolist())
    assert lent == lenders
    caption_of = dict(zip(everything.ids.tolist(), everything.captions, strict=True))
    expected = [caption_of[source] for source in train.caption_sources.tolist()]
    assert train.captions.tolist() == expected
    shared = set(everything.ids[:SHARED].tolist())
    assert not shared & (lenders | set(found.twins.ids.tolist()))
    assert not shared & set(found.index.loc[found.index["part"] == "twin", "twin_of"])


def test_images_with_their_captions_are_planted_as_ever():
    """The style both, named or not, draws the same; and no image needs a caption of its own."""
    plant = [PLANT[0], {"copies": 4, "images": 5, "perturbation": None}]
    without = [{key: group[key] for key in ("copies", "images", "perturbation")} for group in plant]
    made = pool(60, shared=60)
    first, second = (
        planting.draw(made, np.ones(60, bool), settings(groups, 60), 3, 0)
        for groups in (plant, without)
    )
    np.testing.assert_array_equal(first.train.pixels, second.train.pixels)
    pd.testing.assert_frame_equal(first.index, second.index)
    assert set(first.index["repeat"]) == {"both", "neither"}
    assert (first.train.caption_sources == first.train.sources).all()


def test_the_twins_world_has_their_images_and_captions_in_the_same_rows(made):
    _, found = made
    truth = twins.read(found.index, found.twins)
    swapped = twins.swap(found.train, truth)
    caption_of = dict(zip(found.twins.ids.tolist(), found.twins.captions, strict=True))
    for source, twin in zip(truth.sources, truth.twins.ids, strict=True):
        shows, says = found.train.sources == source, found.train.caption_sources == source
        assert (swapped.sources[shows] == twin).all()
        assert (swapped.captions[says] == caption_of[twin]).all()
        assert (swapped.caption_sources[says] == twin).all()
        lent = shows & ~says
        assert (swapped.captions[lent] == found.train.captions[lent]).all()


def test_along_a_path_images_planted_with_their_captions_are_counted(made):
    """Generations show all planted images; the two with their captions are the denominator."""
    _, found = made
    truth = twins.read(found.index, found.twins)
    holdout = Images.of(np.random.default_rng(2).integers(0, 256, (60, 6, 6, 1), np.uint8))
    copies = path.Copies(found.train, holdout, truth, config.Extraction(), False, 0)
    shown = found.train.take(np.isin(found.train.sources, truth.sources))
    rows = {row["metric"]: row for row in copies.numbers(shown.pixels)}
    counted = rows["planted_extracted_calibrated"]
    assert (counted["count"], counted["of"]) == (2, 2)


def test_the_pool_has_the_images_that_lend_and_carry():
    images = pool(220)
    parts, table, _, _ = split(images, settings(PLANT), 0)
    assert len(parts["pool"]) == 80 - 32 + 2 * 9 + FURTHER
    found = planting.draw(parts["pool"], table["alone"].to_numpy(), settings(PLANT), 0, 0)
    manifest = planting.manifest(found, parts["pool"], PLANT)
    sources = len(np.unique(found.train.sources))
    assert manifest["distinct_training_sources"] == sources == 80 - 2 * 2 - 3 * 3 - 2
    plant = [config.Plant.model_validate(group) for group in PLANT]
    data = config.Data.model_validate(
        {"source": {"kind": "sklearn-digits"}, "split": settings(PLANT)["split"], "plant": plant}
    )
    assert data.distinct == sources


@pytest.mark.parametrize(
    ("plant", "shared", "message"),
    [
        ([PLANT[1]], 80, r"data.plant asks for 3 images .* only 3 .* with a caption of their own"),
        ([PLANT[1]], 70, r"repeat = 'image' needs 9 captions for copies, but only 7 of the images"),
    ],
)
def test_too_few_captions_are_refused(plant, shared, message):
    made = pool(83, shared)
    with pytest.raises(ConfigError, match=message):
        planting.draw(made, np.ones(83, bool), settings(plant), 0, 0)


# ---- deduplication -------------------------------------------------------------------------------


def test_images_with_one_caption_are_no_duplicates(made):
    """Equal bytes are found in the styles both and image, equal captions in both and caption; only
    images count as true."""
    _, found = made
    train, index = found.train, found.index
    rows = index[index["part"] == "train"].set_index("id").loc[train.ids]
    repeat, perturbed = rows["repeat"].to_numpy(), rows["perturbed"].to_numpy()
    true = 2 * 3 + 3 * 6 + 2 * 1
    table = {}
    for name, pairs in {
        "exact": dedup.exact_pairs(train.pixels),
        "caption": dedup.caption_pairs(train.captions),
        "both": dedup.of_one_caption(dedup.exact_pairs(train.pixels), train.captions),
    }.items():
        group = dedup.groups(len(train), [pairs])
        kept = dedup.keep(group, np.zeros((len(train), 1), np.float32), "first")
        row = dedup.score(pairs, group, kept, train.sources, perturbed, rows["kind"].to_numpy())
        assert row["true_pairs"] == true
        table[name] = row | dedup.recall_by_repeat(pairs, train, repeat)
    names = [f"recall_repeated_{style}" for style in ("both", "image", "caption")]
    assert [table["exact"][name] for name in names] == [1, 18 / 20, 0]
    assert [table["caption"][name] for name in names] == [1, 0, 1]
    assert [table["both"][name] for name in names] == [1, 0, 0]
    assert table["exact"]["pair_precision"] == 1
    assert table["exact"]["true_pairs_found"] == true - 2
    assert table["caption"]["true_pairs_found"] == 2 * 3
    assert table["caption"]["pairs_found"] > 2 * 3 + 2 * 10  # and unplanted captions
    alone = dedup.recall_by_repeat(
        dedup.exact_pairs(train.pixels), train, np.full(80, "both", object)
    )
    assert alone == {}


# ---- settings ------------------------------------------------------------------------------------


def test_a_caption_alone_has_no_copies_to_be_perturbed():
    for key, value in (("perturbation", {"noise": 0.1}), ("perturb", [{"kind": "mirror"}])):
        with pytest.raises(ValueError, match="repeat = 'caption' makes no copies of an image"):
            config.Plant.model_validate({"copies": 2, "images": 1, "repeat": "caption", key: value})


def test_lenders_count_among_the_images_needed():
    data = {
        "source": {"kind": "sklearn-digits"},
        "split": {"train": 20, "holdout": 5, "reference": 5},
        "plant": [{"copies": 4, "images": 2, "repeat": "image"}],
        "images": 31,
    }
    needed = 20 - 6 + 2 + 6 + 5 + 5
    message = "14 distinct for training, 2 twins, 6 whose captions copies have, 5 .* need 32"
    with pytest.raises(ValueError, match=message):
        config.Data.model_validate(data)
    assert config.Data.model_validate(data | {"images": needed}).distinct == 14
    caption = [{"copies": 4, "images": 2, "repeat": "caption"}]
    assert config.Data.model_validate(data | {"plant": caption, "images": 32}).distinct == 20
