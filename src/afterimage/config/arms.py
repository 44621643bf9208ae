"""The arms: trainings, and ways to draw from them, each a block of its method's settings.

What all of them have, and which combinations are refused, is in ``arm``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from afterimage.config.arm import Arm, Passes, TransferBlocks
from afterimage.config.base import Share
from afterimage.config.texts import ORIGINAL
from afterimage.config.unet import StoredModel, Trainable

if TYPE_CHECKING:
    from afterimage.config.study import Study


class Baseline(Arm):
    """Plain training (Ho et al. 2020); also every control arm that only changes data, network or
    budget, and fine-tuning."""

    method: Literal["baseline"]
    weights: Literal["none", "inverse_copies"] = "none"
    """Weight of each training image in the loss. none: all the same. inverse_copies: 1 / (copies
    of its source among the training images), times what makes the mean weight 1, so that each
    source counts once (soft deduplication). Copies are known from planting: an oracle, which the
    owner of real data does not have."""

    module: ClassVar[str] = "afterimage.methods.baseline"
    shares: ClassVar[Literal["batch", "shards"] | None] = "batch"
    scales_losses: ClassVar[bool] = True
    follows_budget: ClassVar[bool] = True

    @property
    def is_plain(self) -> bool:
        own = {"condition": self.condition, "control": self.control}
        own |= {"captions": ORIGINAL} if self.captions == ORIGINAL else {}
        plain = Baseline(method="baseline", **own)
        budget = self.train.keys() <= {"updates", "epochs"}
        return budget and self.model_copy(update={"train": {}}) == plain

    @property
    def lora_refused(self) -> str | None:
        return None

    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        return Passes(updates)


class Ambient(Arm):
    """Ambient diffusion at high noise (Shah et al., ICML 2025): above a noise level the network
    sees only noisy versions of the images, each noised once and for all."""

    method: Literal["ambient"]
    level: Annotated[int, Field(ge=0)]
    """t_n, in steps of the forward process: timesteps from this one on see only images that were
    noised by so many steps (sigma_n = 0.5, the example of the released code, is 145 steps of the
    linear and 289 of the cosine schedule). 0: plain training."""

    module: ClassVar[str] = "afterimage.methods.ambient"
    shares: ClassVar[Literal["batch", "shards"] | None] = "batch"
    scales_losses: ClassVar[bool] = True
    follows_budget: ClassVar[bool] = True

    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        return Passes(updates)

    def refusal(self, study: Study, name: str) -> str | None:
        timesteps = study.diffusion.timesteps
        if self.level >= timesteps:
            return (
                f"level = {self.level} leaves no timestep above it: allowed are 0 to "
                f"{timesteps - 1} (diffusion.timesteps = {timesteps})"
            )
        if self.dual_fusion is not None:
            return (
                "method ambient noises each image once, but dual_fusion makes another one of it in "
                "each update: it cannot be given"
            )
        return super().refusal(study, name)


class Unlearning(Arm):
    """Common to every unlearning method: a trained base and a forget set."""

    base: str
    """Arm whose averaged weights the method starts from (same replicate)."""
    forget: str
    """Name of the set under ``forget``."""

    @property
    def needs_condition(self) -> str | None:
        """The setting that replaces the forgotten images' labels or captions by others; None if
        none does."""
        return None

    def refusal(self, study: Study, name: str) -> str | None:
        refused = super().refusal(study, name)
        if refused is not None:
            return refused
        base, named_base = study.arms[self.base], f"base = {self.base!r}"
        if self.rau_net is not None:
            return f"method {self.method} takes its base's network: rau_net cannot be given"
        if study.training_set_of(name) != study.training_set_of(self.base):
            return (
                f"{self.data_given}, but {named_base} was trained on {base.data_given}: give the "
                "same"
            )
        if (self.fraction, base.fraction) != (1, 1):
            return (
                f"method {self.method} needs to know what its base saw: fraction = "
                f"{self.fraction} of {named_base} with fraction = {base.fraction} is not "
                "supported, only 1 of 1"
            )
        if self.without is not None:
            return f"method {self.method} has forget: without cannot be given too"
        if self.dual_fusion is not None:
            return f"method {self.method} makes its base forget: dual_fusion cannot be given"
        condition = study.condition_of(name)
        if condition == "none" and self.needs_condition:
            return (
                f"{self.needs_condition} needs labels or captions, but {named_base} was trained "
                "without (condition: label or text)"
            )
        if condition == "text" and self.needs_condition:
            dropout = study.train_of(self.base).label_dropout
            if study.forget[self.forget].surrogate is None and dropout == 0:
                return (
                    f"{self.needs_condition} puts the empty caption in the place of the forgotten "
                    f"ones, which {named_base} never saw (train.label_dropout = 0): give "
                    f"forget.{self.forget}.surrogate"
                )
        return None


class IetAgc(Arm):
    """Iterative ensemble training with anti-gradient control (Liu et al., ECCV 2024), and its two
    components alone."""

    method: Literal["iet_agc"]
    shards: Annotated[int, Field(ge=1)] = 10
    """K, the number of shards and models; 1 leaves AGC alone."""
    rounds: Annotated[int, Field(ge=1)] = 10
    """R, the number of times that the shards' models are averaged."""
    budget: Literal["total", "per_model"] = "total"
    """Whether ``train.updates`` is shared by all shards (as released: the sum is about the
    baseline's), or each shard gets all of it."""
    sharding: Literal["balanced", "balanced_in_order", "random", "contiguous", "by_source"] = (
        "balanced"
    )
    """Class-balanced at random; class-balanced in the order of the training set (released, CIFAR);
    at random regardless of class; blocks in the order of the training set (released, other
    data). by_source: at random, but all copies of an image in one shard, and sizes as equal as
    that allows; copies are known from planting."""
    agc_threshold: Annotated[float, Field(ge=0)] = 0.5
    """lambda: a sample is skipped if its loss is below lambda times the bank at its timestep; 0
    leaves IET alone."""
    skipping: Literal["loss", "random"] = "loss"
    """Which samples are skipped. loss: those below the threshold. random: as many of the batch (of
    each micro-batch, with ``train.accumulation``) as the rule would skip, drawn at random: a
    control that tells which samples from how many."""
    bank_decay: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """gamma of the bank's moving average."""
    bank_scope: Literal["shard", "global"] = "shard"
    """One bank for each shard (as released), or banks averaged with the weights."""
    optimizer_sync: Literal["keep", "reset", "average"] = "keep"
    """What happens to the shards' moments at an averaging: kept per shard (as released), reset, or
    averaged."""
    skip_t_max: Annotated[int, Field(ge=1)] | None = None
    """Skip only at timesteps below this; null skips at all timesteps."""
    on_all_skipped: Literal["step", "skip"] = "step"
    """When a whole batch is skipped: step with a gradient of zero, which moves by momentum (as
    released), or change nothing."""
    redistribute_above: Annotated[float, Field(gt=0, lt=1)] | None = None
    """IET-AGC+: at an averaging, images skipped in more than this share of their visits in the
    round change shards. Null: never."""
    augment_below: Annotated[float, Field(gt=1)] | None = None
    """IET-AGC+: kept samples with a loss below this multiple of the skipping threshold are
    augmented. Null: never. As this mirrors images, the study's extraction attacks then compare
    mirror images too, on every arm."""

    module: ClassVar[str] = "afterimage.methods.iet_agc.train"
    shares: ClassVar[Literal["batch", "shards"] | None] = "shards"
    scales_losses: ClassVar[bool] = True

    @property
    def lora_refused(self) -> str | None:
        if self.shards > 1:
            return (
                f"the average of the adapters of shards = {self.shards} is not that of their "
                "networks; allowed is shards = 1"
            )
        return None

    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        return Passes(updates)

    def updates_of(self, updates: int, timesteps: int) -> tuple[int, int]:
        pieces = self.rounds * (self.shards if self.budget == "total" else 1)
        per_model = self.rounds * max(1, updates // pieces)
        return self.shards * per_model, per_model

    @property
    def networks_held(self) -> int:
        return self.shards + 1

    def processes(self, gpus: int) -> int:
        return min(gpus, self.shards)

    def refusal(self, study: Study, name: str) -> str | None:
        updates = study.train_of(name).updates
        pieces = self.rounds * (self.shards if self.budget == "total" else 1)
        if self.matched_to is None and updates is not None and updates % pieces:
            of_shards = f" of shards = {self.shards}" if self.budget == "total" else ""
            nearest = max(1, round(updates / pieces)) * pieces
            return (
                f"{updates} updates cannot be shared equally by rounds = "
                f"{self.rounds}{of_shards}; the nearest number that can is {nearest}"
            )
        if self.optimizer_sync != "keep" and study.train_of(name).optimizer == "adamw_8bit":
            return (
                f"optimizer_sync = {self.optimizer_sync!r}: moments of train.optimizer = "
                "'adamw_8bit' are in codes; allowed is keep"
            )
        if self.augment_below is not None and study.autoencoder is not None:
            return (
                f"augment_below = {self.augment_below} changes images, but networks see latents; "
                "allowed without an autoencoder"
            )
        return super().refusal(study, name)

    @model_validator(mode="after")
    def _parts_work(self) -> IetAgc:
        if self.agc_threshold == 0:
            for key in ("redistribute_above", "augment_below"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key} = {getattr(self, key)} goes by skipped samples, but agc_threshold "
                        "= 0 skips none"
                    )
            if self.skipping == "random":
                raise ValueError(
                    "skipping = 'random' skips as many samples as the rule, but agc_threshold = 0 "
                    "skips none"
                )
        for key in ("redistribute_above", "augment_below"):
            if self.skipping == "random" and getattr(self, key) is not None:
                raise ValueError(
                    f"{key} = {getattr(self, key)} goes by the samples that the rule skips, but "
                    "skipping = 'random' skips others"
                )
        if self.sharding == "by_source" and self.redistribute_above is not None:
            raise ValueError(
                f"redistribute_above = {self.redistribute_above} moves single images, which would "
                "part copies that sharding = 'by_source' keeps together"
            )
        if self.redistribute_above is not None and self.shards == 1:
            raise ValueError(
                f"redistribute_above = {self.redistribute_above} needs shards to move images "
                "between, but shards = 1"
            )
        return self


