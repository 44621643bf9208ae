"""Remedies at inference: what they may use, and where they change the drawing of generations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from pydantic import TypeAdapter

from afterimage.config import METHODS, AnyArm, AtInference
from afterimage.diffusion.guidance import Guided
from afterimage.diffusion.prompts import Prompts

Ids = Sequence[int] | np.ndarray
"""Ids of generations, int64, (n,)."""


class Files(NamedTuple):
    """What a remedy may read, as far as the arm has it."""

    texts: Path | None = None
    """Store of ``data/encode``."""
    train: Path | None = None
    """Training images of the planting."""
    members: Sequence[Path] = ()
    """Tables of those that the network was trained on (``data.members``)."""
    latents: Path | None = None
    """Store of ``data/latents``."""


@dataclass(frozen=True)
class Drawing:
    """What a remedy may know of the drawing of a replicate's generations.

    Attributes:
        seed: Root seed.
        replicate: Replicate of the arm.
        mirrors: Whether some training of the study mirrors images.
        scheduler_config: Config of the scheduler that the network was trained with.
        prompts: Prompts of the generations, for networks that are conditioned on texts.
        files: What may be read.
    """

    seed: int
    replicate: int
    mirrors: bool
    scheduler_config: dict[str, Any]
    prompts: Prompts | None
    files: Files


class Remedy:
    """What a remedy at inference changes in the drawing of a batch. This one changes nothing;
    others replace one of the methods.

    Attributes:
        counts: What it has done so far, name -> number.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def embeddings(self, ids: Ids, embeddings: torch.Tensor) -> torch.Tensor:
        """Return what stands for the prompts of images.

        Args:
            ids: Their ids.
            embeddings: Of their prompts, float32, (n, L, D).
        """
        return embeddings

    def conditions(self, guided: Guided, x: torch.Tensor, t: torch.Tensor) -> Guided:
        """Return the network with the conditions that a batch is drawn with.

        Args:
            guided: The network with the conditions as they are.
            x: Starting noise, float32, (n, C, H, W).
            t: The first timestep.
        """
        return guided

    def prediction(self, guided: Guided, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the prediction that a step is taken with.

        Args:
            guided: The network with the conditions of the batch.
            x: Noisy images, float32, (n, C, H, W).
            t: Their timestep.
        """
        return guided(x, t)

    def count(self, **done: int) -> None:
        """Add to the counts."""
        for name, number in done.items():
            self.counts[name] = self.counts.get(name, 0) + number


class _Method(Protocol):
    def remedy(self, arm: AtInference, drawing: Drawing) -> Remedy:
        """Return the remedy of an arm."""


def remedy_of(
    resolved: dict[str, Any],
    scheduler_config: dict[str, Any],
    prompts: Prompts | None,
    files: Files,
) -> Remedy:
    """Return the remedy of an arm at inference; one that changes nothing for other arms.

    Args:
        resolved: Config of the job; its settings have the arm's block as ``remedy``, and
            ``mirrors``, if there is one.
        scheduler_config: Config of the network's scheduler.
        prompts: Prompts of the generations.
        files: What the remedy may read.
    """
    settings = resolved["settings"]
    if "remedy" not in settings:
        return Remedy()
    arm = cast(AtInference, TypeAdapter(AnyArm).validate_python(settings["remedy"]))
    drawing = Drawing(
        resolved["seed"],
        resolved["replicate"],
        settings["mirrors"],
        scheduler_config,
        prompts,
        files,
    )
    return cast(_Method, import_module(METHODS[arm.method])).remedy(arm, drawing)


def modules(settings: dict[str, Any]) -> tuple[str, ...]:
    """Return the module of the remedy in a job's settings, if there is one: its code takes part."""
    return (METHODS[settings["remedy"]["method"]],) if "remedy" in settings else ()
