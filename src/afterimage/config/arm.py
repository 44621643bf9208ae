"""What every arm has: its method's name, its starting point, its data, its budget and its control.

Methods compose by configuration: ``data`` (deduplication), ``without`` (retraining), ``rau_net``
(the network) and ``base`` (fine-tuning) can be combined with every method unless ``Study`` refuses
the combination by name. The methods are in ``arms``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from afterimage.config.base import Block, Share
from afterimage.config.training import Model, Train

if TYPE_CHECKING:
    from afterimage.config.study import Study


class Passes(NamedTuple):
    """Batches that go through the networks of a training.

    Attributes:
        backward: Forward and backward, in the updates.
        forward: Forward only.
        setup: Forward and backward, before the first update.
    """

    backward: float
    forward: float = 0.0
    setup: float = 0.0


class ForgetSet(Block):
    """A set of training images to forget, or to train without; copies of an image always go
    together."""

    label: Annotated[int, Field(ge=0)] | None = None
    """Every image of this class."""
    caption: Annotated[str, Field(pattern=r"\S")] | None = None
    """Every image whose caption contains this word or phrase: whole words (``cat`` is not in
    ``cats``), in this order, next to each other, whatever their case."""
    ids: Annotated[list[int], Field(min_length=1)] | None = None
    """The sources of these rows of the training split (column ``id`` of the planting's index); not
    with several ``data.plantings``, whose rows differ."""
    extracted_from: str | None = None
    """Every image that the extraction attack extracts from the first half of this arm's generations
    (same replicate, headline anchor). What an arm, this one too, still shows of the set is judged
    on the second half of its own, which has other starting noise."""
    alpha: Literal["fixed", "calibrated"] = "calibrated"
    """Which threshold of the attack is used, with ``extracted_from``."""
    surrogate: Annotated[str, Field(pattern=r"\S")] | None = None
    """The text that takes the place of the set's captions in arms with ``condition: text`` that
    forget it, e.g. ``a photo of a dog``; null: the empty caption. Label-conditional arms have wrong
    labels instead."""

    @model_validator(mode="after")
    def _one_kind(self) -> ForgetSet:
        kinds = ("label", "caption", "ids", "extracted_from")
        keys = [name for name in kinds if getattr(self, name) is not None]
        if len(keys) != 1:
            raise ValueError(
                "give exactly one of label, caption, ids and extracted_from, not "
                f"{' and '.join(keys) or 'none'}"
            )
        return self


class Match(Block):
    """A budget taken from another arm's finished training (same replicate), instead of the arm's
    own ``updates``."""

    arm: str
    """The arm whose budget is matched."""
    by: Literal["updates", "updates_per_model", "kept_samples", "passes"]
    """All its optimiser updates; those of each of its networks (e.g. one shard of IET); the
    samples that carried a gradient (not skipped by AGC), as updates of this arm's batch size,
    rounded up; or its backward passes, two per update of most unlearning methods, each an update
    here (only for arms with one per update; what it computes before its first update is not
    counted). But for ``kept_samples``, updates are taken as they are, whatever the batch sizes."""


Variant = Literal[
    "trained_random",
    "trained_identity",
    "frozen_fixed",
    "frozen_redrawn",
    "conv_silu",
    "k_conv_silu",
    "maxpool",
    "drop",
    "none",
]
"""The kind of an information transfer block; see ``TransferBlocks``."""


class TransferBlocks(Block):
    """RAU-Net: information transfer blocks in skip connections (LoyalDiffusion, Li et al. 2024)."""

    groups: list[Annotated[int, Field(ge=0)]]
    """Skip groups with a block: 0 is the skip of the first convolution, g the skips of the g-th
    level, finest first. The paper puts blocks on its two deepest levels (3 and 4)."""
    variant: Variant = "trained_random"
    """trained_random: a 3x3 convolution with torch's default initialisation, trained (the paper's
    text). trained_identity: the same, initialised to the identity. frozen_fixed, frozen_redrawn:
    never trained, and stored, or reinitialised (from the study's seed) whenever the network is
    opened (as in the released training and sampling code, whose blocks are not registered with
    torch). conv_silu, k_conv_silu: with activation. maxpool: keeps only local maxima. drop: the
    decoder's own state instead of the skip, if their channels agree. none: no block (control)."""
    convolutions: Annotated[int, Field(ge=1)] = 2
    """k, with ``variant: k_conv_silu``."""

    @property
    def placed(self) -> tuple[list[int], str, int] | None:
        """What the network has of it: groups, variant and k; None if it has no blocks."""
        if self.variant == "none" or not self.groups:
            return None
        return sorted(set(self.groups)), self.variant, self.convolutions


class DualFusion(Block):
    """Dual fusion (Li et al. 2023): an image of ``data.split.fusion``, and its caption, are mixed
    into every training image and its caption, another one in each update."""

    image: Share | Literal[0] = 0.1
    """Weight of the other image, or latent (the authors' w_lat)."""
    caption: Share | Literal[0] = 0.5
    """Weight of the embedding of the other caption (w_emb)."""


class Arm(Block):
    """Common to every arm: a method and its training settings."""

    if TYPE_CHECKING:
        method: str

    data: Literal["planted", "deduplicated"] = "planted"
    """Train on the training set as planted, or on the deduplicated one."""
    dedup: dict[str, Any] = {}
    """Keys of the study's ``dedup`` block that differ in this arm, e.g. ``{same_caption: true}``
    (an inner block is given whole); with ``data: deduplicated``."""
    without: str | None = None
    """Name of a set under ``forget`` to exclude from the training images."""
    fraction: Share = 1.0
    """Train each replicate on its own random share of those images (Carlini et al. 2023, section 5:
    one half)."""
    condition: Literal["none", "label", "text"] | None = None
    """Train without a condition, or conditioned on labels or captions (block ``text``), some of
    them dropped (``train.label_dropout``). By default as the base; without a base, without a
    condition."""
    captions: str | None = None
    """Variant of the captions (``text.captions``) that an arm with ``condition: text`` is trained,
    drawn and attacked with, or ``original``. By default that of the base; without a base,
    ``original``."""
    dual_fusion: DualFusion | None = None
    """What is mixed into the images and captions of an arm with ``condition: text``; null:
    nothing."""
    base: str | None = None
    """Arm of the same study whose averaged weights this arm starts from (same replicate)."""
    rau_net: TransferBlocks | None = None
    """Blocks in the network's skip connections. By default the base's; without a base, none."""
    matched_to: Match | None = None
    """Take the budget from another arm."""
    control: str | None = None
    """Arm that this arm is compared with: ideally identical except for the claimed remedy."""
    train: dict[str, Any] = {}
    """Keys of the study's ``train`` block that differ in this arm."""

    module: ClassVar[str]
    """Module with its ``train(run)``."""
    trains: ClassVar[bool] = True
    """Whether networks are trained, or only drawn from in another way."""
    shares: ClassVar[Literal["batch", "shards"] | None] = None
    """How several processes divide a training: by batches, by networks, or not at all."""
    follows_budget: ClassVar[bool] = False
    """Whether learning-rate schedules that follow the budget are supported."""
    single_network: ClassVar[bool] = True
    """Whether the result is a single network, from which any method can start."""
    per_sample_gradients: ClassVar[bool] = False
    """Whether the gradients of all images of a micro-batch are in memory at once."""
    scales_losses: ClassVar[bool] = False
    """Whether an update is one gradient and one step, as fp16 needs."""
    takes_texts: ClassVar[bool] = True
    """Whether networks can be conditioned on captions."""
    pass_time: ClassVar[float] = 1.0
    """Time of a forward and backward pass, in those of plain training."""
    reads_training_images: ClassVar[bool] = False
    """Whether drawing generations needs the training images."""

    @property
    def data_given(self) -> str:
        """The keys that say which training set it has, for messages."""
        return f"data = {self.data!r}" + (f" and dedup = {self.dedup}" if self.dedup else "")

    @property
    def is_plain(self) -> bool:
        """Whether nothing but labels and the budget sets it apart from plain training on all
        images: every other key has its default."""
        return False

    @property
    def lora_refused(self) -> str | None:
        """Why the method cannot train adapters alone (``model.lora``); None if it can."""
        return "it is not known to work on them"

    @abstractmethod
    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        """Return the batches of a training with ``updates`` updates, for its estimated cost."""

    def updates_of(self, updates: int, timesteps: int) -> tuple[int, int]:
        """Return how a budget is spent: the updates of all networks, and of the network with the
        most."""
        return updates, updates

    def networks(
        self, blocks: TransferBlocks | None, timesteps: int
    ) -> list[tuple[TransferBlocks | None, float]]:
        """Return the blocks of every denoising network, each with its share of the timesteps."""
        return [(blocks, 1.0)]

    @property
    def networks_held(self) -> int:
        """Number of networks held in memory during training."""
        return 1

    def passes_of_drawing(self, steps: int) -> int:
        """Return how many forward and backward passes the method adds to the drawing of an image,
        at most."""
        return 0

    def processes(self, gpus: int) -> int:
        """Return the number of processes that train it on ``gpus`` available GPUs."""
        return 1 if self.shares is None else gpus

    def refusal(self, study: Study, name: str) -> str | None:
        """Return why the settings of this arm, called ``name``, are incompatible; None if they are
        not."""
        if self.dedup and self.data != "deduplicated":
            return f"dedup = {self.dedup} is for arms with data = 'deduplicated', not {self.data!r}"
        if self.matched_to is not None and self.train.keys() & {"updates", "epochs"}:
            return "give matched_to or train.updates (train.epochs), not both"
        if self.matched_to is not None and not study.arms[self.matched_to.arm].trains:
            return (
                f"matched_to.arm = {self.matched_to.arm!r} trains nothing, so that there is no "
                "budget to take"
            )
        if self.matched_to is not None and self.matched_to.by == "passes":
            probe = 1_000_000
            total, _ = self.updates_of(probe, study.diffusion.timesteps)
            passes = self.passes(total, study.train_of(name).batch_size, study.diffusion.timesteps)
            if round(passes.backward / probe, 2) != 1:
                return (
                    f"matched_to.by = 'passes': each update of its budget makes "
                    f"{passes.backward / probe:g} backward passes here, and must make one (as "
                    "method baseline does)"
                )
        if self.base is not None:
            base = study.arms[self.base]
            condition = study.condition_of(self.base)
            if not base.trains:
                return (
                    f"base = {self.base!r} trains nothing (method {base.method}): its networks are "
                    f"those of {base.base!r}, which can be the base"
                )
            if self.condition is not None and self.condition != condition:
                return (
                    f"condition = {self.condition!r}, but base = {self.base!r} has condition "
                    f"{condition!r}"
                )
            if not base.single_network and self.single_network:
                return (
                    f"base = {self.base!r} is two networks (method {base.method}), which method "
                    f"{self.method} cannot start from"
                )
        blocks, levels = study.rau_net_of(name), study.model.levels
        if self.base is not None:
            refused = self._blocks_refused(study, blocks)
            if refused is not None:
                return refused
        most = max(blocks.groups, default=0) if blocks is not None else 0
        if blocks is not None and levels is not None and most > levels:
            return f"rau_net.groups = {blocks.groups}: the network has groups 0 to {levels}"
        if self.captions is not None and study.condition_of(name) != "text":
            return (
                f"captions = {self.captions!r} is for arms with condition = 'text', but the "
                f"condition is {study.condition_of(name)!r}"
            )
        if self.dual_fusion is not None and study.condition_of(name) != "text":
            return (
                "dual_fusion is for arms with condition = 'text', but the condition is "
                f"{study.condition_of(name)!r}"
            )
        if self.dual_fusion is not None and not study.data.split.fusion:
            return (
                "dual_fusion needs data.split.fusion, the number of images to draw for it; it is 0"
            )
        if study.condition_of(name) == "text":
            if not self.takes_texts:
                return f"condition = 'text' is not supported by method {self.method}"
            if isinstance(study.model, Model) and not any(study.model.attention):
                return (
                    "condition = 'text' needs a level with attention, but model.attention = "
                    f"{study.model.attention}"
                )
            if self.fraction < 1 and any(group.repeat == "caption" for group in study.data.plant):
                return (
                    f"fraction = {self.fraction} would draw some of the images that carry a "
                    "planted caption (data.plant with repeat = 'caption') and leave others out"
                )
        train = study.train_of(name)
        if train.follows_budget and not self.follows_budget:
            return (
                f"decay = {train.decay!r} and warmup = {train.warmup} of train follow the budget, "
                "which only method baseline supports; here decay must be none and warmup a number "
                "of updates"
            )
        return self._arithmetic_refused(train)

    def _arithmetic_refused(self, train: Train) -> str | None:
        """Return why the method cannot compute as ``train`` says; None if it can."""
        if train.precision == "fp16" and not self.scales_losses:
            return (
                f"precision = 'fp16' of train is not supported by method {self.method}; allowed "
                "are fp32 and bf16"
            )
        for key in ("gradient_checkpointing", "compile"):
            if self.per_sample_gradients and getattr(train, key):
                return (
                    f"{key} of train is not supported by method {self.method}, which takes the "
                    "gradient of each image"
                )
        return None

    def _blocks_refused(self, study: Study, blocks: TransferBlocks | None) -> str | None:
        """Return why networks with ``blocks`` cannot start from the base's; None if they can: those
        of the base have no blocks, or the same."""
        assert self.base is not None
        base, timesteps = study.arms[self.base], study.diffusion.timesteps
        own = [placed for placed, _ in self.networks(blocks, timesteps)]
        others = [placed for placed, _ in base.networks(study.rau_net_of(self.base), timesteps)]
        for one, other in zip(own, others * (len(own) // len(others)), strict=True):
            placed = None if one is None else one.placed
            if other is not None and other.placed not in (None, placed):
                return (
                    f"base = {self.base!r} has blocks {other.variant} in groups {other.groups}, "
                    f"from which a network with {_described(one)} cannot start: only one with the "
                    "same blocks, or from a base without"
                )
        return None


def _described(blocks: TransferBlocks | None) -> str:
    if blocks is None or blocks.placed is None:
        return "no blocks"
    return f"blocks {blocks.variant} in groups {blocks.groups}"
