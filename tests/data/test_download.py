"""Downloads against a server that breaks, refuses, forgets and lies."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from afterimage.artifacts import ArtifactError
from afterimage.data import download

BODY = bytes(range(256)) * 4000
SUM = hashlib.sha256(BODY).hexdigest()


def ranged(handler, send=None):
    """Serve BODY, from the wanted byte where there is a Range header."""
    wanted = handler.headers.get("Range")
    if wanted is None:
        return handler.reply(200, BODY, send)
    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    if start >= len(BODY):
        return handler.reply(416, Content_Range=f"bytes */{len(BODY)}")
    return handler.reply(
        206, BODY[start:], send, Content_Range=f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
    )


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    server.answer = lambda handler: ranged(
        handler, send=300_000 if len(server.requests) == 1 else None
    )
    path = download.fetch(f"{server.url}/a.bin", SUM, tmp_path, pause=0)
    assert path.read_bytes() == BODY
    kept = 300_000 // 65_536 * 65_536
    assert [wanted for _, _, wanted in server.requests] == [None, f"bytes={kept}-"]
    assert not (tmp_path / "a.bin.part").exists()


def test_a_later_call_goes_on_too(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.answer = lambda handler: ranged(handler, send=65_536)
    with pytest.raises(ArtifactError, match="Run again to go on"):
        download.fetch(f"{server.url}/a.bin", SUM, tmp_path, pause=0)
    assert (tmp_path / "a.bin.part").stat().st_size == 65_536
    server.answer = ranged
    assert download.fetch(f"{server.url}/a.bin", SUM, tmp_path, pause=0).read_bytes() == BODY
    assert server.requests[-1][2] == "bytes=65536-"


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY[:500])
    server.answer = lambda handler: handler.reply(200, BODY)
    assert download.fetch(f"{server.url}/a.bin", SUM, tmp_path, pause=0).read_bytes() == BODY
    assert [wanted for _, _, wanted in server.requests] == ["bytes=500-"]


def test_a_part_that_is_whole_already_is_taken(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY)
    server.answer = ranged
    assert download.fetch(f"{server.url}/a.bin", SUM, tmp_path, pause=0).read_bytes() == BODY


def test_a_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY + b"more")
    server.answer = ranged
    assert download.fetch(f"{server.url}/a.bin", SUM, tmp_path, pause=0).read_bytes() == BODY
    assert [wanted for _, _, wanted in server.requests] == [f"bytes={len(BODY) + 4}-", None]


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.answer = lambda handler: (
        handler.send_error(503) if len(server.requests) < 3 else ranged(handler)
    )
    assert download.fetch(f"{server.url}/a.bin", SUM, tmp_path, pause=0).read_bytes() == BODY
    assert len(server.requests) == 3


def test_attempts_are_bounded_and_spaced(server, tmp_path, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    server.answer = lambda handler: handler.send_error(503)
    with pytest.raises(ArtifactError, match=r"6 attempts failed.*503"):
        download.fetch(f"{server.url}/a.bin", SUM, tmp_path, pause=0.5)
    assert len(server.requests) == 6
    assert waits == [0.5, 1, 2, 4, 8]


def test_a_refusal_is_not_repeated(server, tmp_path):
    with pytest.raises(ArtifactError, match="404"):
        download.fetch(f"{server.url}/a.bin", SUM, tmp_path, pause=0)
    assert len(server.requests) == 1


def test_other_contents_are_set_aside_and_named(server, tmp_path):
    server.answer = lambda handler: handler.reply(200, b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(ArtifactError, match=f"sha256 {found}, expected {SUM}.*a.bin.wrong-sha256"):
        download.fetch(f"{server.url}/a.bin", SUM, tmp_path, pause=0)
    assert (tmp_path / "a.bin.wrong-sha256").read_bytes() == b"something else"
    assert not (tmp_path / "a.bin").exists()
    server.answer = ranged
    assert download.fetch(f"{server.url}/a.bin", SUM, tmp_path, pause=0).read_bytes() == BODY


def test_a_cached_file_needs_no_network(server, tmp_path, monkeypatch):
    monkeypatch.setenv("AFTERIMAGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.bin").write_bytes(BODY)
    assert download.fetch(f"{server.url}/a.bin", SUM) == tmp_path / "cache" / "a.bin"
    assert server.requests == []


def test_a_damaged_cached_file_is_set_aside_and_fetched_anew(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(BODY[:-1])
    server.answer = ranged
    assert download.fetch(f"{server.url}/a.bin", SUM, tmp_path).read_bytes() == BODY
    assert (tmp_path / "a.bin.wrong-sha256").read_bytes() == BODY[:-1]


def test_two_that_want_the_same_file_fetch_it_once(server, tmp_path):
    def slowly(handler):
        time.sleep(0.2)
        ranged(handler)

    server.answer = slowly
    with ThreadPoolExecutor(2) as threads:
        paths = list(
            threads.map(lambda _: download.fetch(f"{server.url}/a.bin", SUM, tmp_path), range(2))
        )
    assert [path.read_bytes() == BODY for path in paths] == [True, True]
    assert len(server.requests) == 1
