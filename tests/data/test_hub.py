"""The Hugging Face Hub: the files of one commit, each verified before it is read; breaks are
mended."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from PIL import Image

from afterimage import config
from afterimage.artifacts import ArtifactError
from afterimage.data import hub, sources
from afterimage.data.records import Reading
from afterimage.images import load_images
from afterimage.standalone import captions
from afterimage.standalone import images as image_sets

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)
STUDIES = Path(__file__).parents[2] / "studies"
SHARDS = "plain_text/train-00000-of-00002.parquet", "plain_text/train-00001-of-00002.parquet"
TEST = "plain_text/test-00000-of-00001.parquet"


def parquet(pixels: np.ndarray, labels: list[int], **columns: list[str]) -> bytes:
    cells = []
    for image in pixels:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        cells.append({"bytes": stream.getvalue(), "path": None})
    stream = io.BytesIO()
    pq.write_table(pa.table({"img": cells, "label": labels} | columns), stream)
    return stream.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Hub:
    """The part of the Hub's API that reading a public data set needs.

    ``sent`` replaces what is sent of a file; ``stop`` breaks a GET of file content off after that
    many bytes; ``busy`` GETs of file content are refused with 503.
    """

    def __init__(self, server, files: dict[str, bytes]) -> None:
        self.server, self.files, self.sent = server, files, dict(files)
        self.stop: list[int] = []
        self.busy = 0
        self.large = True
        server.answer = self.answer

    def answer(self, handler) -> None:
        path = handler.path.split("?")[0]
        if path in [f"/api/datasets/some/set/revision/{name}" for name in ("v1", COMMIT)]:
            siblings = [
                {"rfilename": name, "size": len(body)}
                | (
                    {"lfs": {"sha256": sha256(body), "size": len(body), "pointerSize": 130}}
                    if self.large
                    else {}
                )
                for name, body in self.files.items()
            ]
            listing = {"id": "some/set", "sha": COMMIT, "siblings": siblings}
            return handler.reply(200, json.dumps(listing).encode(), Content_Type="application/json")
        name = path.removeprefix(f"/datasets/some/set/resolve/{COMMIT}/")
        if name not in self.files:
            missing = "RepoNotFound" if "some/set" not in path else "RevisionNotFound"
            return handler.reply(404, X_Error_Code=missing)
        head = {"ETag": f'"{sha256(self.files[name])}"', "X_Repo_Commit": COMMIT}
        if handler.command == "HEAD":
            return handler.reply(200, self.sent[name], **head)
        if self.busy:
            self.busy -= 1
            return handler.reply(503)
        asked = handler.headers.get("Range")
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = self.sent[name]
        head["Content_Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        stop = self.stop.pop(0) if self.stop else None
        return handler.reply(206 if asked else 200, body[first:], send=stop, **head)

    def gets(self) -> list[str | None]:
        """Return the Range header of every GET of file content."""
        return [
            asked
            for method, path, asked in self.server.requests
            if method == "GET" and "/resolve/" in path
        ]


@pytest.fixture
def stored(server, tmp_path, monkeypatch) -> Hub:
    """Serve two training shards and a test file; downloads read 500 bytes at a time."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    address = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    monkeypatch.setattr(hub, "PAUSE", 0)
    contents = {
        SHARDS[1]: parquet(COLOUR[3:4], [3]),
        SHARDS[0]: parquet(COLOUR[:3], [0, 1, 2]),
        TEST: parquet(COLOUR[4:], [4, 5]),
        "README.md": b"# A data set",
    }
    return Hub(server, contents)


def source(revision: str = COMMIT, **options) -> config.HuggingFace:
    return config.HuggingFace(kind="huggingface", dataset="some/set", revision=revision, **options)


def pinned(stored: Hub, split: str = "test") -> config.HuggingFace:
    """The source with a checksum for every file of a split."""
    files = [TEST] if split == "test" else SHARDS
    return source(split=split, sha256={name: sha256(stored.files[name]) for name in files})


def cached(tmp_path: Path, name: str) -> Path:
    return tmp_path / "hf" / "hub" / "datasets--some--set" / "snapshots" / COMMIT / name


# ---- what is read --------------------------------------------------------------------------------


