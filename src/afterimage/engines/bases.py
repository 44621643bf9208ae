"""Trained networks of a study that are on the Hugging Face Hub (``id`` of ``model``, ``text`` and
``autoencoder``): fetched by the main process, once, into the Hub's local cache, at their commit.

Planning needs their configs, which are small; weights are fetched when a run starts, before its
first job. So jobs need no network. ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE``
have their usual meaning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.config import Study
from afterimage.config.stored import Stored
from afterimage.diffusion.stored_files import WEIGHTS, hub_errors
from afterimage.engines import checksums

CONFIGS = ("*.json", "*.txt")
"""Files that say what the networks of a repository are, and the texts of tokenizers."""


def stored(study: Study) -> dict[str, Stored]:
    """Return key -> block of the trained networks that a study takes as they are."""
    blocks = {"model": study.model, "text": study.text, "autoencoder": study.autoencoder}
    return {key: block for key, block in blocks.items() if isinstance(block, Stored)}


def is_whole(block: Stored) -> bool:
    """Return whether the weights of a network are on this machine, as far as file names tell."""
    folder = (block.folder / block.config_file).parent
    index = next(folder.glob("*.safetensors.index.json"), None)
    if index is None:
        return any(folder.glob(WEIGHTS))
    files = set(json.loads(index.read_text())["weight_map"].values())
    return all((folder / file).is_file() for file in files)


def fetch_configs(study: Study) -> bool:
    """Fetch the configs of networks whose config is not in the local cache.

    Returns:
        Whether any was fetched: the study is to be read again, with them.

    Raises:
        ArtifactError: if the Hub cannot be reached, or does not have them.
    """
    fetched = False
    for key, block in stored(study).items():
        if block.id is not None and block.described is None:
            _fetch(key, block, CONFIGS)
            if not (block.folder / block.config_file).is_file():
                raise _absent(key, block, block.config_file)
            fetched = True
    return fetched


def fetch_weights(study: Study) -> None:
    """Fetch the weights of networks that are not in the local cache, and compare their checksums.

    Raises:
        ArtifactError: if the Hub cannot be reached, or does not have them, or a file has another
            checksum.
    """
    for key, block in stored(study).items():
        if block.id is not None and not is_whole(block):
            folder = (block.folder / block.config_file).parent
            inside = folder.relative_to(block.snapshot).as_posix()
            prefix = "" if inside == "." else f"{inside}/"
            _fetch(key, block, [f"{prefix}{WEIGHTS}", f"{prefix}*model-*-of-*.safetensors"])
            if not is_whole(block):
                raise _absent(key, block, "weights in safetensors")
            artifacts.check_sums(block.folder, block.sha256, f"{key}.sha256", checksums.sha256)


def _absent(key: str, block: Stored, what: str) -> ArtifactError:
    """Return the error of files that are not there after all: without a network the Hub's client is
    content with those of a commit that it has."""
    return ArtifactError(
        f"{key}.path = {block.path!r}: there are no {what} of {block.id} at revision "
        f"{block.revision}, neither in the local cache nor on the Hub, or it cannot be reached"
    )


def _fetch(key: str, block: Stored, patterns: Iterable[str]) -> None:
    """Fetch some files of a repository into the local cache."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download

    with hub_errors(f"{key}.id = {block.id}", "it"):
        snapshot_download(str(block.id), revision=block.revision, allow_patterns=list(patterns))
