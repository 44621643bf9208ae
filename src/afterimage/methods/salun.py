"""SalUn (Fan et al., ICLR 2024, section 4): wrong labels for the forget set, on the most salient
weights only. With captions the surrogate text takes the wrong label's place.

The mask m is 1 for the weights with the largest absolute gradient of the ordinary loss on the
forget set at theta_0: a given share of all (the paper's threshold gamma, by default the median, is
the share 0.5). Then

    theta = m * (theta_0 + change) + (1 - m) * theta_0

is trained on the paper's objective for image generation,

    E_{(x, c) in D_f, c' != c} |eps(x_t | c') - eps(x_t | c)|^2 + beta L(D_r).

The prediction for the wrong label c' is the target of the other, without a gradient (as released;
the paper does not say) and without dropout; both keep their labels. The released code leaves
dropout and label dropout on in both. The loss on the remaining images is that of plain training.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import torch

from afterimage import seeds
from afterimage.config import ConfigError, SalUn
from afterimage.diffusion.condition import Condition
from afterimage.diffusion.model import classes_of, load_weights
from afterimage.diffusion.noising import Batch
from afterimage.methods.unlearning import Sides, gradients, seed_dropout, wrong_labels
from afterimage.training.ahead import Ahead
from afterimage.training.job import Trained, TrainingRun
from afterimage.training.learner import Learner, Number, plain


def largest(values: list[torch.Tensor], share: float) -> list[torch.Tensor]:
    """Return the mask of the largest ``share`` of all values, by absolute value: bool tensors of
    the same shapes.

    Their number is exact (rounded, at least one); ties go to the first.
    """
    flat = torch.cat([value.abs().flatten() for value in values])
    count = max(1, round(share * len(flat)))
    mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    mask[flat.argsort(descending=True, stable=True)[:count]] = True
    pieces = mask.split([value.numel() for value in values])
    return [piece.view_as(value) for piece, value in zip(pieces, values, strict=True)]


def following(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the next label of each, int64, (B,)."""
    return (labels + 1) % classes


def forgetting_gradient(job: TrainingRun, learner: Learner, batches: int) -> list[torch.Tensor]:
    """Return the gradient of the ordinary loss on ``batches`` batches of the forget set, summed,
    without any dropout."""
    sides = Sides(replace(job, path=(*job.path, "saliency")))
    forgotten = Ahead(partial(sides.batch, "forget", keep_labels=True), job.accelerator.device)
    learner.net.eval()
    total = [
        torch.zeros_like(weight) for weight in learner.net.parameters() if weight.requires_grad
    ]
    for i in range(batches):
        learner.gradient(forgotten(i), plain(job.task))
        torch._foreach_add_(total, gradients(learner.net))
    learner.net.train()
    return total


def train(job: TrainingRun) -> Trained:
    """Make the base's network forget ``job.forgotten``.

    The curves have loss (on the remaining images) and forget_loss (against the predictions for
    wrong labels), as well as grad_norm (of the salient weights, before clipping) and learning_rate.
    The recorded setup is the work before the first update: the mask.

    Raises:
        ConfigError: if the network has fewer than two labels and no captions.
    """
    # Load the base.
    arm, settings = job.arm, job.train
    assert isinstance(arm, SalUn)
    assert job.base is not None
    if not job.task.alternatives:
        known = classes_of(job.net) or 0
        raise ConfigError(f"method salun needs at least 2 labels; the network knows {known}")
    load_weights(job.net, job.base)
    learner, sides, objective = (
        Learner(job.net, settings, job.accelerator),
        Sides(job),
        plain(job.task),
    )
    weights: list[torch.Tensor] = [
        weight for weight in learner.net.parameters() if weight.requires_grad
    ]

    # Find the salient weights.
    started = time.monotonic()
    saliency_batches = -(-arm.saliency_samples // settings.batch_size)
    mask = largest(forgetting_gradient(job, learner, saliency_batches), arm.saliency)
    setup_seconds = time.monotonic() - started

    # Keep the others where they are.
    salient = [part.to(weight.dtype) for part, weight in zip(mask, weights, strict=True)]
    held = [weight.detach().where(~part, 0.0) for part, weight in zip(mask, weights, strict=True)]

    @torch.no_grad()
    def hold_the_rest(*_: object) -> None:
        """Undo weight decay where the mask is 0."""
        torch._foreach_mul_(weights, salient)
        torch._foreach_add_(weights, held)

    learner.optimizer.register_step_post_hook(hold_the_rest)

    # Train.
    def drawn(s: int) -> tuple[Batch, Condition, Batch]:
        """Return forget batch ``s``, its wrong labels, and the batch of remaining images."""
        forget = sides.batch("forget", s, keep_labels=True)
        wrong = partial(wrong_labels, generator=seeds.torch_rng(job.seed, *job.path, "relabel", s))
        condition = job.task.instead(forget.rows, following if arm.relabel == "next" else wrong)
        return forget, condition, sides.batch("remain", s)

    batches = Ahead(drawn, job.accelerator.device)

    def relabelled(batch: Batch, condition: Condition) -> Batch:
        """Return a forget batch with the predictions for wrong labels as targets, on the
        device."""
        relabelled_batch = replace(batch, condition=condition).to(job.accelerator.device)
        learner.net.eval()
        with torch.no_grad(), job.accelerator.autocast():
            target = torch.cat(
                [
                    job.task.predict(learner.net, micro_batch)
                    for micro_batch in relabelled_batch.split(settings.accumulation)
                ]
            )
        learner.net.train()
        return replace(batch.to(job.accelerator.device), target=target)

    def update(s: int) -> dict[str, Number]:
        forgotten, condition, remaining = batches(s)
        seed_dropout(sides, s, "forget")
        forget_loss = learner.gradient(relabelled(forgotten, condition), objective)
        forget = gradients(learner.net)
        seed_dropout(sides, s, "remain")
        loss = learner.gradient(remaining, objective)
        both = [weight.grad for weight in weights if weight.grad is not None]
        torch._foreach_mul_(both, arm.remain_weight)
        torch._foreach_add_(both, forget)
        torch._foreach_mul_(both, salient)
        return {"loss": loss, "forget_loss": forget_loss} | learner.step(s)

    progress = job.run(update, {"learner": learner}, learner.networks)
    return Trained.of_one(
        learner,
        progress,
        2 * progress.update * settings.batch_size,
        backward_passes=2 * progress.update,
        facts={
            "salient_weights": int(sum(part.sum() for part in mask)),
            "forward_only_passes": progress.update,
            "setup_backward_passes": saliency_batches,
            "setup_seconds": round(setup_seconds, 3),
        },
    )
