"""Captions of a study's images: read from parquet, checked, and kept with the images."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from afterimage import config
from afterimage.artifacts import ArtifactError
from afterimage.attacks import twins
from afterimage.config import ConfigError
from afterimage.data import planting, sources
from afterimage.images import Images

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
TEXTS = [f"{'large ' * (n % 3)}picture {n % 5}" for n in range(12)]


def parquet(path, captions=TEXTS, kind=None, **options) -> config.Parquet:
    cells = []
    for pixels in PIXELS[: len(captions)]:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="PNG")
        cells.append({"bytes": stream.getvalue(), "path": None})
    table = pa.table({"image": cells, "text": pa.array(captions, kind)})
    pq.write_table(table, path / "a.parquet")
    return config.Parquet(kind="parquet", path=str(path / "a.parquet"), **options)


def test_captions_are_those_of_their_images(tmp_path):
    images, manifest = sources.read(parquet(tmp_path, caption_column="text"))
    assert images.captions.tolist() == TEXTS
    np.testing.assert_array_equal(images.pixels, PIXELS)
    assert manifest["captions"] == len(set(TEXTS))


def test_without_the_setting_no_captions_are_read(tmp_path):
    images, manifest = sources.read(parquet(tmp_path))
    assert images.captions.tolist() == [""] * 12
    assert manifest["captions"] is None


def test_captions_may_be_a_dictionary_of_texts(tmp_path):
    encoded = pa.dictionary(pa.int32(), pa.string())
    source = parquet(tmp_path, kind=encoded, caption_column="text")
    assert pq.read_schema(tmp_path / "a.parquet").field("text").type == encoded
    assert sources.read(source)[0].captions.tolist() == TEXTS


@pytest.mark.parametrize("missing", [None, "", "  "])
def test_images_without_a_caption_are_named(tmp_path, missing):
    captions = [missing if n in (3, 7) else text for n, text in enumerate(TEXTS)]
    message = r"2 of 12 images have no caption: a\.parquet:3, a\.parquet:7"
    with pytest.raises(ArtifactError, match=message):
        sources.read(parquet(tmp_path, captions, caption_column="text"))


def test_many_missing_captions_are_counted(tmp_path):
    with pytest.raises(ArtifactError, match=r"a\.parquet:9 and 2 more"):
        sources.read(parquet(tmp_path, [""] * 12, caption_column="text"))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("caption", r"data.source.caption_column = caption: .*a.parquet has no such column"),
        ("image", r"data.source.caption_column = image: .* but captions must be text"),
    ],
)
def test_a_column_that_has_no_captions_is_refused_by_name(tmp_path, column, message):
    with pytest.raises(ConfigError, match=message):
        sources.read(parquet(tmp_path, caption_column=column))


def test_planted_copies_and_twins_keep_their_captions():
    rng = np.random.default_rng(1)
    pool = Images.of(
        rng.integers(0, 256, (40, 4, 4, 1), np.uint8),
        ids=100 + np.arange(40),
        labels=np.arange(40) % 2,
        captions=[f"number {n}" * (1 + n % 2) for n in range(40)],
    )
    settings = {
        "split": {"train": 30, "holdout": 4, "reference": None, "fusion": 0, "official": False},
        "plant": [{"copies": 4, "images": 3, "perturbation": None}],
        "plantings": 1,
        "flips": False,
    }
    drawn = planting.draw(pool, np.ones(40, bool), settings, 0, 0)
    caption_of = dict(zip(pool.ids.tolist(), pool.captions.tolist(), strict=True))
    for part in (drawn.train, drawn.twins):
        assert part.captions.tolist() == [caption_of[source] for source in part.sources.tolist()]
    swapped = twins.swap(drawn.train, twins.read(drawn.index, drawn.twins))
    assert swapped.captions.tolist() == [caption_of[source] for source in swapped.sources.tolist()]
    assert set(swapped.sources.tolist()) != set(drawn.train.sources.tolist())