class Loyal(Arm):
    """LoyalDiffusion (Li et al. 2024; CVPR 2026): two networks that split the timesteps, one or
    both of them a RAU-Net."""

    method: Literal["loyal"]
    switch_timestep: Annotated[int, Field(ge=0)]
    """tau: the front network denoises t < tau, the tail network t >= tau."""
    blocks_in: Literal["tail", "front", "both"] = "tail"
    """Which networks get the blocks of ``rau_net``: the tail as published, mirrored, or both."""
    budget: Literal["literal", "matched_total"] = "literal"
    """Give all of ``train.updates`` to each of the two networks (as published), or share it between
    them in proportion to their timesteps."""

    module: ClassVar[str] = "afterimage.methods.loyal"
    shares: ClassVar[Literal["batch", "shards"] | None] = "batch"
    scales_losses: ClassVar[bool] = True
    single_network: ClassVar[bool] = False

    @property
    def lora_refused(self) -> str | None:
        return "an adapter file is that of one network, and there are two"

    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        return Passes(updates)

    def updates_of(self, updates: int, timesteps: int) -> tuple[int, int]:
        tau = self.switch_timestep
        if self.budget == "literal":
            return updates * ((tau > 0) + (tau < timesteps)), updates
        front = round(updates * tau / timesteps)
        return updates, max(front, updates - front)

    def networks(
        self, blocks: TransferBlocks | None, timesteps: int
    ) -> list[tuple[TransferBlocks | None, float]]:
        front = self.switch_timestep / timesteps
        return [
            (blocks if self.blocks_in in (network, "both") else None, share)
            for network, share in (("front", front), ("tail", 1 - front))
        ]

    def refusal(self, study: Study, name: str) -> str | None:
        timesteps = study.diffusion.timesteps
        if self.switch_timestep > timesteps:
            return (
                f"switch_timestep = {self.switch_timestep} is more than diffusion.timesteps = "
                f"{timesteps}"
            )
        return super().refusal(study, name)


