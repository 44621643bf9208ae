"""An .npz from outside: plain arrays only, the right ones, and clear words about what is wrong with
others."""

import io
import zipfile

import numpy as np
import pytest

from afterimage import config
from afterimage.artifacts import ArtifactError
from afterimage.data import sources


def read(path, **arrays):
    np.savez(path, **arrays)
    return opened(path)


def opened(path, labels=True, **settings):
    return sources.read(config.ArrayFile(kind="npz", path=str(path), **settings), labels=labels)


def pixels(n=4, channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, 6, 6, channels), np.uint8)


def test_images_labels_and_ids_come_back(tmp_path):
    images, manifest = read(
        tmp_path / "a.npz", images=pixels(), labels=[3, 1, 2, 0], ids=["d", "c", "b", "a"]
    )
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
        ({"x": [1]}, config.ConfigError, r"no array named images.*it has: x \(int64 \(1,\)\)"),
        ({"images": pixels().astype(float)}, ArtifactError, "must be uint8"),
        ({"images": pixels()[0]}, ArtifactError, r"uint8 of shape .*not uint8 \(6, 6, 3\)"),
        (
            {"images": pixels(), "labels": np.array(list("abcd"))},
            ArtifactError,
            "labels must be integers.*data.source.label_array",
        ),
        (
            {"x": pixels(), "y": pixels(), "z": [1]},
            config.ConfigError,
            r"data.source.array: .* 2 arrays .* x, y; name one",
        ),
        ({"images": pixels(channels=4)}, ArtifactError, "must be uint8 of shape"),
        ({"images": pixels(), "labels": [1]}, ArtifactError, "labels has shape"),
        ({"images": pixels(), "labels": [0.5] * 4}, ArtifactError, "labels must be integers"),
        (
            {"images": pixels(), "ids": np.array([{}] * 4, object)},
            ArtifactError,
            "plain arrays: .* could run code",
        ),
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


# ---- which array ---------------------------------------------------------------------------------


def test_what_adms_sampler_writes_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", pixels(), np.array([4, 2, 0, 1]))
    images, manifest = opened(tmp_path / "a.npz")
    np.testing.assert_array_equal(images.pixels, pixels())
    assert images.labels.tolist() == [4, 2, 0, 1]
    assert manifest["choices"]["array"] == {"taken": "arr_0", "given": False, "others": []}
    assert manifest["choices"]["label_array"]["taken"] == "arr_1"


def test_arr_1_is_no_label_of_other_arrays(tmp_path):
    assert set(read(tmp_path / "a.npz", images=pixels(), arr_1=[4, 2, 0, 1])[0].labels) == {-1}


def test_the_only_array_with_the_form_of_images_is_read_and_others_are_named(tmp_path):
    images, manifest = read(
        tmp_path / "a.npz", noise=np.zeros((4, 6, 6, 3)), samples=pixels(), prompt=list("abcd")
    )
    np.testing.assert_array_equal(images.pixels, pixels())
    assert manifest["choices"]["array"] == {
        "taken": "samples",
        "given": False,
        "others": ["noise", "prompt"],
    }


def test_arrays_are_chosen_by_name(tmp_path):
    train, test = pixels(5), pixels(3)
    np.savez(
        tmp_path / "a.npz", x_train=train, y_train=[1, 2, 3, 4, 5], x_test=test, y_test=[7, 8, 9]
    )
    images, manifest = opened(tmp_path / "a.npz", array="x_test", label_array="y_test")
    np.testing.assert_array_equal(images.pixels, test)
    assert images.labels.tolist() == [7, 8, 9]
    assert manifest["choices"]["array"] == {
        "taken": "x_test",
        "given": True,
        "others": ["x_train", "y_train"],
    }
    for key in ("array", "label_array"):
        with pytest.raises(
            config.ConfigError, match=f"data.source.{key} = none: .* no such array; it has: x_train"
        ):
            opened(tmp_path / "a.npz", **{"array": "x_test", key: "none"})


def test_labels_that_are_not_wanted_are_not_looked_at(tmp_path):
    np.savez(tmp_path / "a.npz", images=pixels(), labels=np.array(list("abcd")))
    images, _ = opened(tmp_path / "a.npz", labels=False)
    assert set(images.labels) == {-1}


# ---- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("change", [0xFF, 0x01])
def test_no_changed_byte_gives_other_images_or_a_traceback(tmp_path, save, change):
    save(tmp_path / "a.npz", images=pixels(), labels=[3, 1, 2, 0])
    whole = (tmp_path / "a.npz").read_bytes()
    refused = []
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= change
        (tmp_path / "a.npz").write_bytes(damaged)
        try:
            images, _ = opened(tmp_path / "a.npz")
        except ArtifactError as error:
            refused.append(str(error))
        else:
            np.testing.assert_array_equal(images.pixels, pixels())
            assert images.labels.tolist() == [3, 1, 2, 0]
    assert len(refused) > len(whole) / 2
    assert all("a.npz cannot be read" in said for said in refused)


def test_a_shorter_shape_in_the_header_is_not_believed(tmp_path):
    stream = io.BytesIO()
    np.save(stream, pixels())
    shorter = stream.getvalue().replace(b"(4, 6, 6, 3)", b"(2, 6, 6, 3)")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", shorter)
    with pytest.raises(ArtifactError, match="longer than its header says"):
        opened(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n",
            r"a\.npz is a git-lfs pointer",
        ),
        ("/annex/objects/SHA256E-s9--aa.npz\n", r"a\.npz is a git-annex pointer"),
        (
            "<html>",
            r"a\.npz cannot be read as an \.npz file of plain arrays: File is not a zip file",
        ),
    ],
)
def test_what_stands_in_place_of_a_file_is_named_without_advice_to_load_it_unsafely(
    tmp_path, text, words
):
    (tmp_path / "a.npz").write_text(text)
    with pytest.raises(ArtifactError, match=words) as error:
        opened(tmp_path / "a.npz")
    assert "pickle" not in str(error.value)
