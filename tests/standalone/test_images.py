"""What a flag means, and one sentence for everything that was left out or chosen without being
asked for."""

from __future__ import annotations

import argparse
import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from afterimage import config
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.standalone import images as image_sets

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
SETS = ("train", "samples", "holdout")


def given(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in SETS:
        parser.add_argument(f"--{name}")
    image_sets.arguments(parser, SETS)
    return parser.parse_args(list(map(str, flags)))


def png(pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_folder(folder, pixels=PIXELS):
    folder.mkdir(parents=True, exist_ok=True)
    for row, image in enumerate(pixels):
        (folder / f"{row}.png").write_bytes(png(image))
    return folder


def write_parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": png(image), "path": None} for image in PIXELS]
    pq.write_table(pa.table({"image": cells} | columns), path)
    return path


def two_columns(path):
    return write_parquet(path, condition=[png(image) for image in PIXELS[::-1]])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- which source --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "set",
        "set.ZIP",
        "set.npz",
        "SET.NPZ",
        "one.parquet",
        "two.PARQUET",
        "[1]/$x.parquet",
        "parts",
        "part?/*.pq",
    ],
)
def test_every_form_of_one_set_is_read_alike(here, text):
    write_folder(here / "set")
    Image.new("L", (1, 1)).save("unrelated.png")
    import shutil

    shutil.make_archive("packed", "zip", "set")
    (here / "packed.zip").rename("set.ZIP")
    for name in ("set", "SET"):
        with (here / f"{name}.npz").open("wb") as stream:
            np.savez(stream, images=PIXELS)
    (here / "SET.npz").rename("SET.NPZ")
    for name in ("one.parquet", "two.PARQUET", "[1]/$x.parquet", "parts/a.pq"):
        write_parquet(here / name)
    train = image_sets.read_set("train", given("--train", text))
    np.testing.assert_array_equal(train.images.pixels, PIXELS)
    labels = np.full(6, -1)
    assert train.sha256 == hashlib.sha256(PIXELS.tobytes() + labels.tobytes()).hexdigest()
    assert train.notices() == []
    files = text.startswith("set") and not text.endswith("npz")
    assert train.names.tolist() == ([f"{row}.png" for row in range(6)] if files else list(range(6)))


def test_one_image_is_a_set(here):
    write_folder(here, PIXELS[:1])
    assert image_sets.read_set("samples", given("--samples", "0.png")).names.tolist() == ["0.png"]


def test_a_data_set_of_the_hub_is_meant_only_where_there_is_no_such_path(here):
    source = image_sets.source_of("train", given("--train", "owner/name@v1"))
    assert (source.kind, source.dataset, source.revision) == ("huggingface", "owner/name", "v1")
    write_folder(here / "owner" / "name@v1")
    assert image_sets.source_of("train", given("--train", "owner/name@v1")).kind == "image_folder"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train", "nowhere"], "--train nowhere: not a folder or zip"),
        (["--train", ""], "--train: the path is empty"),
        (["--train", "nothing.npz"], "--train: nothing.npz: no such file"),
        (["--train", "notes.txt"], "--train notes.txt: not a folder or zip"),
        (
            ["--train", "$AFTERIMAGE_NOWHERE/x"],
            "--train: $AFTERIMAGE_NOWHERE/x: the environment variable",
        ),
        (["--train", "set", "--resize", "2"], "--resize = 2: allowed are 4 to 1024"),
        (
            ["--train", "set", "--crop", "none"],
            "--crop = none: it says how to resize, but --resize is not given",
        ),
        (
            ["--train", "set", "--resize-filter", "box"],
            "--resize-filter = box: it says how to resize",
        ),
        (
            ["--train", "set", "--image-column", "img"],
            "--image-column = img: it is for parquet, and no set of images is one",
        ),
        (
            ["--train", "set", "--array", "train=x"],
            "--array = train=x: it is for an .npz, and --train is none",
        ),
        (
            ["--train", "set", "--array", "trian=x"],
            "'trian' is not a set of images; sets are train, samples, holdout",
        ),
        (["--train", "set", "--array", "holdout=x"], "--array = holdout=x: --holdout is not given"),
        (
            ["--train", "a.npz", "--array", "x", "y"],
            "--array = y: it is given more than once for all sets",
        ),
        (["--train", "a.npz", "--array", "train=x", "train=y"], "more than once for --train"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(here, flags, words):
    write_folder(here / "set")
    (here / "notes.txt").write_text("x")
    (here / "a.npz").write_bytes(b"not read")
    with pytest.raises(ConfigError) as error:
        image_sets.source_of("train", given(*flags))
    assert words in str(error.value)
    assert "data." not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--train", "two.parquet"],
            "--train: --image-column: two.parquet has 2 columns with images: image, condition",
        ),
        (["--train", "two.parquet", "--image-column", "x"], "--train: --image-column = x"),
        (
            ["--train", "two.parquet", "--image-column", "image", "--label-column", "x"],
            "--train: --label-column = x",
        ),
        (
            ["--train", "two.npz"],
            "--train: --array: two.npz has 2 arrays that may be the images: a, b",
        ),
        (["--train", "text.npz"], "--train: text.npz cannot be read as an .npz file"),
        (["--train", "sizes"], "set --resize for one size, --colour for one number of channels"),
    ],
)
def test_messages_of_readers_name_the_flags(here, flags, words):
    two_columns(here / "two.parquet")
    np.savez("two.npz", a=PIXELS, b=PIXELS)
    (here / "text.npz").write_text("x")
    write_folder(here / "sizes", [PIXELS[0], PIXELS[1, :4]])
    with pytest.raises((ConfigError, ArtifactError)) as error:
        image_sets.read_set("train", given(*flags))
    assert words in str(error.value)
    assert "data." not in str(error.value)


