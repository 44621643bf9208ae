"""Reading the files of a stored pipeline, and the wording shared by messages about them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afterimage.artifacts import ArtifactError

WEIGHTS = "*model.safetensors"
"""Weights of a network in one file, without those of a variant such as ``fp16``."""

POINTER = b"version https://git-lfs"
"""First bytes of a file that git-lfs has not fetched."""

BAD_CONFIG = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What constructors and forward passes of diffusers raise on an impossible config
(NotImplementedError is a RuntimeError, KeyError and IndexError are LookupErrors)."""

WHAT_OPENS = "what can be opened is a UNet2DModel of pixels with a DDPMScheduler or DDIMScheduler"
OWN_CODE = (
    "draw with the pipeline's own code and give the images to `afterimage audit` as --samples"
)


@contextmanager
def hub_errors(name: str, what: str, lacking: str = "such file") -> Iterator[None]:
    """Reraise errors of the Hub's client as one sentence.

    Args:
        name: What is fetched, for messages.
        what: The same in a sentence.
        lacking: What a repository lacks that lacks a file.

    Raises:
        ArtifactError: with the cause.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ArtifactError(
            f"{name}: {what} is neither in the local cache at this revision nor can the Hub be "
            "reached (no network, or HF_HUB_OFFLINE is set); give a folder, or fetch it first"
        ) from error
    except EntryNotFoundError as error:
        raise ArtifactError(f"{name}: the Hub's repository has no {lacking}") from error
    except (HTTPError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{name} cannot be fetched from the Hub: {first_line(error)}"
        ) from error


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of the pipeline called ``name`` in messages.

    Raises:
        ArtifactError: if the file is missing, unreadable, a git-lfs pointer, or not a JSON object.
    """
    try:
        text = path.read_text("utf-8")
        value = json.loads(text)
    except FileNotFoundError as error:
        raise ArtifactError(f"{name} is incomplete: there is no {short(path)}") from error
    except OSError as error:
        raise ArtifactError(f"{name}: {short(path)} cannot be read: {error.strerror}") from error
    except ValueError as error:  # of json, and of the encoding
        if path.read_bytes().startswith(POINTER):
            raise ArtifactError(
                f"{name}: {short(path)} is a git-lfs pointer, not the file; run `git lfs pull`"
            ) from error
        raise ArtifactError(
            f"{name}: {short(path)} is damaged, it is not JSON: {first_line(error)}"
        ) from error
    if not isinstance(value, dict):
        raise ArtifactError(
            f"{name}: {short(path)} is damaged: a JSON object is needed, not {type(value).__name__}"
        )
    return value


def short(path: Path) -> str:
    """Return a file's name for messages: with its folder, except for the index."""
    return path.name if path.name == "model_index.json" else f"{path.parent.name}/{path.name}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def listed(names: list[str]) -> str:
    """Return at most six names, and how many more there are."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
