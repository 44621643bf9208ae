"""A local HTTP server that counts requests and can fail on purpose, and small data sets built on
the spot."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


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
def resolved(tmp_path: Path) -> Callable[[str, dict[str, Any]], str]:
    """Write the resolved config of a step and return its path."""

    def write(step: str, settings: dict[str, Any], seed: int = 3, **address: str) -> str:
        path = tmp_path / f"{step.replace('/', '-')}.json"
        config = {"step": step, "arm": None, "replicate": None, "seed": seed, "settings": settings}
        path.write_text(json.dumps(config | address))
        return str(path)

    return write
