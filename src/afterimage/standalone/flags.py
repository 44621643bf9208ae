"""Translation of a study's keys in messages to the flags of a command: ``sample.steps`` to
``--steps``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError

RENAMED = {"sample.images": "generate"}
"""Keys whose flag has a different name."""


def flag(key: str) -> str:
    """Return the flag of a study's key, e.g. ``--inception-weights`` of
    ``quality.inception_weights``."""
    return "--" + RENAMED.get(key, key.rpartition(".")[2]).replace("_", "-")


@contextmanager
def named(*blocks: str) -> Iterator[None]:
    """Reraise errors on keys of ``blocks`` as errors on flags.

    Args:
        blocks: Dotted, e.g. ``sample`` or ``attribution.features``. A pydantic error has the keys
            of the first.

    Raises:
        ConfigError: naming each flag, its value and what is allowed.
        ArtifactError: likewise, if the error was one.
    """
    keys = re.compile(rf"\b(?:{'|'.join(map(re.escape, blocks))})\.[a-z_]+")
    try:
        yield
    except ValidationError as error:
        lines = []
        for entry in error.errors():
            key = ".".join([blocks[0], *map(str, entry["loc"])])
            lines.append(f"{flag(key)} = {entry['input']!r}: {entry['msg']}")
        raise ConfigError("\n".join(lines)) from error
    except (ConfigError, ArtifactError) as error:
        raise type(error)(keys.sub(lambda match: flag(match[0]), str(error))) from error
