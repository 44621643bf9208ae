"""The arms: what is trained, by which method, from what, and against which control.

Methods compose by configuration: ``data`` (deduplication), ``without`` (retraining), ``rau_net`` (the network) and ``base`` (fine-tuning)
go with every method that ``Study`` does not refuse by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from afterimage.config.base import Block, Share


class ForgetSet(Block):
    """A set of training images to forget, or to train without; copies of an image always go together."""

    label: Annotated[int, Field(ge=0)] | None = None
    """Every image of this class."""
    ids: Annotated[list[int], Field(min_length=1)] | None = None
    """The sources of these rows of the training part (column ``id`` of the split's index)."""
    extracted_from: str | None = None
    """Every image that the extraction attack got out of this arm (same replicate, headline anchor)."""
    alpha: Literal["fixed", "calibrated"] = "calibrated"
    """Which threshold of the attack counts, with ``extracted_from``."""

    @model_validator(mode="after")
    def _one_kind(self) -> ForgetSet:
        kinds = {"label": self.label, "ids": self.ids, "extracted_from": self.extracted_from}
        given = [name for name, value in kinds.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of label, ids and extracted_from, not {' and '.join(given) or 'none'}"
            )
        return self


class Match(Block):
    """A budget taken from another arm's finished training (same replicate), in place of the arm's own ``updates``."""

    arm: str
    """The arm whose budget is matched."""
    by: Literal["updates", "updates_per_model", "kept_samples"]
    """All its optimiser updates; those that each of its networks got (e.g. one shard of IET); or the samples that carried gradient
    (not skipped by AGC), as updates of this arm's batch size, rounded up."""


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
"""What an information transfer block is; see ``TransferBlocks``."""


class TransferBlocks(Block):
    """RAU-Net: information transfer blocks in skip connections (LoyalDiffusion, Li et al. 2024)."""

    groups: list[Annotated[int, Field(ge=0)]]
    """Skip groups with a block: 0 is the skip of the first convolution, g the skips of the g-th level, finest first. The paper
    puts blocks on its two deepest levels (3 and 4)."""
    variant: Variant = "trained_random"
    """trained_random: a 3x3 convolution from torch's default start, trained (the paper's text). trained_identity: the same from the
    identity. frozen_fixed, frozen_redrawn: never trained, and kept, or drawn anew (from the study's seed) whenever the network is
    opened (what the released training and sampling codes do, whose blocks torch does not know of). conv_silu, k_conv_silu: with
    activation. maxpool: keeps local maxima only. drop: the decoder's own state in place of the skip, where their channels agree.
    none: no block (control)."""
    convolutions: Annotated[int, Field(ge=1)] = 2
    """k, with ``variant: k_conv_silu``."""


class Arm(Block):
    """What every arm has: a method and the settings that it trains with."""

    data: Literal["planted", "deduplicated"] = "planted"
    """Train on the training set as planted, or on what deduplication left of it."""
    without: str | None = None
    """Name of a set under ``forget`` to leave out of the training images."""
    fraction: Share = 1.0
    """Train each replicate on its own random share of those images (Carlini et al. 2023, section 5: one half)."""
    condition: Literal["none", "label"] | None = None
    """Train without labels, or conditioned on them with label dropout. By default as the base, and without labels where there is none."""
    base: str | None = None
    """Arm of the same study whose averaged weights this one starts from (same replicate)."""
    rau_net: TransferBlocks | None = None
    """Blocks in the network's skip connections. By default the base's, and none where there is no base."""
    matched_to: Match | None = None
    """Take the budget from another arm."""
    control: str | None = None
    """Arm that this one is compared with: meant to be the same but for what is claimed to help."""
    train: dict[str, Any] = {}
    """Keys of the study's ``train`` block that differ in this arm."""


class Baseline(Arm):
    """Plain training (Ho et al. 2020); also every control arm that only changes data, network or budget, and fine-tuning."""

    method: Literal["baseline"]


class Unlearning(Arm):
    """What every unlearning method has: a trained base and what is to be forgotten."""

    base: str
    """Arm whose averaged weights are to forget (same replicate)."""
    forget: str
    """Name of the set under ``forget``."""


class IetAgc(Arm):
    """Iterative ensemble training with anti-gradient control (Liu et al., ECCV 2024), and its two parts alone."""

    method: Literal["iet_agc"]
    shards: Annotated[int, Field(ge=1)] = 10
    """K, the number of shards and models; 1 leaves AGC alone."""
    rounds: Annotated[int, Field(ge=1)] = 10
    """R, how often the shards' models are averaged."""
    budget: Literal["total", "per_model"] = "total"
    """Whether ``train.updates`` is shared by all shards (as released: the sum is about the baseline's), or each shard gets all of it."""
    sharding: Literal["balanced", "balanced_in_order", "random", "contiguous"] = "balanced"
    """Class-balanced at random; class-balanced in the order of the training set (released, CIFAR); at random whatever the class;
    blocks in the order of the training set (released, other data)."""
    agc_threshold: Annotated[float, Field(ge=0)] = 0.5
    """lambda: a sample is skipped where its loss is below lambda times the bank at its timestep; 0 leaves IET alone."""
    bank_decay: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """gamma of the bank's moving average."""
    bank_scope: Literal["shard", "global"] = "shard"
    """One bank for each shard (as released), or banks averaged with the weights."""
    optimizer_sync: Literal["keep", "reset", "average"] = "keep"
    """What happens to the shards' moments at an averaging: kept per shard (as released), started anew, or averaged."""
    skip_t_max: Annotated[int, Field(ge=1)] | None = None
    """Skip only at timesteps below this; null skips at all."""
    on_all_skipped: Literal["step", "skip"] = "step"
    """Where a whole batch is skipped: step with a gradient of zero, which moves by momentum (as released), or leave everything."""
    redistribute_above: Annotated[float, Field(gt=0, lt=1)] | None = None
    """IET-AGC+: at an averaging, images skipped in more than this share of their visits in the round change shards. Null: never."""
    augment_below: Annotated[float, Field(gt=1)] | None = None
    """IET-AGC+: kept samples with a loss below this multiple of the skipping threshold are augmented. Null: never."""

    @model_validator(mode="after")
    def _parts_work(self) -> IetAgc:
        if self.agc_threshold == 0:
            for key in ("redistribute_above", "augment_below"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key} = {getattr(self, key)} goes by skipped samples, but agc_threshold = 0 skips none"
                    )
        if self.redistribute_above is not None and self.shards == 1:
            raise ValueError(
                f"redistribute_above = {self.redistribute_above} needs shards to move images between, but shards = 1"
            )
        return self


