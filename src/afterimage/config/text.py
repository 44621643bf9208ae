"""The text of a study file: UTF-8 and YAML, a mapping without repeated keys."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import yaml

from afterimage.config.base import ConfigError

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order mark -> encoding. The mark of UTF-32 begins with that of UTF-16 and comes first."""

_UNSOUND = (ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError)
"""Exceptions that PyYAML raises, besides its own errors, for values that do not match the type they
are written as: a 32nd of May."""

_MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a file.

    Raises:
        ConfigError: naming the file, if it cannot be read, is not UTF-8 text, is not YAML, is not a
            mapping, or repeats a key.
    """
    text = _text(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        twice = _twice(root, "", set()) if root is not None else []
        if twice:
            raise ConfigError("\n".join(f"{path}: {line}" for line in twice))
        params = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{path} is not YAML: {place}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    except ConfigError:
        raise
    except _UNSOUND as error:
        raise ConfigError(
            f"{path} is not YAML: a value is not of the type that it is written as: {error}"
        ) from error
    if not isinstance(params, dict):
        content = "nothing" if params is None else f"a {type(params).__name__}"
        raise ConfigError(f"{path} must hold a mapping of keys, but it holds {content}")
    return params


def _text(path: str | Path) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    kind = next((kind for mark, kind in _MARKS.items() if data.startswith(mark)), None)
    if kind is None and b"\0" in data:
        kind = "no text, or UTF-16 without its mark"
    if kind is not None:
        raise ConfigError(f"{path} is {kind}: save it as UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not UTF-8: byte {data[error.start]:#04x} in line {line} (Latin-1?); save "
            "it as UTF-8"
        ) from error


def _twice(node: yaml.Node, key: str, seen: set[int]) -> list[str]:
    """Return a message for each key that is repeated in a mapping at or below ``node``. A key may
    override one merged in by ``<<``."""
    if id(node) in seen:
        return []
    seen.add(id(node))
    messages: list[str] = []
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            messages += _twice(item, f"{key}.{number}" if key else str(number), seen)
    if isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], list[int]] = {}
        for name, value in node.value:
            below = f"{key}.{name.value}" if key else str(name.value)
            if isinstance(name, yaml.ScalarNode) and name.tag != _MERGE:
                lines.setdefault((name.tag, name.value), []).append(name.start_mark.line + 1)
            messages += _twice(value, below, seen)
        messages = [
            f"{key + '.' if key else ''}{name} stands {len(numbers)} times in one mapping, in "
            f"lines {', '.join(map(str, numbers))}"
            for (_, name), numbers in lines.items()
            if len(numbers) > 1
        ] + messages
    return messages
