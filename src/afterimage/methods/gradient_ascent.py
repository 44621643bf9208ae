"""Gradient ascent on the forget set (NegGrad), the simplest of all unlearning methods.

The objective is beta L_remain - (1 - beta) L_forget, both the ordinary loss of Ho et al. 2020. beta
= 0 is pure ascent, which is unbounded: clipping and the number of updates decide how far it goes.
"""

from __future__ import annotations

import torch

from afterimage.config import GradientAscent
from afterimage.diffusion.model import load_weights
from afterimage.diffusion.noising import Batch
from afterimage.methods.unlearning import Side, Sides, gradients, loss_of, seed_dropout
from afterimage.training.ahead import Ahead
from afterimage.training.job import Trained, TrainingRun
from afterimage.training.learner import Learner, Number, plain


def train(job: TrainingRun) -> Trained:
    """Raise the base's loss on ``job.forgotten``.

    The curves have loss (L_remain) and forget_loss (L_forget). A side of weight zero gets no
    backward pass: its loss is only recorded. The facts count the passes over a batch without
    a gradient (forward_only_passes).
    """
    arm, settings = job.arm, job.train
    assert isinstance(arm, GradientAscent)
    assert job.base is not None
    load_weights(job.net, job.base)
    learner, sides, objective = (
        Learner(job.net, settings, job.accelerator),
        Sides(job),
        plain(job.task),
    )
    shares: dict[Side, float] = {"forget": arm.remain - 1, "remain": arm.remain}

    def drawn(s: int) -> dict[Side, Batch]:
        return {side: sides.batch(side, s) for side in shares}

    batches = Ahead(drawn, job.accelerator.device)

    def update(s: int) -> dict[str, Number]:
        losses: dict[Side, Number] = {}
        terms: list[list[torch.Tensor]] = []
        for side, batch in batches(s).items():
            share = shares[side]
            seed_dropout(sides, s, side)
            if share:
                losses[side] = learner.gradient(batch, objective)
                terms.append([share * gradient for gradient in gradients(learner.net)])
            else:
                losses[side] = loss_of(learner, job.task, batch)
        trainable = [weight for weight in learner.net.parameters() if weight.grad is not None]
        for weight, *summands in zip(trainable, *terms, strict=True):
            weight.grad = torch.stack(summands).sum(0)
        return {"loss": losses["remain"], "forget_loss": losses["forget"]} | learner.step(s)

    progress = job.run(update, {"learner": learner}, learner.networks)
    backward = progress.update * sum(share != 0 for share in shares.values())
    return Trained.of_one(
        learner,
        progress,
        backward * settings.batch_size,
        backward_passes=backward,
        facts={"forward_only_passes": 2 * progress.update - backward},
    )
