"""The noising of images: the forward process of Ho et al. 2020, equation 4, and the loss of
equation 14 per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.diffusion.condition import Condition, each_tensor
from afterimage.diffusion.fusion import Fusion
from afterimage.diffusion.texts import TEXT, Texts

Change = Callable[[torch.Tensor], torch.Tensor]
"""A transformation of clean images, float32, (B, C, H, W), in [-1, 1]; or of timesteps, int64,
(B,)."""


@dataclass(frozen=True)
class Batch:
    """One batch, noised and ready for the network. All tensors have the batch as their first
    dimension.

    Attributes:
        rows: int64, (B,): positions in the training set.
        noisy: float32, (B, C, H, W): x_t.
        timesteps: int64, (B,): t, from 0.
        target: float32, (B, C, H, W): what the network should predict.
        condition: What the network is given besides, after dropout.
    """

    rows: torch.Tensor
    noisy: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    condition: Condition

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``."""
        batch: Batch = each_tensor(self, lambda tensor: tensor.to(device, non_blocking=True))
        return batch

    def split(self, parts: int) -> list[Batch]:
        """Cut the batch into ``parts`` equal micro-batches."""
        size = len(self) // parts
        return [self[start : start + size] for start in range(0, len(self), size)]

    def __getitem__(self, rows: slice | torch.Tensor | None) -> Batch:
        """Return some samples; of tensors without the dimension of the batch, a batch of one."""
        batch: Batch = each_tensor(self, lambda tensor: tensor[rows])
        return batch


class Noising(NamedTuple):
    """How a batch is noised, and what the network should predict of it. All are float32, (B, C, H,
    W).

    Attributes:
        noise: Noise in the noisy images.
        clean_target: Images that the targets are made of.
        noise_target: Noise that the targets are made of.
    """

    noise: torch.Tensor
    clean_target: torch.Tensor
    noise_target: torch.Tensor


