"""Selective Amnesia (Heng & Soh, NeurIPS 2023): a surrogate for the forgotten class or captions,
replay of the others, and EWC.

The paper maximises, with q(x | c_f) instead of the images of the class c_f, p the base's own images
of the other classes, F the diagonal Fisher information and theta* the base's weights,

    E_q log p(x | theta, c_f) + E_{p, c != c_f} log p(x | theta, c)
        - lambda / 2 sum_i F_i (theta_i - theta*_i)^2.

For a diffusion model log p is, up to constants, -sum_t |eps - eps(x_t | c)|^2 (summed over the
image's values), and F_i = E_x (d log p / d theta_i)^2, over images of all classes. q is uniform
noise in [-1, 1], drawn per image.

For networks with captions c is a caption and c_f those of the forgotten images. q is then what
the base draws for the surrogate text, as published for Stable Diffusion; p, and the images of F,
what it draws for captions of training images: of the remaining ones, and of all.

As released, the update uses the likelihoods at one timestep per image and F uses all timesteps,
labels are never dropped, and the penalty has lambda instead of lambda / 2. ``ewc`` is lambda in
these units, in which 10 is published: F of one timestep, or of means instead of sums over the
image's D values, would be smaller by orders of magnitude. The losses here are means over the
values, so what is minimised is that objective divided by D:

    loss(q) + loss(p) + lambda / D sum_i F_i (theta_i - theta*_i)^2,

with F from D sum_t of such losses.

F and the images of the replay are computed before the first update, from streams of their own; a
resumed run computes the same again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from afterimage import seeds
from afterimage.config import Sample, SelectiveAmnesia
from afterimage.diffusion.latents import DrawnLatents, Latents
from afterimage.diffusion.model import classes_of, load_weights
from afterimage.diffusion.noising import Batch, Pixels
from afterimage.diffusion.sample import denoised_batches, generate
from afterimage.diffusion.texts import Texts
from afterimage.methods.unlearning import Sides, gradients, seed_dropout
from afterimage.training.ahead import Ahead
from afterimage.training.job import Trained, TrainingRun
from afterimage.training.learner import Learner, Number, plain

STEPS = 50
"""DDIM steps of the replayed images (at most the number of timesteps), unguided. Released: 1,000
steps, guided."""


def fisher(
    weights: list[torch.Tensor], images: Iterable[Iterable[torch.Tensor]]
) -> list[torch.Tensor]:
    """Return the mean over images of the squared gradient of an image's negative log-likelihood,
    per weight.

    Args:
        weights: Weights to differentiate with respect to.
        images: For each image the summands of its negative log-likelihood, scalars.
    """
    squares, count = [torch.zeros_like(weight) for weight in weights], 0
    for summands in images:
        gradient = [torch.zeros_like(weight) for weight in weights]
        for summand in summands:
            torch._foreach_add_(gradient, torch.autograd.grad(summand, weights))
        torch._foreach_addcmul_(squares, gradient, gradient)
        count += 1
    return list(torch._foreach_div(squares, count))


def elastic(
    weights: list[torch.Tensor],
    start: list[torch.Tensor],
    information: list[torch.Tensor],
    strength: float,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the penalty strength x sum F (theta - theta*)^2, and its gradient per weight."""
    moved = [weight.detach() - anchor for weight, anchor in zip(weights, start, strict=True)]
    pull = [2 * strength * f * change for f, change in zip(information, moved, strict=True)]
    penalty = torch.stack(
        [(gradient * change).sum() / 2 for gradient, change in zip(pull, moved, strict=True)]
    ).sum()
    return penalty, pull


