"""Anti-memorization guidance (AMG) at inference (Chen, Liu & Xu, CVPR 2024: Towards memorization-free
diffusion models).

At every step the image that the step is heading to is compared with the training images. Where its
similarity sigma to the nearest one is above a threshold, the prediction is changed, in units of the
noise, by

    c3 sqrt(1 - alpha_bar) d grad sigma             dissimilarity,
    - s1 (conditional - unconditional)              despecification, s1 = c1 sigma,
    - s2 (conditional on the nearest image's caption - unconditional)
                                                    deduplication of captions, s2 = c2 sigma,

with the gradient with respect to the noisy image, whose d numbers it is multiplied by, so that a
strength serves images of any size; s1 and s2 leave a guidance of at least 1. The threshold goes from
pure noise to the image as a parabola, the square of alpha_bar. Generations that are never above it
are those of the base.

The paper's similarities are SSCD's for Stable Diffusion, and for CIFAR-10 the normalised distance of
Carlini et al. 2023; here it is the latter for all, as a similarity: 1 minus the distance to the
nearest training image over the mean distance to the nearest ones, in the network's own space (pixels
or latents), equal images counting once.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import PartialState
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage.config import Amg, ConfigError
from afterimage.data.members import seen, trained_rows
from afterimage.diffusion.guidance import Guided
from afterimage.diffusion.latents import EncodedImages
from afterimage.diffusion.pixels import to_float
from afterimage.diffusion.prediction import clean_image
from afterimage.diffusion.remedy import Drawing, Remedy
from afterimage.diffusion.texts import TEXT, Texts
from afterimage.images import different, load_images
from afterimage.methods.at_inference import train as train


class TrainingImages:
    """The different training images, as the network sees them.

    Args:
        vectors: float32, (N, d), with mirror images after the others, if any.
        neighbours: Images that the nearest one is compared with.
        captions: Texts, and the row of each image's caption, int64 (N,), if there are any.
    """

    def __init__(
        self,
        vectors: torch.Tensor,
        neighbours: int,
        captions: tuple[Texts, torch.Tensor] | None = None,
    ) -> None:
        self.vectors, self._neighbours, self._captions = vectors, neighbours, captions

    @classmethod
    def of(cls, drawing: Drawing, neighbours: int) -> TrainingImages:
        """Return those of a replicate, on the device of the process.

        Raises:
            ConfigError: if a file is not given, or there are fewer than ``neighbours``.
        """
        files = drawing.files
        if files.train is None or not files.members:
            raise ConfigError(
                f"method amg needs the training images: --train is {files.train}, --members "
                f"{' '.join(map(str, files.members)) or None}"
            )
        images = trained_rows(load_images(files.train), seen(files.members))
        images = images.take(different(images.pixels)[0])
        if len(images) < neighbours:
            raise ConfigError(
                f"neighbours = {neighbours} is more than the {len(images)} different images that "
                "the network was trained on"
            )
        if files.latents is None:
            clean = to_float(images.pixels)
            views = [clean, clean.flip(-1)] if drawing.mirrors else [clean]
        else:
            encoded = EncodedImages.load(files.latents)
            views = list(encoded.mean[encoded.rows(images.pixels)].unbind(1))
        captions = None
        if drawing.prompts is not None:
            texts = drawing.prompts.texts
            captions = texts, texts.rows_of(images).repeat(len(views))
        vectors = torch.cat(views).flatten(1).to(PartialState().device)
        return cls(vectors, neighbours, captions)

    def similarity(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the similarity of images, (n, C, H, W), to the nearest one, float32 (n,), and its
        row, int64 (n,)."""
        distances = torch.cdist(images.flatten(1), self.vectors)
        nearest, rows = distances.topk(self._neighbours, dim=1, largest=False)
        return 1 - nearest[:, 0] / nearest.mean(dim=1), rows[:, 0]

    def embeddings(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of images' captions, float32 (n, L, D)."""
        assert self._captions is not None
        texts, row = self._captions
        return texts.embeddings[row[rows.cpu()]]


class AntiMemorizationGuidance(Remedy):
    """The remedy.

    Args:
        arm: Its settings.
        drawing: With the training images.
    """

    def __init__(self, arm: Amg, drawing: Drawing) -> None:
        super().__init__()
        self._arm = arm
        self._images = TrainingImages.of(drawing, arm.neighbours)
        config = drawing.scheduler_config
        self._kind = config.get("prediction_type", "epsilon")
        self._clip = config.get("clip_sample_range", 1.0) if config.get("clip_sample") else None
        self._kept = DDPMScheduler.from_config(config).alphas_cumprod

    def prediction(self, guided: Guided, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the prediction, guided away from training images where it heads to one."""
        arm = self._arm
        kept = float(self._kept[int(t)])  # alpha_bar
        prediction = guided(x, t)
        sigma, nearest = self._images.similarity(self._heading(x, prediction, kept))
        low, high = arm.threshold
        (rows,) = torch.nonzero(sigma > low + (high - low) * kept**2, as_tuple=True)
        if not len(rows):
            return prediction
        self.count(steps_guided=len(rows))
        some, channels = guided[rows], x.shape[1]
        change = torch.zeros_like(x[rows])
        if arm.dissimilarity:
            gradient = self._gradient(some, x[rows], t, kept)
            noise = arm.dissimilarity * (1 - kept) ** 0.5 * gradient[0].numel() * gradient
            change += noise * self._per_noise(kept)
        if arm.despecification or arm.deduplication:
            conditional, unconditional = some.branches(x[rows], t)
            room = guided.scale - 1
            s1 = (arm.despecification * sigma[rows]).clamp(0, room).view(-1, 1, 1, 1)
            change -= s1 * (conditional - unconditional)[:, :channels]
            if arm.deduplication:
                s2 = (arm.deduplication * sigma[rows]).view(-1, 1, 1, 1).clamp(0)
                texts = self._images.embeddings(nearest[rows]).to(x.device)
                other = some.predicted(x[rows], t, {TEXT: texts})
                change -= s2.minimum(room - s1) * (other - unconditional)[:, :channels]
        changed = prediction.clone()
        changed[rows, :channels] += change
        return changed

    def _heading(self, x: torch.Tensor, prediction: torch.Tensor, kept: float) -> torch.Tensor:
        """Return the image that a prediction stands for, clipped where the sampler clips it."""
        image = clean_image(x, prediction[:, : x.shape[1]], kept**0.5, self._kind)
        return image if self._clip is None else image.clamp(-self._clip, self._clip)

    def _gradient(
        self, guided: Guided, x: torch.Tensor, t: torch.Tensor, kept: float
    ) -> torch.Tensor:
        """Return the gradient of the images' similarity with respect to noisy images."""
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors of inference mode, in which images are drawn, cannot be differentiated.
            x, t = x.clone().requires_grad_(), t.clone()
            given, nulls = (
                {name: tensor.clone() for name, tensor in conditions.items()}
                for conditions in (guided.given, guided.nulls)
            )
            own = replace(guided, given=given, nulls=nulls)
            sigma, _ = self._images.similarity(self._heading(x, own(x, t), kept))
            (gradient,) = torch.autograd.grad(sigma.sum(), x)
        return gradient

    def _per_noise(self, kept: float) -> float:
        """Return how much the prediction changes if the noise that it stands for does."""
        if self._kind == "v_prediction":
            return kept**-0.5
        if self._kind == "sample":
            return -(((1 - kept) / kept) ** 0.5)
        return 1.0


def remedy(arm: Amg, drawing: Drawing) -> AntiMemorizationGuidance:
    """Return the remedy of an arm."""
    return AntiMemorizationGuidance(arm, drawing)