class Renoise(Protocol):
    """Replaces the noise of a batch, and what the network should predict."""

    def __call__(
        self,
        rows: torch.Tensor,
        mirrored: torch.Tensor,
        clean: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> Noising:
        """Return what a batch with these clean images and drawn noise is made of instead.

        Args:
            rows: int64, (B,): positions in the training set.
            mirrored: bool, (B,): mask of the images that are mirrored.
            clean: float32, (B, C, H, W).
            noise: float32, (B, C, H, W), standard normal.
            timesteps: int64, (B,).
        """


class Pixels:
    """Denoising of images in pixel space, with or without labels.

    Args:
        images: uint8, (N, H, W, C).
        scheduler: The forward process; its ``prediction_type`` determines the target.
        labels: int64, (N,), in [0, classes), or None.
        classes: Number of labels, which is also the null label; used with ``labels`` only.
        label_dropout: Share of labels, or texts, replaced by the null label or text.
        flips: Mirror a random half of the images in every batch.
        texts: Embeddings of captions, and the row of each image's, int64 (N,).
        surrogate: Embedding of the text that replaces captions, float32 (L, D), if one does.
        fusion: What is mixed into training batches, if anything is; needs ``texts``.

    Raises:
        ArtifactError: if labels are passed and an image has none.
    """

    def __init__(
        self,
        images: np.ndarray,
        scheduler: DDPMScheduler,
        labels: np.ndarray | None = None,
        classes: int = 0,
        label_dropout: float = 0.0,
        flips: bool = False,
        texts: tuple[Texts, torch.Tensor] | None = None,
        surrogate: torch.Tensor | None = None,
        fusion: Fusion | None = None,
    ) -> None:
        if labels is not None and (labels.min() < 0 or labels.max() >= classes):
            raise ArtifactError(
                f"labels must lie in [0, {classes}), but go from {labels.min()} to {labels.max()}"
            )
        # Rows are copied where they are used.
        self.images = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        self.labels = None if labels is None else torch.from_numpy(labels)
        self.scheduler, self.classes = scheduler, classes
        self.label_dropout, self.flips, self.texts = label_dropout, flips, texts
        self.surrogate, self.fusion = surrogate, fusion

    def __len__(self) -> int:
        return len(self.images)

    def batch(
        self,
        rows: np.ndarray,
        generator: torch.Generator,
        change: Change | None = None,
        timesteps: tuple[int, int] | None = None,
        retime: Change | None = None,
        renoise: Renoise | None = None,
    ) -> Batch:
        """Noise the images at ``rows``, after ``change`` if given; t comes from [0, T), or from
        [low, high), and is what ``retime`` makes of that, if given; noise and targets are what
        ``renoise`` makes of them.

        Timesteps, noise, flips, dropped labels, latents and pictures to be mixed in are drawn in
        this order, so that the later ones do not shift the earlier ones.
        """
        index = torch.from_numpy(rows)
        count = len(index)
        low, high = timesteps or (0, self.scheduler.config["num_train_timesteps"])
        drawn_timesteps = torch.randint(low, high, (count,), generator=generator)
        if retime is not None:
            drawn_timesteps = retime(drawn_timesteps)
        noise = torch.randn((count, *self.shape), generator=generator)
        mirrored = (
            torch.rand(count, generator=generator) < 0.5
            if self.flips
            else torch.zeros(count, dtype=torch.bool)
        )
        condition = self.condition_of(index)
        dropped = None
        if condition and self.label_dropout:
            dropped = torch.rand(count, generator=generator) < self.label_dropout
        clean = self.drawn(index, mirrored, generator)
        if self.fusion is not None:
            clean, condition = self.fusion.fused(clean, condition, generator)
        if dropped is not None:
            condition = self.without(condition, dropped)
        clean = clean if change is None else change(clean)
        noising = Noising(noise, clean, noise)
        if renoise is not None:
            noising = renoise(index, mirrored, clean, noise, drawn_timesteps)
        return self._noised(index, clean, drawn_timesteps, noising, condition)

    def noised(
        self,
        rows: torch.Tensor,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        mirrored: torch.Tensor,
        condition: Condition,
        change: Change | None = None,
    ) -> Batch:
        """Return the images at ``rows`` with the given noise.

        Args:
            rows: int64, (B,).
            timesteps: int64, (B,).
            noise: float32, (B, C, H, W), standard normal.
            mirrored: bool, (B,): mask of the images to mirror.
            condition: What the network is given besides.
            change: Applied to the images before noising.
        """
        clean = self.clean(rows, mirrored)
        clean = clean if change is None else change(clean)
        return self._noised(rows, clean, timesteps, Noising(noise, clean, noise), condition)

    def _noised(
        self,
        rows: torch.Tensor,
        clean: torch.Tensor,
        timesteps: torch.Tensor,
        noising: Noising,
        condition: Condition,
    ) -> Batch:
        noisy = self.scheduler.add_noise(clean, noising.noise, timesteps)  # type: ignore[arg-type]
        target = self._target(noising.clean_target, noising.noise_target, timesteps)
        return Batch(rows, noisy, timesteps, target, condition)

    @property
    def shape(self) -> torch.Size:
        """Channels, height and width of what the network sees."""
        return self.images.shape[1:]

    def clean(self, rows: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
        """Return the images at ``rows`` as the network sees them, float32, (B, C, H, W), those in
        the mask ``mirrored``, bool (B,), mirrored."""
        clean = self.images[rows].contiguous().float() / 127.5 - 1
        return torch.where(mirrored[:, None, None, None], clean.flip(-1), clean)

    def drawn(
        self, rows: torch.Tensor, mirrored: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Return the same for a training batch, whose random numbers come from ``generator``: what
        is not fixed by the images, as latents are not."""
        return self.clean(rows, mirrored)

    def labels_of(self, rows: torch.Tensor) -> torch.Tensor | None:
        """Return the labels of the images at ``rows``, before any dropout; int64, (B,), or None."""
        return None if self.labels is None else self.labels[rows]

    def condition_of(self, rows: torch.Tensor) -> Condition:
        """Return what the network is given with the images at ``rows``, before any dropout."""
        condition = {}
        if (labels := self.labels_of(rows)) is not None:
            condition["class_labels"] = labels
        if self.texts is not None:
            texts, row = self.texts
            condition[TEXT] = texts.embeddings[row[rows]]
        return condition

    @property
    def alternatives(self) -> int:
        """Number of conditions that an image can be given instead of its own: the other labels, or
        the surrogate."""
        return (self.classes - 1 if self.labels is not None else 0) + (self.surrogate is not None)

    def instead(
        self, rows: torch.Tensor, wrong: Callable[[torch.Tensor, int], torch.Tensor]
    ) -> Condition:
        """Return what the network is given with the images at ``rows`` under another condition than
        their own: labels as ``wrong`` makes them of theirs, int64 (B,), and the number of labels;
        for texts the surrogate."""
        condition = {}
        if (labels := self.labels_of(rows)) is not None:
            condition["class_labels"] = wrong(labels, self.classes)
        if self.surrogate is not None:
            condition[TEXT] = self.surrogate.repeat(len(rows), 1, 1)
        return condition

    def without(self, condition: Condition, dropped: torch.Tensor) -> Condition:
        """Return a condition whose samples in the mask ``dropped``, bool (B,), have the null label
        or text."""
        replaced: dict[str, torch.Tensor] = {}
        for name, given in cast(dict[str, torch.Tensor], condition).items():
            if name == TEXT:
                assert self.texts is not None
                replaced[name] = torch.where(dropped[:, None, None], self.texts[0].null, given)
            else:
                replaced[name] = torch.where(dropped, self.classes, given)
        return replaced

    def _target(
        self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        match self.scheduler.config["prediction_type"]:
            case "epsilon":
                return noise
            case "v_prediction":
                velocity = self.scheduler.get_velocity
                return velocity(clean, noise, timesteps)  # type: ignore[arg-type]
            case "sample":
                return clean
            case other:
                raise ConfigError(
                    f"diffusion.prediction = {other!r}: allowed are epsilon, v_prediction and "
                    "sample"
                )

    def predict(self, net: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the network's prediction for each sample, float32, (B, C, H, W), without a
        predicted variance."""
        output = net(batch.noisy, batch.timesteps, return_dict=False, **batch.condition)[0]
        return output[:, : batch.noisy.shape[1]].float()

    def losses(self, net: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the squared error of each sample, mean over C, H and W; float32, (B,)."""
        return (self.predict(net, batch) - batch.target).square().mean(dim=(1, 2, 3))


def levels(count: int, timesteps: int) -> list[int]:
    """Return ``count`` timesteps in [0, ``timesteps``): the middles of as many equal ranges.

    Raises:
        ConfigError: if ``count`` is more than ``timesteps``.
    """
    if count > timesteps:
        raise ConfigError(
            f"membership.timesteps = {count} is more than the model's {timesteps} timesteps"
        )
    return [(2 * k + 1) * timesteps // (2 * count) for k in range(count)]
