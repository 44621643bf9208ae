"""Every source kind gives the same images, labels and manifest, whatever the form; damage is
counted and named."""

from __future__ import annotations

import hashlib
import io
import json
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import TypeAdapter
from sklearn.datasets import load_digits

from afterimage import config
from afterimage.artifacts import ArtifactError
from afterimage.cli import main
from afterimage.data import parquet as parquet_files
from afterimage.data import sources
from afterimage.data.fetch import fetch
from afterimage.data.records import STUDY
from afterimage.images import load_images

GREY = np.random.default_rng(0).integers(0, 256, (6, 5, 5), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(path: Path, pixels, labels=None, image_column: str = "img", **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {image_column: [{"bytes": png(image), "path": None} for image in pixels]}
    pq.write_table(pa.table(table | ({} if labels is None else {"label": labels}) | columns), path)
    return path


def parquet(path, **options) -> config.Parquet:
    return config.Parquet(kind="parquet", path=str(path), **options)


def folder(path, **options) -> config.ImageFolder:
    return config.ImageFolder(kind="image_folder", path=str(path), **options)


# ---- digits --------------------------------------------------------------------------------------


def test_digits_use_the_full_range():
    images, manifest = sources.read(config.SklearnDigits(kind="sklearn-digits"))
    assert images.pixels.shape == (1797, 8, 8, 1)
    values = load_digits().images
    for sixteenth, byte in {0: 0, 1: 16, 8: 128, 15: 239, 16: 255}.items():
        assert set(images.pixels[..., 0][values == sixteenth]) == {byte}
    assert np.bincount(images.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert not images.official_test.any()
    assert manifest["image_shape"] == [8, 8, 1]


# ---- parquet -------------------------------------------------------------------------------------


def test_parquet_pixels_come_back(tmp_path):
    write_parquet(tmp_path / "train.parquet", COLOUR[:4], [3, 1, 2, 1], index=[9, 8, 7, 6])
    write_parquet(tmp_path / "test.parquet", COLOUR[4:], [5, 5])
    images, manifest = sources.read(
        parquet(tmp_path / "train.parquet", test_path=str(tmp_path / "te*.parquet"))
    )
    assert np.array_equal(images.pixels, COLOUR)
    assert images.labels.tolist() == [3, 1, 2, 1, 5, 5]
    assert images.ids.tolist() == images.sources.tolist() == [0, 1, 2, 3, 4, 5]
    assert images.official_test.tolist() == [False] * 4 + [True] * 2
    expected = {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("train.parquet", "test.parquet")
    }
    assert manifest["raw_files"] == expected


def test_several_files_are_read_in_sorted_order_and_variables_expanded(tmp_path, monkeypatch):
    for number in (1, 0, 2):
        write_parquet(
            tmp_path / f"part-{number}.parquet", GREY[2 * number : 2 * number + 2], [number, number]
        )
    monkeypatch.setenv("HERE", str(tmp_path))
    images, _ = sources.read(parquet("$HERE/part-*.parquet"))
    assert np.array_equal(images.pixels[..., 0], GREY)
    monkeypatch.delenv("HERE")
    with pytest.raises(config.ConfigError, match="HERE is not set"):
        sources.read(parquet("$HERE/part-*.parquet"))


def test_what_is_kept_of_large_images_bounds_the_memory(tmp_path, monkeypatch):
    """Neither pixels nor the bytes of the file stay of an image that ``each`` makes small."""
    large = np.random.default_rng(0).integers(0, 256, (60, 200, 200, 3), dtype=np.uint8)
    write_parquet(tmp_path / "large.parquet", large)
    monkeypatch.setattr(parquet_files, "_ROWS_AT_ONCE", 4)
    tracemalloc.start()
    try:
        images, _ = sources.read(
            parquet(tmp_path / "large.parquet"), each=lambda _, pixels: pixels[::25, ::25].copy()
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (images.pixels == large[:, ::25, ::25]).all()
    assert peak < large.nbytes / 3


def test_a_plain_binary_column_and_missing_labels(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "picture": [png(GREY[0]), png(GREY[1])]}), path)
    images, _ = sources.read(parquet(path))
    assert np.array_equal(images.pixels[..., 0], GREY[:2])
    assert images.labels.tolist() == [-1, -1]


def test_chosen_columns_are_used(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", GREY, [0] * 6, fine=[1, 2, 3, 4, 5, None], thumb=[png(GREY[5])] * 6
    )
    images, _ = sources.read(parquet(path, image_column="thumb", label_column="fine"))
    assert (images.pixels[..., 0] == GREY[5]).all()
    assert images.labels.tolist() == [1, 2, 3, 4, 5, -1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_column": "image"},
            r"image_column = image.*columns are img \(struct<.*, label \(int64\), name \(string\)",
        ),
        ({"image_column": "label"}, "image_column = label"),
        ({"label_column": "klass"}, r"label_column = klass.*columns are img"),
        (
            {"label_column": "real"},
            r"label_column = real: .* has double there, but labels must be integers or text.*or "
            r"false",
        ),
    ],
)
def test_a_missing_column_lists_those_that_there_are(tmp_path, options, message):
    path = write_parquet(tmp_path / "a.parquet", GREY, [0] * 6, name=list("abcdef"), real=[0.5] * 6)
    with pytest.raises(config.ConfigError, match=message):
        sources.read(parquet(path, **options))


