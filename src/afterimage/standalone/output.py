"""The folder that a command writes to, looked at before any work starts."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError


def check(out: Path, ours: Collection[str], replaced: bool = False, flag: str = "--out") -> Path:
    """Return the folder to write, with links resolved, after checking that it can be written.

    Args:
        out: The folder. It need not be there, and nor need the folders above it.
        ours: Names (relative, with ``/``) of what may be there already: the files of an earlier
            result.
        flag: The flag that names it, for messages.
        replaced: The result is written beside the folder, and the folder then replaced as a whole.

    Raises:
        ConfigError: if it, or what it lies below, is a file or cannot be written, or if anything
            but ``ours`` is in it.
    """
    try:
        place = out.resolve()
        nearest = next(folder for folder in (place, *place.parents) if folder.exists())
        if not nearest.is_dir():
            raise ConfigError(f"{flag} {out}: {nearest} is a file; a folder is needed")
        foreign = sorted(_files(place) - set(ours)) if nearest == place else []
        if foreign:
            raise ConfigError(
                f"{flag} {out}: {foreign[0]} is not of an earlier result; allowed are a new or "
                "empty folder, or such a result alone"
            )
        if replaced and place.is_mount():
            raise ConfigError(
                f"{flag} {out}: it is a mount point, which cannot be replaced; name a folder in it"
            )
        for folder in (nearest, place.parent) if replaced and nearest == place else (nearest,):
            with tempfile.TemporaryDirectory(prefix=".afterimage-", dir=folder):
                pass
    except (OSError, RuntimeError) as error:  # RuntimeError: links that go round in a circle
        raise ConfigError(
            f"{flag} {out}: it cannot be written: {getattr(error, 'strerror', None) or error}"
        ) from error
    return place


def earlier(out: Path, step: str) -> set[str]:
    """Return the names of the files that an earlier run of ``step`` left in ``out``; none if its
    record is not there."""
    try:
        run = artifacts.read_run(out)
        return {artifacts.RUN, *run["outputs"]} if run["config"]["step"] == step else set()
    except (ArtifactError, OSError, KeyError, TypeError, UnicodeDecodeError):
        return set()


def _files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
