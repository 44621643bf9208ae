"""Variants of captions: what stands in the place of each image's caption, from the source's columns
to what networks are given."""

import argparse
import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.cli import main
from afterimage.config import ConfigError
from afterimage.config.texts import (
    ColumnCaptions,
    FixedCaption,
    GeneralCaptions,
    RandomCaptions,
)
from afterimage.data import encode
from afterimage.data.captions import general, rewritten
from afterimage.diffusion.sample import Prompts
from afterimage.diffusion.texts import Texts
from afterimage.images import Images

SETTINGS = {"vocabulary": 300, "length": 20, "width": 16, "layers": 1, "heads": 2}


def images(ids, captions, **columns) -> Images:
    pixels = np.zeros((len(ids), 4, 4, 1), np.uint8)
    return Images.of(pixels, ids=np.array(ids), captions=np.array(captions), **columns)


POOL = images([5, 7, 9, 11], ["a red cat", "a red dog", "a blue Cat", "a red cat"])
HOLDOUT = images([2], ["the green cat"])
REFERENCE = images([3], ["a dog"])
FUSION = REFERENCE.take(np.array([], int))
PARTS = [POOL, HOLDOUT, REFERENCE, FUSION]

# ---- the texts -----------------------------------------------------------------------------------


def test_general_captions_keep_the_most_frequent_words_in_their_order():
    """In the pool: a 4, red 3, cat 3, dog 1, blue 1; of red and cat, the first one stays."""
    found = rewritten(GeneralCaptions(kind="general", words=2), "short", PARTS, 0)
    assert found == {
        5: "a red",
        7: "a red",
        9: "a Cat",
        11: "a red",
        2: "the cat",
        3: "a dog",
    }


def test_a_word_counts_once_for_a_caption_and_stays_once():
    frequency = Counter({"a": 3, "b": 2, "c": 2})
    assert general("c A b a b", 3, frequency) == "c A b"
    assert general("c A b a b", 2, frequency) == "c A"
    assert general("only", 4, frequency) == "only"
    twice = [images([0, 1], ["x x x y", "y z"])]
    assert rewritten(GeneralCaptions(kind="general", words=1), "g", twice, 0) == {0: "y", 1: "y"}


def test_a_fixed_caption_is_that_of_every_image():
    found = rewritten(FixedCaption(kind="fixed", caption=" an image "), "one", PARTS, 0)
    assert found == dict.fromkeys([5, 7, 9, 11, 2, 3], "an image")


def test_random_captions_are_words_of_the_pool_and_of_their_image():
    variant = RandomCaptions(kind="random", words=6)
    found = rewritten(variant, "random", PARTS, 0)
    words = {"a", "red", "cat", "dog", "blue", "Cat"}
    assert found.keys() == {5, 7, 9, 11, 2, 3}
    assert all(len(text.split()) == 6 for text in found.values())
    assert {word for text in found.values() for word in text.split()} <= words
    assert found[5] != found[11]  # two images with one caption
    assert rewritten(variant, "random", [POOL.take(np.array([3, 1, 2, 0]))], 0) == {
        image: found[image] for image in (11, 7, 9, 5)
    }
    assert rewritten(variant, "random", PARTS, 1) != found
    assert rewritten(variant, "other", PARTS, 0) != found


def test_random_words_are_drawn_uniformly():
    """From the different words, however often captions have them."""
    many = images(range(2000), ["often rare"] + ["often"] * 1999)
    found = rewritten(RandomCaptions(kind="random", words=1), "random", [many], 0)
    assert 900 < list(found.values()).count("rare") < 1100  # 1000 with deviation 22


def test_a_column_goes_by_image_not_by_caption():
    columns = pd.DataFrame({"id": [2, 3, 5, 7, 9, 11], "kind": list("uvwxyz")})
    variant = ColumnCaptions(kind="column", column="any")
    found = rewritten(variant, "kind", PARTS, 0, columns)
    assert found == {2: "u", 3: "v", 5: "w", 7: "x", 9: "y", 11: "z"}
    with pytest.raises(ArtifactError, match="variant kind has no text for image 7"):
        rewritten(variant, "kind", PARTS, 0, columns[columns["id"] != 7])


# ---- the source ----------------------------------------------------------------------------------


def fetched(folder: Path, texts, resolved, column: str = "kind", number: int | None = None) -> int:
    cells = []
    for pixels in np.random.default_rng(0).integers(0, 256, (len(texts), 4, 4, 3), np.uint8):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        cells.append({"bytes": stream.getvalue(), "path": None})
    table = {"image": cells, "text": [f"image {n}" for n in range(len(texts))]}
    table["kind"] = texts
    pq.write_table(pa.table(table), folder / "a.parquet")
    source = {"kind": "parquet", "path": str(folder / "a.parquet"), "caption_column": "text"}
    settings = {"source": source, "classes": None, "images": number, "colour": "keep"}
    settings |= {"resize": None, "resize_filter": "bilinear", "crop": "centre"}
    settings |= {"captions": {"general": column}}
    config = resolved("data/fetch", settings)
    return main(["data", "fetch", "--config", config, "--out", str(folder / "fetch")])


