"""The checkpoints that a trainer leaves in a folder, and whether each is written to the end.

Recognised are folders of a pipeline (``model_index.json``), of networks in a trainer's layout
(``unet/``, ``unet_ema/``, ``transformer/``) and of LoRA weights, with the number of updates as the
last number of their name (``checkpoint-500``, ``step_1000``), in the folder itself or in
``checkpoints/`` below it; and the folder itself once the trainer has written its final pipeline
there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INDEX = "model_index.json"
NETWORKS = ("unet_ema", "unet", "transformer")
LORA = "pytorch_lora_weights.safetensors"
NESTED = "checkpoints"
"""A folder of checkpoints inside the training's folder, as some trainers make."""


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A network of the training.

    Attributes:
        final: Whether it is the pipeline that the trainer writes at its end, which comes last.
        update: The number in the folder's name; -1 for the final pipeline.
        path: Its folder.
    """

    final: bool
    update: int
    path: Path


def find(folder: Path) -> tuple[list[Checkpoint], list[Path]]:
    """Return the checkpoints of a training in the order of their updates, the final pipeline last,
    and the folders that hold a network but no number in their name.

    Args:
        folder: What the trainer calls its output folder.
    """
    found, unnumbered = [], []
    for place in (folder, folder / NESTED):
        for path in sorted(entry for entry in _listed(place) if entry.is_dir()):
            if not _holds_network(path) or path.name in NETWORKS:
                continue
            numbers = re.findall(r"\d+", path.name)
            if numbers:
                found.append(Checkpoint(False, int(numbers[-1]), path))
            else:
                unnumbered.append(path)
    if (folder / INDEX).is_file():
        found.append(Checkpoint(True, -1, folder))
    return sorted(found), unnumbered


def _holds_network(path: Path) -> bool:
    names = (INDEX, LORA, *NETWORKS)
    return any((path / name).exists() for name in names)


def _listed(place: Path) -> Iterator[Path]:
    return place.iterdir() if place.is_dir() else iter(())


Contents = tuple[tuple[str, int, int], ...]
"""Name, size in bytes and time of the last change in nanoseconds of every file."""


def contents(checkpoint: Checkpoint) -> Contents:
    """Return what a checkpoint's files are now; two equal answers some time apart say that nothing
    is being written. Of the final pipeline, the checkpoints in the same folder do not count."""
    path = checkpoint.path
    files = []
    for file in sorted(path.rglob("*")):
        top = path / file.relative_to(path).parts[0]
        inside = checkpoint.final and top.is_dir() and (top.name == NESTED or _numbered(top))
        try:
            if not inside and file.is_file():
                stat = file.stat()
                files.append((str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns))
        except FileNotFoundError:  # renamed or removed meanwhile
            continue
    return tuple(files)


def _numbered(path: Path) -> bool:
    return _holds_network(path) and bool(re.search(r"\d", path.name))


def unfinished(checkpoint: Checkpoint) -> str | None:
    """Return why a checkpoint cannot be read yet; None if all of its files are whole.

    Weights are whole if they are as long as their header says, and configs if they are JSON. A
    network needs both.
    """
    path = checkpoint.path
    networks = [folder for name in NETWORKS if (folder := path / name).is_dir()]
    for folder in networks:
        for pattern, what in (("config.json", "config"), ("*.safetensors", "weights")):
            if not any(folder.glob(pattern)):
                return f"{folder.name}/ has no {what} yet"
    if not networks and not (path / LORA).is_file():
        return "it has no network yet"
    for name, size, _ in contents(checkpoint):
        file = path / name
        try:
            if file.suffix == ".safetensors" and (reason := _cut_short(file, size)):
                return f"{name} {reason}"
            if file.suffix == ".json":
                json.loads(file.read_bytes())
        except FileNotFoundError:
            return f"{name} is being replaced"
        except ValueError:
            return f"{name} is not whole yet"
    return None


def _cut_short(file: Path, size: int) -> str | None:
    """Return what is missing of a safetensors file; None if nothing is."""
    with file.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
        if size < 8 + header:
            return "has only a part of its header yet"
        entries = json.loads(stream.read(header))
    ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    expected = 8 + header + max(ends, default=0)
    return None if size >= expected else f"has {size} of its {expected} bytes yet"
