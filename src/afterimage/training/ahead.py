"""Batches that are made while the device computes.

A batch is a pure function of the seed and the number of its update, so that it can be made in
advance without a change of any bit: in a thread, one update ahead, and in memory that the device
can read by itself while the thread of the training goes on. On a CPU, whose threads have other
work, batches are made when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, cast

import torch

from afterimage.diffusion.condition import each_tensor

Made = TypeVar("Made")
"""A batch, or several with what else an update is computed from: whatever ``each_tensor`` knows."""


class Ahead(Generic[Made]):
    """The batches of a training, asked for in their order.

    Args:
        make: Returns the batch, or the batches, of update s; called for one update more than there
            are.
        device: Where they are computed with.
    """

    def __init__(self, make: Callable[[int], Made], device: torch.device) -> None:
        self._make, self._device = make, device
        self._thread = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Made]] | None = None

    def __call__(self, s: int) -> Made:
        """Return what update ``s`` is computed from; whatever went wrong in making it is raised
        here."""
        if self._device.type == "cpu":
            return self._make(s)
        if self._next is not None and self._next[0] == s:
            made = self._next[1].result()
        else:
            made = self._pinned(s)
        self._next = s + 1, self._thread.submit(self._pinned, s + 1)
        return made

    def _pinned(self, s: int) -> Made:
        made = self._make(s)
        if self._device.type != "cuda":
            return made
        return cast(Made, each_tensor(made, lambda tensor: tensor.pin_memory()))
