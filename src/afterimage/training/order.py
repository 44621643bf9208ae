"""The random draws of update ``s``: a pure function of the seed and ``s``, so that a stopped run
resumes bit for bit.

Images come in shuffled epochs without replacement. The permutations of all epochs are concatenated,
and update ``s`` takes positions ``[s B, (s + 1) B)``: a batch may span two epochs, and no
image is ever dropped. All other randomness of the update comes from one generator addressed by
``s`` and is drawn for the whole batch before it is split into micro-batches.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from afterimage import seeds


class Order:
    """The sampling order of one training run.

    Args:
        seed: Root seed of the study.
        path: Address of the run below it (``job.stream_path``).
        images: Number of training images, N.
        batch_size: Images per update, B.
    """

    def __init__(
        self, seed: int, path: tuple[str | int, ...], images: int, batch_size: int
    ) -> None:
        self.seed, self.path, self.images, self.batch_size = seed, path, images, batch_size
        self._permutation = lru_cache(maxsize=2)(self._draw)

    def _draw(self, epoch: int) -> np.ndarray:
        return seeds.numpy_rng(self.seed, *self.path, "epoch", epoch).permutation(self.images)

    def rows(self, s: int) -> np.ndarray:
        """Return the images of update ``s`` (from 0) as int64 positions, (B,)."""
        epochs, offsets = np.divmod(
            np.arange(s * self.batch_size, (s + 1) * self.batch_size), self.images
        )
        pieces = [
            self._permutation(int(epoch))[offsets[epochs == epoch]]
            for epoch in range(epochs[0], epochs[-1] + 1)
        ]
        return np.concatenate(pieces)

    def generator(self, s: int) -> torch.Generator:
        """Return the CPU generator of timesteps, noise, flips and dropped labels of update
        ``s``."""
        return seeds.torch_rng(self.seed, *self.path, "batch", s)

    def dropout_seed(self, s: int) -> int:
        """Return the seed of the network's own dropout in update ``s``, which torch draws from its
        global generator."""
        return seeds.derive(self.seed, *self.path, "dropout", s)

    def updates(self, epochs: int) -> int:
        """Return the number of updates in ``epochs`` passes over the images: ceil(epochs N / B)."""
        return -(-epochs * self.images // self.batch_size)