# ---- choices -------------------------------------------------------------------------------------


def test_a_choice_is_of_one_set_or_of_all_that_it_suits(here):
    two_columns(here / "t.parquet")
    two_columns(here / "s.parquet")
    np.savez("h.npz", a=PIXELS, b=PIXELS[::-1])
    args = given(
        *("--train", "t.parquet", "--samples", "s.parquet", "--holdout", "h.npz"),
        *("--image-column", "image", "samples=condition", "--array", "b"),
    )
    read = {name: image_sets.read_set(name, args) for name in SETS}
    np.testing.assert_array_equal(read["train"].images.pixels, PIXELS)
    np.testing.assert_array_equal(read["samples"].images.pixels, PIXELS[::-1])
    np.testing.assert_array_equal(read["holdout"].images.pixels, PIXELS[::-1])
    assert read["samples"].manifest["choices"]["image_column"]["taken"] == "condition"
    assert [one.notices() for one in read.values()] == [[], [], []]


def test_labels_are_read_where_they_are_needed_or_asked_for(here):
    write_parquet(here / "t.parquet", label=[0.5] * 6, kind=list("bacabc"))
    np.savez("s.npz", images=PIXELS, kinds=[5, 4, 3, 2, 1, 0])
    assert set(image_sets.read_set("train", given("--train", "t.parquet")).images.labels) == {-1}
    with pytest.raises(ConfigError, match=r"--train: --label-column = label: .* double there"):
        image_sets.read_set("train", given("--train", "t.parquet"), labels=True)
    args = given(
        "--train",
        "t.parquet",
        "--samples",
        "s.npz",
        "--label-column",
        "train=kind",
        "samples=kinds",
    )
    assert image_sets.read_set("train", args).images.labels.tolist() == [1, 0, 2, 0, 1, 2]
    assert image_sets.read_set("samples", args).images.labels.tolist() == [5, 4, 3, 2, 1, 0]


def test_class_names_mean_the_same_class_in_both_sets(here):
    for name in ("ant", "bee", "cat"):
        write_folder(here / "train" / name, PIXELS[:1])
    for name in ("bee", "cat"):
        write_folder(here / "samples" / name, PIXELS[:1])
    args = given("--train", "train", "--samples", "samples")
    train, samples = (image_sets.read_set(name, args, labels=True) for name in ("train", "samples"))
    assert samples.images.labels.tolist() == [0, 1]
    agreed = image_sets.with_classes_of(train, samples)
    assert agreed.images.labels.tolist() == [1, 2]
    assert agreed.manifest["class_names"] == ["ant", "bee", "cat"]
    assert agreed.sha256 == image_sets.sha256(samples.images.pixels, np.array([1, 2]))
    with pytest.raises(
        ConfigError, match="--train: its classes ant are not in --samples, which has bee, cat"
    ):
        image_sets.with_classes_of(samples, train)


# ---- notices -------------------------------------------------------------------------------------


