"""Attribution: which training images made an image, and how well that is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from afterimage.config.base import Block, Name

Readout = Literal["mean", "l1", "square", "loss", "probe"]

ATTRIBUTORS = {
    name: f"afterimage.attribution.attributors.{name}"
    for name in (
        "das",
        "das_scalar",
        "das_released",
        "das_released_squared",
        "das_revised",
        "das_archive",
        "trak",
        "dtrak",
        "relative_influence",
        "renormalised_influence",
        "journey_trak",
        "ggn_influence",
        "gradient_dot",
        "gradient_cosine",
        "tracin",
        "gas",
        "pixel_cosine",
        "pixel_l2",
        "feature_cosine",
        "empirical_influence",
        "shuffled",
    )
}
"""Name of an attributor -> its module."""


MAIN = "main"
"""The features that are no variant."""

FINAL = "final"
"""The network at the end of its training."""

FROM_ROWS = ("das", "das_scalar", "ggn_influence")
"""Attributors that need the rows of ``Features.rows``."""

ONLY_MAIN = (
    "journey_trak",
    "tracin",
    "gas",
    "pixel_cosine",
    "pixel_l2",
    "feature_cosine",
    "empirical_influence",
    "shuffled",
)
"""Attributors that variants leave out: they take other states of training or sampling, or no gradients of the last network."""


class Features(Block):
    """Gradients of a network's output, one per image, projected and averaged over timesteps."""

    timesteps: Annotated[int, Field(ge=1)] = 10
    """T, noise levels per image (DAS and D-TRAK: 10 or 100)."""
    grid: Literal["regular", "stratified"] = "regular"
    """regular: t = 0, 1000/T, ... (both released codes). stratified: one at random in each of T equal parts, the same for all images."""
    projection: Literal["none", "countsketch", "gaussian", "srht", "kronecker"] = "countsketch"
    """none: all P coordinates, for small networks. countsketch: each coordinate goes, with a random sign, into one of k. gaussian: dense,
    as published (slow). srht: subsampled randomised Hadamard transform. kronecker: each layer's inputs and output gradients are
    projected before their product is taken, so that no gradient of a whole layer is formed."""
    dimension: Annotated[int, Field(ge=1)] = 4096
    """k, coordinates of a projected gradient; not with ``projection: none``."""
    rows: bool = True
    """Keep, beside the means, the projected gradient of a random mixture of outputs for every image and timestep: T times as much to
    store, and what ``das``, ``das_scalar`` and ``ggn_influence`` are computed from."""
    parameters: Annotated[list[str], Field(min_length=1)] = ["*"]
    """Patterns (shell style) of the parameters whose gradients count, e.g. ``up_blocks.*``."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward and backward pass; sums stay fp32."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images at once; bounds memory, never the result."""


class Queries(Block):
    """Images whose origin is asked for."""

    holdout: Annotated[int, Field(ge=1)] = 32
    """Held-out images."""
    generated: Annotated[int, Field(ge=1)] = 32
    """The arm's own generations, the first of its replicate's sample."""
    extracted: Annotated[int, Field(ge=0)] = 32
    """At most so many generations in which the extraction attack found a training image, the nearest one of each: their origin is known."""


class GroundTruth(Block):
    """What retraining measures: the loss of every query under every retrained network."""

    timesteps: Annotated[int, Field(ge=1)] = 50
    """Noise levels (published: all 1000)."""
    draws: Annotated[int, Field(ge=1)] = 1
    """Noises per level (published: 3)."""


class Counterfactual(Block):
    """Train without what is said to have made an image, and look at what comes of its noise then."""

    queries: Annotated[int, Field(ge=1)] = 4
    """Generated queries (published: 60)."""
    remove: Annotated[int, Field(ge=1)] = 20
    """Training images taken out per query (published: 1000 of 5000)."""
    attributors: list[Name] = ["das", "dtrak"]
    """Whose first choices are taken out; removal at random and of the most similar images are always there beside them."""


class Remedied(Block):
    """Whether the influence of forgotten images falls: the same scores from the network before and after a remedy."""

    before: Name
    """The arm without the remedy."""
    after: Annotated[list[Name], Field(min_length=1)]
    """Arms that forget something, or never saw it."""
    queries: Annotated[int, Field(ge=1)] = 128
    """The first generations of ``before``."""
    attributors: Annotated[list[Name], Field(min_length=1)] = [
        "das",
        "das_revised",
        "dtrak",
        "trak",
        "gradient_cosine",
    ]
    """Whose scores are compared, with the regulariser chosen for the explained arm's generations."""


