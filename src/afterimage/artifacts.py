"""The stores: written atomically, each described by a ``run.json`` that it is checked against when
opened.

A step owns one folder. It writes into a partial folder next to it; only when everything is written,
``run.json`` last, does the partial folder replace the old one. A killed job or a full disk
therefore leaves either the old result or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from afterimage import provenance

RUN = "run.json"
RECORD = ".run.json"
"""A copy of ``run.json`` in stores of commands that may keep their results: Snakemake removes
``run.json`` itself before a job, so that one that failed is due."""
_IGNORED = {RUN, RECORD, ".snakemake_timestamp"}


class ArtifactError(RuntimeError):
    """A stored result that is missing, truncated, changed, or from other settings than
    requested."""


class UpToDate(Exception):  # noqa: N818
    """A step that need not run: its result was made under the same config by the same code from the
    same inputs, and is whole."""


_keeping: ContextVar[list[Path] | None] = ContextVar("keeping", default=None)


@contextmanager
def keeping_results() -> Iterator[None]:
    """Have ``step`` raise ``UpToDate`` where the result is up to date, instead of making it again.

    If a later step of the process fails, Snakemake takes the results of all of them back. So each
    leaves a copy (``spare_folder``), which the next call puts in its place; when all have succeeded
    the copies are removed.
    """
    spares: list[Path] = []
    token = _keeping.set(spares)
    try:
        yield
    finally:
        _keeping.reset(token)
    for spare in spares:
        shutil.rmtree(spare, ignore_errors=True)


def sha256(path: Path) -> str:
    """Return the sha256 of a file, or of a folder (over the sorted relative paths and sha256 of its
    files)."""
    path = Path(path)
    if path.is_dir():
        return folder_sha256({file.relative_to(path): sha256(file) for file in files_in(path)})
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_sums(
    folder: Path,
    expected: Mapping[str, str],
    key: str,
    sha256: Callable[[Path], str] = sha256,
) -> None:
    """Compare files of a folder with their checksums.

    Args:
        folder: The folder.
        expected: File, relative to it -> sha256.
        key: The setting that names them, for messages.
        sha256: Returns the checksum of a file.

    Raises:
        ArtifactError: if a file is missing or has another checksum.
    """
    for name, checksum in expected.items():
        if not (folder / name).is_file():
            raise ArtifactError(f"{key} names {name}, which {folder} does not have")
        found = sha256(folder / name)
        if found != checksum.lower():
            raise ArtifactError(f"{key}: {folder / name} has {found}, not the expected {checksum}")


def folder_sha256(files: Mapping[Path, str]) -> str:
    """Return the sha256 of a folder from the relative path and sha256 of each of its files."""
    lines = [f"{name.as_posix()} {files[name]}\n" for name in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files_in(folder: Path) -> list[Path]:
    """Return the files of a store in sorted order, without ``run.json`` and the workflow engine's
    marker files."""
    return sorted(
        path for path in Path(folder).rglob("*") if path.is_file() and path.name not in _IGNORED
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees either the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def user_cache(name: str) -> Path | None:
    """Return the folder of a cache of this user, ``$XDG_CACHE_HOME/afterimage/<name>``
    (``~/.cache`` unless set), which need not exist; None without a home."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return home / "afterimage" / name if home.is_absolute() else None


def write_json(path: Path, value: Any) -> None:
    """Write plain JSON values, sorted and indented, atomically."""
    write_atomically(
        path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    )


def link(source: Path, target: Path) -> None:
    """Give the files of a store or of a folder in it another place, by hard links, or as copies
    where the file system has none."""
    for file in files_in(source):
        name = target / file.relative_to(source)
        name.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, name)
        except OSError:
            shutil.copyfile(file, name)


def partial_folder(out: Path) -> Path:
    """Return the folder into which a step writes before it publishes ``out``; it exists while the
    step is running."""
    return out.with_name(f".{out.name}.partial")


def spare_folder(out: Path) -> Path:
    """Return where a process of several steps leaves a copy of the store ``out`` until the last of
    them has ended."""
    return out.with_name(f".{out.name}.spare")


def replace_folder(partial: Path, target: Path) -> None:
    """Replace ``target`` by the finished folder ``partial``."""
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)


# ---- steps ---------------------------------------------------------------------------------------


@dataclass
class Step:
    """A running step: its settings, the folder to write into, and the facts to record."""

    accounted: ClassVar[float] = 0.0
    """Processor time of this process up to the end of its last step: what comes before the next one
    is its start-up."""

    config: dict[str, Any]
    folder: Path
    input_sha256: dict[str, str]
    extra: dict[str, Any] = field(default_factory=dict)
    _metrics: list[dict[str, Any]] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        return self.config["settings"]

    def metric(self, name: str, value: float, step: int = 0) -> None:
        """Record one number; the step's ``metrics.jsonl`` holds them in order."""
        self._metrics.append({"step": step, "name": name, "value": float(value)})

    def note(self, **facts: Any) -> None:
        """Record facts in ``run.json`` under ``facts`` (counts, device, parameter updates, images
        seen, ...)."""
        self.extra.update(facts)


def read_config(path: Path, *steps: str) -> dict[str, Any]:
    """Read a resolved config and check that it belongs to one of ``steps``."""
    config = json.loads(Path(path).read_text())
    if config.get("step") not in steps:
        needed = " or ".join(map(repr, steps))
        raise ArtifactError(f"{path} is the config of step {config.get('step')!r}, not of {needed}")
    return config


