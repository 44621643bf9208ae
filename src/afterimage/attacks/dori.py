"""Adversarial text embeddings (Kowalczuk, Hintersdorf et al., ICML 2026: Finding DoRI): does some
embedding bring a forgotten image back?

A network may have unlearned the way from a caption to an image, and still know the image. For each
image an embedding is optimised that lowers the denoising loss on it (Ho et al. 2020, equation 14,
with the embedding in the place of the weights), starting at that of the empty caption. Then
generations are drawn for it. Images that nobody trained on are the control: what an embedding can
make a network draw that never saw the image is not memory.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from afterimage import seeds
from afterimage.config import Forgetting
from afterimage.diffusion.noising import Pixels
from afterimage.diffusion.texts import TEXT


def optimised(
    net: torch.nn.Module,
    task: Pixels,
    ids: np.ndarray,
    start: torch.Tensor,
    settings: Forgetting,
    seed: int,
) -> torch.Tensor:
    """Return an embedding of each image, float32 (N, L, D), on the CPU, optimised by Adam.

    Each depends on its own image, noise and timesteps alone, which the image's id addresses, so that
    they are the same for every arm.

    Args:
        net: The network, in evaluation mode, on the device to use; it stays as it is.
        task: The denoising of the images.
        ids: Their ids, (N,).
        start: Embedding of the empty caption, float32 (L, D).
        settings: Number of updates, step size, and noisy samples per update.
        seed: Root seed.
    """
    size = settings.embedding_batch_size
    together = max(1, settings.relearn_batch_size // size)
    parts = torch.arange(len(task)).split(together)
    return torch.cat([_optimised(net, task, rows, ids, start, settings, seed) for rows in parts])


def _optimised(
    net: torch.nn.Module,
    task: Pixels,
    rows: torch.Tensor,
    ids: np.ndarray,
    start: torch.Tensor,
    settings: Forgetting,
    seed: int,
) -> torch.Tensor:
    """Return the embeddings of the images at some rows of the task."""
    device, size = next(net.parameters()).device, settings.embedding_batch_size
    embeddings = start.repeat(len(rows), 1, 1).to(device).requires_grad_()
    optimizer = torch.optim.Adam([embeddings], lr=settings.embedding_learning_rate)
    generators = [seeds.torch_rng(seed, "dori", int(ids[row])) for row in rows]
    timesteps = task.scheduler.config["num_train_timesteps"]
    shown, mirrored = rows.repeat_interleave(size), torch.zeros(size * len(rows), dtype=torch.bool)
    for _ in range(settings.embedding_updates):
        drawn = [
            (
                torch.randint(timesteps, (size,), generator=generator),
                torch.randn((size, *task.shape), generator=generator),
            )
            for generator in generators
        ]
        at, noise = (torch.cat(each) for each in zip(*drawn, strict=True))
        batch = task.noised(shown, at, noise, mirrored, {}).to(device)
        batch = replace(batch, condition={TEXT: embeddings.repeat_interleave(size, dim=0)})
        loss = task.losses(net, batch).sum() / size
        (embeddings.grad,) = torch.autograd.grad(loss, embeddings)
        optimizer.step()
    return embeddings.detach().cpu()
