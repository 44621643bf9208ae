"""Mistakes in a study, in words: the key, its value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from afterimage.config.arms import METHODS


def allowed(what: str, word: str, names: Iterable[str]) -> str:
    """Return which names are allowed, and the nearest to ``word``."""
    return f"{what} are: {', '.join(names) or 'none'}{nearest(word, names)}"


def nearest(word: str, choices: Any) -> str:
    """Return a question for the choice nearest to ``word``; empty if none is near."""
    close = difflib.get_close_matches(
        str(word), [str(choice) for choice in choices], n=1, cutoff=0.5
    )
    return f"; did you mean {close[0]!r}?" if close else ""


def _fields_at(model: Any, path: tuple[Any, ...]) -> list[str]:
    """Return the keys allowed at ``path`` inside ``model``, following lists, dicts, unions and
    discriminator tags."""
    candidates: list[Any] = [model]
    for part in path:
        following: list[Any] = []
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                if part in candidate.model_fields:
                    following += _models_in(candidate.model_fields[part].annotation)
                elif any(
                    part in get_args(field.annotation) for field in candidate.model_fields.values()
                ):
                    following.append(candidate)  # a discriminator tag names the class
                elif isinstance(part, int) or not candidates[1:]:
                    following.append(candidate)
        candidates = following or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Return one line per mistake: its key, its value and what is allowed.

    Args:
        error: What pydantic raised.
        model: The block that was validated.
        prefix: Where it stands in the study.
    """
    lines = []
    for problem in error.errors():
        location = problem["loc"]
        parts = [
            part
            for depth, part in enumerate(location)
            if not (depth == 2 and location[0] == "arms" and part in METHODS)
            if not (depth == 1 and location[0] == "model" and part in ("scratch", "stored"))
        ]
        key = ".".join(str(part) for part in ([prefix] if prefix else []) + parts)
        if problem["type"] == "extra_forbidden":
            keys = _fields_at(model, location[:-1])
            lines.append(
                f"{key}: unknown key{nearest(str(location[-1]), keys)} (allowed here: "
                f"{', '.join(keys)})"
            )
        elif problem["type"] == "missing":
            lines.append(f"{key}: missing; it must be given")
        elif problem["type"].startswith("union_tag_"):
            tag = problem["ctx"]["discriminator"].strip("'()")
            value = problem["input"]
            value = value.get(tag) if isinstance(value, dict) else value
            lines.append(f"{key}.{tag} = {value!r}: {problem['msg']}")
        elif problem["type"] == "value_error":
            lines.append(f"{key + ': ' if key else ''}{problem['ctx']['error']}")
        else:
            lines.append(f"{key} = {problem['input']!r}: {problem['msg']}")
    return "\n".join(lines)