class Attribution(Block):
    """Which training images made this image (DAS, Lin et al., ICLR 2025), judged by retraining (LDS, Park et al. 2023)."""

    arm: Name
    """The arm that is explained: one network, trained plainly. Its first replicate is taken."""
    subsets: Annotated[int, Field(ge=4)] = 64
    """M, random halves of the training images that networks are retrained on (published: 64)."""
    seeds: Annotated[int, Field(ge=1)] = 2
    """Trainings of each subset (published: 3). From 2 on there is a ceiling."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of each class's images that a subset keeps."""
    networks_per_job: Annotated[int, Field(ge=1)] = 1
    """Retrained networks of one job."""
    stacked: bool = False
    """Train the networks of one job at once, their parameters stacked, or one after the other."""
    queries: Queries = Queries()
    """What is explained."""
    ground_truth: GroundTruth = GroundTruth()
    """The loss that is to be predicted."""
    features: Features = Features()
    """Gradient features."""
    attributors: list[Name] = list(ATTRIBUTORS)
    """Which scores are computed."""
    regularisers: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [
        10.0**power for power in range(-6, 7)
    ]
    """lambda, in multiples of the mean eigenvalue of the features' Gram matrix. The best on one half of the subsets is reported on the other."""
    variants: dict[Name, dict[str, Any]] = {}
    """Name -> keys of ``features`` that differ: cheaper features, each scored like the others, for cost against quality."""
    reference: Name = "main"
    """The features, ``main`` or a variant, that the others are to agree with: the dearest."""
    shortlist: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Two-stage ranking: share of the training images, the best by ``main``, that are looked at again with the reference's features."""
    checkpoints: Annotated[int, Field(ge=1)] = 4
    """Saved states of TracIn and GAS, evenly spread over the training, the last one included."""
    images_per_job: Annotated[int, Field(ge=1)] = 1024
    """Images whose features one job computes."""
    counterfactual: Counterfactual | None = None
    """Removal of the first choices; null leaves it out."""
    remedied: Remedied | None = None
    """Influence before and after remedies; null leaves it out."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Attribution:
        for name in self.attributors:
            if name not in ATTRIBUTORS:
                raise ValueError(
                    f"attributors: {name!r} is not one; allowed are {', '.join(ATTRIBUTORS)}"
                )
        if not self.features.rows and set(FROM_ROWS) & set(self.attributors):
            wanting = ", ".join(name for name in self.attributors if name in FROM_ROWS)
            raise ValueError(
                f"features.rows = False, but attributors has {wanting}, which need them"
            )
        needed = {
            "counterfactual": ["pixel_l2", *self.counterfactual.attributors]
            if self.counterfactual
            else []
        }
        needed["remedied"] = self.remedied.attributors if self.remedied else []
        for key, names in needed.items():
            for name in names:
                if name not in self.attributors:
                    raise ValueError(
                        f"{key} needs the scores of {name!r}; attributors lists {', '.join(self.attributors)}"
                    )
            for name in set(names) & set(ONLY_MAIN) if key == "remedied" else ():
                raise ValueError(
                    f"remedied.attributors: {name!r} is not made of the gradients of one network"
                )
        if self.counterfactual is not None and self.counterfactual.queries > self.queries.generated:
            raise ValueError(
                f"counterfactual.queries = {self.counterfactual.queries} is more than queries.generated = {self.queries.generated}"
            )
        for name in self.variants:
            try:
                self.features_of(name)
            except ValidationError as error:
                problem = error.errors()[0]
                key = ".".join(map(str, problem["loc"]))
                raise ValueError(
                    f"variants.{name}.{key} = {problem['input']!r}: {problem['msg']}"
                ) from error
            if name == MAIN:
                raise ValueError(
                    "variants.main: this name stands for the features themselves; give the variant another"
                )
        if self.reference != MAIN and self.reference not in self.variants:
            raise ValueError(
                f"reference = {self.reference!r} is not {', '.join([MAIN, *self.variants])}"
            )
        return self

    def features_of(self, variant: str) -> Features:
        """Return the features of a variant, or of ``main``."""
        return Features.model_validate(self.features.model_dump() | self.variants.get(variant, {}))

    def attributors_of(self, variant: str) -> list[str]:
        """Return the attributors that the features of a variant serve."""
        without = () if self.features_of(variant).rows else FROM_ROWS
        return [
            name
            for name in self.attributors
            if name not in without and (variant == MAIN or name not in ONLY_MAIN)
        ]

    def scored_by(self, step: str, job: str) -> list[str]:
        """Return the attributors of one job of ``attribution/scores`` (a variant) or ``attribution/remedied`` (an arm)."""
        if step == "attribution/scores":
            return self.attributors_of(job)
        return self.remedied.attributors if self.remedied else []

    def jobs(self, images: int) -> dict[str, list[str]]:
        """Return step -> the jobs of it that the phase has.

        Args:
            images: Training images.
        """
        blocks = ["queries", *(f"train{at}" for at in range(-(-images // self.images_per_job)))]
        networks = [FINAL, *(f"state{at}" for at in range(1, self.checkpoints))]
        features = [f"{MAIN}/{network}/{block}" for network in networks for block in blocks]
        features += [f"{variant}/{FINAL}/{block}" for variant in self.variants for block in blocks]
        jobs = {
            "attribution/features": features,
            "attribution/retrain": [
                str(at) for at in range(-(-self.subsets * self.seeds // self.networks_per_job))
            ],
            "attribution/scores": [MAIN, *self.variants],
        }

        if self.counterfactual is not None:
            choices = ("random", "pixel_l2", *self.counterfactual.attributors)
            removals = [
                f"{choice}/{query}"
                for choice in dict.fromkeys(choices)
                for query in range(self.counterfactual.queries)
            ]
            jobs["attribution/counterfactual"] = ["again", *removals]
        if self.remedied is not None:
            jobs["attribution/remedied"] = self.remedied.after
        return jobs
