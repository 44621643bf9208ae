"""Lock a study's resolved settings: one Snakemake process at a time may rewrite them, and not while
jobs of another run read them.

Every call of snakemake, including a dry run, writes the settings that it plans with
(``resolved.write_configs``), and jobs read them when they start, perhaps days later. Two signs show
that they are in use: the lock of ``results/<study>/config``, which the kernel releases with the
process that holds it, and Snakemake's own lock, which stays behind when snakemake is killed and its
jobs keep running.

Calls with the same settings may proceed: Snakemake's lock refuses those that would write the same
files. It identifies files by their local names, though, which differ with ``slurm/scratch.yaml``;
such a call must run alone.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TextIO

from afterimage import config
from afterimage.artifacts import ArtifactError
from afterimage.plan import resolved

LOCK = ".lock"
SCRATCH = "with slurm/scratch.yaml"
LATER = "Nothing was written. Wait until it has ended; if it was killed, type `afterimage recover`."


class Hold(NamedTuple):
    """A process's hold on the settings of a study.

    Attributes:
        lock: Held while this file is open; None if another process holds it.
        others: Description of the other users of the settings; empty without any.
    """

    lock: TextIO | None
    others: str


def write_configs(study: config.Study, results: Path, engine: Path, scratch: bool = False) -> Hold:
    """Write the settings that a call of snakemake plans with, unless others work with different
    settings.

    Args:
        results: The folder that contains ``<study>``.
        engine: Snakemake's folder, ``.snakemake``.
        scratch: This call transfers its outputs from another disk.

    Returns:
        The hold; keep it for as long as the settings must not change.

    Raises:
        ArtifactError: if others are at work, and a setting would change or one of the two calls
            transfers its outputs from another disk; then nothing is written.
    """
    folder = Path(results) / study.study / "config"
    folder.mkdir(parents=True, exist_ok=True)
    lock = _take(folder / LOCK, f", {SCRATCH}" if scratch else "")
    others = ""
    if lock is None:
        others = f"{holder(folder) or 'another process'} works with {folder}"
    elif left := _engine_lock(Path(engine) / "locks", f"{folder.parent.as_posix()}/"):
        path, how = left
        others = (
            f"{path} says that another snakemake works with {folder.parent}{how}, or was killed"
        )
    if others and (scratch or SCRATCH in others):
        raise ArtifactError(
            f"{others}. {SCRATCH.capitalize()} one call at a time can work with a study. {LATER}"
        )
    changed = resolved.changed_configs(study, results)
    if others and changed:
        raise ArtifactError(
            f"{others}. The study or the code has changed since, and jobs of that run would read "
            f"the new settings ({len(changed)} files, first {next(iter(changed))}). {LATER}"
        )
    resolved.write(changed)
    return Hold(lock, others)


def holder(folder: Path) -> str | None:
    """Return the holder of the lock of a ``config`` folder, as text; None without a holder, or if
    its file system does not support locks."""
    try:
        with (folder / LOCK).open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return (folder / LOCK).read_text().strip()
    except OSError:
        pass
    return None


def _take(path: Path, how: str) -> TextIO | None:
    lock = path.open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    except OSError:  # no locks on this file system: only Snakemake's own remains
        pass
    lock.seek(0)
    lock.truncate()
    lock.write(
        f"process {os.getpid()} on {socket.gethostname()} (since "
        f"{time.strftime('%Y-%m-%d %H:%M:%S')}{how})\n"
    )
    lock.flush()
    return lock


def _engine_lock(folder: Path, prefix: str) -> tuple[Path, str] | None:
    """Return a lock of Snakemake that names files below ``prefix``, and a note if its call uses
    scratch; None without such a lock."""
    for path in sorted(folder.glob("*.lock")):
        with suppress(FileNotFoundError):  # its run has just ended
            lines = path.read_text().splitlines()
            if any(line.startswith(prefix) for line in lines):
                return path, ""
            if any(f"/{prefix}" in line for line in lines):
                return path, f", {SCRATCH}"
    return None
