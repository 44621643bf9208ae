"""The output folder of a command, checked before any work starts."""

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
        out: The folder. Neither it nor its parents need to exist.
        ours: Names (relative, with ``/``) of files that may already exist: those of an earlier
            result.
        flag: The flag that names it, for messages.
        replaced: The result is written next to the folder, which is then replaced as a whole.

    Raises:
        ConfigError: if it, or a parent, is a file or cannot be written, or if it contains anything
            but ``ours``.
    """
    try:
        target = out.resolve()
        nearest = next(folder for folder in (target, *target.parents) if folder.exists())
        if not nearest.is_dir():
            raise ConfigError(f"{flag} {out}: {nearest} is a file; a folder is needed")
        foreign = sorted(_files(target) - set(ours)) if nearest == target else []
        if foreign:
            raise ConfigError(
                f"{flag} {out}: {foreign[0]} is not of an earlier result; allowed are a new or "
                "empty folder, or such a result alone"
            )
        if replaced and target.is_mount():
            raise ConfigError(
                f"{flag} {out}: it is a mount point, which cannot be replaced; name a folder in it"
            )
        for folder in (nearest, target.parent) if replaced and nearest == target else (nearest,):
            with tempfile.TemporaryDirectory(prefix=".afterimage-", dir=folder):
                pass
    except (OSError, RuntimeError) as error:  # RuntimeError: circular links
        raise ConfigError(
            f"{flag} {out}: it cannot be written: {getattr(error, 'strerror', None) or error}"
        ) from error
    return target


def earlier(out: Path, step: str) -> set[str]:
    """Return the names of the files that an earlier run of ``step`` left in ``out``; empty without
    its record."""
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
