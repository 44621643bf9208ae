"""The network, the forward process and the optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from afterimage.config.base import Block, Share


class Model(Block):
    """The diffusers network to train from random weights: a ``UNet2DModel``, or for arms with
    ``condition: text`` a ``UNet2DConditionModel``."""

    kind: Annotated[Literal["scratch"], Field(exclude=True)] = "scratch"
    """A network with random weights, described by the other keys."""
    channels: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    """Channels per level, finest first."""
    attention: list[bool]
    """Self-attention per level, finest first."""
    layers_per_block: Annotated[int, Field(ge=1)] = 2
    """Residual blocks per level."""
    attention_head_dim: Annotated[int, Field(ge=1)] = 8
    """Channels per attention head."""
    norm_groups: Annotated[int, Field(ge=1)] = 8
    """Groups of every group normalisation; must divide all channels."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout inside the residual blocks."""
    time_embedding: Literal["add", "scale_shift"] = "add"
    """How residual blocks use the timestep: added to their features, or as scale and shift of their
    second normalisation (D-TRAK, DAS)."""

    @model_validator(mode="after")
    def _levels_agree(self) -> Model:
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention has {len(self.attention)} entries but channels has "
                f"{len(self.channels)}: one per level"
            )
        for width in self.channels:
            if width % self.norm_groups:
                raise ValueError(
                    f"channels: {width} is not a multiple of norm_groups = {self.norm_groups}"
                )
        for width, on in zip(self.channels, self.attention, strict=True):
            if on and width % self.attention_head_dim:
                raise ValueError(
                    f"channels: {width} has attention but is not a multiple of attention_head_dim "
                    f"= {self.attention_head_dim}"
                )
        return self

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.channels)


class Diffusion(Block):
    """The forward process and the network's target."""

    timesteps: Annotated[int, Field(ge=2, le=10_000)] = 1000
    """T, the number of noise levels."""
    schedule: Literal["linear", "cosine", "scaled_linear"] = "linear"
    """Linear betas from 1e-4 to 0.02 (Ho et al. 2020), the cosine schedule (Nichol & Dhariwal
    2021), or betas whose square roots are linear, from 0.00085 to 0.012 (Stable Diffusion)."""
    prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    """What the network predicts: the noise, v (Salimans & Ho 2022) or the clean image."""

    @property
    def scheduler(self) -> dict[str, Any]:
        """The keywords of diffusers' schedulers that say it."""
        scaled = self.schedule == "scaled_linear"
        names = {"cosine": "squaredcos_cap_v2"}
        return {
            "num_train_timesteps": self.timesteps,
            "beta_schedule": names.get(self.schedule, self.schedule),
            "beta_start": 0.00085 if scaled else 1e-4,
            "beta_end": 0.012 if scaled else 0.02,
            "prediction_type": self.prediction,
        }


class Train(Block):
    """The optimisation, the same for every arm unless the arm says otherwise."""

    updates: Annotated[int, Field(ge=1)] | None = None
    """Budget in optimiser updates. Give this or ``epochs``."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Budget in passes over the arm's training images."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images per optimiser update, over all accumulation steps and processes."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Forward and backward passes per update; must divide ``batch_size``."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """AdamW's step size after warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)
    ] = [0.9, 0.999]
    """AdamW's decay of the means of gradients and of their squares."""
    warmup: Annotated[int, Field(ge=0)] | Share = 0
    """Updates over which the learning rate rises linearly from 0; below 1, as a share of the
    budget."""
    decay: Literal["none", "cosine"] = "none"
    """cosine: after warm-up the learning rate falls to 0 at the end of the budget, as a half
    cosine."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Decay of the moving average of the weights; 0 keeps the last weights."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm; null does not clip."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward and backward pass; weights and averages stay fp32. ``fp16``, for
    GPUs without bf16, scales the loss and leaves out the updates that overflow."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW with its moments in fp32, or in 8 bits (Dettmers et al. 2022), which takes a quarter of
    their memory and needs the extra ``adam8bit``."""
    gradient_checkpointing: bool = False
    """Keep the activations of few layers and compute the others again in the backward pass: less
    memory, more time, the same gradients."""
    channels_last: bool = False
    """Keep the weights of convolutions with channels last, as tensor cores read them."""
    compile: bool = False
    """Compile the network first (``torch.compile``). It takes minutes, once per job."""
    deterministic: bool = True
    """Use deterministic algorithms alone, so that a training on a GPU has the same bits when it is
    repeated or resumed. Others may be faster. On a CPU the bits are always the same."""
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of labels replaced by the null label, or of captions replaced by the empty one, in
    conditional arms (classifier-free guidance)."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    """Updates between two checkpoints. A stopped run resumes from the last."""
    log_every: Annotated[int, Field(ge=1)] = 25
    """Updates between two points of the training curves."""

    @property
    def follows_budget(self) -> bool:
        """Whether the learning rate depends on the budget, which a training with several budgets,
        or without its own, does not support."""
        return self.decay != "none" or 0 < self.warmup < 1

    @model_validator(mode="after")
    def _budget(self) -> Train:
        if (self.updates is None) == (self.epochs is None):
            raise ValueError(
                f"give exactly one of updates and epochs (updates = {self.updates}, epochs = "
                f"{self.epochs})"
            )
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation = {self.accumulation} does not divide batch_size = {self.batch_size}"
            )
        if self.channels_last and self.optimizer == "adamw_8bit":
            raise ValueError(
                "channels_last: optimizer = 'adamw_8bit' lays weights out anew; allowed is adamw"
            )
        return self


def overridden(shared: Mapping[str, Any], overrides: Mapping[str, Any]) -> Train:
    """Return the ``train`` block of an arm: the study's keys, overridden by the arm's own. A budget
    replaces the other's, whichever of the two keys it has.

    Raises:
        ValidationError: if they are not valid together.
    """
    budget = {"updates", "epochs"} if overrides.keys() & {"updates", "epochs"} else set()
    kept = {key: value for key, value in shared.items() if key not in budget}
    return Train.model_validate({**kept, **overrides})
