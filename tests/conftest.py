"""Fixtures that several test folders use."""

from __future__ import annotations

import os
import runpy
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def script() -> Callable[[str], dict[str, Any]]:
    """Run a file of ``benchmarks``, by its name, and return what it defines."""

    def run(name: str) -> dict[str, Any]:
        folder = str(ROOT / "benchmarks")
        sys.path.insert(0, folder)  # they import each other
        try:
            return runpy.run_path(f"{folder}/{name}.py")
        finally:
            sys.path.remove(folder)

    return run


@pytest.fixture(scope="session")
def shown() -> Callable[[str, str], str]:
    """Return what a page of ``docs`` shows between the marks of a table."""

    def between(page: str, mark: str) -> str:
        text = (ROOT / "docs" / page).read_text()
        return text.split(f"<!-- {mark} -->\n")[1].split(f"\n<!-- /{mark} -->")[0]

    return between


@pytest.fixture
def params() -> dict:
    """A study with every method as plain values, free to change; without attribution."""
    return yaml.safe_load((ROOT / "tests" / "study.yaml").read_text()) | {"attribution": None}


def _shared(file: str) -> Path:
    folder = Path(os.environ.get("AFTERIMAGE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / file).exists():
        pytest.skip(f"no real images: {folder} has no {file} (set AFTERIMAGE_DATA)")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real CIFAR-10 and MNIST parquet files."""
    return _shared("cifar10-jpeg75/test.parquet")


@pytest.fixture(scope="session")
def real_client() -> Path:
    """The model that diffusers' own trainer made, with its images."""
    return _shared("real_client/train.zip") / "real_client"


class Server(ThreadingHTTPServer):
    """Answers by ``self.answer(handler)``; keeps method, path and Range header of every request in
    ``self.requests``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str, str | None]] = []
        self.answer: Callable[[Handler], None] = lambda handler: handler.send_error(404)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        self.server.answer(self)

    do_HEAD = do_GET  # noqa: N815 - the base class asks for this name

    def reply(
        self, status: int, body: bytes = b"", send: int | None = None, **headers: str
    ) -> None:
        """Announce all of ``body`` but, with ``send``, break off after that many bytes."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:send])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """The kinds of the networks that are compiled, in their order, which needs no compiler here."""
    from torch import nn

    kinds: list[str] = []
    original = nn.Module.compile

    def compile_(self: nn.Module, *args: object, **named: object) -> None:
        kinds.append(type(self).__name__)
        original(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_)
    return kinds
