"""What is denoised, as seen by the training code.

The training loop and the methods see a ``Task``, never a concrete network or data type, so that
whatever works for pixels works for latents or text once they have a task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from afterimage.diffusion.condition import Condition
from afterimage.diffusion.noising import Batch, Change, Renoise


class Task(Protocol):
    """What a method needs to know about what is denoised."""

    def __len__(self) -> int:
        """Return the number of training items."""

    def batch(
        self,
        rows: np.ndarray,
        generator: torch.Generator,
        change: Change | None = None,
        timesteps: tuple[int, int] | None = None,
        retime: Change | None = None,
        renoise: Renoise | None = None,
    ) -> Batch:
        """Noise the items at ``rows``, after ``change`` if given; all other random numbers come
        from ``generator``.

        ``timesteps`` = (low, high) draws t from [low, high) only. ``retime`` maps the drawn
        timesteps to those used, and shifts no other draw. ``renoise`` replaces noise and targets.
        """

    def labels_of(self, rows: torch.Tensor) -> torch.Tensor | None:
        """Return the labels of items, int64, (B,); None without labels."""

    def condition_of(self, rows: torch.Tensor) -> Condition:
        """Return what the network is given with items, before any dropout."""

    @property
    def alternatives(self) -> int:
        """Number of conditions that an item can be given instead of its own."""

    def instead(
        self, rows: torch.Tensor, wrong: Callable[[torch.Tensor, int], torch.Tensor]
    ) -> Condition:
        """Return what the network is given with items under another condition than their own:
        labels as ``wrong`` makes them of theirs, int64 (B,), and the number of labels; for texts
        the surrogate."""

    def without(self, condition: Condition, dropped: torch.Tensor) -> Condition:
        """Return a condition whose samples in the mask ``dropped``, bool (B,), have none."""

    def predict(self, net: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return what the network predicts, float32, of the target's shape."""

    def losses(self, net: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the loss of each sample, float32, (B,)."""
