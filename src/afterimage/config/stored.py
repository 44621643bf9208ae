"""A trained network in a folder or on the Hugging Face Hub, which a study takes as it is."""

from __future__ import annotations

import json
from abc import abstractmethod
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError, model_validator

from afterimage.config.base import (
    AbsentError,
    Block,
    Commit,
    ConfigError,
    HubId,
    Sha256,
    expand,
)


class Stored(Block):
    """A folder of safetensors and a JSON config, which the block's other keys must agree with."""

    config_file: ClassVar[str] = "config.json"
    """The config, relative to the folder."""

    path: str
    """The folder. Environment variables are expanded. With ``id``, the folder in that repository,
    such as ``unet``; ``.`` is the whole of it."""
    id: HubId | None = None
    """Repository on the Hugging Face Hub, ``owner/name``, in whose local cache the folder is; a run
    fetches what is missing before its first job. null: ``path`` is on this machine."""
    revision: Commit | None = None
    """Commit of the repository, all 40 digits, with ``id``: a branch or a tag may move."""
    sha256: dict[str, Sha256] = {}
    """File, relative to the folder -> expected sha256. A file with another checksum is an error."""

    @property
    def folder(self) -> Path:
        """Where the folder is on this machine, or would be in the Hub's local cache.

        Raises:
            AbsentError: if a variable in its path is not set.
        """
        return Path(expand(self.path)) if self.id is None else self.snapshot / self.path

    @property
    def snapshot(self) -> Path:
        """Where the repository ``id`` is in the Hub's local cache, if it is there."""
        from huggingface_hub import constants

        repository = f"models--{str(self.id).replace('/', '--')}"
        return Path(constants.HF_HUB_CACHE, repository, "snapshots", str(self.revision))

    @cached_property
    def described(self) -> dict[str, Any] | None:
        """The stored config; None on a machine that does not have it.

        Raises:
            ValueError: if it is not a JSON object.
        """
        try:
            file = self.folder / self.config_file
        except AbsentError:  # a path of another machine: told by the step that reads it
            return None
        return read(file) if file.is_file() else None

    @model_validator(mode="after")
    def _one_place(self) -> Stored:
        if (self.id is None) != (self.revision is None):
            raise ValueError(
                f"id = {self.id!r} and revision = {self.revision!r}: a repository on the Hub is "
                "read at a commit; give both or neither"
            )
        if self.id is not None and not is_inside(self.path):
            raise ValueError(
                f"path = {self.path!r} is no folder in the repository {self.id}; allowed is a "
                "relative one, such as unet, or '.'"
            )
        return self

    @model_validator(mode="after")
    def _is_the_one_stored(self) -> Stored:
        if self.described is not None:
            self.check(self.described)
        return self

    @abstractmethod
    def check(self, described: dict[str, Any]) -> None:
        """Compare the keys with the stored config.

        Raises:
            ValueError: naming the key that differs, and both values.
        """


def is_inside(path: str) -> bool:
    """Return whether a path stays in the folder that it is relative to."""
    return bool(path) and not PurePosixPath(path).is_absolute() and ".." not in path.split("/")


def read(file: Path) -> dict[str, Any]:
    """Return a stored config.

    Raises:
        ValueError: naming the file, if it is not a JSON object.
    """
    try:
        described = json.loads(file.read_text())
    except ValueError as error:  # of json, and of the encoding
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(described, dict):
        raise ValueError(f"{file} must hold a JSON object, not {type(described).__name__}")
    return described


def validated(block: Any, settings: dict[str, Any], key: str) -> Any:
    """Return the block of a job's settings, which may name a stored network: another one may be in
    its folder than when the study was planned, or there was none.

    Args:
        block: Its type.
        settings: Its keys, as plain values.
        key: Its name in the study, for messages.

    Raises:
        ConfigError: naming the key that differs from the stored config.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(block)
    try:
        return adapter.validate_python(settings)
    except ValidationError as error:
        told = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        raise ConfigError(f"{key}: {told}") from error
