"""Images many times as large as the memory for them: the steps that read them hold a part at once.

What is compared with "all in memory" is the same set of steps with arrays of any size in memory.
"""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from afterimage import scratch
from afterimage.attacks.target import Target
from afterimage.config import Extraction
from afterimage.config.data import ImageFolder
from afterimage.data import planting, sources
from afterimage.data.split import split
from afterimage.images import load_images
from afterimage.metrics import neighbours

SIDE, COUNT = 224, 260
BYTES = COUNT * SIDE * SIDE * 3
SETTINGS = {
    "split": {"train": 140, "holdout": 30, "reference": 60, "fusion": 0, "official": False},
    "plant": [{"copies": 4, "images": 5, "perturbation": {"noise": 0.02, "brightness": 0.0}}],
    "plantings": 1,
    "flips": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of images of four coloured squares."""
    made = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        pixels = pixels.repeat(SIDE // 2, axis=0).repeat(SIDE // 2, axis=1)
        Image.fromarray(pixels).save(made / f"{number:04}.bmp")
    return made


def steps(folder, out):
    """Fetch, split, plant and attack, each from the files of the one before."""
    images, _ = sources.read(ImageFolder(kind="image_folder", path=str(folder), licence="CC0"))
    images.save(out / "images.npz")
    parts, table, _, _ = split(load_images(out / "images.npz", check=False), SETTINGS, 0)
    for name, part in parts.items():
        part.save(out / f"{name}.npz")
    pool = load_images(out / "pool.npz", check=False)
    planted = planting.draw(pool, table["alone"].to_numpy(), SETTINGS, 0, 0)
    planted.train.save(out / "train.npz")
    target = Target(load_images(out / "train.npz", check=False).pixels, Extraction(), False)
    return target.score(load_images(out / "holdout.npz", check=False).pixels)


def measured(folder, out):
    """Return the scores, and the most bytes that were in memory and in no file."""
    out.mkdir()
    tracemalloc.start()
    try:
        return steps(folder, out), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_no_step_holds_all_images(folder, tmp_path, monkeypatch):
    scores, whole = measured(folder, tmp_path / "memory")
    monkeypatch.setattr(scratch, "LARGEST_IN_MEMORY", 2**20)
    monkeypatch.setattr(scratch, "BLOCK", 2**21)
    monkeypatch.setattr(neighbours, "_QUERY_VALUES", 2**19)
    again, mapped = measured(folder, tmp_path / "mapped")
    assert whole > 2 * BYTES
    assert mapped < BYTES / 2  # numpy writes an array in parts of 16 MB
    for name in ("images", "pool", "holdout", "reference", "train"):
        first, second = (tmp_path / way / f"{name}.npz" for way in ("memory", "mapped"))
        assert first.read_bytes() == second.read_bytes()
    np.testing.assert_array_equal(again.row, scores.row)
    np.testing.assert_array_equal(again.distance, scores.distance)