class EraseDiff(Unlearning):
    """EraseDiff (Wu et al., CVPR 2025): unlearning as constrained optimisation."""

    method: Literal["erasediff"]
    target: Literal["relabel", "uniform", "released_relabel", "released_uniform"] = "relabel"
    """Target for the forget set: the network's own prediction for a wrong label, drawn per sample,
    or for the set's ``surrogate`` in arms with captions; U(0, 1) instead of the noise.
    released_relabel: one wrong label for all images of a class in the batch (or the surrogate),
    dropout and label dropout on. released_uniform: the same uniform tensor also corrupts the
    image; label dropout on. The uniform targets need ``diffusion.prediction: epsilon``."""
    barrier: Literal["gradnorm", "gap", "cosine", "fixed"] = "gradnorm"
    """lambda's rule: the theorem's, a_t = eta |grad g|^2; a_t = eta g; the released code's eta -
    cos; the constant ``weight``."""
    eta: Annotated[float, Field(ge=0)] = 0.1
    """Strength of the barrier."""
    weight: Annotated[float, Field(ge=0)] = 0.1
    """lambda, with ``barrier: fixed`` (the released default)."""
    inner_updates: Annotated[int, Field(ge=0)] = 1
    """K: inner steps towards the minimum of the forgetting loss. Run if ``barrier: gap``,
    ``log_gap`` or ``inner_adam: shared`` needs them, otherwise skipped."""
    inner_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Step size of the inner steps."""
    log_gap: bool = False
    """Run the inner steps only to record g."""
    target_network: Literal["current", "initial"] = "current"
    """Whose predictions are the relabelled target: the current network's (as released) or the
    base's."""
    antithetic: bool = False
    """Draw timesteps in pairs t and T - 1 - t: the second half of a batch mirrors the first (as
    released)."""
    forget_timesteps: Literal["own", "remain"] = "own"
    """Noise the forget set at timesteps of its own, or at those of the remaining images in the same
    update (released_relabel's code); inner steps always have their own."""
    inner_adam: Literal["own", "shared"] = "own"
    """Whose moments the inner steps use: their own, new in every update, or those of the updates
    (as released), which keep what the inner steps leave. With ``shared`` the inner steps are run
    whatever the barrier."""

    module: ClassVar[str] = "afterimage.methods.erasediff"

    @property
    def needs_condition(self) -> str | None:
        return f"target = {self.target!r}" if self.target.endswith("relabel") else None

    @property
    def runs_inner_steps(self) -> bool:
        """Whether the result, or a curve, depends on the inner steps."""
        return self.barrier == "gap" or self.log_gap or self.inner_adam == "shared"

    @model_validator(mode="after")
    def _adam_is_shared_with_something(self) -> EraseDiff:
        if self.inner_adam == "shared" and self.inner_updates == 0:
            raise ValueError("inner_adam = 'shared' needs inner steps, but inner_updates = 0")
        return self

    @property
    def lora_refused(self) -> str | None:
        return None

    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        inner = updates * self.inner_updates if self.runs_inner_steps else 0
        targets = updates + inner if self.target.endswith("relabel") else 0
        return Passes(2 * updates + inner, targets + (updates if inner else 0))

    def refusal(self, study: Study, name: str) -> str | None:
        prediction = study.diffusion.prediction
        if "uniform" in self.target and prediction != "epsilon":
            return (
                f"target = {self.target!r} stands in place of the noise, but diffusion.prediction "
                f"= {prediction!r}"
            )
        return super().refusal(study, name)


