"""Attribution: which training images a generated image owes most to, and how good the answer is."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import Field, ValidationError, model_validator

from afterimage.config.base import Block, Name

Readout = Literal["mean", "l1", "square", "loss", "probe"]

MAIN = "main"
"""Name of the features that are no variant."""

FINAL = "final"
"""Name of the network at the end of its training."""

REPEAT = "repeat"
"""Name of the same network where noise and probes are drawn anew."""

TARGETS = ("loss", "shift")
"""What retraining is measured by (``judges.retraining_effect``)."""


class Attributor(NamedTuple):
    """What is known of an attributor without importing its code.

    Attributes:
        family: Module of ``afterimage.attribution.attributors`` with the function of its name.
        needs: What the scores are computed from, besides the images: readouts, whose projected
            gradients at the final network are averaged over timesteps (``probe``: kept for each
            timestep); ``journey``, gradients along the sampling of a generation; ``checkpoints``,
            loss gradients at earlier states of the training; ``retrained``, losses under networks
            retrained on subsets; ``classifier``, features of a classifier.
        regularised: Whether the scores depend on the regulariser lambda.
    """

    family: str
    needs: tuple[Readout | Literal["journey", "checkpoints", "retrained", "classifier"], ...]
    regularised: bool

    @property
    def from_features(self) -> bool:
        """Whether a network and images suffice: all that is needed are readouts, or nothing."""
        return set(self.needs) <= set(get_args(Readout))

    @property
    def in_variants(self) -> bool:
        """Whether it scores variants of the features and remedied networks, too.

        Such scores come from the gradients of one network. Controls are computed once.
        """
        return self.from_features and bool(self.needs) and self.family != "control"


ATTRIBUTOR_TABLE = {
    "das": Attributor("das", ("loss", "probe"), regularised=True),
    "das_scalar": Attributor("das", ("loss", "probe"), regularised=True),
    "das_released": Attributor("das", ("mean",), regularised=True),
    "das_released_squared": Attributor("das", ("mean",), regularised=True),
    "das_revised": Attributor("das", ("mean",), regularised=True),
    "das_archive": Attributor("das", ("l1",), regularised=True),
    "trak": Attributor("trak", ("loss",), regularised=True),
    "trak_normalised": Attributor("trak", ("loss",), regularised=True),
    "trak_squared": Attributor("trak", ("loss",), regularised=True),
    "trak_normalised_squared": Attributor("trak", ("loss",), regularised=True),
    "dtrak": Attributor("trak", ("square",), regularised=True),
    "dtrak_normalised": Attributor("trak", ("square",), regularised=True),
    "dtrak_squared": Attributor("trak", ("square",), regularised=True),
    "dtrak_normalised_squared": Attributor("trak", ("square",), regularised=True),
    "relative_influence": Attributor("trak", ("loss",), regularised=True),
    "renormalised_influence": Attributor("trak", ("loss",), regularised=True),
    "journey_trak": Attributor("trak", ("loss", "journey"), regularised=True),
    "ggn_influence": Attributor("influence", ("loss", "probe"), regularised=True),
    "gradient_dot": Attributor("similarity_of_gradients", ("loss",), regularised=False),
    "gradient_cosine": Attributor("similarity_of_gradients", ("loss",), regularised=False),
    "tracin": Attributor("similarity_of_gradients", ("loss", "checkpoints"), regularised=False),
    "gas": Attributor("similarity_of_gradients", ("loss", "checkpoints"), regularised=False),
    "pixel_cosine": Attributor("similarity_of_images", (), regularised=False),
    "pixel_l2": Attributor("similarity_of_images", (), regularised=False),
    "feature_cosine": Attributor("similarity_of_images", ("classifier",), regularised=False),
    "empirical_influence": Attributor("influence", ("retrained",), regularised=False),
    "shuffled": Attributor("control", ("loss",), regularised=True),
}
"""All attributors, by name, in the order in which they are listed everywhere."""

ATTRIBUTORS = {
    name: f"afterimage.attribution.attributors.{attributor.family}"
    for name, attributor in ATTRIBUTOR_TABLE.items()
}
"""Name of an attributor -> the module with its function."""


def readouts_of(attributors: Collection[str]) -> tuple[Readout, ...]:
    """Return the readouts that attributors need, in the order of ``Readout``."""
    needs = {need for name in attributors for need in ATTRIBUTOR_TABLE[name].needs}
    return tuple(readout for readout in get_args(Readout) if readout in needs)


class Features(Block):
    """Gradients of a network's output, one per image, projected and averaged over timesteps."""

    timesteps: Annotated[int, Field(ge=1)] = 10
    """T, noise levels per image (DAS and D-TRAK: 10 or 100)."""
    grid: Literal["regular", "stratified"] = "regular"
    """regular: t = 0, 1000/T, ... (both released codes). stratified: one drawn at random from each
    of T equal intervals, the same for all images."""
    projection: Literal["none", "countsketch", "gaussian", "srht", "kronecker"] = "countsketch"
    """none: all P coordinates, for small networks. countsketch: each coordinate is added, with a
    random sign, to one of k sums. gaussian: a dense random matrix, as published (slow). srht:
    subsampled randomised Hadamard transform. kronecker: each layer's inputs and output gradients
    are projected before their product is taken, so that no layer's full gradient is formed."""
    dimension: Annotated[int, Field(ge=1)] = 4096
    """k, the dimension of a projected gradient; ignored with ``projection: none``."""
    rows: bool = True
    """Also store, for every image and timestep, the projected gradients of random combinations of
    the outputs: T times ``probes`` the space, needed by ``das``, ``das_scalar`` and
    ``ggn_influence``."""
    probes: Annotated[int, Field(ge=1)] = 1
    """R, random combinations of the outputs per image and timestep: of the two scores that ``das``
    gives for two draws of them, the more alike the larger R."""
    noise: Literal["per_image", "shared"] = "shared"
    """shared: one noise per timestep for all images, so that differences between images are none of
    the noise. per_image: each image has noise of its own at each timestep, as in training; at T =
    10 most scores then hardly repeat, and predict less."""
    parameters: Annotated[list[str], Field(min_length=1)] = ["*"]
    """Shell patterns of the parameters whose gradients are used, e.g. ``up_blocks.*``."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the forward and backward pass; sums are always fp32."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images per batch; bounds the memory and does not change the result."""


