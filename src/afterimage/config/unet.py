"""The network that trainings start from: one with random weights, or a trained one in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from afterimage.config.base import Block, kind_or
from afterimage.config.stored import Stored, read
from afterimage.config.training import Diffusion, Model

if TYPE_CHECKING:
    from afterimage.config.study import Study

DEFAULTS: dict[str, dict[str, Any]] = {
    "UNet2DModel": {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [224, 448, 672, 896],
    },
    "UNet2DConditionModel": {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1280,
    },
}
"""Class -> diffusers' defaults of the keys that are read here, which a config may leave out."""

ASSUMED: dict[str, Any] = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}
"""Stable Diffusion 1's config, but for diffusers' defaults: what a U-Net costs whose folder is not
on the machine that plans."""

FURTHER_INPUTS = ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type")
"""Keys of networks that take more than an image, a timestep, a label and texts."""

FORWARD_PROCESS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "trained_betas": None,
    "prediction_type": "epsilon",
}
"""Keys of a scheduler that say how a network was trained, with diffusers' defaults."""

Trainable = Literal["full", "noxattn", "cross_attention"]


class Lora(Block):
    """Adapters of low rank (Hu et al., ICLR 2022) on query, key, value and output of every
    attention, as in diffusers' train_text_to_image_lora."""

    rank: Annotated[int, Field(ge=1)] = 4
    """Rank of the change of each matrix."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """The change is multiplied by alpha / rank; null: alpha = rank, as in diffusers' script."""