def test_columns_are_fetched_with_the_images_that_are_kept(tmp_path, resolved):
    texts = [f"kind {n % 3}" for n in range(10)]
    assert fetched(tmp_path, texts, resolved, number=6) == 0
    kept = pd.read_parquet(tmp_path / "fetch" / "captions.parquet")
    assert list(kept.columns) == ["id", "general"]
    assert len(kept) == 6
    assert kept["general"].tolist() == [texts[row] for row in kept["id"]]
    assert "variants" not in json.loads((tmp_path / "fetch" / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("sort", "text.captions.general.column = sort: "),
        ("image", "text.captions.general.column = image: "),
    ],
)
def test_a_column_that_is_not_there_is_refused_by_name(tmp_path, resolved, capsys, column, message):
    assert fetched(tmp_path, ["a"] * 4, resolved, column) == 2
    assert message in capsys.readouterr().err


def test_images_without_a_text_in_the_column_are_named(tmp_path, resolved, capsys):
    assert fetched(tmp_path, ["a", None, " ", "b"], resolved) == 2
    expected = "2 of 4 images have no caption in column kind: a.parquet:1, a.parquet:2"
    assert expected in capsys.readouterr().err


# ---- the embeddings ------------------------------------------------------------------------------


@pytest.fixture
def encoded(tmp_path, resolved):
    """Return the store of one variant."""
    settings = {"step": "data/split", "arm": None, "replicate": None, "seed": 3, "settings": {}}
    with artifacts.step(settings, tmp_path / "split", {}, ("afterimage.seeds",)) as step:
        for name, part in zip(encode.PARTS, PARTS, strict=True):
            part.save(step.folder / f"{name}.npz")
        columns = pd.DataFrame({"id": [2, 3, 5, 7, 9, 11], "kind": list("uvwxyw")})
        columns.to_parquet(step.folder / "captions.parquet")
    parts = {name: tmp_path / "split" / f"{name}.npz" for name in encode.PARTS}

    def run(name: str, variant: dict | None = None, columns: bool = False) -> Path:
        out = tmp_path / name
        own = {} if variant is None else {"captions": {name: variant}}
        config = Path(resolved("data/encode", SETTINGS | own, job=name))
        file = tmp_path / "split" / "captions.parquet" if columns else None
        encode.run(argparse.Namespace(**parts, columns=file, config=config, out=out))
        return out

    return run


COLUMN = {"kind": "column", "column": "sort"}


def test_a_variants_store_has_the_row_of_every_image(encoded):
    out = encoded("kind", COLUMN, columns=True)
    texts = Texts.load(out)
    assert json.loads((out / "captions.json").read_text()) == list("uvwxy")
    assert texts.embeddings.shape == (5, 20, 16)
    for part, expected in ((POOL, "wxyw"), (HOLDOUT, "u"), (REFERENCE, "v")):
        assert texts.captions_of(part).tolist() == list(expected)
        assert texts.rows_of(part).tolist() == ["uvwxy".index(text) for text in expected]
    inputs = artifacts.read_run(out)["inputs"]
    assert set(inputs) == {*encode.PARTS, "columns"}


def test_original_captions_are_found_by_their_text(encoded):
    out = encoded("original")
    texts = Texts.load(out)
    assert texts.captions_of(POOL).tolist() == POOL.captions.tolist()
    assert set(load_file(out / "texts.safetensors")) == {"embeddings", "null"}
    assert torch.equal(texts.rows_of(POOL), texts.rows(POOL.captions))


def test_variants_share_tokenizer_and_text_encoder(encoded):
    """The same text has the same embedding in each."""
    original = Texts.load(encoded("original"))
    fixed = Texts.load(encoded("same", {"kind": "fixed", "caption": "a red dog"}))
    torch.testing.assert_close(fixed.embeddings[0], original.embeddings[original.row["a red dog"]])
    torch.testing.assert_close(fixed.null, original.null)


def test_rows_have_the_text_of_the_image_that_their_caption_is_of(encoded):
    """Copies with another caption, and images that carry another's."""
    texts = Texts.load(encoded("kind", COLUMN, columns=True))
    planted = images(range(4), ["?"] * 4, sources=[5, 5, 7, 9], caption_sources=[5, 9, 5, 9])
    assert texts.captions_of(planted).tolist() == ["w", "y", "w", "y"]
    unknown = replace(planted, caption_sources=np.array([5, 9, 5, 4]))
    with pytest.raises(ArtifactError, match="the caption of image 4 was not encoded"):
        texts.rows_of(unknown)


def test_prompts_are_of_the_same_images_in_every_variant(encoded, tmp_path):
    settings = {"step": "data/planting", "arm": None, "replicate": None, "seed": 1, "settings": {}}
    with artifacts.step(settings, tmp_path / "planting", {}, ("afterimage.seeds",)) as step:
        POOL.save(step.folder / "train.npz")
    file = tmp_path / "planting" / "train.npz"
    resolved = {"seed": 1, "replicate": 0}
    stores = encoded("original"), encoded("kind", COLUMN, columns=True)
    drawn = [Prompts.of(store, file, 40, resolved) for store in stores]
    assert drawn[0] is not None
    assert drawn[1] is not None
    kind_of = {"a red cat": "w", "a red dog": "x", "a blue Cat": "y"}
    assert drawn[1].captions.tolist() == [kind_of[text] for text in drawn[0].captions.tolist()]
    assert len(set(drawn[1].captions.tolist())) == 3
    encoded_texts, rows = drawn[1].rows(np.arange(40))
    assert [list(encoded_texts.row)[row] for row in rows] == drawn[1].captions.tolist()


def test_the_column_is_neither_missing_nor_superfluous(encoded):
    with pytest.raises(ConfigError, match=r"--columns is None, but .* kind is one"):
        encoded("kind", COLUMN)
    with pytest.raises(ConfigError, match=r"--columns is .*, but .* original is none"):
        encoded("original", columns=True)