def test_what_was_left_out_is_counted_and_named(here):
    folder = write_folder(here / "set")
    for number in range(12):
        (folder / f"note{number:02}.txt").write_text("x")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "gone.png").symlink_to(here / "nothing")
    Image.fromarray(PIXELS[0]).save(
        folder / "stack.tif",
        save_all=True,
        append_images=[Image.fromarray(PIXELS[1]), Image.fromarray(PIXELS[2])],
    )
    Image.fromarray(np.dstack([PIXELS[0], PIXELS[0, ..., :1]])).save(folder / "alpha.png")
    names = ", ".join(f"note{number:02}.txt" for number in range(10))
    assert image_sets.read_set("train", given("--train", "set")).notices() == [
        "--train: 1 left out, hidden: .DS_Store",
        "--train: 1 left out, links to nothing: gone.png",
        f"--train: 12 left out, not images by their ending: {names} and 2 more",
        "--train: 1 file with several pages or frames, each read as an image of its own: "
        "stack.tif (3)",
        "--train: 1 image with transparency, which was dropped: the colours below it are used, as "
        "in most trainers",
    ]


def test_a_choice_that_nobody_made_is_told(here):
    np.savez("adm.npz", PIXELS, np.arange(6))
    np.savez("more.npz", images=PIXELS, masks=PIXELS)
    (told,) = image_sets.read_set("train", given("--train", "adm.npz")).notices()
    assert told == "--train: the images were read from arr_0, not arr_1; --array chooses another"
    (told,) = image_sets.read_set("train", given("--train", "more.npz")).notices()
    assert told == "--train: the images were read from images, not masks; --array chooses another"
    both = image_sets.read_set("train", given("--train", "adm.npz"), labels=True).notices()
    assert both[1] == "--train: the labels were read from arr_1; --label-column chooses another"


@pytest.mark.parametrize(
    ("flags", "assumed"),
    [
        (
            [],
            "bilinear with antialias. This was assumed, as most trainers do it; --resize-filter "
            "and --crop choose otherwise",
        ),
        (["--crop", "none"], "squashed into the square, bilinear with antialias. This was assumed"),
        (
            ["--resize-filter", "box"],
            "the longer cropped to its centre, box with antialias. This was assumed",
        ),
        (["--resize-filter", "box", "--crop", "centre"], None),
    ],
)
def test_a_transform_that_nobody_gave_is_named_where_it_changed_anything(here, flags, assumed):
    write_folder(here / "set")
    notices = image_sets.read_set(
        "train", given("--train", "set", "--resize", "4", *flags)
    ).notices()
    assert len(notices) == (assumed is not None)
    assert all("6 images resized to 4x4" in notice and assumed in notice for notice in notices)
    assert image_sets.read_set("train", given("--train", "set", "--resize", "8")).notices() == []


def test_the_transform_given_is_the_transform_made(here):
    write_folder(here / "set", PIXELS[:, :4])
    args = given(
        "--train",
        "set",
        "--resize",
        "6",
        "--resize-filter",
        "lanczos",
        "--crop",
        "none",
        "--colour",
        "grey",
    )
    train = image_sets.read_set("train", args)
    wanted = Image.fromarray(PIXELS[0, :4]).convert("L").resize((6, 6), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(train.images.pixels[0, ..., 0], wanted)
    assert train.manifest["resize"] == {"side": 6, "filter": "lanczos", "crop": "none", "images": 6}


def test_the_manifest_does_not_grow_with_the_number_of_files(here):
    folder = write_folder(here / "set", np.repeat(PIXELS, 5, axis=0))
    for number in range(30):
        (folder / f"note{number:02}.txt").write_text("x")
    train = image_sets.read_set("train", given("--train", "set"))
    listing = "".join(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted(folder.glob("*.png"))
    )
    assert train.manifest["raw_files"] == {
        "count": 30,
        "sha256": hashlib.sha256(listing.encode()).hexdigest(),
    }
    (ignored,) = train.manifest["ignored"].values()
    assert (ignored["count"], len(ignored["first"])) == (30, image_sets.NAMED)
    assert train.manifest["skipped"] == train.manifest["frames"] == {"count": 0, "first": []}
    assert len(json.dumps(train.manifest)) < 1500
    assert "names" not in train.manifest
    assert len(train.names) == 30


def test_the_manifest_is_plain_json(here):
    two_columns(here / "t.parquet")
    train = image_sets.read_set("train", given("--train", "t.parquet", "--image-column", "image"))
    assert json.loads(json.dumps(train.manifest)) == train.manifest


def test_every_setting_that_readers_name_has_a_flag():
    from afterimage.data.records import STUDY

    names = image_sets._names("train")
    assert names.keys() == STUDY.keys()
    assert all(flag.startswith("--") for flag in names.values())
    assert isinstance(image_sets.source_of("train", given("--train", ".")), config.ImageFolder)