def test_a_file_without_images_is_an_error(tmp_path):
    pq.write_table(pa.table({"label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(
        config.ConfigError, match=r"no column with images.*columns are label \(int64\)"
    ):
        sources.read(parquet(tmp_path / "a.parquet"))


def test_checksums_are_kept_to(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", GREY)
    good = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(sources.read(parquet(path, sha256={"a.parquet": good}))[0]) == 6
    with pytest.raises(ArtifactError, match=f"sha256 {good}, but data.source.sha256 expects 00"):
        sources.read(parquet(path, sha256={"a.parquet": "0" * 64}))
    with pytest.raises(
        config.ConfigError, match=r"sha256 names b\.parquet, but the files are a\.parquet"
    ):
        sources.read(parquet(path, sha256={"b.parquet": good}))


def test_damaged_parquet_is_named(tmp_path):
    with pytest.raises(config.ConfigError, match="matches no file"):
        sources.read(parquet(tmp_path / "none.parquet"))
    whole = write_parquet(tmp_path / "a.parquet", GREY).read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"a\.parquet is not a readable parquet file"):
        sources.read(parquet(tmp_path / "a.parquet"))
    table = {
        "img": [
            {"bytes": png(GREY[0]), "path": "x"},
            {"bytes": None, "path": "y.png"},
            {"bytes": b"no", "path": ""},
        ]
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(
        ArtifactError,
        match=r"2 of 3 images.*a\.parquet:1 \(no bytes, only the path 'y\.png'\); a\.parquet:2",
    ):
        sources.read(parquet(tmp_path / "a.parquet"))


def test_different_sizes_need_a_resize(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [*GREY, GREY[0, :4], COLOUR[0]])
    with pytest.raises(
        ArtifactError, match=r"3 different shapes: 5x5x1 \(6 images\).*set data\.resize.*2 differ"
    ):
        sources.read(parquet(path))
    images, _ = sources.read(parquet(path), colour="rgb", resize=4)
    assert images.pixels.shape == (8, 4, 4, 3)


def test_real_cifar10(real_data):
    images, _ = sources.read(parquet(real_data / "cifar10-jpeg75" / "test.parquet"))
    assert images.pixels.shape == (10_000, 32, 32, 3)
    assert np.bincount(images.labels).tolist() == [1000] * 10
    means = images.pixels.mean(axis=(0, 1, 2)) / 255  # CIFAR-10's well-known test means
    assert means == pytest.approx([0.4942, 0.4851, 0.4504], abs=0.005)


def test_real_mnist(real_data):
    images, _ = sources.read(parquet(real_data / "mnist" / "test.parquet"))
    assert images.pixels.shape == (10_000, 28, 28, 1)
    assert np.bincount(images.labels).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert images.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert images.pixels.mean() / 255 == pytest.approx(0.1325, abs=0.0005)


def two_columns(path: Path, first, second) -> Path:
    cells = [[{"bytes": raw, "path": None} for raw in column] for column in (first, second)]
    pq.write_table(pa.table({"conditioning_image": cells[0], "image": cells[1]}), path)
    return path


def test_of_several_columns_with_images_none_is_taken_by_its_place(tmp_path):
    path = two_columns(tmp_path / "a.parquet", map(png, GREY[::-1]), map(png, GREY))
    with pytest.raises(
        config.ConfigError,
        match=r"data\.source\.image_column: .*2 columns .*: conditioning_image, image; name one",
    ):
        sources.read(parquet(path))
    images, manifest = sources.read(parquet(path, image_column="image"))
    assert np.array_equal(images.pixels[..., 0], GREY)
    assert manifest["choices"]["image_column"] == {
        "taken": "image",
        "given": True,
        "others": ["conditioning_image"],
    }


def test_bytes_that_are_no_images_are_no_choice(tmp_path):
    path = two_columns(tmp_path / "a.parquet", [b"ID3 sound"] * 6, map(png, GREY))
    images, manifest = sources.read(parquet(path))
    assert np.array_equal(images.pixels[..., 0], GREY)
    assert manifest["choices"]["image_column"] == {
        "taken": "image",
        "given": False,
        "others": ["conditioning_image"],
    }


def test_text_labels_are_numbered_by_their_sorted_names(tmp_path):
    write_parquet(tmp_path / "1.parquet", GREY[:3], ["dog", "cat", None])
    write_parquet(
        tmp_path / "2.parquet", GREY[3:], pa.array(["ant", "dog", "cat"]).dictionary_encode()
    )
    images, manifest = sources.read(parquet(tmp_path / "*.parquet"))
    assert images.labels.tolist() == [2, 1, -1, 0, 2, 1]
    assert manifest["class_names"] == ["ant", "cat", "dog"]
    write_parquet(tmp_path / "3.parquet", GREY[:1], [7])
    with pytest.raises(
        config.ConfigError, match=r"labels are text in .*, integers in .*3\.parquet"
    ):
        sources.read(parquet(tmp_path / "*.parquet"))


@pytest.mark.parametrize("labels", [[0.5] * 6, [[1, 2]] * 6, [{"a": 1}] * 6])
def test_labels_are_asked_for_only_where_they_are_wanted(tmp_path, labels):
    path = write_parquet(tmp_path / "a.parquet", GREY, labels)
    with pytest.raises(
        config.ConfigError,
        match=r"data\.source\.label_column = label: .* must be integers or text.*or false",
    ):
        sources.read(parquet(path))
    for images, _ in (
        sources.read(parquet(path), labels=False),
        sources.read(parquet(path, label_column=False)),
    ):
        assert set(images.labels) == {-1}


def test_a_folder_of_parquet_files_is_read_whole(tmp_path):
    write_parquet(tmp_path / "set" / "b.PARQUET", GREY[2:4])
    write_parquet(tmp_path / "set" / "a.parquet", GREY[:2])
    write_parquet(tmp_path / "more" / "c.pq", GREY[4:])
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "more")
    (tmp_path / "set" / "README.md").write_text("x")
    images, manifest = sources.read(parquet(tmp_path / "set"))
    assert np.array_equal(images.pixels[..., 0], GREY)
    assert manifest["ignored"] == [
        {"name": "README.md", "reason": "not parquet files by their ending"}
    ]


def test_a_folder_with_training_and_test_files_is_not_read_as_one(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00001.parquet", GREY[:3])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", GREY[3:])
    with pytest.raises(
        config.ConfigError, match=r"several splits \(test, train\); name the files of one"
    ):
        sources.read(parquet(tmp_path))
    assert len(sources.read(parquet(tmp_path / "train-*"))[0]) == 3


def test_an_image_with_frames_in_a_row_stays_one_row(tmp_path):
    stream = io.BytesIO()
    first, *others = map(Image.fromarray, GREY[:3])
    first.save(stream, "TIFF", save_all=True, append_images=others)
    pq.write_table(pa.table({"image": [stream.getvalue(), png(GREY[3])]}), tmp_path / "a.parquet")
    images, manifest = sources.read(parquet(tmp_path / "a.parquet"))
    assert np.array_equal(images.pixels[..., 0], GREY[[0, 3]])
    assert images.ids.tolist() == [0, 1]
    assert [entry["name"] for entry in manifest["ignored"]] == ["a.parquet:0[1]", "a.parquet:0[2]"]


@pytest.mark.parametrize(
    "text", ["version https://git-lfs.github.com/spec/v1\n", "/annex/objects/SHA256E-s9--aa\n"]
)
def test_a_pointer_in_place_of_parquet_or_zip_is_named(tmp_path, text):
    for name in ("a.parquet", "a.zip"):
        (tmp_path / name).write_text(text)
    with pytest.raises(ArtifactError, match=r"a\.parquet is a git-(lfs|annex) pointer"):
        sources.read(parquet(tmp_path / "a.parquet"))
    with pytest.raises(ArtifactError, match=r"a\.zip is a git-(lfs|annex) pointer"):
        sources.read(folder(tmp_path / "a.zip"))


def test_no_changed_byte_of_a_parquet_file_with_checksums_gives_other_images_or_a_traceback(
    tmp_path,
):
    cells = [{"bytes": png(image), "path": None} for image in GREY]
    pq.write_table(pa.table({"img": cells}), tmp_path / "a.parquet", write_page_checksum=True)
    whole = (tmp_path / "a.parquet").read_bytes()
    refused = 0
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        (tmp_path / "a.parquet").write_bytes(damaged)
        try:
            images, _ = sources.read(parquet(tmp_path / "a.parquet"))
        except (ArtifactError, config.ConfigError):
            refused += 1
        else:
            assert np.array_equal(images.pixels[..., 0], GREY)
    assert refused > len(whole) / 12


# ---- folders -------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "zip"])
def stored(request, tmp_path):
    """Store files in a folder, or in a zip of that folder, and return its path."""

    def store(files: dict[str, bytes]) -> Path:
        for name, data in files.items():
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_bytes(data)
        if request.param == "folder":
            return tmp_path / "set"
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(f"set/{name}", data)
        return tmp_path / "set.zip"

    return store


def test_class_folders_give_labels_in_sorted_order(stored):
    files = {
        "zebra/b.png": png(GREY[3]),
        "zebra/a.PNG": png(GREY[2]),
        "ant/2/x.png": png(GREY[1]),
        "ant/1.png": png(GREY[0]),
    }
    images, manifest = sources.read(
        folder(stored(files | {"notes.txt": b"hello", "ant/.hidden.png": b""}))
    )
    assert np.array_equal(images.pixels[..., 0], GREY[:4])
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert manifest["class_names"] == ["ant", "zebra"]
    assert manifest["names"] == ["ant/1.png", "ant/2/x.png", "zebra/a.PNG", "zebra/b.png"]
    assert manifest["ignored"] == [
        {"name": "ant/.hidden.png", "reason": "hidden"},
        {"name": "notes.txt", "reason": "not images by their ending"},
    ]


def test_a_flat_folder_has_no_labels(stored):
    images, manifest = sources.read(
        folder(stored({f"{name}.png": png(GREY[name]) for name in range(3)}))
    )
    assert images.labels.tolist() == [-1, -1, -1]
    assert manifest["class_names"] is None


def test_bad_files_stop_the_reading_or_are_left_out_by_name(stored):
    files = {f"{name}.png": png(GREY[name]) for name in range(4)}
    bad = {
        "1b.png": b"no image",
        "2b.png": png(GREY[0])[:60],
        "3b.png": png(GREY[0, :3]),
        "4.png": png(np.zeros((5, 5), np.uint16)),
    }
    path = stored(files | bad)
    with pytest.raises(
        ArtifactError,
        match=r"3 of 8 images cannot be read: 1b\.png \(not an image.*2b\.png.*4\.png \(pixel mode "
        r"I;16",
    ):
        sources.read(folder(path))
    images, manifest = sources.read(folder(path, on_bad_file="skip"))
    assert np.array_equal(images.pixels[..., 0], GREY[:4])
    assert images.ids.tolist() == [0, 1, 3, 5]  # rows of the source, bad files counted
    assert manifest["names"] == ["0.png", "1.png", "2.png", "3.png"]
    assert {entry["name"] for entry in manifest["skipped"]} == set(bad)
    assert {"name": "3b.png", "reason": "shape 3x5x1, most have 5x5x1"} in manifest["skipped"]
    json.dumps(manifest)


def test_wrong_sizes_stop_the_reading(stored):
    with pytest.raises(
        ArtifactError, match=r"1 differ from most: b\.png \(shape 4x5x1, most have 5x5x1\)"
    ):
        sources.read(
            folder(
                stored({"a.png": png(GREY[0]), "b.png": png(GREY[1, :4]), "c.png": png(GREY[2])})
            )
        )


def test_parts_of_a_data_set_are_not_taken_for_classes(stored):
    path = stored({"train/cat/a.png": png(GREY[0]), "Test/cat/b.png": png(GREY[1])})
    with pytest.raises(
        config.ConfigError, match="its folders Test, train are parts of a data set, not classes"
    ):
        sources.read(folder(path))


def test_a_class_may_be_called_train(stored):
    images, manifest = sources.read(
        folder(stored({"train/a.png": png(GREY[0]), "tram/b.png": png(GREY[1])}))
    )
    assert images.labels.tolist() == [0, 1]
    assert manifest["class_names"] == ["train", "tram"]


def test_a_folder_that_cannot_be_meant(stored, tmp_path):
    with pytest.raises(config.ConfigError, match="no such folder"):
        sources.read(folder(tmp_path / "nowhere"))
    with pytest.raises(config.ConfigError, match="1 images are next to class folders and 2 inside"):
        sources.read(
            folder(
                stored({"a.png": png(GREY[0]), "x/b.png": png(GREY[1]), "y/c.png": png(GREY[1])})
            )
        )
    (tmp_path / "text.zip").write_bytes(b"text")
    with pytest.raises(ArtifactError, match="neither a folder, an image nor a sound zip"):
        sources.read(folder(tmp_path / "text.zip"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.md").write_text("x")
    with pytest.raises(config.ConfigError, match="no image file among 1 files"):
        sources.read(folder(tmp_path / "empty"))


def test_a_damaged_zip_member_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", png(GREY[0]))
        archive.writestr("b.png", png(GREY[1]))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(png(GREY[1])) + 50] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"1 of 2 images cannot be read: b\.png \(Bad CRC-32"):
        sources.read(folder(tmp_path / "a.zip"))


def test_zip_members_outside_the_folder_are_never_written(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    with zipfile.ZipFile(inner / "a.zip", "w") as archive:
        archive.writestr("x/a.png", png(GREY[0]))
        archive.writestr("../outside.png", png(GREY[1]))
    sources.read(folder(inner / "a.zip"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.zip"]


def test_links_are_followed_and_those_that_lead_nowhere_or_round_are_named(tmp_path):
    for number, place in enumerate(["set/b", "elsewhere/a"]):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "1.png").write_bytes(png(GREY[number]))
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere" / "a")
    (tmp_path / "set" / "b" / "2.png").symlink_to(tmp_path / "elsewhere" / "a" / "1.png")
    (tmp_path / "set" / "b" / "3.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "set" / "b" / "round").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "elsewhere" / "a" / "self").symlink_to(tmp_path / "elsewhere" / "a" / "self")
    (tmp_path / "linked").symlink_to(tmp_path / "set")
    images, manifest = sources.read(folder(tmp_path / "linked"))
    assert np.array_equal(images.pixels[..., 0], GREY[[1, 0, 1]])
    assert images.labels.tolist() == [0, 1, 1]
    assert manifest["names"] == ["a/1.png", "b/1.png", "b/2.png"]
    assert set(manifest["raw_files"]) == set(manifest["names"])
    assert {entry["name"]: entry["reason"] for entry in manifest["ignored"]} == {
        "a/self": "links to nothing",
        "b/3.png": "links to nothing",
        "b/round": "links to a folder that they lie in",
        "b/up": "links to a folder that they lie in",
    }


def test_folders_that_link_to_each_other_end(tmp_path):
    for name, other in (("x", "y"), ("y", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "other").symlink_to(tmp_path / other)
        (tmp_path / name / "1.png").write_bytes(png(GREY[0]))
    assert sources.read(folder(tmp_path / "x"), labels=False)[1]["names"] == [
        "1.png",
        "other/1.png",
    ]


def test_one_image_file_is_a_source(tmp_path):
    (tmp_path / "A.PNG").write_bytes(png(GREY[0]))
    images, manifest = sources.read(folder(tmp_path / "A.PNG"))
    assert np.array_equal(images.pixels[..., 0], GREY[:1])
    assert manifest["names"] == ["A.PNG"]
    assert set(manifest["raw_files"]) == {"A.PNG"}


@pytest.mark.parametrize("name", ["[2024] run", "a*b", "$HOME", "~"])
def test_what_exists_is_no_pattern_and_no_variable(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.png").write_bytes(png(GREY[0]))
    write_parquet(tmp_path / name / "a.parquet", GREY)
    np.savez(tmp_path / name / "a.npz", images=GREY)
    assert len(sources.read(folder(name))[0]) == 1
    assert len(sources.read(parquet(f"{name}/a.parquet"))[0]) == 6
    assert len(sources.read(config.ArrayFile(kind="npz", path=f"{name}/a.npz"))[0]) == 6


def test_a_pattern_below_a_folder_with_brackets(tmp_path):
    write_parquet(tmp_path / "[2024]" / "part-1.parquet", GREY[:2])
    write_parquet(tmp_path / "[2024]" / "part-2.parquet", GREY[2:])
    assert len(sources.read(parquet(tmp_path / "[2024]" / "part-*.parquet"))[0]) == 6


def test_without_labels_folders_need_no_order(stored):
    files = {"a.png": png(GREY[0]), "x/b.png": png(GREY[1]), "y/c.png": png(GREY[2])}
    images, manifest = sources.read(folder(stored(files)), labels=False)
    assert images.labels.tolist() == [-1, -1, -1]
    assert manifest["class_names"] is None


def test_a_folder_without_images_says_what_is_there(tmp_path):
    for name in ("a.heic", "b.heic", "c", ".d"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "e.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(
        config.ConfigError,
        match=r"data\.source\.path = .* \(\.heic: 2, hidden: 1, links to nothing: 1, without an "
        r"ending: 1",
    ):
        sources.read(folder(tmp_path))


def test_a_zip_that_lost_members_or_has_one_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}.png", png(GREY[number]))
    whole = (tmp_path / "a.zip").read_bytes()
    second = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"PK\x01\x02"))
    damaged = bytearray(whole)
    damaged[second + 32] = (
        len(whole) - whole.rindex(b"PK\x01\x02") - 22
    )  # a comment as long as the entry that follows it
    (tmp_path / "b.zip").write_bytes(damaged)
    assert len(zipfile.ZipFile(tmp_path / "b.zip").infolist()) == 2
    with pytest.raises(
        ArtifactError, match=r"b\.zip is neither .*its end states 3 members, but its list has 2"
    ):
        sources.read(folder(tmp_path / "b.zip"))
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "a") as archive,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        archive.writestr("1.png", png(GREY[4]))
    with pytest.raises(ArtifactError, match=r"a\.zip holds 1 names more than once, e\.g\. 1\.png"):
        sources.read(folder(tmp_path / "a.zip"))


def test_a_member_of_a_zip_whose_name_was_damaged_is_not_taken_for_another_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", png(GREY[0]))
        archive.writestr("b.png", png(GREY[1]))
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(b"b.txt".join(whole.rsplit(b"b.png", 1)))
    with pytest.raises(
        ArtifactError, match=r"File name in directory 'b\.txt' and header b'b\.png' differ"
    ):
        sources.read(folder(tmp_path / "a.zip"))


# ---- pixels --------------------------------------------------------------------------------------


def test_a_box_averages_areas_of_the_centre_square(tmp_path):
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:12] = np.kron(np.arange(16).reshape(4, 4) * 16, np.ones((2, 2))) + np.tile(
        [[0, 4], [4, 8]], (4, 4)
    )
    wide[:, :4] = wide[:, 12:] = 255  # what the square leaves out
    (tmp_path / "a.png").write_bytes(png(wide))
    images, _ = sources.read(folder(tmp_path), resize=4, resize_filter="box")
    assert np.array_equal(images.pixels[0, ..., 0], np.arange(16).reshape(4, 4) * 16 + 4)


def test_colours(tmp_path):
    write_parquet(tmp_path / "a.parquet", COLOUR)
    grey, _ = sources.read(parquet(tmp_path / "a.parquet"), colour="grey")
    luma = np.round(COLOUR @ [0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(grey.pixels[..., 0].astype(int) - luma).max() <= 1
    write_parquet(tmp_path / "b.parquet", GREY)
    rgb, _ = sources.read(parquet(tmp_path / "b.parquet"), colour="rgb")
    assert np.array_equal(rgb.pixels, np.repeat(GREY[..., None], 3, axis=3))


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3), ("RGB", 3)],
)
def test_kept_colours_make_grey_or_rgb(tmp_path, mode, channels):
    name = "a.tif" if mode == "CMYK" else "a.png"
    Image.fromarray(COLOUR[0]).convert(mode).save(tmp_path / name)
    assert sources.read(folder(tmp_path))[0].pixels.shape == (1, 5, 5, channels)


# ---- what messages call the settings -------------------------------------------------------------

FLAGS = dict.fromkeys(STUDY, "--train") | {
    "image_column": "--image-column",
    "resize": "--resize",
    "colour": "--colour",
}
FLAGS |= {"label_column": "--label-column", "array": "--array", "label_array": "--label-column"}


@pytest.mark.parametrize(
    ("source", "key", "flag"),
    [
        ({"kind": "image_folder", "path": "none"}, "data.source.path = none", "--train = none"),
        ({"kind": "parquet", "path": "none"}, "data.source.path = none", "--train = none"),
        ({"kind": "npz", "path": "none"}, "data.source.path = none", "--train = none"),
        (
            {"kind": "parquet", "path": "a.parquet", "image_column": "x"},
            "data.source.image_column = x",
            "--image-column = x",
        ),
        (
            {"kind": "parquet", "path": "a.parquet", "label_column": "x"},
            "data.source.label_column = x",
            "--label-column = x",
        ),
        ({"kind": "npz", "path": "a.npz", "array": "x"}, "data.source.array = x", "--array = x"),
        (
            {"kind": "npz", "path": "a.npz", "label_array": "x"},
            "data.source.label_array = x",
            "--label-column = x",
        ),
        (
            {"kind": "image_folder", "path": "sizes"},
            "set data.resize for one size, data.colour",
            "set --resize for one size",
        ),
        ({"kind": "image_folder", "path": "a.zip"}, "data.source: ", "--train: "),
    ],
)
def test_messages_name_keys_in_a_study_and_flags_in_a_command(
    tmp_path, monkeypatch, source, key, flag
):
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "a.parquet", GREY)
    np.savez(tmp_path / "a.npz", images=GREY)
    (tmp_path / "sizes").mkdir()
    (tmp_path / "sizes" / "a.png").write_bytes(png(GREY[0]))
    (tmp_path / "sizes" / "b.png").write_bytes(png(GREY[0, :4]))
    (tmp_path / "a.zip").write_bytes(b"text")
    source = TypeAdapter(config.Source).validate_python(source)
    for names, word in ((STUDY, key), (FLAGS, flag)):
        with pytest.raises((config.ConfigError, ArtifactError)) as error:
            sources.read(source, names=names)
        assert word in str(error.value)
        assert str(error.value).startswith(names["source"])
        assert ("--" in str(error.value)) is (names is FLAGS)
        assert ("data." in str(error.value)) is (names is STUDY)


