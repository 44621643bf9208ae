"""SISS, subtracted importance sampled scores (Alberti et al., ICLR 2025, "Data unlearning in
diffusion models"): fine-tuning on the images without the forgotten ones, as a difference of two
losses that share their noisy images.

X are the n training images, A the k forgotten ones. Plain training on the others is the difference

    n / (n - k) E_{x in X} |eps_x - eps(m)|^2 - (1 + s) k / (n - k) E_{a in A} |eps_a - eps(m)|^2

with s = 0, and s > 0 (the paper's superfactor) adds ascent on A. Both terms are estimated at noisy
images m from one defensive mixture, q = (1 - lambda) q(m | x) + lambda q(m | a), with a noise eps and
a timestep that x and a share; eps_x = (m - sqrt(abar) x) / sqrt(1 - abar) is the noise that m would
be made of if it were made of x, eps_a likewise, and each loss is multiplied by its importance weight,

    q(m | x) / q = 1 / (1 - lambda + lambda r),    q(m | a) / q = r / (1 - lambda + lambda r),
    r = q(m | a) / q(m | x) = exp((|eps_x|^2 - |eps_a|^2) / 2).

With lambda = 0 the first term is plain training's, with lambda = 1 the second is gradient ascent's
(NegGrad), both with weight 1. Where noise does not hide which image m is made of, the other term's
weight is then about 0 unless x is a. The paper takes lambda = 1/2, with which no weight is above 2
(in general 1 / (1 - lambda) and 1 / lambda).

Instead of s, ``norm_ratio`` fixes the norm of the second gradient relative to the first in every
update. (The released code fixes the norm itself, and recommends a tenth of that of naive deletion's
gradient.) ``images: remain`` draws x from the images that remain (as released): then the factors are
1 and s k / (n - k), of the same expectation.

The paper predicts noise. A network that predicts v or the clean image (``diffusion.prediction``) has
the loss that it was trained with instead: both are functions of m, x and eps_x, so that the same
weights make either term unbiased.

With labels or captions q is the density of m and the condition. Where those of x and a differ, no
noisy image is one of both, and the weights are 1 / (1 - lambda) or 1 / lambda, and 0. Dropped labels
and captions are dropped from both. Both gradients are computed apart, for their norms, from the same
noisy images: the released code needs one forward pass, here there are two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch.nn.utils import get_total_norm

from afterimage import seeds
from afterimage.config import Siss
from afterimage.diffusion.model import load_weights
from afterimage.diffusion.noising import Batch
from afterimage.methods.unlearning import Sides, gradients, seed_dropout
from afterimage.training.ahead import Ahead
from afterimage.training.job import Trained, TrainingRun
from afterimage.training.learner import Learner, Number, Objective
from afterimage.training.order import Order
from afterimage.training.task import Task

Tensors = Mapping[str, torch.Tensor]
"""A condition of labels or texts: argument of the network -> a tensor with one row per sample."""


@dataclass(frozen=True)
class WeightedBatch(Batch):
    """A batch whose samples have importance weights.

    Attributes:
        weights: float32, (B,).
    """

    weights: torch.Tensor


def mixed(
    kept: Batch, forgotten: Batch, chosen: torch.Tensor, sigma: torch.Tensor, mixture: float
) -> tuple[WeightedBatch, WeightedBatch]:
    """Return the samples of the mixture, with the targets and the importance weights of either
    term.

    Args:
        kept: Noisy images made of x, with the noise as targets.
        forgotten: Those made of a, with the same timesteps and noise.
        chosen: bool, (B,): mask of the samples that are made of a.
        sigma: float32, (B,): standard deviation of the noise in them.
        mixture: lambda.
    """
    of_forgotten = chosen[:, None, None, None]
    shift = (kept.noisy - forgotten.noisy) / sigma[:, None, None, None]
    noise_kept = torch.where(of_forgotten, kept.target - shift, kept.target)
    noise_forgotten = torch.where(of_forgotten, forgotten.target, forgotten.target + shift)
    squares = [
        noise.double().square().sum(dim=(1, 2, 3)) for noise in (noise_kept, noise_forgotten)
    ]
    ratio = (squares[0] - squares[1]) / 2  # log r
    given, other = (cast(Tensors, side.condition) for side in (kept, forgotten))
    certain = torch.where(chosen, math.inf, -math.inf).to(ratio.dtype)
    ratio = torch.where(alike(given, other, len(kept)), ratio, certain)
    log_kept, log_forgotten = torch.tensor([1 - mixture, mixture], dtype=ratio.dtype).log()
    weights_kept = torch.exp(-torch.logaddexp(log_kept, log_forgotten + ratio))
    weights_forgotten = torch.exp(-torch.logaddexp(log_kept - ratio, log_forgotten))
    noisy = torch.where(of_forgotten, forgotten.noisy, kept.noisy)
    condition = {
        name: torch.where(chosen.view(-1, *[1] * (value.dim() - 1)), other[name], value)
        for name, value in given.items()
    }

    def batch(side: Batch, target: torch.Tensor, weights: torch.Tensor) -> WeightedBatch:
        return WeightedBatch(side.rows, noisy, side.timesteps, target, condition, weights.float())

    return (
        batch(kept, noise_kept, weights_kept),
        batch(forgotten, noise_forgotten, weights_forgotten),
    )


def alike(one: Tensors, other: Tensors, count: int) -> torch.Tensor:
    """Return the mask of the samples that have the same condition in both, bool, (B,)."""
    same = torch.ones(count, dtype=torch.bool)
    for name, value in one.items():
        same &= (value == other[name]).reshape(count, -1).all(1)
    return same


def weighted(task: Task) -> Objective:
    """Return the objective that multiplies each sample's loss by its importance weight."""

    def objective(net: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        assert isinstance(batch, WeightedBatch)
        losses = task.losses(net, batch) * batch.weights
        return losses, torch.ones_like(losses)

    return objective


class Pairs:
    """The pairs of a kept and a forgotten image, and which of the two is made noisy.

    Args:
        job: The run, of a ``Siss`` arm.

    Raises:
        ArtifactError: if there is nothing to forget, or with ``images: remain`` nothing else.
    """

    def __init__(self, job: TrainingRun) -> None:
        assert isinstance(job.arm, Siss)
        self.job, self.arm = job, job.arm
        self.remain = self.arm.images == "remain"
        self.sides = Sides(job)
        self.order = Order(job.seed, (*job.path, "all"), len(job.task), job.train.batch_size)
        abar = job.scheduler.alphas_cumprod
        self.signal, self.sigma = abar.sqrt(), (1 - abar).sqrt()
        self.kind = job.scheduler.config["prediction_type"]

    @property
    def factors(self) -> tuple[float, float]:
        """Factors of the two terms, the second without ``norm_ratio`` only."""
        forgotten, rest = (len(self.sides.rows[side]) for side in ("forget", "remain"))
        share, strength = forgotten / rest, self.arm.superfactor or 0.0
        if self.remain:
            return 1.0, strength * share
        return 1 + share, (1 + strength) * share

    def batches(self, s: int) -> tuple[WeightedBatch, WeightedBatch]:
        """Return the batches of both terms in update ``s``: a pure function of the seed and
        ``s``."""
        job, rows, orders = self.job, self.sides.rows, self.sides.orders
        kept = rows["remain"][orders["remain"].rows(s)] if self.remain else self.order.rows(s)
        forgotten = rows["forget"][orders["forget"].rows(s)]
        # The same generator twice: the same timesteps, noise, flips and dropped conditions.
        noisy_kept, noisy_forgotten = (
            job.task.batch(chosen, seeds.torch_rng(job.seed, *job.path, "pair", s))
            for chosen in (kept, forgotten)
        )
        coins = torch.rand(
            len(forgotten), generator=seeds.torch_rng(job.seed, *job.path, "mixture", s)
        )
        mixture, sigma = self.arm.mixture, self.sigma[noisy_kept.timesteps]
        first, second = self._of_noise(noisy_kept), self._of_noise(noisy_forgotten)
        made_kept, made_forgotten = mixed(first, second, coins < mixture, sigma, mixture)
        return (
            self._of_prediction(made_kept, noisy_kept),
            self._of_prediction(made_forgotten, noisy_forgotten),
        )

    def _levels(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sqrt(abar) and sqrt(1 - abar) of each sample, (B, 1, 1, 1)."""
        signal, sigma = (root[batch.timesteps] for root in (self.signal, self.sigma))
        return signal[:, None, None, None], sigma[:, None, None, None]

    def _of_noise(self, batch: Batch) -> Batch:
        """Return a batch with its noise as the targets, whatever the network predicts."""
        signal, sigma = self._levels(batch)
        if self.kind == "v_prediction":
            return replace(batch, target=signal * batch.target + sigma * batch.noisy)
        if self.kind == "sample":
            return replace(batch, target=(batch.noisy - signal * batch.target) / sigma)
        return batch

    def _of_prediction(self, batch: WeightedBatch, side: Batch) -> WeightedBatch:
        """Return a batch of the mixture with targets of the network's kind in the place of noise.

        Args:
            batch: One term's samples.
            side: The same images, before they were mixed.
        """
        signal, sigma = self._levels(batch)
        if self.kind == "v_prediction":
            clean = signal * side.noisy - sigma * side.target
            return replace(batch, target=signal * batch.target - sigma * clean)
        return replace(batch, target=side.target) if self.kind == "sample" else batch


def train(job: TrainingRun) -> Trained:
    """Make the base's network forget ``job.forgotten``.

    The curves have loss and forget_loss (the two terms, weighted by importance, without their
    factors), forget_factor (of the second), weight and forget_weight (means of the importance
    weights), as well as grad_norm (of the difference, before clipping) and learning_rate.
    """
    arm, settings = job.arm, job.train
    assert isinstance(arm, Siss)
    assert job.base is not None
    load_weights(job.net, job.base)
    learner = Learner(job.net, settings, job.accelerator)
    pairs, objective = Pairs(job), weighted(job.task)
    factor, forget_factor = pairs.factors
    batches = Ahead(pairs.batches, job.accelerator.device)

    def update(s: int) -> dict[str, Number]:
        kept, forgotten = batches(s)
        seed_dropout(pairs.sides, s)
        forget_loss = learner.gradient(forgotten, objective)
        pushed = gradients(learner.net)
        seed_dropout(pairs.sides, s)
        loss = learner.gradient(kept, objective)
        pulled = [factor * gradient for gradient in gradients(learner.net)]
        subtracted: Number = forget_factor
        if arm.norm_ratio is not None:
            size = get_total_norm(pushed)
            ratio = arm.norm_ratio * get_total_norm(pulled) / size
            subtracted = torch.where(size > 0, ratio, 0.0)
        trainable = [weight for weight in learner.net.parameters() if weight.grad is not None]
        for weight, pull, push in zip(trainable, pulled, pushed, strict=True):
            weight.grad = pull - subtracted * push
        return {
            "loss": loss,
            "forget_loss": forget_loss,
            "forget_factor": subtracted,
            "weight": kept.weights.mean(),
            "forget_weight": forgotten.weights.mean(),
        } | learner.step(s)

    progress = job.run(update, {"learner": learner}, learner.networks)
    return Trained.of_one(
        learner,
        progress,
        2 * progress.update * settings.batch_size,
        backward_passes=2 * progress.update,
        facts={"forward_only_passes": 0},
    )
