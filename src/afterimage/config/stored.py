"""A trained network in a folder, which a study takes as it is."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from afterimage.config.base import Block, ConfigError, Sha256, expand


class Stored(Block):
    """A folder of safetensors and a JSON config, which the block's other keys must agree with."""

    config_file: ClassVar[str] = "config.json"
    """The config, relative to the folder."""

    path: str
    """The folder. Environment variables are expanded."""
    sha256: dict[str, Sha256] = {}
    """File, relative to the folder -> expected sha256. A file with another checksum is an error."""

    @model_validator(mode="after")
    def _is_the_one_stored(self) -> Stored:
        try:
            file = Path(expand(self.path)) / self.config_file
        except ConfigError:  # a path of another machine: told by the step that reads it
            return self
        if file.is_file():
            self.check(json.loads(file.read_text()))
        return self

    @abstractmethod
    def check(self, described: dict[str, Any]) -> None:
        """Compare the keys with the stored config.

        Raises:
            ValueError: naming the key that differs, and both values.
        """