def test_captions_belong_to_the_images_of_the_same_commit(stored):
    """The branch moves after the images are read."""
    stored.files |= {
        SHARDS[0]: parquet(COLOUR[:3], [0, 1, 2], text=["a", "b", "c"]),
        SHARDS[1]: parquet(COLOUR[3:4], [3], text=["d"]),
    }
    stored.sent = dict(stored.files)
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", default="some/set@v1")
    image_sets.arguments(parser, ("train",))
    captions.arguments(parser)
    args = parser.parse_args([])
    train = image_sets.read_set("train", args)
    stored.server.requests.clear()
    assert captions.of(train, args) == ["a", "b", "c", "d"]
    assert not [path for _, path, _ in stored.server.requests if "revision/v1" in path]
    args = parser.parse_args(["--caption-column", "prompt"])
    with pytest.raises(config.ConfigError, match=r"--caption-column = prompt: .* has no column"):
        captions.of(train, args)


def test_the_command_reads_a_data_set_at_the_commit_of_a_tag(stored, tmp_path, resolved):
    settings = {
        "source": source("v1", split="train+test", licence="MIT").model_dump(mode="json"),
        "classes": None,
        "images": None,
        "colour": "keep",
        "resize": None,
        "resize_filter": "bilinear",
        "crop": "centre",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": stored.server.url, "HF_HOME": str(tmp_path / "home")}
    arguments = ["--config", resolved("data/fetch", settings), "--out", str(tmp_path / "fetch")]
    command = [sys.executable, "-m", "afterimage.cli", "data", "fetch", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    images = load_images(tmp_path / "fetch" / "images.npz")
    assert np.array_equal(images.pixels, COLOUR)
    assert images.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert images.official_test.tolist() == [False] * 4 + [True] * 2
    manifest = json.loads((tmp_path / "fetch" / "manifest.json").read_text())
    assert manifest["facts"] == {"commit": COMMIT}
    assert manifest["licence"] == "MIT"
    assert set(manifest["raw_files"]) == {*SHARDS, TEST}
    paths = {path.split("?")[0] for _, path, _ in stored.server.requests}
    files = {f"/datasets/some/set/resolve/{COMMIT}/{name}" for name in manifest["raw_files"]}
    assert paths == files | {"/api/datasets/some/set/revision/v1"}  # no telemetry, no other file


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation"}, f"no parquet file of split 'validation'; it has: {TEST}"),
        ({"revision": "v9"}, "data.source: some/set at revision v9"),
        ({"sha256": {SHARDS[0]: "0" * 64}, "revision": "v1"}, f"has {SHARDS[1]} too in split"),
        ({"sha256": {SHARDS[0]: "0" * 64}}, "has 2 shards by their names, but 1 are listed"),
    ],
)
def test_settings_that_fit_no_file_are_errors_that_name_them(stored, options, message):
    with pytest.raises(config.ConfigError, match=message):
        sources.read(source(**options))
    assert stored.gets() == []


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (["data/train-0.parquet", "data/test-0.parquet"], {}, ["data/train-0.parquet"]),
        (["train.parquet", "train_extra.parquet"], {}, ["train.parquet"]),
        (
            ["full/train/0000.parquet", "full/train/0001.parquet"],
            {},
            ["full/train/0000.parquet", "full/train/0001.parquet"],
        ),
        (["a/train-0.parquet", "b/train-0.parquet"], {"config": "b"}, ["b/train-0.parquet"]),
    ],
)
def test_layouts(names, options, expected):
    assert hub.files_of("train", names, source(**options), Reading()) == expected


def test_a_configuration_must_be_named_where_there_are_several():
    names = ["a/train-0.parquet", "b/train-0.parquet"]
    with pytest.raises(
        config.ConfigError, match="several configurations with a split 'train': a, b; name one"
    ):
        hub.files_of("train", names, source(), Reading())
    with pytest.raises(config.ConfigError, match="in configuration 'c'; it has: a/train-0"):
        hub.files_of("train", names[:1], source(config="c"), Reading())


# ---- broken connections --------------------------------------------------------------------------


def test_a_broken_download_is_resumed(stored):
    stored.stop = [1200]
    images, _ = sources.read(pinned(stored))
    assert np.array_equal(images.pixels, COLOUR[4:])
    assert stored.gets() == [None, "bytes=1000-"]


def test_a_download_that_breaks_every_time_ends_and_a_later_run_succeeds(
    stored, tmp_path, monkeypatch
):
    monkeypatch.setattr(hub, "ATTEMPTS", 2)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    stored.stop = [100] * 100
    with pytest.raises(ArtifactError, match="some/set cannot be fetched from the Hub"):
        sources.read(pinned(stored))
    assert len(stored.gets()) == 2 * 6
    assert not list((tmp_path / "hf").rglob("*.parquet"))
    stored.stop = []
    assert np.array_equal(sources.read(pinned(stored))[0].pixels, COLOUR[4:])


