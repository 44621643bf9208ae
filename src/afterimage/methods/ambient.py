"""Ambient diffusion at high noise (Shah et al., ICML 2025, "Does generation require memorization?"):
below a level t_n a network is trained on the images, above it only on noisy versions of them.

Every image is noised once and for all, to the level t_n of the forward process: x_tn = x_0 + sigma_n
z, with z fixed for the image. (Everything here is in the units of the images, i.e. a noisy image is
y_t = x_t / sqrt(abar_t) = x_0 + sigma_t eps with sigma_t^2 = (1 - abar_t) / abar_t.) At t <= t_n a
sample is noised and learned as usual. At t > t_n the network sees the fixed noisy image with further
noise e, y_t = x_tn + sqrt(sigma_t^2 - sigma_n^2) e, and its prediction x of the clean image is
trained by the ambient loss of Daras et al. (ICML 2024, "Consistent diffusion meets Tweedie", after
Tweedie's formula at both levels),

    | (sigma_t^2 - sigma_n^2) / sigma_t^2  x(y_t, t) + sigma_n^2 / sigma_t^2  y_t - x_tn |^2,

whose minimiser over fresh z is E[x_0 | y_t]: no sample above t_n shows more of an image than x_tn
does. Shah et al. multiply both losses by the weight that their plain training has at t, and so does
this module, whatever the network predicts. With r = sigma_n^2 / sigma_t^2 and kappa = 1 - r that is
plain training in which

    eps = sqrt(r) z + sqrt(kappa) e               noises the image,
    eps' = e / sqrt(kappa)                        is the target in place of eps,
    x' = x_0 + sigma_n (z - sqrt(r) eps) / kappa  that in place of x_0 (v is made of both), and
    kappa^2                                       multiplies the loss.

z is a pure function of the image's bytes, so that exact copies share it and do not average it away,
and is mirrored with the image. Latents are noised like images; each is still drawn anew from the
autoencoder's distribution. The released code has sigma_n = 0.5 as its example, and draws sigma_t from
a log-normal distribution where timesteps are uniform here.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from afterimage import seeds
from afterimage.config import Ambient
from afterimage.diffusion.noising import Batch, Noising, Pixels
from afterimage.images import contents
from afterimage.methods import baseline
from afterimage.training.job import Trained, TrainingRun
from afterimage.training.learner import Objective
from afterimage.training.task import Task


class NoisedOnce:
    """The fixed noise of every image, and what it makes of a batch: a ``Renoise``.

    Args:
        job: The run, of an ``Ambient`` arm.
    """

    def __init__(self, job: TrainingRun) -> None:
        assert isinstance(job.arm, Ambient)
        assert isinstance(job.task, Pixels)
        abar = job.scheduler.alphas_cumprod.double()
        squares = (1 - abar) / abar
        level = job.arm.level
        fixed = squares[level - 1] if level else torch.zeros((), dtype=torch.float64)
        above = torch.arange(len(squares)) >= level
        self.sigma = float(fixed.sqrt())
        self.shares = torch.where(above, fixed / squares, 0.0).float()
        self.kappa = torch.where(above, 1 - fixed / squares, 1.0).float()
        self.seed, self.path, self.shape = job.seed, job.path, job.task.shape
        pixels = job.task.images.permute(0, 2, 3, 1).numpy()
        self.digests = [digest.tobytes().hex() for digest in contents(pixels)]

    def noise(self, rows: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """Return the fixed noise z of the images at ``rows``, int64 (B,), those in the mask
        ``mirrored`` mirrored; float32, (B, C, H, W)."""
        streams = (
            seeds.torch_rng(self.seed, *self.path, "ambient", self.digests[row])
            for row in rows.tolist()
        )
        noise = torch.stack([torch.randn(self.shape, generator=stream) for stream in streams])
        return torch.where(mirrored[:, None, None, None], noise.flip(-1), noise)

    def __call__(
        self,
        rows: torch.Tensor,
        mirrored: torch.Tensor,
        clean: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> Noising:
        """Return noise and targets of a batch; see ``Renoise``."""
        fixed = self.noise(rows, mirrored)
        root, kappa = (
            values[timesteps][:, None, None, None] for values in (self.shares.sqrt(), self.kappa)
        )
        mixed = root * fixed + kappa.sqrt() * noise
        shift = torch.where(root > 0, self.sigma * (fixed - root * mixed) / kappa, 0.0)
        return Noising(mixed, clean + shift, noise / kappa.sqrt())


def ambient(task: Task, kappa: torch.Tensor) -> Objective:
    """Return the objective that multiplies each sample's loss by kappa^2 at its timestep, where
    ``kappa`` is float32, (T,)."""

    def objective(net: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        losses = task.losses(net, batch) * kappa[batch.timesteps].square()
        return losses, torch.ones_like(losses)

    return objective


def train(job: TrainingRun) -> Trained:
    """Train ``job.net`` on the images below the level, and on their noisy versions above it. The
    facts have the level in the units of the images, sigma_n (ambient_sigma)."""
    once = NoisedOnce(job)
    objective = ambient(job.task, once.kappa.to(job.accelerator.device))
    trained = baseline.fit(job, objective, once)
    return replace(trained, facts=trained.facts | {"ambient_sigma": once.sigma})
