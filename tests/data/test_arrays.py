"""An .npz from outside: plain arrays only, and clear words about what is wrong with others."""

import numpy as np
import pytest

from afterimage import config
from afterimage.artifacts import ArtifactError
from afterimage.data import sources


def read(path, **arrays):
    np.savez(path, **arrays)
    return sources.read(config.ArrayFile(kind="npz", path=str(path)))


def pixels(n=4, channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, 6, 6, channels), np.uint8)


def test_images_labels_and_ids_come_back(tmp_path):
    images, manifest = read(tmp_path / "a.npz", images=pixels(), labels=[3, 1, 2, 0], ids=["d", "c", "b", "a"])
    np.testing.assert_array_equal(images.pixels, pixels())
    assert images.labels.tolist() == [3, 1, 2, 0]
    assert manifest["names"] == ["d", "c", "b", "a"]


def test_labels_and_ids_may_be_absent_and_grey_may_lack_its_axis(tmp_path):
    images, manifest = read(tmp_path / "a.npz", images=pixels(channels=1)[..., 0])
    np.testing.assert_array_equal(images.pixels, pixels(channels=1))
    assert set(images.labels) == {-1}
    assert manifest["names"] is None


@pytest.mark.parametrize(
    ("arrays", "kind", "words"),
    [
        ({"x": [1]}, config.ConfigError, "no array named images; it has: x"),
        ({"images": pixels().astype(float)}, ArtifactError, "must be uint8"),
        ({"images": pixels(channels=4)}, ArtifactError, "must be uint8 of shape"),
        ({"images": pixels(), "labels": [1]}, ArtifactError, "labels has shape"),
        ({"images": pixels(), "labels": [0.5] * 4}, ArtifactError, "labels must be integers"),
        ({"images": pixels(), "ids": np.array([{}] * 4, object)}, ArtifactError, "plain arrays"),
    ],
)
def test_wrong_files_are_explained(tmp_path, arrays, kind, words):
    with pytest.raises(kind, match=words):
        read(tmp_path / "a.npz", **arrays)


def test_absent_and_damaged_files(tmp_path):
    with pytest.raises(config.ConfigError, match="no such file"):
        sources.read(config.ArrayFile(kind="npz", path=str(tmp_path / "none.npz")))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ArtifactError, match="cannot be read"):
        sources.read(config.ArrayFile(kind="npz", path=str(tmp_path / "bad.npz")))
