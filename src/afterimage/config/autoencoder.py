"""The autoencoder whose latents networks denoise, instead of pixels (Rombach et al. 2022)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from afterimage.config.base import Block
from afterimage.config.stored import Stored

Widths = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]


class _Autoencoder(Block):
    """An ``AutoencoderKL`` of diffusers."""

    channels: Widths
    latent_channels: Annotated[int, Field(ge=1)] = 4
    """Channels of a latent."""
    layers_per_block: Annotated[int, Field(ge=1)] = 1
    """Residual blocks per level."""
    norm_groups: Annotated[int, Field(ge=1)] = 8
    """Groups of every group normalisation; must divide all channels."""

    @model_validator(mode="after")
    def _groups_divide(self) -> _Autoencoder:
        for width in self.channels:
            if width % self.norm_groups:
                raise ValueError(
                    f"channels: {width} is not a multiple of norm_groups = {self.norm_groups}"
                )
        return self

    @property
    def factor(self) -> int:
        """Pixels of an image's side per value of its latent's side."""
        return 2 ** (len(self.channels) - 1)

    def latent(self, height: int, width: int) -> tuple[int, int, int]:
        """Return height, width and channels of the latent of an image."""
        return height // self.factor, width // self.factor, self.latent_channels

    def refusal(self, height: int, width: int, channels: int) -> str | None:
        """Return why images of this shape cannot be encoded, 0 for what is not known of it; None if
        they can."""
        if height % self.factor or width % self.factor:
            return (
                f"autoencoder.channels has {len(self.channels)} levels, which need image sides that "
                f"are multiples of {self.factor}; the images are {height} x {width}"
            )
        return None

    def network(self, colours: int) -> dict[str, Any]:
        """Return the config of the ``AutoencoderKL`` of images with so many colours."""
        levels = len(self.channels)
        return {
            "in_channels": colours,
            "out_channels": colours,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "block_out_channels": self.channels,
            "layers_per_block": self.layers_per_block,
            "latent_channels": self.latent_channels,
            "norm_num_groups": self.norm_groups,
        }


class TrainedAutoencoder(_Autoencoder):
    """A small autoencoder that the study trains on its reference images, which no arm sees.

    Its loss is that of Rombach et al. 2022 without the perceptual and the adversarial term: squared
    error, and a slight KL penalty.
    """

    kind: Literal["trained"]
    channels: Widths = [32, 64]
    """Channels per level, finest first; each level after the first halves the sides."""
    updates: Annotated[int, Field(ge=1)] = 2000
    """Optimiser updates."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images per update."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """AdamW's step size at the start; it falls to 0 as a half cosine."""
    kl_weight: Annotated[float, Field(ge=0)] = 1e-6
    """Weight of an image's KL divergence, summed over its latent, against its squared error, summed
    over its values."""


class StoredAutoencoder(_Autoencoder, Stored):
    """A trained autoencoder in a folder, such as ``vae/`` of a Stable Diffusion pipeline; the
    defaults of its keys are that one's, and all must be as in its ``config.json``."""

    kind: Literal["stored"]
    channels: Widths = [128, 256, 512, 512]
    """Channels per level, finest first; each level after the first halves the sides."""
    layers_per_block: Annotated[int, Field(ge=1)] = 2
    """Residual blocks per level."""
    norm_groups: Annotated[int, Field(ge=1)] = 32
    """Groups of every group normalisation; must divide all channels."""

    def refusal(self, height: int, width: int, channels: int) -> str | None:
        taken = channels if self.described is None else self.described.get("in_channels", 3)
        if channels not in (0, taken):
            return (
                f"autoencoder.path = {self.path!r}: it takes images of {taken} channels, but the "
                f"study's have {channels}; data.colour converts them"
            )
        return super().refusal(height, width, channels)

    def check(self, described: dict[str, Any]) -> None:
        if described.get("_class_name") != "AutoencoderKL":
            raise ValueError(
                f"path = {self.path!r}: it holds a {described.get('_class_name')}; allowed is an "
                "AutoencoderKL"
            )
        for key, name in (
            ("channels", "block_out_channels"),
            ("latent_channels", "latent_channels"),
            ("layers_per_block", "layers_per_block"),
            ("norm_groups", "norm_num_groups"),
        ):
            if getattr(self, key) != described.get(name):
                raise ValueError(
                    f"{key} = {getattr(self, key)}, but the autoencoder in path = {self.path!r} "
                    f"has {name} = {described.get(name)}"
                )


Autoencoder = Annotated[TrainedAutoencoder | StoredAutoencoder, Field(discriminator="kind")]
