"""A source of images is a block in ``config/data.py`` and a module that reads it, and nothing
else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import afterimage
from afterimage import provenance
from afterimage.config.data import Data, HuggingFace, Parquet, Shapes, SklearnDigits, SourceBlock
from afterimage.data import sources
from afterimage.images import load_images

BLOCK = '''
class Stripes(SourceBlock):
    """Grey 4x4 images, the n-th of which has the value n everywhere."""

    reader: ClassVar[str] = "afterimage.data.stripes"
    known_shape: ClassVar[Shape | None] = (4, 4, 1)

    kind: Literal["stripes"]
    count: int
    """Number of images."""
    licence: str = "CC0"
    """Note kept in the manifest."""


'''
READER = """
import numpy as np
from functools import partial

from afterimage.data.records import Contents, Record


def contents(source, reading):
    del reading
    images = [np.full((4, 4, 1), row, np.uint8) for row in range(source.count)]
    return Contents([Record(partial(np.asarray, image), row % 2, f"row {row}")
                     for row, image in enumerate(images)], {})
"""


def test_a_toy_source_takes_two_files(tmp_path, resolved):
    package = tmp_path / "src" / "afterimage"
    shutil.copytree(
        Path(afterimage.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    blocks = package / "config" / "data.py"
    text = blocks.read_text()
    text = text.replace("Source = Annotated[\n", f"{BLOCK}Source = Annotated[\n    Stripes | ")
    blocks.write_text(text)
    (package / "data" / "stripes.py").write_text(READER)

    settings = {
        "source": {"kind": "stripes", "count": 6},
        "classes": [1],
        "images": None,
        "colour": "rgb",
        "resize": None,
        "resize_filter": "bilinear",
        "crop": "centre",
    }
    command = [sys.executable, "-m", "afterimage.cli", "data", "fetch"]
    command += ["--config", resolved("data/fetch", settings), "--out", str(tmp_path / "fetch")]
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    images = load_images(tmp_path / "fetch" / "images.npz")
    assert images.pixels.shape == (3, 4, 4, 3)
    assert images.pixels[:, 0, 0, 0].tolist() == [1, 3, 5]
    manifest = json.loads((tmp_path / "fetch" / "manifest.json").read_text())
    assert (manifest["licence"], manifest["counts"]["class"]) == ("CC0", {"1": 3})
    run = json.loads((tmp_path / "fetch" / "run.json").read_text())
    assert run["code_entries"] == ["afterimage.data.fetch", "afterimage.data.stripes"]


@pytest.mark.parametrize("block", SourceBlock.__subclasses__())
def test_the_fingerprint_of_a_source_has_its_own_reader_only(block):
    readers = {each.reader for each in SourceBlock.__subclasses__()}
    modules = set(provenance.modules_of("afterimage.data.fetch", block.reader))
    rows = {Parquet.reader} if block is HuggingFace else set()  # the Hub's files are parquet
    assert modules & readers == {block.reader} | rows


def test_the_known_shape_is_that_of_the_images():
    known = {block for block in SourceBlock.__subclasses__() if block.known_shape is not None}
    drawn = [SklearnDigits(kind="sklearn-digits"), Shapes(kind="shapes", each=1)]
    assert known == {type(source) for source in drawn}
    for source in drawn:
        images, _ = sources.read(source)
        assert images.pixels.shape[1:] == source.known_shape


@pytest.mark.parametrize(
    ("source", "options", "shape"),
    [
        ({"kind": "sklearn-digits"}, {}, (8, 8, 1)),
        ({"kind": "sklearn-digits"}, {"colour": "rgb", "resize": 16}, (16, 16, 3)),
        ({"kind": "npz", "path": "a.npz"}, {}, (32, 24, 3)),
        ({"kind": "npz", "path": "a.npz"}, {"resize": 12}, (12, 12, 3)),
        ({"kind": "npz", "path": "a.npz"}, {"colour": "grey"}, (32, 24, 1)),
    ],
)
def test_a_study_knows_the_shape_of_its_images_as_far_as_it_says(source, options, shape):
    data = Data(source=source, split={"train": 4, "holdout": 2}, **options)
    assert data.image_shape(assumed=(32, 24, 3)) == shape