class Queries(Block):
    """The images to be attributed."""

    holdout: Annotated[int, Field(ge=1)] = 32
    """Held-out images."""
    generated: Annotated[int, Field(ge=1)] = 32
    """Generations of the explained network: the first of its sample."""
    extracted: Annotated[int, Field(ge=0)] = 32
    """Maximum number of generations that the extraction attack matched to a training image, so that
    their source is known: for each such image, the generation nearest to it."""


class GroundTruth(Block):
    """What retraining is measured by: the loss of every query under every retrained network."""

    timesteps: Annotated[int, Field(ge=1)] = 50
    """Noise levels (published: all 1000)."""
    draws: Annotated[int, Field(ge=1)] = 1
    """Noise samples per level (published: 3)."""


class Repeatability(Block):
    """How far scores repeat: features of some images again, noise and probes drawn anew."""

    images: Annotated[int, Field(ge=2)] = 512
    """The first training images: all scores that are compared are computed from these alone."""
    queries: Annotated[int, Field(ge=1)] = 16
    """The first queries of each kind."""


class Counterfactual(Block):
    """Retrain without the top-ranked training images of a query and sample its noise again."""

    queries: Annotated[int, Field(ge=1)] = 16
    """Generated queries (published: 60)."""
    remove: Annotated[int, Field(ge=1)] = 20
    """Training images removed per query (published: 1000 of 5000)."""
    attributors: list[Name] = ["das", "das_revised", "dtrak"]
    """Attributors whose top-ranked images are removed. Removal at random and removal of the images
    with the most similar pixels are always included."""


class Remedied(Block):
    """Whether the influence of forgotten images falls: scores before and after a remedy."""

    before: Name
    """The arm without the remedy."""
    after: Annotated[list[Name], Field(min_length=1)]
    """Arms that forget images or were trained without them."""
    queries: Annotated[int, Field(ge=1)] = 128
    """The first generations of ``before``."""
    attributors: Annotated[list[Name], Field(min_length=1)] = [
        "das",
        "das_revised",
        "dtrak",
        "trak",
        "gradient_cosine",
    ]
    """Attributors to compare, with the regulariser chosen for the explained arm's generations."""


