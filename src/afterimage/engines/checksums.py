"""Checksums of files that are the same at every call of snakemake, such as the gigabytes of a
trained network.

The sha256 of a file is kept in ``$XDG_CACHE_HOME/afterimage/checksums`` with the file's device,
inode, size and times of change, and is taken from there as long as all of these are the same. A file
that changed within the last seconds before it was hashed may change again without another time; its
checksum is not kept. Where nothing can be kept every call hashes for itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from afterimage import artifacts

SETTLED = 10.0
"""Seconds that a file must have been unchanged for, before its checksum is kept. Some file systems
count whole seconds, and clocks of a file server differ."""


def sha256(path: Path) -> str:
    """Return the sha256 of a file, kept or computed."""
    path = path.resolve()
    folder = artifacts.user_cache("checksums")
    if folder is None:
        return artifacts.sha256(path)
    kept = folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
    stamp, started = _stamp(path), time.time_ns()
    with suppress(OSError, ValueError, TypeError, KeyError):  # never hashed, or a damaged file
        entry = json.loads(kept.read_text())
        if entry["stamp"] == stamp:
            return str(entry["sha256"])
    checksum = artifacts.sha256(path)
    if _stamp(path) == stamp and max(stamp[-2:]) < started - SETTLED * 1e9:
        with suppress(OSError):  # a home that nobody may write to
            artifacts.write_json(kept, {"stamp": stamp, "sha256": checksum})
    return checksum


def _stamp(path: Path) -> list[int]:
    """Return what tells whether a file is the one that was hashed."""
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
