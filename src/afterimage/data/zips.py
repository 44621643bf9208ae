"""Open a zip file (an ``.npz`` is one) and check that it is complete."""

from __future__ import annotations

import struct
import zipfile
import zlib
from contextlib import suppress
from lzma import LZMAError
from pathlib import Path

DAMAGE = (
    zipfile.BadZipFile,
    OSError,
    ValueError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
    LZMAError,
)
"""What zipfile raises on a damaged or foreign file; NotImplementedError, for what it does not know,
is a RuntimeError."""

_END, _COUNT = b"PK\x05\x06", slice(10, 12)  # the end record of a zip; its number of members
_MANY = 0xFFFF  # marks numbers that need more than two bytes
_TAIL = 22 + 0xFFFF  # bytes of the longest such record


def opened(path: Path) -> zipfile.ZipFile:
    """Open a zip file.

    Raises:
        DAMAGE: if it is damaged, or the number of members differs from that in its end record:
            zipfile silently drops those after a damaged entry of its list.
    """
    archive = zipfile.ZipFile(path)
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _TAIL))
        tail = stream.read()
    stated = int.from_bytes(tail[tail.rfind(_END) :][_COUNT], "little")
    if stated not in (_MANY, len(archive.infolist())):
        archive.close()
        raise zipfile.BadZipFile(
            f"its end states {stated} members, but its list has {len(archive.infolist())}"
        )
    return archive


def same_name(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Check that the name of an unread member agrees with the list, and so that it can be ignored.

    Raises:
        BadZipFile: if the name at the member differs.
    """
    # RuntimeError: encrypted or of unknown compression, after the name was compared.
    with suppress(RuntimeError):
        archive.open(info).close()