@contextmanager
def step(
    config: dict[str, Any],
    out: Path,
    inputs: Mapping[str, Path],
    entries: tuple[str, ...],
    **facts: Any,
) -> Iterator[Step]:
    """Run one step: provide a partial folder to write into, then record and publish it.

    Args:
        config: The resolved config (``plan.resolved.resolve``).
        out: The step's own folder; replaced as a whole.
        inputs: Name -> file or folder that the step reads; hashed before it starts.
        entries: Modules whose code made the result, for the fingerprint.
        facts: Facts of this call, recorded also where an earlier result is kept.

    Raises:
        UpToDate: inside ``keeping_results``, if there is nothing to do.
    """
    out = Path(out)
    started, cpu = time.time(), cpu_seconds()
    startup = cpu - Step.accounted
    hashes = {
        name: {"path": _relative(path), "sha256": sha256(path)} for name, path in inputs.items()
    }
    made_from = {
        "config": config,
        "config_sha256": provenance.digest(config),
        "code_sha256": provenance.fingerprint(*entries),
        "code_entries": list(entries),
        "inputs": hashes,
    }
    partial, spare, spares = partial_folder(out), spare_folder(out), _keeping.get()
    shutil.rmtree(partial, ignore_errors=True)
    if spares is not None:
        spares.append(spare)
        kept = _up_to_date(out, made_from)
        if kept is None and (kept := _up_to_date(spare, made_from)):
            shutil.copytree(spare, partial)
            replace_folder(partial, out)
        if kept is not None:
            kept["facts"] |= facts
            for name in (RECORD, RUN):
                write_json(out / name, kept)
            raise UpToDate(out)
    partial.mkdir(parents=True)
    try:
        read = {name: entry["sha256"] for name, entry in hashes.items()}
        work = Step(config, partial, read, extra=dict(facts))
        yield work
        if work._metrics:
            lines = [json.dumps(row, allow_nan=True) + "\n" for row in work._metrics]
            (partial / "metrics.jsonl").write_text("".join(lines))
        Step.accounted = cpu_seconds()
        record = made_from | {
            "outputs": {
                file.relative_to(partial).as_posix(): sha256(file) for file in files_in(partial)
            },
            "environment": provenance.environment(),
            "facts": work.extra,
            "seconds": round(time.time() - started, 3),
            "cpu_seconds": round(Step.accounted - cpu, 3),
            "startup_cpu_seconds": round(startup, 3),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if spares is not None:
            write_json(partial / RECORD, record)
            # No links: Snakemake writes the earlier version into the files of the result.
            shutil.rmtree(spare, ignore_errors=True)
            shutil.copytree(partial, spare)
        write_json(partial / RUN, record)
        replace_folder(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def cpu_seconds() -> float:
    """Return the processor time of this process and of its finished children, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _up_to_date(out: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of a result that is what a step would make; None otherwise."""
    try:
        run = json.loads((out / RECORD).read_text())
    except (OSError, json.JSONDecodeError):
        return None
    if any(run.get(key) != value for key, value in made_from.items()):
        return None
    files = {file.relative_to(out).as_posix(): sha256(file) for file in files_in(out)}
    return run if files == run["outputs"] else None


def _relative(path: Path) -> str:
    path = Path(path).resolve()
    here = Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.as_posix()


def read_run(folder: Path, record: str = RUN) -> dict[str, Any]:
    """Read the ``run.json`` of a store, or its copy ``RECORD``.

    Raises:
        ArtifactError: if there is none, i.e. the step did not finish.
    """
    path = Path(folder) / record
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{folder} has no {record}: the step that makes it has not finished"
        ) from error
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{path} is not readable: {error}") from error


def numbered(name: str, paths: Sequence[Path]) -> dict[str, Path]:
    """Return ``paths`` as inputs of a step: ``name`` for the first, ``name/1`` for the second."""
    return {f"{name}/{place}" if place else name: path for place, path in enumerate(paths)}


def check_file(path: Path) -> None:
    """Check one file of a store against the store's ``run.json``.

    Raises:
        ArtifactError: naming the file, if it is missing, unlisted, or has different content.
    """
    path = Path(path)
    folder = next((parent for parent in path.parents if (parent / RUN).is_file()), path.parent)
    listed = read_run(folder)["outputs"]
    name = path.relative_to(folder).as_posix()
    if name not in listed:
        raise ArtifactError(f"{path} is not listed in {folder / RUN}")
    if not path.is_file():
        raise ArtifactError(f"{path} is missing, though {folder / RUN} lists it")
    if sha256(path) != listed[name]:
        raise ArtifactError(
            f"{path} is not the file that {folder / RUN} describes: truncated or changed since"
        )


def check_store(folder: Path, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Check every file of a store, and its config against ``config`` if given; return its
    ``run.json``.

    Raises:
        ArtifactError: naming the file or the settings that differ.
    """
    run = read_run(folder)
    for name in run["outputs"]:
        check_file(Path(folder) / name)
    if config is not None and run["config_sha256"] != provenance.digest(config):
        raise ArtifactError(
            f"{folder} was made under another config: {difference(run['config'], config)}"
        )
    return run


def difference(old: Any, new: Any, at: str = "") -> str:
    """Return the keys in which two nested settings differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [
            difference(
                old.get(key, "(absent)"), new.get(key, "(absent)"), f"{at}.{key}" if at else key
            )
            for key in sorted(old.keys() | new.keys())
            if old.get(key, "(absent)") != new.get(key, "(absent)")
        ]
        return "; ".join(parts)
    return f"{at} was {old!r}, is now {new!r}"
