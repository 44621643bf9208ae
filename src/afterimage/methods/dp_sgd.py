"""DP-SGD (Abadi et al. 2016, algorithm 1): per-sample gradients are clipped, summed and noised.

In update s each training row joins the batch with probability q = B / N, independently (Poisson
sampling, which the accounting assumes), so that a batch may have any size, including zero. With g_i
the gradient of row i's loss, the update moves along

    (sum_i g_i min(1, C / |g_i|) + noise) / B,    noise ~ N(0, (sigma C)^2) per weight,

in AdamW, with C = ``max_grad_norm`` and sigma = ``noise_multiplier``. Clipping and noise are
opacus' ``DPOptimizer``. The gradients come from torch's ``vmap``, in which the network sees one
image at a time, so that no layer can mix images; the hooks of opacus 1.6.0 are wrong here (its
convolutions assume contiguous inputs, and those behind an attention block are not).
``train.clip`` is not used: per-sample gradients are clipped instead.

The recorded epsilon is opacus' RDP bound (Mironov et al. 2019) for all updates together, between
training sets that differ in one row. Three conditions apply:

- it is that of one training *row*: an image that occurs k times in the training set has about k
  times that epsilon;
- it holds against an adversary who does not know the seed, from which the noise can be redrawn;
- it covers the updates alone, not other choices made by looking at the data (deduplication,
  settings, the best of many runs).

opacus' tighter PRV accountant is not used: it runs out of memory at low noise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import MAX_SIGMA, get_noise_multiplier
from opacus.optimizers import DPOptimizer
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from afterimage import seeds
from afterimage.config import ConfigError, DpSgd
from afterimage.diffusion.noising import Batch
from afterimage.training.ahead import Ahead
from afterimage.training.job import Trained, TrainingRun
from afterimage.training.learner import Learner, Number
from afterimage.training.order import Order
from afterimage.training.task import Task

ORDERS = [1.01, 1.03, 1.06, *RDPAccountant.DEFAULT_ALPHAS, 80, 128, 256, 512, 1024]
"""Orders of the Renyi divergence, of which the best is used: opacus' own, and a few for high and
low noise."""


def epsilon_of(noise_multiplier: float, rate: float, updates: int, delta: float) -> float:
    """Return the epsilon of ``updates`` updates at sampling rate ``rate``; infinity without
    noise."""
    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, rate, updates)]
    return max(0.0, accountant.get_epsilon(delta, alphas=ORDERS))


def noise_for(epsilon: float, rate: float, updates: int, delta: float) -> float:
    """Return the smallest noise multiplier that satisfies ``epsilon``, within opacus' tolerance of
    0.01 in epsilon.

    Raises:
        ConfigError: if no noise multiplier does.
    """
    least = epsilon_of(MAX_SIGMA, rate, updates, delta)
    if epsilon <= least:
        raise ConfigError(
            f"epsilon = {epsilon}: with delta = {delta:.3g} the accountant can show no less than "
            f"{least:.3g}"
        )
    return get_noise_multiplier(
        target_epsilon=epsilon,
        target_delta=delta,
        sample_rate=rate,
        steps=updates,
        accountant="rdp",
        alphas=ORDERS,
    )


def poisson(seed: int, path: tuple[str | int, ...], s: int, images: int, rate: float) -> np.ndarray:
    """Return the rows of update ``s``, int64, (B,): each of ``images`` rows with probability
    ``rate``, independently."""
    return np.flatnonzero(seeds.numpy_rng(seed, *path, "poisson", s).random(images) < rate)


class Losses(torch.nn.Module):
    """A task's losses as a function of the network's weights, for differentiation by torch.func."""

    def __init__(self, net: torch.nn.Module, task: Task) -> None:
        super().__init__()
        self.net, self.task = net, task

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.task.losses(self.net, batch)


def sample_gradients(losses: Losses, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the per-sample gradients and losses.

    Returns:
        The gradients, (B, ...) per trainable weight in the order of ``parameters()``, and the
        losses, (B,).
    """
    weights = {
        name: weight.detach() for name, weight in losses.named_parameters() if weight.requires_grad
    }
    if not len(batch):
        none = [weight.new_zeros((0, *weight.shape)) for weight in weights.values()]
        return none, batch.noisy.new_zeros(0)

    def loss(weights: dict[str, torch.Tensor], sample: dict[str, Any]) -> torch.Tensor:
        single = Batch(**sample)[None]
        return functional_call(losses, weights, (single,)).squeeze(0)

    # vmap would run the fused attention kernels image by image and with a warning.
    with sdpa_kernel(SDPBackend.MATH):
        gradients, values = vmap(grad_and_value(loss), in_dims=(None, 0), randomness="different")(
            weights, vars(batch)
        )
    return list(gradients.values()), values


