"""A folder of images with captions in files next to them is the same source as a parquet file with
the same images and captions."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from afterimage.artifacts import ArtifactError, sha256
from afterimage.cli import main
from afterimage.config import ConfigError, ImageFolder, parse
from afterimage.data import sources
from afterimage.data.records import Reading
from afterimage.engines import check_inputs
from afterimage.images import load_images
from afterimage.plan.resolved import write_configs

TEXTS = {
    f"{row:02}.png": f"a {'red' if row % 3 else 'blue'} thing, number {row}" for row in range(20)
}
GENERAL = {name: text.split(",")[0] for name, text in TEXTS.items()}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Images without captions, in a folder of the working folder, and in a parquet file with."""
    monkeypatch.chdir(tmp_path)
    made, cells = tmp_path / "set", []
    made.mkdir()
    rng = np.random.default_rng(0)
    for name in TEXTS:
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(stream, "PNG")
        (made / name).write_bytes(stream.getvalue())
        cells.append({"bytes": stream.getvalue(), "path": None})
    columns = {"image": cells, "text": list(TEXTS.values()), "general": list(GENERAL.values())}
    pq.write_table(pa.table(columns), "set.parquet")
    return made


def as_lines(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(
        "".join(
            json.dumps({"file_name": name, "text": f" {text}\n", "general": GENERAL[name]}) + "\n"
            for name, text in TEXTS.items()
        )
    )


def as_list(folder: Path) -> None:
    entries = [
        {"file_name": name, "said": text, "general": GENERAL[name]} for name, text in TEXTS.items()
    ]
    (folder / "captions.json").write_text(json.dumps(entries))


def as_text_files(folder: Path) -> None:
    for name, text in TEXTS.items():
        (folder / name).with_suffix(".txt").write_text(f"{text}\n")
    (folder / "LICENSE.txt").write_text("of none of them")


def study(params: dict, source: dict, text: dict):
    whole = params | {
        "study": "captions",
        "data": {"source": source, "split": {"train": 8, "holdout": 4, "reference": 4}},
        "text": text,
        "model": {"channels": [8, 16], "attention": [False, True], "norm_groups": 8},
        "arms": {"plain": {"method": "baseline", "condition": "text"}},
        "forget": {},
        "loyal_selection": None,
        "paths": None,
    }
    return parse(whole)


def fetched(params: dict, source: dict, text: dict, out: str) -> Path:
    """Check the study, fetch its source and return the store."""
    made = study(params, source, text)
    results = Path(out)
    check_inputs.check(made, results)
    write_configs(made, results)
    config = results / "captions/config/data/fetch.json"
    store = results / "captions/data/fetch"
    assert main(["data", "fetch", "--config", str(config), "--out", str(store)]) == 0
    return store


VARIANT = {"captions": {"general": {"kind": "column", "column": "general"}}}


@pytest.mark.parametrize(
    ("write", "kind", "column", "text"),
    [
        (as_lines, "metadata.jsonl", None, VARIANT),
        (as_list, "captions.json", "said", VARIANT),
        (as_text_files, "txt", None, {}),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_studys_folder_has_the_captions_of_the_parquet_file(
    folder, params, write, kind, column, text, zipped
):
    write(folder)
    path = "set"
    if zipped:
        path = "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.iterdir():
                archive.write(file, f"set/{file.name}")
    source = {"kind": "image_folder", "path": path, "captions": kind, "caption_column": column}
    parquet = {"kind": "parquet", "path": "set.parquet", "caption_column": "text"}
    ours, theirs = (fetched(params, each, text, each["kind"]) for each in (source, parquet))
    one, other = (load_images(store / "images.npz") for store in (ours, theirs))
    assert one.captions.tolist() == other.captions.tolist() == list(TEXTS.values())
    assert np.array_equal(one.pixels, other.pixels)
    variants = [pd.read_parquet(store / "captions.parquet") for store in (ours, theirs)]
    pd.testing.assert_frame_equal(*variants)
    assert list(variants[0].columns) == ["id", "general"] if text else ["id"]
    manifest = json.loads((ours / "manifest.json").read_text())
    ignored = [entry["name"] for entry in manifest["ignored"]]
    assert ignored == (["LICENSE.txt"] if kind == "txt" else [])
    if zipped:
        assert manifest["raw_files"] == {"set.zip": sha256(Path("set.zip"))}
    else:
        files = [file for file in folder.iterdir() if file.name != "LICENSE.txt"]
        assert manifest["raw_files"] == {file.name: sha256(file) for file in files}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"captions": "metadata.json"}, ["captions", "'metadata.jsonl'", "'txt'"]),
        ({"caption_column": "text"}, ["caption_column = 'text' is a key of objects", "None"]),
        (
            {"captions": "txt", "caption_column": "text"},
            ["captions = 'txt'; allowed are 'metadata.jsonl' and 'captions.json'"],
        ),
        ({}, ["text: a text encoder needs captions", "data.source.captions is not given"]),
    ],
)
def test_settings_that_name_no_captions_are_refused(params, keys, words):
    with pytest.raises(ConfigError) as error:
        study(params, {"kind": "image_folder", "path": "set"} | keys, {})
    for word in words:
        assert word in str(error.value)


def test_text_files_have_no_variants(params):
    source = {"kind": "image_folder", "path": "set", "captions": "txt"}
    with pytest.raises(
        ConfigError, match=r"text\.captions\.general\.column = 'general': the source"
    ):
        study(params, source, VARIANT)


def lacking(folder: Path) -> None:
    as_lines(folder)
    lines = (folder / "metadata.jsonl").read_text().splitlines(keepends=True)
    (folder / "metadata.jsonl").write_text("".join(lines[:3] + lines[5:]))


def foreign(folder: Path) -> None:
    as_lines(folder)
    with (folder / "metadata.jsonl").open("a") as stream:
        stream.write(json.dumps({"file_name": "other.png", "text": "x", "general": "x"}))


def damaged(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "00.png"\n')


def ambiguous(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "a", "prompt": "b"}')


def nothing(folder: Path) -> None:
    as_text_files(folder)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lacking, "data.source: 2 of 20 images have no caption: 03.png, 04.png"),
        (
            foreign,
            "data.source.captions = metadata.jsonl: 1 captions have no image: other.png",
        ),
        (damaged, "data.source: metadata.jsonl, line 1 is not JSON"),
        (
            ambiguous,
            "data.source: metadata.jsonl, line 1 has text, prompt; data.source.caption_column "
            "chooses one",
        ),
        (nothing, "data.source.captions = metadata.jsonl: there is no such file in set"),
    ],
)
def test_captions_that_do_not_fit_are_refused_before_any_job_and_by_the_fetch(
    folder, params, write, words
):
    write(folder)
    source = {"kind": "image_folder", "path": "set", "captions": "metadata.jsonl"}
    with pytest.raises((ConfigError, ArtifactError)) as error:
        check_inputs.check(study(params, source, {}), Path("results"))
    assert str(error.value).startswith(words)
    assert not Path("results").exists()
    with pytest.raises((ConfigError, ArtifactError)) as error:
        sources.read(ImageFolder(**source))
    assert str(error.value).startswith(words)


def test_a_look_reads_no_image(folder):
    as_lines(folder)
    for file in folder.glob("*.png"):
        file.write_bytes(b"")
    source = ImageFolder(kind="image_folder", path="set", captions="metadata.jsonl")
    contents = sources.contents_of(source, Reading(look=True))
    assert [record.caption for record in contents.records] == list(TEXTS.values())
    assert contents.raw_files == {}
