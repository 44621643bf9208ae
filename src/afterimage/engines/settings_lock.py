"""Who may write the settings of a study: one process of the engine at a time, and nobody under the
feet of another's jobs.

Every call of snakemake, a dry run too, writes the settings that it plans with
(``resolved.write_configs``), and jobs read them when they start, perhaps days later. Two signs say
that others are at work with them: the lock of ``results/<study>/config``, which the kernel takes
away with the process that holds it, and Snakemake's own lock, which stays behind when snakemake is
killed and its jobs go on.

Calls with the same settings may go on: Snakemake's lock refuses those that would make the same
files. It knows files by their local names, though, which are others with ``slurm/scratch.yaml``;
whoever works in that way must be alone.
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
    """What a process has of the settings of a study.

    Attributes:
        lock: Held while this file is open; None if another process holds it.
        others: Who else is at work, as text; empty if nobody is.
    """

    lock: TextIO | None
    others: str


def write_configs(study: config.Study, results: Path, engine: Path, scratch: bool = False) -> Hold:
    """Write what a call of snakemake plans with, unless others work with something else.

    Args:
        results: The folder that holds ``<study>``.
        engine: Snakemake's folder, ``.snakemake``.
        scratch: This call sends its outputs from another disk.

    Returns:
        The hold; keep it as long as the settings are to stay as they are.

    Raises:
        ArtifactError: if others are at work, and something would change or one of both calls sends
            its outputs from another disk; nothing is written then.
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
            f"{others}. The study or the code is another one now, and jobs of that run would read "
            "the new settings "
            f"({len(changed)} files, first {next(iter(changed))}). {LATER}"
        )
    resolved.write(changed)
    return Hold(lock, others)


def holder(folder: Path) -> str | None:
    """Return who holds the lock of a ``config`` folder, as text; None if nobody does, or if its
    file system has no such locks."""
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
    except OSError:  # no locks on this file system: Snakemake's own is all there is
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
    """Return a lock of Snakemake that names files below ``prefix``, and how its call works if not
    as usual; None if there is none."""
    for path in sorted(folder.glob("*.lock")):
        with suppress(FileNotFoundError):  # its run has just ended
            lines = path.read_text().splitlines()
            if any(line.startswith(prefix) for line in lines):
                return path, ""
            if any(f"/{prefix}" in line for line in lines):
                return path, f", {SCRATCH}"
    return None