class Loyal(Arm):
    """LoyalDiffusion (Li et al. 2024; CVPR 2026): two networks that share the timesteps, one or both of them a RAU-Net."""

    method: Literal["loyal"]
    switch_timestep: Annotated[int, Field(ge=0)]
    """tau: the front network denoises t < tau, the tail network t >= tau."""
    blocks_in: Literal["tail", "front", "both"] = "tail"
    """Which networks get the blocks of ``rau_net``: the tail as published, mirrored, or both."""
    budget: Literal["matched_total", "literal"] = "matched_total"
    """Share ``train.updates`` between the two networks in proportion to their timesteps, or give all of it to each (as published)."""


class EraseDiff(Unlearning):
    """EraseDiff (Wu et al., CVPR 2025): forgetting as a constrained optimisation."""

    method: Literal["erasediff"]
    target: Literal["relabel", "uniform", "released_relabel", "released_uniform"] = "relabel"
    """What the forgotten images are to be denoised to: the network's own prediction for a wrong label, drawn per sample; U(0, 1) in
    place of the noise. released_relabel: one wrong label for all images of a class in the batch, dropout and label dropout on.
    released_uniform: the same uniform tensor also corrupts the image; label dropout on. The uniform ones need
    ``diffusion.prediction: epsilon``."""
    barrier: Literal["gradnorm", "gap", "cosine", "fixed"] = "gradnorm"
    """lambda's rule: the theorem's, a_t = eta |grad g|^2; a_t = eta g; the released code's eta - cos; the constant ``weight``."""
    eta: Annotated[float, Field(ge=0)] = 0.1
    """Strength of the barrier."""
    weight: Annotated[float, Field(ge=0)] = 0.1
    """lambda, with ``barrier: fixed`` (the released default)."""
    inner_updates: Annotated[int, Field(ge=0)] = 1
    """K: inner steps towards the smallest forgetting loss. Run where ``barrier: gap`` or ``log_gap`` needs them, else skipped."""
    inner_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Step size of the inner steps."""
    log_gap: bool = False
    """Run the inner steps only to record g."""
    target_network: Literal["current", "initial"] = "current"
    """Whose predictions the relabelled target takes: the network at its present state (as released) or the base."""


class GradientAscent(Unlearning):
    """Gradient ascent on the loss of the forgotten images (NegGrad), with a share of ordinary training on the rest."""

    method: Literal["gradient_ascent"]
    remain: Annotated[float, Field(ge=0, le=1)] = 0.0
    """beta: the objective is beta L_remain - (1 - beta) L_forget; 0 is pure ascent."""


class SalUn(Unlearning):
    """Saliency unlearning (Fan et al., ICLR 2024): wrong labels, on the most salient weights only."""

    method: Literal["salun"]
    saliency: Share = 0.5
    """Share of the weights that may move: those with the largest gradient of the forgetting loss."""
    saliency_samples: Annotated[int, Field(ge=1)] = 512
    """Noised samples that this gradient is averaged over, rounded up to whole batches."""
    remain_weight: Annotated[float, Field(ge=0)] = 1.0
    """beta: weight of the loss on the rest, both losses being means over an image's values. (The released 1e-3 multiplies a loss
    summed over them: 3.07 here, for 32 x 32 x 3.)"""
    relabel: Literal["random", "next"] = "random"
    """The wrong label: any other, drawn per sample (the paper's c' != c), or the next class (as released)."""


class SelectiveAmnesia(Unlearning):
    """Selective Amnesia (Heng & Soh, NeurIPS 2023): a surrogate for the forgotten class, replay of the rest, and EWC."""

    method: Literal["selective_amnesia"]
    ewc: Annotated[float, Field(ge=0)] = 10.0
    """lambda of the penalty lambda sum F (theta - theta_0)^2, in the units that it is published in: beside squared errors summed
    over an image's values (the released code; the paper writes lambda / 2). The published 10 is for a large network trained to
    the end; where F is larger, as in small studies, it holds every weight (digits: try 0.01)."""
    fisher_samples: Annotated[int, Field(ge=1)] = 500
    """Images that the diagonal Fisher information F is averaged over (published: 5,000)."""
    fisher_timesteps: Annotated[int, Field(ge=1)] | None = 50
    """Noise levels, spread evenly, that stand for all in the gradient of one image's likelihood; null takes all (published)."""
    replay: Literal["generated", "training"] = "generated"
    """What stands for the rest, and for all classes in F: images drawn from the base (generative replay, as published), or the
    training images."""
    replay_images: Annotated[int, Field(ge=1)] = 1000
    """Images drawn from the base, evenly over all labels, with ``replay: generated`` (published: 5,000)."""


