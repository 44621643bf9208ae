"""Common to all blocks of a study."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class ConfigError(ValueError):
    """A study that cannot run; the message names the key, the value and what is allowed."""


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Share = Annotated[float, Field(gt=0, le=1)]
LONGEST = 60
"""Characters of a name, at most."""
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=LONGEST)]


def expand(path: str) -> str:
    """Return a path that exists as it is, and any other with ``~`` and environment variables
    expanded.

    Raises:
        ConfigError: if it is empty, or a variable is not set.
    """
    if not path:
        raise ConfigError("the path is empty")
    if os.path.lexists(path):
        return path
    for variable in re.findall(r"\$\{?(\w+)\}?", path):
        if variable not in os.environ:
            raise ConfigError(f"{path}: the environment variable {variable} is not set")
    return os.path.expandvars(os.path.expanduser(path))
