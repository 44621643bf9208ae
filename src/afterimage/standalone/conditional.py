"""Networks of latent text-to-image and class-conditional pipelines, and the denoising of images by
them: for attribution and membership inference, which need a network's loss on given images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.diffusion.autoencoder import Autoencoder
from afterimage.diffusion.condition import Condition, each_tensor
from afterimage.diffusion.latents import EncodedImages, Latents
from afterimage.images import Images
from afterimage.standalone import generations, lora, own_call, prompts, stored_pipeline
from afterimage.standalone.stored_pipeline import StoredPipeline

SUPPORTED = (
    "pipelines of a UNet2DConditionModel with texts (Stable Diffusion 1, 2 and XL) or a "
    "DiTTransformer2DModel with labels, both with an AutoencoderKL"
)
_BATCH = 8
"""Texts encoded at once."""


class Conditioned(Latents):
    """Denoising of latents by a network that is given more than texts or labels alone.

    Args:
        images: uint8, (N, H, W, C).
        encoded: Their latents.
        scheduler: The forward process.
        conditions: What the network is given, with one row per different condition.
        rows: int64, (N,): the row of ``conditions`` of each latent.
    """

    def __init__(
        self,
        images: np.ndarray,
        encoded: EncodedImages,
        scheduler: DDPMScheduler,
        conditions: Condition,
        rows: torch.Tensor,
    ) -> None:
        super().__init__(images, encoded, scheduler)
        self.conditions, self.rows = conditions, rows

    def condition_of(self, rows: torch.Tensor) -> Condition:
        """Return the conditions of the latents at ``rows``."""
        chosen = self.rows[rows]
        condition: Condition = each_tensor(self.conditions, lambda tensor: tensor[chosen])
        return condition


@dataclass(frozen=True)
class Conditional:
    """An opened pipeline that denoises latents.

    Attributes:
        pipeline: The pipeline.
        stored: Where it comes from.
        net: Its network, in evaluation mode; only weights of a LoRA require gradients, if there is
            one.
        scheduler_config: Config for ``DDPMScheduler``, with the pipeline's own betas.
        weights_sha256: Of all files of the pipeline, and of the LoRA.
        notes: Sentences for the user.
    """

    pipeline: Any
    stored: StoredPipeline
    net: Any
    scheduler_config: dict[str, Any]
    weights_sha256: str
    notes: tuple[str, ...]

    @classmethod
    def of(cls, args: argparse.Namespace, located: stored_pipeline.Located) -> Conditional:
        """Open a pipeline on the device of the process.

        Raises:
            ConfigError: naming the flag that does not fit.
            ArtifactError: if it cannot be opened, or its network is of another class.
        """
        stored = stored_pipeline.find(located, args.variant)
        if args.lora is not None:
            lora.check(args.lora, stored.pipeline_class)
        pipeline = stored_pipeline.load(stored, "float32", generations.device_of(args))
        net: Any = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
        scheduler = pipeline.scheduler
        if not stored_pipeline.has_known_loss(pipeline):
            raise ArtifactError(
                f"{stored.name}: the loss of a {stored.pipeline_class.__name__} on an image is not "
                f"known; supported are {SUPPORTED}, and U-Nets of pixels"
            )
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ArtifactError(
                f"{stored.name}: a {type(scheduler).__name__} does not tell with which betas the "
                "network was trained; supported are schedulers of DDPM's forward process"
            )
        notes, sums = list(stored.notes), stored.sha256()
        net.requires_grad_(True)
        if args.lora is not None:
            lora.load(pipeline, args.lora)
            sums += artifacts.sha256(args.lora)
            weights = dict(net.named_parameters())
            added = [name for name in weights if "lora_" in name]
            if not added:
                raise ArtifactError(
                    f"--lora = {args.lora}: it has no weights of the {type(net).__name__}, whose "
                    "loss is used"
                )
            for name, weight in weights.items():
                weight.requires_grad_(name in added)
            notes.append(f"gradients are those of the {len(added)} LoRA tensors of the network")
        return cls(pipeline, stored, net.eval(), dict(scheduler.config), sums, tuple(notes))

    @property
    def takes_text(self) -> bool:
        """Whether the network is given texts; otherwise labels."""
        return isinstance(self.net, UNet2DConditionModel)

    @property
    def classes(self) -> int | None:
        """Number of labels that the network takes; None if it takes texts."""
        return None if self.takes_text else own_call.classes_of(self.pipeline)

    def facts(self) -> dict[str, Any]:
        """Return the pipeline's description for a record."""
        return {
            "pipeline_class": self.stored.pipeline_class.__name__,
            "network_class": type(self.net).__name__,
            "scheduler_class": type(self.pipeline.scheduler).__name__,
            "prediction": self.scheduler_config.get("prediction_type", "epsilon"),
            "timesteps": self.scheduler_config["num_train_timesteps"],
            "latents": "the mode of the autoencoder's distribution",
            "trained_weights": sum(w.numel() for w in self.net.parameters() if w.requires_grad),
        }

    def check(self, name: str, images: Images) -> None:
        """Check that images can be encoded for the network.

        Raises:
            ConfigError: naming the flag of the set called ``name``.
        """
        height, width, channels = images.pixels.shape[1:]
        vae, config = self.pipeline.vae, self.net.config
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        if channels != vae.config.in_channels:
            raise ConfigError(
                f"--{name}: images have {channels} channels, but the pipeline's autoencoder takes "
                f"{vae.config.in_channels}; --colour converts them"
            )
        side = config.sample_size * factor
        fits = (
            height == width == side
            if not self.takes_text
            else not (height % factor or width % factor)
        )
        if not fits:
            needed = f"{side}x{side}" if not self.takes_text else f"multiples of {factor}"
            raise ConfigError(
                f"--{name}: images are {height}x{width}, but {needed} is needed; --resize converts "
                "them"
            )

    def task(
        self, images: Images, texts: Sequence[str] | None, truncate: bool, mirrors: bool
    ) -> Conditioned:
        """Return the denoising of images, each with its text or label.

        Args:
            images: The images.
            texts: Their texts; None for labels.
            truncate: Whether texts that are too long may be cut.
            mirrors: Whether mirror images will be asked for.

        Raises:
            ConfigError: naming the flag, if texts are too long.
        """
        scheduler = DDPMScheduler.from_config(self.scheduler_config)
        encoded = EncodedImages.of(Autoencoder(self.pipeline.vae), images.pixels, mirrors)
        denoised = images.pixels, encoded, scheduler
        if texts is None:
            labels = torch.from_numpy(images.labels)
            return Conditioned(*denoised, {"class_labels": labels}, torch.arange(len(labels)))
        different = list(dict.fromkeys(texts))
        position = {text: row for row, text in enumerate(different)}
        rows = torch.tensor([position[text] for text in texts])
        conditions = self._texts(different, images.pixels.shape[1:3], truncate)
        return Conditioned(*denoised, conditions, rows)

    @torch.inference_mode()
    def _texts(self, texts: Sequence[str], size: tuple[int, int], truncate: bool) -> Condition:
        """Return what the network is given for each of some texts."""
        asked = own_call.asks(self.stored.pipeline_class, self.stored.name)
        prompts.check(self.pipeline, texts, asked, truncate)
        encoded: list[list[Any]] = []
        for first in range(0, len(texts), _BATCH):
            parts = self.pipeline.encode_prompt(
                prompt=list(texts[first : first + _BATCH]),
                device=self.pipeline.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
            encoded.append([part if part is None else part.float().cpu() for part in parts])
        conditions: dict[str, Any] = {
            "encoder_hidden_states": torch.cat([parts[0] for parts in encoded]).clone()
        }
        if len(encoded[0]) == 4:  # Stable Diffusion XL: pooled texts, and sizes that it is given
            times = torch.tensor([*size, 0, 0, *size], dtype=torch.float32)
            conditions["added_cond_kwargs"] = {
                "text_embeds": torch.cat([parts[2] for parts in encoded]).clone(),
                "time_ids": times.repeat(len(texts), 1),
            }
        return conditions
