"""ESD, erased Stable Diffusion (Gandikota et al., ICCV 2023, "Erasing concepts from diffusion
models"): fine-tuning towards the base's own prediction, guided away from what is to be forgotten.

With eps* the frozen base, eps the network in training, and c a condition to forget, an update brings
eps(x_t, c) nearer, in squared error, to the negatively guided prediction

    eps*(x_t) - eta (eps*(x_t, c) - eps*(x_t)),

where eps*(x_t) is for the null label or the empty caption. The later released code starts from
eps*(x_t, c) instead (``guided_from: condition``); with eta = 0 that target is met already, and the
paper's is met by the unconditional prediction. Nothing holds the network to its other predictions,
and no training image is used: x_t comes from noise, by t's step of guided DDIM for c with the network
in training (the paper; ``inputs: current``) or the base (the later code; ``initial``). As published,
the step is drawn for each update, from 50 steps at guidance 3. ``noised`` takes noised images of the
forget set instead, which costs no sampling. c is the caption (the label) of a forgotten image, drawn
in turn; the paper has one short prompt.

Which weights are trained is the paper's difference between ESD-x, those of cross-attention
(``trainable: cross_attention``), for concepts bound to their words, and ESD-u, all others but, as
released, the output layers and the timestep's embedding (``noxattn``; ``diffusion.trainable``).
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from afterimage import seeds
from afterimage.config import Esd, Sample
from afterimage.diffusion.condition import Condition, each_tensor
from afterimage.diffusion.model import load_weights, null_of
from afterimage.diffusion.noising import Batch, Pixels
from afterimage.diffusion.router import UNet
from afterimage.diffusion.sample import denoise
from afterimage.diffusion.texts import TEXT
from afterimage.diffusion.trainable import hold_others
from afterimage.methods.unlearning import Sides, seed_dropout
from afterimage.training.ahead import Ahead
from afterimage.training.job import Trained, TrainingRun
from afterimage.training.learner import Learner, Number, plain


def guided_away(conditional: torch.Tensor, unconditional: torch.Tensor, arm: Esd) -> torch.Tensor:
    """Return the target made of two predictions of the base, float32, (B, C, H, W)."""
    start = conditional if arm.guided_from == "condition" else unconditional
    return start - arm.negative_guidance * (conditional - unconditional)


class Erasing:
    """The batches of a run: noisy images of what is to be forgotten, and the targets.

    Args:
        job: The run, of an ``Esd`` arm.
        current: The network in training.
        frozen: The base.

    Raises:
        ArtifactError: if there is nothing to forget.
    """

    def __init__(self, job: TrainingRun, current: UNet, frozen: UNet) -> None:
        assert isinstance(job.arm, Esd)
        assert isinstance(job.task, Pixels)
        self.job, self.arm, self.task = job, job.arm, job.task
        self.sides = Sides(job, ("forget",))
        self.current, self.frozen = current, frozen
        self.settings = Sample(
            images=1, sampler="ddim", steps=self.arm.steps, guidance=self.arm.guidance
        )
        self.scheduler_config = dict(job.scheduler.config)
        scheduler = DDIMScheduler.from_config(self.scheduler_config)
        scheduler.set_timesteps(self.arm.steps)
        self.timesteps = scheduler.timesteps
        self._draws = Ahead(self._drawn, job.accelerator.device)

    def step(self, s: int) -> int:
        """Return the number of sampling steps before update ``s``."""
        generator = seeds.torch_rng(self.job.seed, *self.job.path, "step", s)
        return int(torch.randint(self.arm.steps, (), generator=generator))

    def _drawn(self, s: int) -> tuple[Batch, Condition, torch.Tensor | None]:
        """Return noised images of the forget set, no condition for each, and noise to sample from,
        float32, (B, C, H, W), if inputs are sampled: a pure function of the seed and ``s``."""
        drawn = self.sides.batch("forget", s, keep_labels=True)
        null = self.task.without(drawn.condition, torch.ones(len(drawn), dtype=torch.bool))
        if self.arm.inputs == "noised":
            return drawn, null, None
        generator = seeds.torch_rng(self.job.seed, *self.job.path, "start", s)
        return drawn, null, torch.randn(drawn.noisy.shape, generator=generator)

    def batch(self, s: int) -> Batch:
        """Return the batch of update ``s``, on the device: a pure function of the seed, ``s`` and
        the networks."""
        device = self.job.accelerator.device
        noised, null, start = each_tensor(
            self._draws(s), lambda tensor: tensor.to(device, non_blocking=True)
        )
        rows, noisy, timesteps = noised.rows, noised.noisy, noised.timesteps
        condition = noised.condition
        if start is not None:
            noisy = self.sampled(start, condition, self.step(s))
            timesteps = torch.full_like(timesteps, int(self.timesteps[self.step(s)]))
        conditional, unconditional = (
            self.predict(Batch(rows, noisy, timesteps, noisy, given)) for given in (condition, null)
        )
        target = guided_away(conditional, unconditional, self.arm)
        return Batch(rows, noisy, timesteps, target, condition)

    def sampled(self, start: torch.Tensor, condition: Condition, steps: int) -> torch.Tensor:
        """Return what some steps of sampling make of noise, float32, (B, C, H, W)."""
        if steps == 0:
            return start
        given = cast("dict[str, torch.Tensor]", condition)
        net = self.current if self.arm.inputs == "current" else self.frozen
        texts = None
        if TEXT in given:
            assert self.task.texts is not None
            texts = given[TEXT], self.task.texts[0].null.to(start.device)
        net.eval()
        with self.job.accelerator.autocast():
            noisy = denoise(
                net,
                self.scheduler_config,
                start,
                [torch.Generator() for _ in start],
                self.settings,
                given.get("class_labels"),
                null_of(net),
                texts,
                until=steps,
            )
        return noisy.float().clone()  # inference tensors cannot take part in gradients

    def predict(self, batch: Batch) -> torch.Tensor:
        """Return the base's predictions, float32, (B, C, H, W)."""
        with torch.no_grad(), self.job.accelerator.autocast():
            parts = batch.split(self.job.train.accumulation)
            return torch.cat([self.task.predict(self.frozen, part) for part in parts])


def train(job: TrainingRun) -> Trained:
    """Make the base's network forget the labels or captions of ``job.forgotten``.

    The curves have loss, as well as grad_norm (before clipping) and learning_rate. The facts count
    the trained_weights and the passes over a batch without a gradient (forward_only_passes).
    """
    arm, settings = job.arm, job.train
    assert isinstance(arm, Esd)
    assert job.base is not None
    load_weights(job.net, job.base)
    hold_others(job.net, arm.trainable)
    learner = Learner(job.net, settings, job.accelerator)
    frozen = copy.deepcopy(job.net).eval()
    erasing, objective = Erasing(job, job.net, frozen), plain(job.task)

    def update(s: int) -> dict[str, Number]:
        batch = erasing.batch(s)
        learner.net.train()
        seed_dropout(erasing.sides, s, "forget")
        return learner.update(s, batch, objective)

    progress = job.run(update, {"learner": learner}, learner.networks)
    sampled = 0
    if arm.inputs != "noised":
        sampled = arm.passes_per_step * sum(erasing.step(s) for s in range(progress.update))
    return Trained.of_one(
        learner,
        progress,
        progress.update * settings.batch_size,
        facts={
            "trained_weights": sum(w.numel() for w in job.net.parameters() if w.requires_grad),
            "forward_only_passes": 2 * progress.update + sampled,
        },
    )