# ---- the fetch step ------------------------------------------------------------------------------


def settings(source: dict, **changes) -> dict:
    return {
        "source": source,
        "classes": None,
        "images": None,
        "colour": "keep",
        "resize": None,
        "resize_filter": "bilinear",
        "crop": "centre",
    } | changes


DIGITS = {"kind": "sklearn-digits"}


def test_fetch_writes_a_store_that_checks_itself(tmp_path, resolved):
    path = resolved("data/fetch", settings(DIGITS, classes=[3, 5], images=50))
    assert main(["data", "fetch", "--config", path, "--out", str(tmp_path / "fetch")]) == 0
    images = load_images(tmp_path / "fetch" / "images.npz")
    manifest = json.loads((tmp_path / "fetch" / "manifest.json").read_text())
    assert len(images) == manifest["images"] == 50
    assert set(images.labels) == {3, 5}
    assert np.array_equal(images.labels, load_digits().target[images.ids])
    assert (np.diff(images.ids) > 0).all()
    assert (
        sum(manifest["counts"]["class"].values())
        == sum(manifest["counts"]["official_train"].values())
        == 50
    )
    assert manifest["counts"]["official_test"] == {}
    assert manifest["pixels_sha256"] == hashlib.sha256(images.pixels.tobytes()).hexdigest()