class StoredModel(Stored):
    """A trained U-Net, ``unet/`` of a diffusers pipeline: ``config.json`` and safetensors of a
    ``UNet2DModel`` or, for arms with ``condition: text``, a ``UNet2DConditionModel``.

    Every training without a ``base`` starts from its weights. Its ``sample_size`` becomes the
    study's.
    """

    kind: Literal["stored"]
    trainable: Trainable = "full"
    """Which of its weights are trained. noxattn: all but those of cross-attention, time embedding
    and output layers; cross_attention: those of cross-attention alone (Gandikota et al. 2023, as
    released). Blocks of ``rau_net`` are trained in any case, unless they are frozen."""
    lora: Lora | None = None
    """Train adapters instead of these weights; what is stored has them added to its weights, with
    ``pytorch_lora_weights.safetensors`` beside it. null: none."""

    @model_validator(mode="after")
    def _one_choice_of_weights(self) -> StoredModel:
        if self.lora is not None and self.trainable != "full":
            raise ValueError(
                f"trainable = {self.trainable!r} and lora both say what is trained: give one"
            )
        return self

    @property
    def architecture(self) -> dict[str, Any]:
        """The network's config; on a machine without it, ``ASSUMED``."""
        described: dict[str, Any] = self.described or ASSUMED
        return DEFAULTS[described["_class_name"]] | described

    @property
    def channels(self) -> list[int]:
        """Channels per level, finest first."""
        return list(self.architecture["block_out_channels"])

    @property
    def levels(self) -> int | None:
        """Number of levels; None on a machine without the config."""
        return None if self.described is None else len(self.channels)

    @property
    def dropout(self) -> float:
        """Dropout inside the residual blocks."""
        return float(self.architecture.get("dropout", 0.0))

    def check(self, described: dict[str, Any]) -> None:
        known = described.get("_class_name")
        the_network = f"path = {self.path!r}: its network"
        if known not in DEFAULTS:
            raise ValueError(f"{the_network} is a {known}; allowed are {' and '.join(DEFAULTS)}")
        for key in FURTHER_INPUTS:
            if described.get(key) is not None:
                raise ValueError(
                    f"{the_network} has {key} = {described[key]!r}; allowed is null: networks that "
                    "take an image, a timestep, and labels or texts"
                )
        channels, out = (self.architecture[key] for key in ("in_channels", "out_channels"))
        if channels != out:
            raise ValueError(
                f"{the_network} has in_channels = {channels} and out_channels = {out}; allowed are "
                "as many of both"
            )
        width = self.architecture.get("cross_attention_dim")
        if known == "UNet2DConditionModel" and not isinstance(width, int):
            raise ValueError(
                f"{the_network} has cross_attention_dim = {width}; allowed is one width for all "
                "levels"
            )
        if known == "UNet2DModel":
            for key, given in (
                ("trainable", None if self.trainable == "full" else self.trainable),
                ("lora", self.lora and self.lora.model_dump()),
            ):
                if given is not None:
                    raise ValueError(
                        f"{key} = {given!r} is for a UNet2DConditionModel, but the network in "
                        f"path = {self.path!r} is a {known}"
                    )
        names = {path.suffix for path in self.folder.iterdir()}
        if ".bin" in names and ".safetensors" not in names:
            raise ValueError(
                f"path = {self.path!r}: its weights are a pickle, which is never read; allowed are "
                "safetensors: open it where you trust it and save it by save_pretrained"
            )

    def refusal(self, study: Study) -> str | None:
        """Return why the network does not fit the study, as far as this machine knows it; None if
        it does. Its images are judged by ``images_refused``."""
        if self.lora is not None:
            for name, arm in study.arms.items():
                blocks = study.rau_net_of(name)
                if blocks is not None and blocks.placed is not None:
                    return (
                        f"model.lora trains adapters alone, but arms.{name} has rau_net, whose "
                        "blocks are weights of their own"
                    )
                if arm.lora_refused is not None:
                    return (
                        f"model.lora trains adapters alone, but arms.{name} has method "
                        f"{arm.method}: {arm.lora_refused}"
                    )
        if self.described is None:
            if study.loyal_selection is not None:
                return (
                    "loyal_selection needs the levels of the network, but model.path = "
                    f"{self.path!r} has no config.json on this machine"
                )
            return None
        return (
            self._arms_refused(study)
            or self._process_refused(study.diffusion)
            or self._encoders_refused(study)
        )

    @property
    def _pipeline(self) -> Path:
        """The folder that the network's is in: a pipeline's, if others of its parts are there."""
        return self.folder.resolve().parent

    def images_refused(self, shape: tuple[int, int, int], what: str) -> str | None:
        """Return why the network does not take the study's images or latents, as far as this
        machine knows it; None if it does.

        Args:
            shape: Height, width and channels, 0 for what is not known.
            what: ``images`` or ``latents``.
        """
        if self.described is None:
            return None
        height, width, channels = shape
        own = self.architecture["in_channels"]
        if channels not in (0, own):
            return (
                f"model.path = {self.path!r}: its network takes {own} channels, but the study's "
                f"{what} have {channels}"
            )
        halvings = 2 ** (len(self.channels) - 1)
        if height % halvings or width % halvings:
            return (
                f"model.path = {self.path!r}: its network has {len(self.channels)} levels, which "
                f"need sides that are multiples of {halvings}, but the study's {what} are "
                f"{height} x {width}"
            )
        return None

    def _arms_refused(self, study: Study) -> str | None:
        """Return why an arm's condition is not one of the network's."""
        architecture = self.architecture
        kind, labels = architecture["_class_name"], architecture.get("num_class_embeds")
        for name in study.arms:
            condition = study.condition_of(name)
            needed = "UNet2DConditionModel" if condition == "text" else "UNet2DModel"
            if kind != needed:
                return (
                    f"arms.{name} has condition = {condition!r}, which needs a {needed}, but the "
                    f"network in model.path = {self.path!r} is a {kind}"
                )
            if (condition == "label") != (labels is not None):
                return (
                    f"arms.{name} has condition = {condition!r}, but the network in model.path = "
                    f"{self.path!r} has num_class_embeds = {labels}: labels, and the null label, "
                    "or null for networks without"
                )
        width = architecture.get("cross_attention_dim")
        if kind == "UNet2DConditionModel" and study.text is not None and study.text.width != width:
            return (
                f"text.width = {study.text.width}, but the network in model.path = {self.path!r} "
                f"has cross_attention_dim = {width}"
            )
        return None

    def _process_refused(self, diffusion: Diffusion) -> str | None:
        """Return what of the forward process is not that of the scheduler next to the network's
        folder, if there is one."""
        file = self._pipeline / "scheduler" / "scheduler_config.json"
        if not file.is_file():
            return None
        stored, own = FORWARD_PROCESS | read(file), FORWARD_PROCESS | diffusion.scheduler
        schedule = ["beta_schedule", "trained_betas"]
        if own["beta_schedule"] != "squaredcos_cap_v2":  # which has no other betas
            schedule += ["beta_start", "beta_end"]
        for key, names in (
            ("timesteps", ["num_train_timesteps"]),
            ("schedule", schedule),
            ("prediction", ["prediction_type"]),
        ):
            if differing := [name for name in names if stored[name] != own[name]]:
                found = ", ".join(f"{name} = {stored[name]}" for name in differing)
                return (
                    f"diffusion.{key} = {getattr(diffusion, key)!r}, but the network in model.path "
                    f"= {self.path!r} was trained with {found} (scheduler/ beside it)"
                )
        return None

    def _encoders_refused(self, study: Study) -> str | None:
        """Return what the study encodes by another network than those next to the network's folder,
        if there are any."""
        for key, block, part in (
            ("autoencoder", study.autoencoder, "vae"),
            ("text", study.text, "text_encoder"),
        ):
            kind = None if block is None else block.kind
            if kind != "stored" and (self._pipeline / part / "config.json").is_file():
                return (
                    f"{key}.kind = {kind!r}, but the network in model.path = {self.path!r} was "
                    f"trained with the one in {part}/ beside it; allowed is 'stored', with its path"
                )
        return None


AnyModel = Annotated[
    Annotated[Model, Tag("scratch")] | Annotated[StoredModel, Tag("stored")],
    kind_or("scratch"),
]