class GradientAscent(Unlearning):
    """Gradient ascent on the loss of the forget set (NegGrad), with a share of ordinary training on
    the remaining images."""

    method: Literal["gradient_ascent"]
    remain: Annotated[float, Field(ge=0, le=1)] = 0.0
    """beta: the objective is beta L_remain - (1 - beta) L_forget; 0 is pure ascent."""

    module: ClassVar[str] = "afterimage.methods.gradient_ascent"

    @property
    def lora_refused(self) -> str | None:
        return None

    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        sides = 1 + (0 < self.remain < 1)
        return Passes(sides * updates, (2 - sides) * updates)


class SalUn(Unlearning):
    """Saliency unlearning (Fan et al., ICLR 2024): wrong labels, on the most salient weights
    only."""

    method: Literal["salun"]
    saliency: Share = 0.5
    """Share of the weights that may move: those with the largest gradient of the forgetting
    loss."""
    saliency_samples: Annotated[int, Field(ge=1)] = 512
    """Noised samples that this gradient is averaged over, rounded up to whole batches."""
    remain_weight: Annotated[float, Field(ge=0)] = 1.0
    """beta: weight of the loss on the remaining images, both losses being means over an image's
    values. (The released 1e-3 multiplies a loss summed over them: 3.07 here, for 32 x 32 x 3.)"""
    relabel: Literal["random", "next"] = "random"
    """The wrong label: any other, drawn per sample (the paper's c' != c), or the next class (as
    released). In arms with captions the set's ``surrogate`` takes its place."""

    module: ClassVar[str] = "afterimage.methods.salun"

    @property
    def needs_condition(self) -> str | None:
        return f"method {self.method}"

    @property
    def lora_refused(self) -> str | None:
        return (
            "it chooses weights by their gradient at the start, which is 0 for half of an adapter's"
        )

    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        return Passes(2 * updates, updates, -(-self.saliency_samples // batch_size))

    def refusal(self, study: Study, name: str) -> str | None:
        if self.relabel == "next" and study.condition_of(name) == "text":
            return "relabel = 'next' needs labels, but condition = 'text'"
        return super().refusal(study, name)


class SelectiveAmnesia(Unlearning):
    """Selective Amnesia (Heng & Soh, NeurIPS 2023): a surrogate for the forgotten class or
    captions, replay of the others, and EWC."""

    method: Literal["selective_amnesia"]
    ewc: Annotated[float, Field(ge=0)] = 10.0
    """lambda of the penalty lambda sum F (theta - theta_0)^2, in the published units: relative to
    squared errors summed over an image's values (the released code; the paper writes lambda / 2).
    The published 10 is for a large network trained to convergence; where F is larger, as in small
    studies, it freezes every weight (digits: try 0.01)."""
    fisher_samples: Annotated[int, Field(ge=1)] = 500
    """Images over which the diagonal Fisher information F is averaged (published: 5,000)."""
    fisher_timesteps: Annotated[int, Field(ge=1)] | None = 50
    """Noise levels, evenly spaced, used for the gradient of one image's likelihood; null uses all
    (published)."""
    replay: Literal["generated", "training"] = "generated"
    """Images of the other classes or captions, and of all in F: drawn from the base (generative
    replay, as published), or the training images."""
    replay_images: Annotated[int, Field(ge=1)] = 1000
    """Images drawn from the base with ``replay: generated``, evenly over all labels, or over the
    captions of the training images (published: 5,000). In arms with captions as many are drawn for
    the set's ``surrogate``, whatever ``replay``."""

    module: ClassVar[str] = "afterimage.methods.selective_amnesia"

    @property
    def needs_condition(self) -> str | None:
        return f"method {self.method}"

    @property
    def lora_refused(self) -> str | None:
        return (
            "it holds weights by their Fisher information at the start, which is 0 for half of an "
            "adapter's"
        )

    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        levels = self.fisher_timesteps or timesteps
        drawings = (self.replay == "generated") + (self.condition == "text")
        steps = drawings * min(50, timesteps)
        fisher = levels * self.fisher_samples / batch_size
        return Passes(2 * updates, self.replay_images * steps / batch_size, fisher)

    def refusal(self, study: Study, name: str) -> str | None:
        refused = super().refusal(study, name)
        if refused is not None:
            return refused
        chosen = study.forget[self.forget]
        if study.condition_of(name) == "text":
            if chosen.caption is None:
                return (
                    "method selective_amnesia forgets captions here: "
                    f"forget.{self.forget} must be given by caption"
                )
        elif chosen.label is None:
            return (
                f"method selective_amnesia forgets a class: forget.{self.forget} must be given by "
                "label"
            )
        return None


class Esd(Unlearning):
    """ESD (Gandikota et al., ICCV 2023): predictions for the forgotten labels or captions become
    the base's, guided away from them."""

    method: Literal["esd"]
    negative_guidance: Annotated[float, Field(ge=0)] = 1.0
    """eta: strength of the guidance away from the label or caption."""
    guided_from: Literal["empty", "condition"] = "empty"
    """What eta starts from: the prediction for the null label or the empty caption (the paper), or
    for the forgotten one (the later released code, with eta = 2)."""
    trainable: Trainable = "full"
    """Which weights are trained: all; all but those of cross-attention, time embedding and output
    layers (ESD-u); those of cross-attention (ESD-x). The last two for arms with ``condition:
    text``."""
    inputs: Literal["current", "initial", "noised"] = "current"
    """Noisy images: drawn for the label or caption by the network in training (the paper) or by the
    base (the later code), or forgotten images with noise, which costs no sampling."""
    steps: Annotated[int, Field(ge=1)] = 50
    """DDIM steps of this drawing; each update stops at a random one."""
    guidance: Annotated[float, Field(ge=0)] = 3.0
    """Its guidance."""

    module: ClassVar[str] = "afterimage.methods.esd"

    @property
    def networks_held(self) -> int:
        return 2

    @property
    def passes_per_step(self) -> int:
        """Passes of a batch in a step of the drawing."""
        return 1 if self.guidance in (0, 1) else 2

    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        steps = 0.0 if self.inputs == "noised" else (self.steps - 1) / 2
        return Passes(updates, updates * (2 + self.passes_per_step * steps))

    def refusal(self, study: Study, name: str) -> str | None:
        refused = super().refusal(study, name)
        if refused is not None:
            return refused
        condition = study.condition_of(name)
        if condition == "none":
            return (
                f"method esd needs labels or captions, but base = {self.base!r} was trained without "
                "(condition: label or text)"
            )
        if study.train_of(self.base).label_dropout == 0:
            return (
                f"method esd guides away from a {condition} by the prediction without, which base = "
                f"{self.base!r} never learned (train.label_dropout = 0)"
            )
        if self.trainable != "full" and condition != "text":
            return (
                f"trainable = {self.trainable!r} needs cross-attention, which networks with "
                f"condition = 'text' have, but the condition is {condition!r}"
            )
        # Latents are drawn one timestep later.
        most = study.diffusion.timesteps - (study.autoencoder is not None)
        if self.inputs != "noised" and self.steps > most:
            return (
                f"steps = {self.steps}: with diffusion.timesteps = {study.diffusion.timesteps} "
                f"allowed are 1 to {most}"
            )
        return None


class Uce(Unlearning):
    """UCE (Gandikota et al., WACV 2024): cross-attention is edited in closed form, so that it takes
    the forgotten captions for the set's ``surrogate``. Only with ``condition: text``."""

    method: Literal["uce"]
    erase: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the forgotten captions; equal ones count once (the released erase_scale)."""
    preserve: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the captions that only other images have; equal ones count once
    (preserve_scale)."""
    ridge: Annotated[float, Field(gt=0)] = 0.5
    """lambda: weight of the squared change of the weights (lamb)."""

    module: ClassVar[str] = "afterimage.methods.uce"

    @property
    def needs_condition(self) -> str | None:
        return f"method {self.method}"

    def updates_of(self, updates: int, timesteps: int) -> tuple[int, int]:
        return 1, 1

    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        return Passes(0)

    def refusal(self, study: Study, name: str) -> str | None:
        if self.train or self.matched_to is not None:
            given = f"train = {self.train}" if self.train else "matched_to"
            return f"method uce edits weights once and has no updates: {given} cannot be given"
        if study.condition_of(name) != "text":
            return (
                "method uce edits cross-attention, which networks with condition = 'text' have, "
                f"but the condition is {study.condition_of(name)!r}"
            )
        if isinstance(study.model, StoredModel) and study.model.trainable == "noxattn":
            return (
                "method uce edits cross-attention, which model.trainable = 'noxattn' keeps as it "
                "is: allowed are 'full' and 'cross_attention'"
            )
        return super().refusal(study, name)


class Siss(Unlearning):
    """SISS (Alberti et al., ICLR 2025): plain training on the images that remain, as the difference
    of two losses at noisy images from a mixture. For single images: sets by ``ids``, or
    ``extracted_from``."""

    method: Literal["siss"]
    mixture: Annotated[float, Field(ge=0, le=1)] = 0.5
    """lambda: share of the noisy images that are made of forgotten ones. At 0 the subtracted loss has
    hardly any weight, at 1 the other."""
    superfactor: Annotated[float, Field(ge=-1)] | None = None
    """s: the loss of the forgotten images is subtracted 1 + s times as often as it must be for
    plain training on the others. Give this or ``norm_ratio``."""
    norm_ratio: Annotated[float, Field(ge=0)] | None = None
    """Norm of the subtracted gradient, relative to that of the other, in each update (the authors
    recommend 0.1)."""
    images: Literal["all", "remain"] = "all"
    """The other loss is that of all training images (the paper's objective), or of those that
    remain (as released)."""

    module: ClassVar[str] = "afterimage.methods.siss"

    @model_validator(mode="after")
    def _one_strength(self) -> Siss:
        if (self.superfactor is None) == (self.norm_ratio is None):
            raise ValueError(
                f"give exactly one of superfactor and norm_ratio (superfactor = "
                f"{self.superfactor}, norm_ratio = {self.norm_ratio})"
            )
        if self.images == "remain" and self.superfactor is not None and self.superfactor < 0:
            raise ValueError(
                f"superfactor = {self.superfactor} would learn the forgotten images: with images = "
                "'remain' allowed are 0 and more"
            )
        return self

    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        return Passes(2 * updates)

    def refusal(self, study: Study, name: str) -> str | None:
        condition = study.condition_of(name)
        if condition != "none" and self.mixture in (0, 1):
            return (
                f"mixture = {self.mixture:g} draws noisy images with the {condition}s of one side "
                "only: with labels or captions allowed is between 0 and 1"
            )
        return super().refusal(study, name)


class AtInference(Arm):
    """Common to remedies at inference: nothing is trained, and the base's networks are sampled in
    another way. What they know, and so what membership inference tells, stays the same."""

    base: str
    """Arm whose networks are sampled (same replicate)."""

    trains: ClassVar[bool] = False

    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        return Passes(0)

    def updates_of(self, updates: int, timesteps: int) -> tuple[int, int]:
        return 0, 0

    @property
    def networks_held(self) -> int:
        return 2

    def refusal(self, study: Study, name: str) -> str | None:
        base = study.arms[self.base]
        for key in ("train", "matched_to", "rau_net", "captions", "dual_fusion", "without"):
            if getattr(self, key):
                return (
                    f"method {self.method} samples base = {self.base!r} as it is: {key} cannot be "
                    "given"
                )
        same_set = study.training_set_of(name) == study.training_set_of(self.base)
        if not same_set or self.fraction != base.fraction:
            return (
                f"method {self.method} samples base = {self.base!r} as it is: give its "
                f"{base.data_given} and fraction = {base.fraction:g}"
            )
        return super().refusal(study, name)


class Dcr(AtInference):
    """Random changes of the prompts (Somepalli et al., NeurIPS 2023: Understanding and mitigating
    copying in diffusion models, section 7), for arms with captions."""

    method: Literal["dcr"]
    change: Literal["words", "numbers", "repeated_words", "noise"] = "words"
    """What is added to a prompt: random tokens of the vocabulary, random numbers below 100,000, or
    words of its own, each at a random place; or Gaussian noise to its embedding. Prompts that
    become too long lose their end."""
    added: Annotated[int, Field(ge=1)] = 4
    """Words or numbers added to each prompt (released: 4)."""
    noise: Annotated[float, Field(gt=0)] = 0.1
    """Standard deviation of the noise, with ``change: noise`` (published: 0.1)."""

    module: ClassVar[str] = "afterimage.methods.dcr"

    def refusal(self, study: Study, name: str) -> str | None:
        if study.condition_of(name) != "text":
            return (
                f"method dcr changes prompts, but base = {self.base!r} has condition = "
                f"{study.condition_of(name)!r}: allowed is 'text'"
            )
        return super().refusal(study, name)


class Wen(AtInference):
    """The embedding of each prompt is optimised until the text pulls the first prediction less far
    away from that without text (Wen et al., ICLR 2024, section 5.1), for arms with captions."""

    method: Literal["wen"]
    target: Annotated[float, Field(ge=0)]
    """l_target: the optimisation stops when the norm of the difference of the two predictions is at
    most this. The norm grows with the size of images or latents; for Stable Diffusion the authors
    try 1 to 5."""
    updates: Annotated[int, Field(ge=1)] = 10
    """Steps of AdamW, at most (published: 10)."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    """Its learning rate (published: 0.05)."""

    module: ClassVar[str] = "afterimage.methods.wen"

    def passes_of_drawing(self, steps: int) -> int:
        return self.updates

    def refusal(self, study: Study, name: str) -> str | None:
        if study.condition_of(name) != "text":
            return (
                f"method wen optimises prompts, but base = {self.base!r} has condition = "
                f"{study.condition_of(name)!r}: allowed is 'text'"
            )
        if study.train_of(self.base).label_dropout == 0:
            return (
                "method wen compares with the prediction without text, which base = "
                f"{self.base!r} never learned (train.label_dropout = 0)"
            )
        return super().refusal(study, name)


class Amg(AtInference):
    """Anti-memorization guidance (Chen et al., CVPR 2024): where the image that a step is heading
    to is much nearer to one training image than to others, guidance away from it."""

    method: Literal["amg"]
    dissimilarity: Annotated[float, Field(ge=0)] = 0.3
    """c3: guidance against the gradient of the similarity."""
    despecification: Annotated[float, Field(ge=0)] = 0.0
    """c1: how much less the prompt guides, times the similarity; for arms with captions."""
    deduplication: Annotated[float, Field(ge=0)] = 0.0
    """c2: how much the nearest image's caption guides away, times the similarity; for arms with
    captions."""
    threshold: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] = (
        0.5,
        0.5,
    )
    """Similarity from which there is guidance, in noise and in the image. In between it goes
    with the square of alpha_bar."""
    neighbours: Annotated[int, Field(ge=2)] = 50
    """Training images that the nearest one is compared with: the similarity is 1 - its distance
    over their mean distance, 0 if they are all as far away."""

    module: ClassVar[str] = "afterimage.methods.amg"
    reads_training_images: ClassVar[bool] = True

    def passes_of_drawing(self, steps: int) -> int:
        return steps

    def refusal(self, study: Study, name: str) -> str | None:
        for key in ("despecification", "deduplication"):
            if getattr(self, key) and study.condition_of(name) != "text":
                return (
                    f"{key} = {getattr(self, key):g} changes the guidance by captions, but base = "
                    f"{self.base!r} has condition = {study.condition_of(name)!r}"
                )
            if getattr(self, key) and study.sample.guidance <= 1:
                return (
                    f"{key} = {getattr(self, key):g} lowers the guidance by captions, but "
                    f"sample.guidance = {study.sample.guidance:g}: more than 1 is needed"
                )
        if not any((self.dissimilarity, self.despecification, self.deduplication)):
            return "dissimilarity, despecification and deduplication are all 0: one must be more"
        if self.neighbours > study.data.distinct:
            return (
                f"neighbours = {self.neighbours} is more than the {study.data.distinct} different "
                "training images"
            )
        return super().refusal(study, name)


class DpSgd(Arm):
    """DP-SGD (Abadi et al. 2016) with opacus; Carlini et al. 2023 report that it diverges.
    ``train.clip`` is not used."""

    method: Literal["dp_sgd"]
    epsilon: Annotated[float, Field(gt=0)] | None = None
    """Spend this much privacy over the budget. Give this or ``noise_multiplier``."""
    noise_multiplier: Annotated[float, Field(ge=0)] | None = None
    """Standard deviation of the noise in units of ``max_grad_norm``; the resulting epsilon is
    recorded."""
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Failure probability; by default 1 / (number of training images)."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm of one image."""

    takes_texts: ClassVar[bool] = False
    module: ClassVar[str] = "afterimage.methods.dp_sgd"
    per_sample_gradients: ClassVar[bool] = True
    pass_time: ClassVar[float] = 2.6  # measured

    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        return Passes(updates)

    def refusal(self, study: Study, name: str) -> str | None:
        if self.base is not None:
            return (
                f"method dp_sgd counts the privacy of its own updates only: base = {self.base!r} "
                "cannot be given"
            )
        return super().refusal(study, name)

    @model_validator(mode="after")
    def _one_of_two(self) -> DpSgd:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(
                f"give exactly one of epsilon and noise_multiplier (epsilon = {self.epsilon}, "
                f"noise_multiplier = {self.noise_multiplier})"
            )
        return self


AnyArm = Annotated[
    Baseline
    | Ambient
    | IetAgc
    | Loyal
    | EraseDiff
    | GradientAscent
    | SalUn
    | SelectiveAmnesia
    | Esd
    | Siss
    | Uce
    | Dcr
    | Wen
    | Amg
    | DpSgd,
    Field(discriminator="method"),
]
"""Union of all arm blocks; a new method adds its block above and here."""

METHODS: dict[str, str] = {
    get_args(block.model_fields["method"].annotation)[0]: block.module
    for block in get_args(get_args(AnyArm)[0])
}
"""Method name -> module."""
