"""Common to all blocks of a study."""

from __future__ import annotations

import ast
import inspect
import os
import re
import textwrap
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, GetJsonSchemaHandler


class ConfigError(ValueError):
    """A study that cannot run; the message names the key, the value and what is allowed."""


class AbsentError(ConfigError):
    """A file or folder that this machine does not have, or a variable in its path that is not
    set."""


class Block(BaseModel):
    """A block of a study. The docstring of a key is its description in the JSON schema.

    Only there: pydantic's ``use_attribute_docstrings`` would read the source of all blocks at the
    start of every job.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for block in reversed(cls.__mro__[: cls.__mro__.index(Block)]):
            for key, text in _docstrings(block).items():
                if key in properties:
                    properties[key]["description"] = text
        return schema


def _docstrings(block: type) -> dict[str, str]:
    """Return the docstrings below the annotated attributes of a class, by attribute."""
    body = ast.parse(textwrap.dedent(inspect.getsource(block))).body[0].body  # type: ignore[attr-defined]
    return {
        key: inspect.cleandoc(text)
        for first, second in pairwise(body)
        if isinstance(first, ast.AnnAssign) and isinstance(second, ast.Expr)
        if isinstance(key := getattr(first.target, "id", None), str)
        if isinstance(text := getattr(second.value, "value", None), str)
    }


Share = Annotated[float, Field(gt=0, le=1)]
LONGEST = 60
"""Characters of a name, at most."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]
HubId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")]
Commit = Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=LONGEST)]


def expand(path: str) -> str:
    """Return a path that exists as it is, and any other with ``~`` and environment variables
    expanded.

    Raises:
        ConfigError: if it is empty.
        AbsentError: if a variable is not set.
    """
    if not path:
        raise ConfigError("the path is empty")
    if os.path.lexists(path):
        return path
    for variable in re.findall(r"\$\{?(\w+)\}?", path):
        if variable not in os.environ:
            raise AbsentError(f"{path}: the environment variable {variable} is not set")
    return os.path.expandvars(os.path.expanduser(path))


def kind_or(default: str) -> Discriminator:
    """Return what tells the blocks of a union apart: their key ``kind``, which may be left out."""

    def kind(given: Any) -> str:
        if isinstance(given, dict):
            return str(given.get("kind", default))
        return str(getattr(given, "kind", default))

    return Discriminator(kind)