def likelihoods(job: TrainingRun) -> Iterator[Iterator[torch.Tensor]]:
    """Yield the ``images`` of ``fisher``: ``fisher_samples`` of the job's, under their own labels.

    With K of the T noise levels, the middles of K equal ranges, each represents T / K. (On
    digits the trace of F is 1.14 times that of all 1,000 levels with 50 of them, 4 times with one.)
    A summand has as many levels as a micro-batch of training has images.
    """
    arm, task = job.arm, job.task
    assert isinstance(arm, SelectiveAmnesia)
    assert isinstance(task, Pixels)
    total = job.scheduler.config["num_train_timesteps"]
    levels = min(arm.fisher_timesteps or total, total)
    timesteps = torch.from_numpy(((np.arange(levels) + 0.5) * total / levels).astype(np.int64))
    shape = task.shape
    scale = total / levels * math.prod(shape)
    size = job.train.batch_size // job.train.accumulation

    def summands(row: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
        rows = torch.full((levels,), row)
        noise = torch.randn((levels, *shape), generator=generator)
        batch = task.noised(
            rows, timesteps, noise, torch.zeros(levels, dtype=torch.bool), task.condition_of(rows)
        )
        for start in range(0, levels, size):
            micro_batch = batch[start : start + size].to(job.accelerator.device)
            with job.accelerator.autocast():
                likelihood = scale * task.losses(job.net, micro_batch).sum()
            yield likelihood

    rows = np.resize(
        seeds.numpy_rng(job.seed, *job.path, "fisher").permutation(len(task)), arm.fisher_samples
    )
    for i, row in enumerate(rows):
        yield summands(int(row), seeds.torch_rng(job.seed, *job.path, "fisher", i))


def replayed(
    job: TrainingRun,
    stream: str,
    labels: np.ndarray | None = None,
    texts: tuple[Texts, torch.Tensor] | None = None,
    classes: int = 0,
) -> Pixels:
    """Return the denoising of ``replay_images`` images, or latents, drawn from the job's network.

    Args:
        job: The run.
        stream: Name of their random stream.
        labels: Their labels, int64 (N,), for a network with labels.
        texts: Embeddings, and the row of each image's, int64 (N,), for a network with captions.
        classes: Number of labels.
    """
    arm = job.arm
    assert isinstance(arm, SelectiveAmnesia)
    steps = min(STEPS, job.scheduler.config["num_train_timesteps"])
    settings = Sample(images=arm.replay_images, steps=steps, batch_size=job.train.batch_size)
    seed = seeds.derive(job.seed, *job.path, stream)
    ids = np.arange(arm.replay_images)
    given = job.net, dict(job.scheduler.config), ids, settings, seed
    if isinstance(job.task, Latents):
        drawn = denoised_batches(*given, labels=labels, texts=texts)
        latents = torch.cat([batch.float().cpu().clone() for _, batch in drawn])
        return DrawnLatents(latents, job.scheduler, labels, classes, texts=texts)
    images = generate(*given, labels=labels, texts=texts)
    return Pixels(images, job.scheduler, labels, classes, texts=texts)


def drawn(job: TrainingRun, label: int) -> TrainingRun:
    """Return the job with images drawn from its network, with all labels in turn, instead of the
    training images.

    Args:
        label: The class to forget.
    """
    arm, classes = job.arm, classes_of(job.net)
    assert isinstance(arm, SelectiveAmnesia)
    assert classes is not None
    labels = np.arange(arm.replay_images) % classes
    task = replayed(job, "replay", labels, classes=classes)
    return replace(job, task=task, labels=labels, forgotten=labels == label)


def drawn_from_captions(job: TrainingRun) -> TrainingRun:
    """Return the job with images drawn from its network, for the captions of its training images in
    random order and in turn, instead of the training images."""
    arm, task = job.arm, job.task
    assert isinstance(arm, SelectiveAmnesia)
    assert isinstance(task, Pixels)
    assert task.texts is not None
    order = seeds.numpy_rng(job.seed, *job.path, "replay captions").permutation(len(task))
    rows = np.resize(order, arm.replay_images)
    texts = task.texts[0], task.texts[1][rows]
    return replace(
        job,
        task=replayed(job, "replay", texts=texts),
        sources=job.sources[rows],
        labels=job.labels[rows],
        forgotten=job.forgotten[rows],
    )


def surrogate(job: TrainingRun, label: int, s: int) -> Batch:
    """Return the surrogate batch of update ``s`` for the forgotten class ``label``: uniform noise
    images under its label."""
    task, count = job.task, job.train.batch_size
    assert isinstance(task, Pixels)
    channels, height, width = task.shape
    generator = seeds.torch_rng(job.seed, *job.path, "surrogate", s)
    pixels = torch.randint(
        256, (count, height, width, channels), generator=generator, dtype=torch.uint8
    ).numpy()
    return Pixels(pixels, job.scheduler, np.full(count, label), task.classes).batch(
        np.arange(count), generator
    )


def surrogate_of_text(job: TrainingRun) -> Callable[[int], Batch]:
    """Draw images of the surrogate text from the job's network, and return the surrogate batch of
    any update: some of them, drawn with replacement, each under the caption of a forgotten image.
    """
    arm, task = job.arm, job.task
    assert isinstance(arm, SelectiveAmnesia)
    assert isinstance(task, Pixels)
    assert task.texts is not None
    assert task.surrogate is not None
    texts = replace(task.texts[0], embeddings=task.surrogate[None])
    same = torch.zeros(arm.replay_images, dtype=torch.int64)
    images = replayed(job, "surrogate images", texts=(texts, same))
    sides = Sides(job, ("forget",))

    def batch(s: int) -> Batch:
        generator = seeds.torch_rng(job.seed, *job.path, "surrogate", s)
        rows = torch.randint(len(images), (job.train.batch_size,), generator=generator)
        forgotten = sides.rows["forget"][sides.orders["forget"].rows(s)]
        condition = task.condition_of(torch.from_numpy(forgotten))
        return replace(images.batch(rows.numpy(), generator), condition=condition)

    return batch


def train(job: TrainingRun) -> Trained:
    """Make the base's network forget the class, or the captions, of ``job.forgotten``.

    The curves have loss (on the replay), forget_loss (on the surrogate) and penalty, as well as
    grad_norm (of their sum, before clipping) and learning_rate. The recorded setup is the work
    before the first update: replay and F.
    """
    arm, settings = job.arm, job.train
    assert isinstance(arm, SelectiveAmnesia)
    assert job.base is not None
    load_weights(job.net, job.base)
    learner, objective = Learner(job.net, settings, job.accelerator), plain(job.task)
    weights: list[torch.Tensor] = [
        weight for weight in job.net.parameters() if weight.requires_grad
    ]
    forget = Sides(job)

    # Draw surrogate and replay, and measure F.
    started = time.monotonic()
    job.net.eval()
    surrogate_of: Callable[[int], Batch]
    if arm.condition == "text":
        surrogate_of = surrogate_of_text(job)
        source = job if arm.replay == "training" else drawn_from_captions(job)
    else:
        label = int(job.labels[forget.rows["forget"][0]])
        surrogate_of = partial(surrogate, job, label)
        source = job if arm.replay == "training" else drawn(job, label)
    information = fisher(weights, likelihoods(source))
    job.net.train()
    setup_seconds = time.monotonic() - started

    # Train.
    sides = Sides(source, ("remain",))
    start = [weight.detach().clone() for weight in weights]
    strength = arm.ewc / math.prod(surrogate_of(0).noisy.shape[1:])

    def both(s: int) -> tuple[Batch, Batch]:
        return surrogate_of(s), sides.batch("remain", s, keep_labels=True)

    batches = Ahead(both, job.accelerator.device)

    def update(s: int) -> dict[str, Number]:
        surrogates, remaining = batches(s)
        seed_dropout(forget, s, "forget")
        forget_loss = learner.gradient(surrogates, objective)
        pushed = gradients(job.net)
        seed_dropout(sides, s, "remain")
        loss = learner.gradient(remaining, objective)
        penalty, pull = elastic(weights, start, information, strength)
        for weight, gradient, towards_start in zip(weights, pushed, pull, strict=True):
            assert weight.grad is not None
            weight.grad += gradient + towards_start
        return {"loss": loss, "forget_loss": forget_loss, "penalty": penalty} | learner.step(s)

    progress = job.run(update, {"learner": learner}, learner.networks)
    return Trained.of_one(
        learner,
        progress,
        2 * progress.update * settings.batch_size,
        backward_passes=2 * progress.update,
        facts={
            "forward_only_passes": 0,
            "setup_seconds": round(setup_seconds, 3),
        },
    )