class Attribution(Block):
    """Training-data attribution (e.g. DAS, Lin et al. 2025), evaluated by retraining (LDS)."""

    arm: Name
    """The arm to explain: one network, trained by the baseline method."""
    replicates: Annotated[int, Field(ge=1)] = 1
    """R, the first replicates of the arm that are explained, each with the planting that it was
    trained on, and queries, features and retrained networks of its own."""
    subsets: Annotated[int, Field(ge=4)] = 64
    """M, random subsets of the training images to retrain on (published: 64)."""
    seeds: Annotated[int, Field(ge=1)] = 2
    """Trainings of each subset (published: 3). With 2 or more, a ceiling is estimated."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Fraction of each class's images in a subset."""
    networks_per_job: Annotated[int, Field(ge=1)] = 1
    """Retrained networks per job."""
    stacked: bool = False
    """Train the networks of a job simultaneously, with stacked parameters, instead of in turn."""
    queries: Queries = Queries()
    """How many images of each kind are attributed."""
    ground_truth: GroundTruth = GroundTruth()
    """The losses that the scores have to predict."""
    features: Features = Features()
    """Gradient features."""
    attributors: list[Name] = list(ATTRIBUTORS)
    """Attributors to compute."""
    regularisers: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [
        10.0**power for power in range(-6, 7)
    ]
    """Values of lambda, in multiples of the mean eigenvalue of the features' Gram matrix. The best
    on one half of the subsets is reported on the other half."""
    variants: dict[Name, dict[str, Any]] = {}
    """Name -> keys of ``features`` that differ: alternative features, each scored in the same way,
    to compare cost with quality."""
    reference: Name = "main"
    """Reference for the agreement scores, ``main`` or a variant: the most expensive features."""
    shortlist: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Two-stage ranking: fraction of the training images, the top-ranked by ``main``, that are
    scored again with the reference features."""
    checkpoints: Annotated[int, Field(ge=1)] = 4
    """Checkpoints of TracIn and GAS, evenly spaced over the training, including the last."""
    images_per_job: Annotated[int, Field(ge=1)] = 1024
    """Images per job that computes features."""
    concepts: dict[
        Name, Annotated[list[Annotated[str, Field(pattern=r"\S")]], Field(min_length=2)]
    ] = {}
    """Concept, such as colour -> its words, such as red and green. Captions are composed of one word
    of each: images that have the words of a query are known to be those that matter."""
    repeatability: Repeatability | None = Repeatability()
    """Rank correlation of each score with itself under other noise; null skips it."""
    counterfactual: Counterfactual | None = None
    """Removal of the top-ranked images; null skips it."""
    remedied: Remedied | None = None
    """Influence before and after remedies; null skips it."""

    @model_validator(mode="after")
    def _attributors_are_computable(self) -> Attribution:
        for name in self.attributors:
            if name not in ATTRIBUTORS:
                raise ValueError(
                    f"attributors: {name!r} is not one; allowed are {', '.join(ATTRIBUTORS)}"
                )
        from_rows = [name for name in self.attributors if "probe" in readouts_of([name])]
        if not self.features.rows and from_rows:
            raise ValueError(
                f"features.rows = False, but attributors has {', '.join(from_rows)}, "
                "which need them"
            )
        return self

    @model_validator(mode="after")
    def _evaluations_have_their_scores(self) -> Attribution:
        needed: dict[str, list[str]] = {}
        if self.counterfactual is not None:
            needed["counterfactual"] = ["pixel_l2", *self.counterfactual.attributors]
            if self.counterfactual.queries > self.queries.generated:
                raise ValueError(
                    f"counterfactual.queries = {self.counterfactual.queries} is more than "
                    f"queries.generated = {self.queries.generated}"
                )
        if self.remedied is not None:
            needed["remedied"] = self.remedied.attributors
        for key, names in needed.items():
            for name in names:
                if name not in self.attributors:
                    raise ValueError(
                        f"{key} needs the scores of {name!r}; attributors lists "
                        f"{', '.join(self.attributors)}"
                    )
        for name in needed.get("remedied", []):
            if not ATTRIBUTOR_TABLE[name].in_variants:
                raise ValueError(
                    f"remedied.attributors: {name!r} is not computed from the gradients of one "
                    "network"
                )
        return self

    @model_validator(mode="after")
    def _concepts_tell_captions_apart(self) -> Attribution:
        known: dict[str, str] = {}
        for concept, words in self.concepts.items():
            for word in (" ".join(text.casefold().split()) for text in words):
                if word in known:
                    raise ValueError(
                        f"concepts.{concept}: {word!r} is a word of {known[word]!r} already"
                    )
                known[word] = concept
        return self

    @model_validator(mode="after")
    def _variants_are_valid(self) -> Attribution:
        for name in self.variants:
            if name == MAIN:
                raise ValueError(
                    "variants.main: this name stands for the features themselves; choose another"
                )
            try:
                self.features_of(name)
            except ValidationError as error:
                problem = error.errors()[0]
                key = ".".join(map(str, problem["loc"]))
                raise ValueError(
                    f"variants.{name}.{key} = {problem['input']!r}: {problem['msg']}"
                ) from error
        if self.reference not in (MAIN, *self.variants):
            raise ValueError(
                f"reference = {self.reference!r}: allowed are {', '.join([MAIN, *self.variants])}"
            )
        return self

    def features_of(self, variant: str) -> Features:
        """Return the features of a variant, or of ``main``."""
        return Features.model_validate(self.features.model_dump() | self.variants.get(variant, {}))

    def attributors_of(self, variant: str) -> list[str]:
        """Return the attributors that are computed from the features of a variant, or ``main``."""
        rows = self.features_of(variant).rows
        return [
            name
            for name in self.attributors
            if (rows or "probe" not in ATTRIBUTOR_TABLE[name].needs)
            and (variant == MAIN or ATTRIBUTOR_TABLE[name].in_variants)
        ]

    def jobs(self, images: int) -> dict[str, list[str]]:
        """Return step -> names of its jobs.

        Args:
            images: Number of training images.
        """
        features_jobs = -(-images // self.images_per_job)
        retrain_jobs = -(-self.subsets * self.seeds // self.networks_per_job)
        blocks = range(features_jobs)
        networks = [FINAL, *(f"state{number}" for number in range(1, self.checkpoints))]
        features = [f"{MAIN}/{network}/{block}" for network in networks for block in blocks]
        features += [f"{variant}/{FINAL}/{block}" for variant in self.variants for block in blocks]
        if self.repeatability is not None:
            features += [f"{variant}/{REPEAT}/0" for variant in [MAIN, *self.variants]]
        jobs = {
            "attribution/features": features,
            "attribution/retrain": [str(number) for number in range(retrain_jobs)],
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
