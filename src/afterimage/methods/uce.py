"""UCE, unified concept editing (Gandikota et al., WACV 2024): the key and value projections of all
cross-attention are edited in closed form, without any training.

With W the weights of a projection in the base, c the embedding of a token of a forgotten caption, c*
that of the surrogate's token at the same place, and p the embeddings of the tokens of captions that
are to stay, the edited W' minimises (the paper's objective, with the released code's weights and
ridge)

    a sum_c |W' c - W c*|^2 + b sum_p |W' p - W p|^2 + lambda |W' - W|^2.

The gradient is zero at (equation 7, with these)

    W' = (a sum W c* c^T + b sum W p p^T + lambda W) A^-1 = W (1 + a sum (c* - c) c^T A^-1),
    A = a sum c c^T + b sum p p^T + lambda 1,

so that all projections are multiplied by one matrix. Embeddings are taken at every place, padding
too, whose embeddings know the whole caption. (The released code takes the last token alone; an
earlier one that and all after it.) Captions to forget are those of the forgotten images, and
captions to keep those that only other images have, each once.

Sums over many captions outweigh the ridge: what matters are a and b for the numbers of captions of
the study.
"""

from __future__ import annotations

import torch

from afterimage.config import Uce
from afterimage.diffusion.model import load_weights
from afterimage.diffusion.noising import Pixels
from afterimage.training.job import Spent, Trained, TrainingRun
from afterimage.training.learner import Learner

PROJECTIONS = (".attn2.to_k.weight", ".attn2.to_v.weight")
"""Ends of the names of the edited weights in diffusers' networks."""


def edit(
    forgotten: torch.Tensor,
    surrogate: torch.Tensor,
    kept: torch.Tensor,
    erase: float,
    preserve: float,
    ridge: float,
) -> torch.Tensor:
    """Return the matrix that projections are multiplied by, float64, (D, D).

    Args:
        forgotten: Embeddings c, (M, D).
        surrogate: Embeddings c* in their place, (M, D).
        kept: Embeddings p, (P, D).
        erase: a.
        preserve: b.
        ridge: lambda, positive.
    """
    c, star, p = (embeddings.double() for embeddings in (forgotten, surrogate, kept))
    identity = torch.eye(c.shape[1], dtype=torch.float64)
    moments = erase * c.T @ c + preserve * p.T @ p + ridge * identity
    # moments is symmetric: solving it for the transpose applies its inverse from the right.
    return identity + torch.linalg.solve(moments, erase * c.T @ (star - c)).T


def captions(job: TrainingRun) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings of the different captions that are forgotten, (F, L, D), and of those
    that only other images have, (K, L, D); float32."""
    assert isinstance(job.task, Pixels)
    assert job.task.texts is not None
    texts, rows = job.task.texts
    forgotten = torch.from_numpy(job.forgotten)
    gone = rows[forgotten].unique()
    rest = rows[~forgotten].unique()
    return texts.embeddings[gone], texts.embeddings[rest[~torch.isin(rest, gone)]]


def train(job: TrainingRun) -> Trained:
    """Edit the base's network so that it takes the captions of ``job.forgotten`` for the surrogate.

    The edit is one update, after which last weights and average are the same. Its loss is the share
    of the change that the forgotten embeddings are still away from the surrogate's, |W' c - W c*|^2
    over |W c - W c*|^2. The facts have the numbers of forgotten_captions and kept_captions.
    """
    arm, task = job.arm, job.task
    assert isinstance(arm, Uce)
    assert isinstance(task, Pixels)
    assert task.surrogate is not None
    assert job.base is not None
    load_weights(job.net, job.base)
    settings = job.train.model_copy(update={"ema": 0.0})
    learner = Learner(job.net, settings, job.accelerator)
    gone, rest = captions(job)
    width = gone.shape[-1]
    star = task.surrogate.expand_as(gone).reshape(-1, width).double()
    forgotten = gone.reshape(-1, width).double()

    def update(s: int) -> dict[str, float]:
        matrix = edit(forgotten, star, rest.reshape(-1, width), arm.erase, arm.preserve, arm.ridge)
        left = total = 0.0
        for net in (learner.net, learner.average.module):
            for name, weight in net.named_parameters():
                if name.endswith(PROJECTIONS):
                    before = weight.detach().cpu().double()
                    after = before @ matrix
                    left += float((forgotten @ after.T - star @ before.T).square().sum())
                    total += float(((forgotten - star) @ before.T).square().sum())
                    weight.data = after.to(weight)
        return {"loss": left / total if total else 0.0}

    progress = job.run(update, {"learner": learner}, learner.networks, updates=1)
    return Trained(
        learner.net,
        learner.average.module,
        progress,
        Spent(1, 1, 0, 0, 0),
        facts={"forgotten_captions": len(gone), "kept_captions": len(rest)},
    )
