"""How arms are sampled, attacked, judged and shown."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from afterimage.config.base import Block, Name


class Sample(Block):
    """How generations are drawn from each trained arm."""

    images: Annotated[int, Field(ge=1)]
    """Generations per arm and replicate."""
    sampler: Literal["ddim", "ddpm"] = "ddim"
    """DDIM (Song et al. 2021) or ancestral DDPM (Ho et al. 2020)."""
    steps: Annotated[int, Field(ge=1)] = 50
    """Denoising steps."""
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """DDIM's noise share; 0 is deterministic given the starting noise."""
    weights: Literal["ema", "raw"] = "ema"
    """Sample from the averaged weights or from the last ones."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Classifier-free guidance scale of label-conditional arms: 1 is the plain conditional model, 0
    the unconditional one. Papers that write (1 + w) eps_c - w eps_null mean 1 + w."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Images denoised at once; bounds memory and does not change the result."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the network; images and the sampler stay fp32."""
    channels_last: bool = False
    """Keep the weights of convolutions with channels last, as tensor cores read them."""
    compile: bool = False
    """Compile the network first (``torch.compile``). It takes minutes, once per job."""


class Extraction(Block):
    """Untargeted extraction (Carlini et al. 2023, section 5.1) and MQ (IET-AGC)."""

    distance: Literal["l2", "tiled"] = "l2"
    """Normalised l2, or the largest l2 over a grid of tiles."""
    tiles: Annotated[int, Field(ge=1)] = 4
    """Tiles per side, with ``distance: tiled``; must divide the image's side."""
    anchor: Literal["training", "candidate"] = "training"
    """Whose neighbours normalise the distance in the headline numbers; both are computed and
    reported."""
    alpha: Annotated[float, Field(gt=0)] = 0.5
    """The paper's fixed factor of the neighbours' mean distance (0.5)."""
    calibrated_rate: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """The calibrated alpha is the largest at which at most this share of one half of the held-out
    images is flagged, averaged over random halves. Its rate out of sample is measured; m images
    cannot show rates below about 10 / m."""
    neighbours: Annotated[int, Field(ge=1)] = 50
    """n, the number of nearest training images whose mean distance normalises (fewer if the set is
    smaller)."""
    include_self: bool = False
    """Count a training image among its own neighbours, as one public implementation does."""
    gallery: Literal["all", "distinct"] = "distinct"
    """Neighbours among different images only, so that exact copies do not shrink the mean distance
    that normalises; or, as published, among all training rows, where a generation near an image
    with more than ``neighbours`` exact copies is never flagged."""
    delta: Annotated[float, Field(gt=0)] = 0.15
    """Radius in normalised l2: of the eidetic count k, and around the training image that a prompt
    gives away."""
    mq_thresholds: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [
        0.15,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
    ]
    """Ratios below which a generation counts towards MQ."""
    mq_neighbours: Annotated[int, Field(ge=1)] = 50
    """Neighbours in the denominator of MQ, including the nearest."""
    block: Annotated[int, Field(ge=1)] = 1024
    """Images compared at once; bounds memory and does not change the result."""


NETWORKS = ("sscd", "clip", "dinov2")
"""Feature spaces whose network is given by its path."""