def test_the_choice_depends_on_the_seed_only():
    chosen = [fetch(settings(DIGITS, images=100), seed)[0].ids.tolist() for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_the_transform_of_the_study_is_made(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.kron(GREY[0], np.ones((2, 3))).astype(np.uint8)))
    source = {"kind": "image_folder", "path": str(tmp_path)}
    images, manifest = fetch(
        settings(source, resize=4, resize_filter="box", crop="none", colour="rgb"), 0
    )
    assert images.pixels.shape == (1, 4, 4, 3)
    assert manifest["resize"] == {"side": 4, "filter": "box", "crop": "none", "images": 1}


def test_names_follow_the_chosen_rows(tmp_path):
    for name in range(6):
        (tmp_path / f"{name}.png").write_bytes(png(GREY[name]))
    images, manifest = fetch(settings({"kind": "image_folder", "path": str(tmp_path)}, images=4), 0)
    assert manifest["names"] == [f"{row}.png" for row in images.ids]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": [3, 12, 11]},
            r"data\.classes = \[3, 12, 11\]: no image has label 11, 12; labels .* 0, 1, 2",
        ),
        ({"classes": [3], "images": 500}, r"data\.images = 500: the source has only 183 images"),
    ],
)
def test_asking_for_more_than_there_is(changes, message, tmp_path, resolved, capsys):
    with pytest.raises(config.ConfigError, match=message):
        fetch(settings(DIGITS, **changes), 0)
    path = resolved("data/fetch", settings(DIGITS, **changes))
    assert main(["data", "fetch", "--config", path, "--out", str(tmp_path / "fetch")]) == 2
    assert list(changes)[-1] in capsys.readouterr().err
    assert not (tmp_path / "fetch").exists()