def test_a_busy_server_is_asked_again(stored):
    stored.busy = 2
    assert np.array_equal(sources.read(pinned(stored))[0].pixels, COLOUR[4:])
    assert len(stored.gets()) == 3
    stored.busy = 99
    with pytest.raises(ArtifactError, match="503"):
        sources.read(pinned(stored, "train"))
    assert len(stored.gets()) == 3 + hub.ATTEMPTS


def test_a_hub_out_of_reach_is_named_with_the_reason(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ArtifactError, match=f"some/set cannot be .* cache \\({tmp_path}.*offline mode is enabled"
    ):
        sources.read(pinned(stored))


def test_a_refusal_is_not_repeated(stored):
    checksum = {"plain_text/test.parquet": "0" * 64}
    with pytest.raises(config.ConfigError, match="some/set at revision"):
        sources.read(source(split="test", sha256=checksum))
    assert len(stored.server.requests) == 1


# ---- checksums -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stated_by", ["the study", "the Hub"])
@pytest.mark.parametrize("change", [lambda body: body[:-1], lambda body: body[:-1] + b"x"])
def test_wrong_contents_are_set_aside_named_and_never_read(stored, tmp_path, change, stated_by):
    stored.sent[TEST] = wrong = change(stored.files[TEST])
    options = pinned(stored) if stated_by == "the study" else source(split="test")
    expected = sha256(stored.files[TEST])
    with pytest.raises(
        ArtifactError,
        match=f"{TEST} of some/set has sha256 {sha256(wrong)}, expected {expected}.*wrong-sha256",
    ):
        sources.read(options)
    assert Path(f"{cached(tmp_path, TEST)}.wrong-sha256").read_bytes() == wrong
    assert not cached(tmp_path, TEST).exists()
    stored.sent = dict(stored.files)
    assert np.array_equal(sources.read(options)[0].pixels, COLOUR[4:])


def test_a_damaged_cached_file_is_set_aside_and_downloaded_again(stored, tmp_path):
    sources.read(pinned(stored))
    damaged = stored.files[TEST][:-5] + b"xxxxx"
    cached(tmp_path, TEST).write_bytes(damaged)
    assert np.array_equal(sources.read(pinned(stored))[0].pixels, COLOUR[4:])
    assert Path(f"{cached(tmp_path, TEST)}.wrong-sha256").read_bytes() == damaged
    assert cached(tmp_path, TEST).read_bytes() == stored.files[TEST]
    assert len(stored.gets()) == 2


@pytest.mark.parametrize("checksum", ["0" * 63, "0" * 65, "sha256:" + "0" * 64, "g" * 64, ""])
def test_what_is_not_a_checksum_is_refused_before_any_download(checksum):
    with pytest.raises(ValueError, match="sha256"):
        source(sha256={TEST: checksum})


def test_a_checksum_may_be_in_capitals(stored):
    checksum = {TEST: sha256(stored.files[TEST]).upper()}
    assert len(sources.read(source(split="test", sha256=checksum))[0]) == 2


def test_a_small_file_outside_of_lfs_has_no_checksum_of_the_hubs(stored):
    stored.large = False
    _, manifest = sources.read(source(split="test"))
    assert manifest["raw_files"] == {TEST: sha256(stored.files[TEST])}


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_studies_pin_every_file_of_the_hub(path, monkeypatch):
    monkeypatch.setenv("AFTERIMAGE_DATA", "anywhere")
    block = config.load(path).data.source
    if isinstance(block, config.HuggingFace):
        assert block.pinned
        files = [
            name
            for split in block.split.split("+")
            for name in hub.files_of(split, sorted(block.sha256), block, Reading())
        ]
        assert sorted(files) == sorted(block.sha256)
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in block.sha256.values())


# ---- the cache -----------------------------------------------------------------------------------


def test_cached_files_of_a_pinned_source_need_no_network(stored):
    for split in ("train", "test"):
        sources.read(pinned(stored, split))
    assert not any(path.startswith("/api/") for _, path, _ in stored.server.requests)
    stored.server.requests.clear()
    images, manifest = sources.read(pinned(stored, "train"))
    assert stored.server.requests == []
    assert np.array_equal(images.pixels, COLOUR[:4])
    assert manifest["facts"] == {"commit": COMMIT}


def test_two_processes_that_want_the_same_file_both_get_it_whole(stored):
    with ThreadPoolExecutor(2) as threads:
        read = list(threads.map(lambda _: sources.read(pinned(stored))[0], range(2)))
    assert all(np.array_equal(images.pixels, COLOUR[4:]) for images in read)
    assert len(stored.gets()) == 1