class DpSgd(Arm):
    """DP-SGD (Abadi et al. 2016) by opacus; Carlini et al. 2023 report that it diverges. ``train.clip`` is not used."""

    method: Literal["dp_sgd"]
    epsilon: Annotated[float, Field(gt=0)] | None = None
    """Spend this much privacy over the budget. Give this or ``noise_multiplier``."""
    noise_multiplier: Annotated[float, Field(ge=0)] | None = None
    """Standard deviation of the noise in units of ``max_grad_norm``; the epsilon that it comes to is recorded."""
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Failure probability; by default 1 / (number of training images)."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm of one image."""

    @model_validator(mode="after")
    def _one_of_two(self) -> DpSgd:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(
                f"give exactly one of epsilon and noise_multiplier (epsilon = {self.epsilon}, "
                f"noise_multiplier = {self.noise_multiplier})"
            )
        return self


METHODS = {
    "baseline": "afterimage.methods.baseline",
    "iet_agc": "afterimage.methods.iet_agc.train",
    "loyal": "afterimage.methods.loyal",
    "erasediff": "afterimage.methods.erasediff",
    "gradient_ascent": "afterimage.methods.gradient_ascent",
    "salun": "afterimage.methods.salun",
    "selective_amnesia": "afterimage.methods.selective_amnesia",
    "dp_sgd": "afterimage.methods.dp_sgd",
}
"""Method name -> module. A new method adds its block above, joins ``AnyArm`` and stands here."""

AnyArm = Annotated[
    Baseline | IetAgc | Loyal | EraseDiff | GradientAscent | SalUn | SelectiveAmnesia | DpSgd,
    Field(discriminator="method"),
]
