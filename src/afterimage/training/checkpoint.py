"""Checkpoints of an unfinished run: safetensors and JSON, written atomically, the last two kept.

They live outside the step's outputs (a workflow engine deletes those of a failed job), in a folder
named after the hash of everything the run depends on: ``STATE / <hash> / update-00000250 /
{state.safetensors, state.json}``, next to the training curves so far.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.provenance import digest

KEEP = 2
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """One saved state.

    Attributes:
        update: Number of finished updates.
        tensors: Name -> tensor, on the CPU.
        facts: Plain JSON values: length of the curves, sums since the last point, time spent.
    """

    update: int
    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


class Store:
    """The saved states of one run.

    Args:
        root: Folder that holds the checkpoints of all runs.
        identity: Everything the run depends on, as plain JSON values: its resolved config and the
            hashes of its inputs and of its code.
    """

    def __init__(self, root: Path, identity: dict[str, Any]) -> None:
        self.identity = identity
        self.folder = Path(root) / digest(identity)[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.curves = self.folder / "metrics.jsonl"
        self._thread = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None

    def saved(self) -> list[Path]:
        """Return the folders of the saved states, newest first."""
        return sorted(self.folder.glob("update-*"), reverse=True)

    def save(
        self,
        update: int,
        tensors: dict[str, torch.Tensor],
        facts: dict[str, Any],
        *,
        meanwhile: bool = False,
    ) -> Path:
        """Save a state and remove all but the last two; return its folder.

        Args:
            update: Number of finished updates.
            tensors: The state, on any device.
            facts: Plain JSON values.
            meanwhile: Return when the state is copied: the training goes on while a thread writes
                it. What goes wrong there is raised by the next call.
        """
        if self._written is not None:
            self._written.result()
            self._written = None
        folder = self.folder / f"update-{update:08d}"
        copies = {
            name: tensor.detach().to("cpu", copy=meanwhile).contiguous()
            for name, tensor in tensors.items()
        }
        if meanwhile:
            written = copy.deepcopy(facts)
            self._written = self._thread.submit(self._write, folder, update, copies, written)
        else:
            self._write(folder, update, copies, facts)
        return folder

    def _write(
        self, target: Path, update: int, tensors: dict[str, torch.Tensor], facts: dict[str, Any]
    ) -> None:
        partial = self.folder / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_file(tensors, partial / "state.safetensors")
        _sync(partial / "state.safetensors")
        record = {
            "update": update,
            "identity": self.identity,
            "sha256": artifacts.sha256(partial / "state.safetensors"),
            "facts": facts,
        }
        artifacts.write_json(partial / "state.json", record)
        _sync(partial)
        artifacts.replace_folder(partial, target)
        _sync(self.folder)
        for old in self.saved()[KEEP:]:
            shutil.rmtree(old)

    def load(self) -> Checkpoint | None:
        """Return the newest intact checkpoint; None if there is none.

        A damaged checkpoint is removed with a warning, and the previous one is loaded instead.

        Raises:
            ArtifactError: if a checkpoint was saved with a different config, inputs or code.
        """
        for folder in self.saved():
            try:
                record = json.loads((folder / "state.json").read_text())
                intact = artifacts.sha256(folder / "state.safetensors") == record["sha256"]
            except (OSError, ValueError, KeyError) as error:
                intact, reason = False, str(error)
            else:
                reason = "state.safetensors is not the file that state.json describes"
            if not intact:
                log.warning("%s is damaged (%s); going back to the state before it", folder, reason)
                shutil.rmtree(folder)
                continue
            if record["identity"] != self.identity:
                raise ArtifactError(
                    f"{folder} was made under another config: "
                    f"{artifacts.difference(record['identity'], self.identity)}"
                )
            return Checkpoint(
                record["update"], load_file(folder / "state.safetensors"), record["facts"]
            )
        return None

    def remove(self) -> None:
        """Delete everything: the run is finished."""
        shutil.rmtree(self.folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
