"""Fetching one pinned file: resumed, retried, checked, and put in its place whole."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import requests

from afterimage.artifacts import ArtifactError, sha256

ATTEMPTS = 6
_TIMEOUT = (20, 60)  # seconds to connect, seconds without data
_CHUNK = 1 << 16  # bytes; what a broken connection loses at most
_WORTH_RETRYING = {408, 425, 429, 500, 502, 503, 504}


def cache_folder() -> Path:
    """Return where downloads are kept: ``AFTERIMAGE_CACHE``, by default ``~/.cache/afterimage``."""
    return Path(os.environ.get("AFTERIMAGE_CACHE") or Path.home() / ".cache" / "afterimage")


def fetch(url: str, checksum: str, cache: Path | None = None, pause: float = 1.0) -> Path:
    """Return the path of a file with the contents that ``checksum`` pins, downloading it if it is not there yet.

    A download that broke goes on where it stopped, in the same call or in a later one.

    Args:
        url: Address; its last part names the file in the cache.
        checksum: sha256 of the file, in hexadecimal.
        cache: Folder to keep it in; by default ``cache_folder()``.
        pause: Seconds before the second attempt; doubled before each further one, of ``ATTEMPTS`` in all.

    A file with another checksum, kept from before or just received, is set aside as ``<name>.wrong-sha256``.

    Raises:
        ArtifactError: if the server refuses, or fails every time, or what it gave has another checksum.
    """
    cache = cache or cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / url.rsplit("/", 1)[-1].split("?")[0]
    part = target.with_name(f"{target.name}.part")
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(
            lock, fcntl.LOCK_EX
        )  # one download of a file at a time; the others then find it done
        if target.exists():
            if sha256(target) == checksum.lower():
                return target
            _set_aside(target)
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(pause * 2 ** (attempt - 1))
            try:
                _receive(url, part)
                break
            except requests.HTTPError as error:
                if error.response.status_code not in _WORTH_RETRYING:
                    raise ArtifactError(f"{url} cannot be fetched: {error}") from error
                last: requests.RequestException = error
            except (
                requests.ConnectionError,
                requests.Timeout,
                requests.exceptions.ChunkedEncodingError,
            ) as error:
                last = error
        else:
            raise ArtifactError(
                f"{url} cannot be fetched: {ATTEMPTS} attempts failed, the last with: {last}. "
                f"Run again to go on, or put the file at {target}"
            ) from last
        found = sha256(part)
        if found != checksum.lower():
            aside = _set_aside(part)
            raise ArtifactError(
                f"{url} has sha256 {found}, expected {checksum.lower()}; what came is kept as {aside}"
            )
        part.replace(target)
        return target


def _receive(url: str, part: Path) -> None:
    """Append what is missing to ``part``; start anew where the server does not resume."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if have and response.status_code == requests.codes.requested_range_not_satisfiable:
            # Either all is there already, which the checksum decides, or the part is of another file.
            if response.headers.get("Content-Range") != f"bytes */{have}":
                part.unlink()
                raise requests.ConnectionError(
                    f"{url}: the server has less than the {have} bytes that were kept"
                )
            return
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        with part.open(
            "ab" if response.status_code == requests.codes.partial_content and resumed else "wb"
        ) as stream:
            for chunk in response.iter_content(_CHUNK):
                stream.write(chunk)


def _set_aside(path: Path) -> Path:
    return path.replace(path.with_name(f"{path.name.removesuffix('.part')}.wrong-sha256"))