class Quality(Block):
    """How good and how varied generations are, against reference images that no arm was trained
    on."""

    features: Literal["classifier", "pixels", "inception"] = "classifier"
    """The named feature space: the study's classifier, raw pixels, or Inception (optional
    extra)."""
    similarity: Literal["pixels", "classifier", "inception", "sscd", "clip", "dinov2"] = "pixels"
    """The space of the replication score. The classifier puts all images of a class together, and
    tells copies from kin badly. sscd (Pizzi et al. 2022), the published choice, and clip and dinov2
    are networks in ``similarity_weights``."""
    similarity_weights: str | None = None
    """File of SSCD (TorchScript or ONNX), or folder of CLIP or DINOv2 as transformers saves it."""
    similarity_sha256: str | None = None
    """Checksum that it must have; as ``afterimage audit --space`` prints it."""
    similarity_normalisation: Literal["small_288", "skew_320", "dcr"] = "small_288"
    """How images become inputs of SSCD: the two ways of its authors, or that of Somepalli et al.
    (2023)."""
    neighbours: Annotated[int, Field(ge=1)] = 5
    """k of precision, recall, density and coverage."""
    kid_subsets: Annotated[int, Field(ge=1)] = 50
    """Random subsets that KID averages over."""
    kid_subset_size: Annotated[int, Field(ge=2)] = 200
    """Images per subset (fewer where there are fewer)."""
    inception_weights: str | None = None
    """Path of torch-fidelity's Inception weights, with ``features: inception`` or ``similarity:
    inception``."""
    inception_sha256: str | None = None
    """Checksum that this file must have."""

    @model_validator(mode="after")
    def _weights_are_pinned(self) -> Quality:
        spaces = {"features": self.features, "similarity": self.similarity}
        keys = [key for key, space in spaces.items() if space == "inception"]
        own = self.similarity in NETWORKS
        for key in ("similarity_weights", "similarity_sha256"):
            if own != bool(getattr(self, key)):
                raise ValueError(
                    f"similarity = {self.similarity} needs similarity_weights (a path) and "
                    "similarity_sha256"
                    if own
                    else f"{key} is for similarity = {', '.join(NETWORKS)}, but similarity = "
                    f"{self.similarity}"
                )
        if keys and not (self.inception_weights and self.inception_sha256):
            raise ValueError(
                f"{keys[0]} = inception needs inception_weights (a path) and inception_sha256"
            )
        return self


class Paths(Block):
    """Trainings as paths: networks that are kept on the way, sampled and attacked as the last is.

    What an arm copies is compared with what plain training copies at the same quality, that is,
    with plain training that is stopped early."""

    frontier: Annotated[list[Name], Field(min_length=1)]
    """Plain arms that the others are compared with, at most one for each ``condition``: an arm is
    compared with the one that has its own."""
    arms: list[Name] | None = None
    """Arms that have a path besides these; null: all."""
    states: Annotated[int, Field(ge=2, le=100)] = 6
    """States of each training, the last included, spread evenly in the logarithm of updates."""
    first: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the budget that the first state has spent. States before plain training copies
    anything have nothing to compare: they add noise to the mean over qualities."""
    images: Annotated[int, Field(ge=2)] | None = None
    """Generations of each state; null: ``sample.images``."""

    @property
    def shares(self) -> dict[str, float]:
        """State -> share of the budget that it has spent, without the last."""
        steps = self.states - 1
        return {f"path{k + 1}": self.first ** (1 - k / steps) for k in range(steps)}


class Membership(Block):
    """Loss-threshold membership inference (Yeom et al. 2018; Carlini et al. 2023, section
    5.2.1)."""

    timesteps: Annotated[int, Field(ge=1)] = 10
    """Noise levels at which the loss of an image is measured, evenly spaced."""
    draws: Annotated[int, Field(ge=1)] = 4
    """Noise draws per image and level; the same for every arm."""
    false_positive_rates: Annotated[
        list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)
    ] = [0.01, 0.05]
    """False-positive rates at which the true-positive rate is reported."""


class PromptDetection(Block):
    """Whether detectors of memorised prompts know the captions of training: Wen et al. 2024, Webster
    2023, Asthana and Belagiannis 2026; with ``images`` the cliques of Carlini et al. 2023, section
    4.2, and the training images that they extract."""

    arms: Annotated[list[Name], Field(min_length=1)]
    """Arms with ``condition: text`` that are attacked so."""
    prompts: Annotated[int, Field(ge=2)] = 64
    """Captions of images that are not planted, and of held-out images: at most so many of each. All
    captions of planted images are looked at."""
    draws: Annotated[int, Field(ge=1)] = 4
    """Noises that a prompt starts from, the same for all prompts."""
    alignment_weight: float = 2.0
    """Weight of the alignment next to the norm in ``anisotropy``: published for Stable Diffusion
    1."""
    images: Annotated[int, Field(ge=0)] = 0
    """Images of each prompt that cliques are looked for in (published: 500); 0: none."""
    clique: Annotated[int, Field(ge=2)] = 10
    """Images in a clique."""
    edge_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Two images of a prompt are joined if they are as close as this share of the pairs of images
    of different prompts are; the paper does not say which threshold it took."""
    false_positive_rates: Annotated[
        list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)
    ] = [0.05]
    """Share of held-out captions that are called memorised at most, where the share of captions of
    training that are is reported."""

    @model_validator(mode="after")
    def _clique_fits(self) -> PromptDetection:
        if 0 < self.images < self.clique:
            raise ValueError(
                f"clique = {self.clique} is more than images = {self.images}; allowed is 2 to "
                f"{self.images}"
            )
        return self


