"""Data sets on the Hugging Face Hub: their parquet files are downloaded at one commit and verified.

``huggingface_hub`` downloads into its own cache; ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and
``HF_HUB_OFFLINE`` have their usual meaning. It resumes a broken download, but compares sizes only,
and does not check a cached file again. Every file is therefore hashed here before it is read.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from afterimage.artifacts import ArtifactError, sha256
from afterimage.config.base import AbsentError, ConfigError
from afterimage.config.data import HuggingFace
from afterimage.data import parquet
from afterimage.data.records import Contents, Reading

ATTEMPTS = 3
"""Downloads of one file before giving up; each resumes broken connections by itself."""
PAUSE = 2.0
"""Seconds before the second attempt, doubled before the next one."""
_OFFICIAL_TEST = ("test", "validation")


class Download(NamedTuple):
    """The parquet files of a source's split in the local cache.

    Attributes:
        files: Name, path, and whether it belongs to the official test split, of each in order.
        sha256: Of each, by name.
        commit: The commit that they belong to.
    """

    files: list[tuple[str, Path, bool]]
    sha256: dict[str, str]
    commit: str


def contents(source: HuggingFace, reading: Reading) -> Contents:
    """Return the rows of the source's split; for errors see ``download`` and, to look at it,
    ``_cached``."""
    files, hashes, commit = (_cached if reading.look else download)(source, reading)
    return parquet.contents_of(files, source, reading, hashes, facts={"commit": commit})


def download(source: HuggingFace, reading: Reading) -> Download:
    """Download the parquet files of the source's split, or use those in the local cache.

    With a full commit hash and ``sha256`` for every file of the split, cached files need no
    network. Otherwise the Hub is asked for its list of files and their checksums.

    Raises:
        ConfigError: if the data set, the revision, the configuration or the split does not exist,
            or ``sha256`` lacks a file of the split.
        ArtifactError: if the Hub cannot be reached, or a file has another checksum.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    located: list[tuple[str, Path, bool]] = []
    raw: dict[str, str] = {}
    try:
        if source.pinned and source.sha256:
            commit, expected = source.revision, dict[str, str | None](source.sha256)
        else:
            commit, expected = _listing(source)
        listed = [
            (name, _expected(name, expected, source, reading), split in _OFFICIAL_TEST)
            for split in source.split.split("+")
            for name in files_of(split, sorted(expected), source, reading)
        ]
        for name, checksum, official_test in listed:
            path, raw[name] = _download(source.dataset, name, commit, checksum)
            located.append((name, path, official_test))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"{reading.names['source']}: {source.dataset} at revision {source.revision}: {error}"
        ) from error
    except (HTTPError, OSError) as error:
        cause = error.__cause__ or error
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        raise ArtifactError(
            f"{source.dataset} cannot be fetched from the Hub, and is not in the local cache "
            f"({constants.HF_HUB_CACHE}): {reason}"
        ) from error
    return Download(located, raw, commit)


def _cached(source: HuggingFace, reading: Reading) -> Download:
    """Return the files of the source's split in the local cache, without asking the Hub or hashing
    a file.

    Raises:
        AbsentError: if they are not all there, or revision and ``sha256`` do not say which they
            are.
        ConfigError: if ``sha256`` names no file of the split.
    """
    from huggingface_hub import try_to_load_from_cache

    located: list[tuple[str, Path, bool]] = []
    for split in source.split.split("+") if source.pinned and source.sha256 else []:
        for name in files_of(split, sorted(source.sha256), source, reading):
            path = try_to_load_from_cache(
                source.dataset, name, revision=source.revision, repo_type="dataset"
            )
            if not isinstance(path, str):
                raise AbsentError(f"{source.dataset}: {name} is not in the local cache")
            located.append((name, Path(path), split in _OFFICIAL_TEST))
    if not located:
        raise AbsentError(f"{source.dataset}: its files are known by the Hub alone")
    return Download(located, {}, source.revision)


def _listing(source: HuggingFace) -> tuple[str, dict[str, str | None]]:
    """Return the commit of the revision, and name -> sha256 of its parquet files.

    The sha256 is None where the Hub states none, i.e. for small files outside of git-lfs.
    """
    from huggingface_hub import HfApi

    info = HfApi(library_name="afterimage").dataset_info(
        source.dataset, revision=source.revision, files_metadata=True
    )
    return info.sha or source.revision, {
        file.rfilename: file.lfs.sha256 if file.lfs else None
        for file in info.siblings or []
        if file.rfilename.endswith(".parquet")
    }


def _expected(
    name: str, listed: dict[str, str | None], source: HuggingFace, reading: Reading
) -> str | None:
    """Return the sha256 that a file must have: the study's if it states any, or else the Hub's."""
    if not source.sha256:
        return listed[name]
    if name not in source.sha256:
        raise ConfigError(
            f"{reading.names['sha256']} names {', '.join(source.sha256)}, but {source.dataset} has "
            f"{name} too in split {source.split!r}; name every file of the split"
        )
    return source.sha256[name].lower()


def files_of(split: str, stored: list[str], source: HuggingFace, reading: Reading) -> list[str]:
    """Return the files of one split, in order.

    Raises:
        ConfigError: if there are none, if several configurations have such a split and none is
            named, or if shards of a split (``...-00000-of-00002.parquet``) are missing.
    """
    folders = {
        name: "/".join(parent for parent in name.split("/")[:-1] if parent != split)
        for name in stored
        if parquet.is_part(split, name)
    }
    if source.config is not None:
        folders = {
            name: folder for name, folder in folders.items() if source.config in folder.split("/")
        }
    if not folders:
        raise ConfigError(
            f"{reading.names['source']}: {source.dataset} has no parquet file of split {split!r}"
            + (f" in configuration {source.config!r}" if source.config else "")
            + f"; it has: {', '.join(stored) or 'none'}"
        )
    if len(set(folders.values())) > 1:
        raise ConfigError(
            f"{reading.names['config']}: {source.dataset} has several configurations with a split "
            f"{split!r}: {', '.join(sorted(set(folders.values())))}; name one"
        )
    shards = {int(total) for name in folders for total in re.findall(r"-of-(\d+)", name)}
    if shards and shards != {len(folders)}:
        raise ConfigError(
            f"{reading.names['source']}: split {split!r} of {source.dataset} has {max(shards)} "
            f"shards by their names, but {len(folders)} are listed: {', '.join(folders)}"
        )
    return list(folders)


def _download(dataset: str, name: str, commit: str, checksum: str | None) -> tuple[Path, str]:
    """Return the cached path and the sha256 of a file, downloaded if it is not in the cache.

    A file with another checksum, whether cached or just received, is set aside in the cache as
    ``<name>.wrong-sha256`` and downloaded again.

    Raises:
        ArtifactError: if the checksum is wrong after ``ATTEMPTS`` downloads.
        huggingface_hub.errors.HTTPError, OSError: if the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    api = HfApi(library_name="afterimage")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            path = Path(api.hf_hub_download(dataset, name, repo_type="dataset", revision=commit))
        except HTTPError as error:
            refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
            if refused or attempt == ATTEMPTS:
                raise
            time.sleep(PAUSE * 2 ** (attempt - 1))
            continue
        actual = sha256(path)
        if checksum is None or actual == checksum:
            return path, actual
        aside = path.with_name(f"{path.name}.wrong-sha256")
        path.resolve().replace(aside)
    raise ArtifactError(
        f"{name} of {dataset} has sha256 {actual}, expected {checksum}; the file received is kept "
        f"as {aside}"
    )