class PrivateLearner(Learner):
    """A learner whose gradients are clipped per sample and noised.

    Args:
        job: The run.
        noise_multiplier: sigma.
        max_grad_norm: C.
    """

    def __init__(self, job: TrainingRun, noise_multiplier: float, max_grad_norm: float) -> None:
        super().__init__(job.net, job.train.model_copy(update={"clip": None}), job.accelerator)
        self.losses = Losses(self.net, job.task)
        self.private = DPOptimizer(
            self.optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=job.train.batch_size,
        )

    def private_gradient(self, batch: Batch, noise: torch.Generator) -> Number:
        """Set the weights' gradients; return the batch's summed loss divided by the *expected*
        batch size, as the gradient is.

        Args:
            batch: Of any size; processed in ``accumulation`` micro-batches.
            noise: Generator on the weights' device.

        Raises:
            NonFiniteError: if the loss is NaN or infinite.
        """
        self.private.zero_grad(set_to_none=True)
        self.private.generator = noise
        batch = batch.to(self.accelerator.device)
        loss = torch.zeros((), dtype=torch.float64, device=self.numbers_on)
        size = max(1, -(-len(batch) // self.settings.accumulation))
        for start in range(0, max(1, len(batch)), size):
            with self.accelerator.autocast():
                gradients, losses = sample_gradients(self.losses, batch[start : start + size])
            for weight, gradient in zip(self.private.params, gradients, strict=True):
                weight.grad_sample = gradient
            self.private.clip_and_accumulate()
            loss += losses.sum().to(self.numbers_on)
        told = self.told("loss", loss / self.settings.batch_size)
        self.private.add_noise()
        self.private.scale_grad()
        return told


class Seen:
    """The number of images in all batches so far; a part of the run's state."""

    def __init__(self) -> None:
        self.images = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"images": torch.tensor(self.images)}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        self.images = int(tensors["images"])


def train(job: TrainingRun) -> Trained:
    """Train ``job.net`` from its initial weights.

    Raises:
        ConfigError: if the batch is larger than the training set, or ``epsilon`` is out of reach.
    """
    arm, settings = job.arm, job.train
    assert isinstance(arm, DpSgd)
    images = len(job.task)
    if settings.batch_size > images:
        raise ConfigError(
            f"train.batch_size = {settings.batch_size} is more than this arm's {images} training "
            "images"
        )
    rate = settings.batch_size / images
    delta = arm.delta or 1 / images
    sigma = arm.noise_multiplier
    if sigma is None:
        assert arm.epsilon is not None
        sigma = noise_for(arm.epsilon, rate, job.updates, delta)
    epsilon = epsilon_of(sigma, rate, job.updates, delta)

    learner, seen = PrivateLearner(job, sigma, arm.max_grad_norm), Seen()
    order = Order(job.seed, job.path, images, settings.batch_size)

    def drawn(s: int) -> Batch:
        return job.task.batch(poisson(job.seed, job.path, s, images, rate), order.generator(s))

    batches = Ahead(drawn, job.accelerator.device)

    def update(s: int) -> dict[str, Number]:
        batch = batches(s)
        noise = torch.Generator(job.accelerator.device).manual_seed(
            seeds.derive(job.seed, *job.path, "privacy", s)
        )
        torch.manual_seed(order.dropout_seed(s))
        loss = learner.private_gradient(batch, noise)
        seen.images += len(batch)
        return {"loss": loss, "batch": len(batch)} | learner.step(s)

    progress = job.run(update, {"learner": learner, "seen": seen}, learner.networks)
    return Trained.of_one(
        learner,
        progress,
        seen.images,
        facts={
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "delta": delta,
            "noise_multiplier": sigma,
            "sampling_rate": rate,
            "accountant": "rdp",
        },
    )