class Forgetting(Block):
    """How an arm is judged on a set of images that it should have forgotten."""

    relearn_updates: Annotated[int, Field(ge=1)] = 100
    """Length of the relearning attack: updates of plain training on the forgotten images."""
    relearn_every: Annotated[int, Field(ge=1)] = 10
    """Updates between two evaluations of its generations."""
    relearn_images: Annotated[int, Field(ge=8)] = 64
    """Generations per evaluation, and for the captions of the forgotten images."""
    relearn_batch_size: Annotated[int, Field(ge=1)] = 32
    """Images per update of the attack."""
    relearn_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """AdamW's step size in the attack."""
    relearn_probability: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A class is back when the classifier gives it this mean probability."""
    embedding_images: Annotated[int, Field(ge=0)] = 8
    """Forgotten images, those with the most copies first, for each of which an adversarial
    embedding is sought, and as many held-out ones; for arms with captions. 0: none."""
    embedding_updates: Annotated[int, Field(ge=1)] = 50
    """Updates of an embedding (published: 50; with some 500 images that nobody trained on come
    out, too)."""
    embedding_batch_size: Annotated[int, Field(ge=1)] = 8
    """Noisy samples of its image per update (published: 8)."""
    embedding_learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Adam's step size (published: 0.1)."""
    embedding_generations: Annotated[int, Field(ge=1)] = 4
    """Generations for each embedding."""


class Attacks(Block):
    """The blocks of the attacks on every arm; a new attack adds its block here."""

    extraction: Extraction = Extraction()
    """The extraction attack."""
    quality: Quality = Quality()
    """The quality measures."""
    membership: Membership = Membership()
    """The membership attack."""
    prompts: PromptDetection | None = None
    """The attack on prompts of text arms; null: none."""
    forgetting: Forgetting = Forgetting()
    """How forgetting is judged."""


class Margin(Block):
    """Losses of quality that do not matter: an arm is *no worse* than its control if a larger loss
    is ruled out. Zero asks for an arm that is better."""

    relative_fd: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Rise of the Fréchet distance (FD, FID) as a share of the control's. A tenth is less than most
    arms' distances differ from training to training, so that several replicates are needed."""
    coverage: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Fall of coverage: the share of reference images that lose their nearest generations."""
    text_alignment: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Fall of the text alignment of arms with ``condition: text``: the share of other prompts that
    come to fit better than the one that was asked for."""


class Statistics(Block):
    """Intervals of every reported number, and what the verdicts of the comparison allow."""

    bootstrap: Annotated[int, Field(ge=10)] = 1000
    """Bootstrap resamples per interval."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Coverage of every interval. Where nothing differs, at most a share 1 - confidence of whole
    tables of verdicts on memorization holds a false one (Holm)."""
    margin: Margin = Margin()
    """Losses of quality that do not matter."""

    def of_intervals(self) -> dict[str, Any]:
        """Return what intervals depend on: all but the margin, which only verdicts look at."""
        return self.model_dump(mode="json", exclude={"margin"})


class Report(Block):
    """What pages may show."""

    show_images: bool = False
    """Embed training images and their copies in reports. Leave it off where the data shows
    people."""
    pairs: Annotated[int, Field(ge=1)] = 24
    """Pairs in the picture grid of each arm."""
