"""What every job of a study computes, counted from the study's settings.

The networks' part is FLOP (``network``; a backward pass has twice those of a forward pass) and
passes, whatever they run on.
What the processor does beside them, neighbours, bootstraps and random numbers, is given in seconds
of one thread: as counts too, with the speeds below. Those whose comment says measured were measured
on one thread of a server processor (AMD EPYC with AVX-512, torch 2.13, numpy 2.4).

What a study does not say is taken at its largest: an arm with ``matched_to: {by: kept_samples}``
skips nothing, deduplication removes nothing. Images of a source whose size only the files know are
taken for 32 x 32 x 3, and a forget set that only the data or an attack knows for a tenth of the
sources.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from afterimage.config import Features, Study
from afterimage.plan.cost import network

SINGLE, DOUBLE = 60e9, 40e9
"""FLOP/s of products of matrices in float32 and float64: measured."""
UPDATE = 4
"""Passes that an update takes the time of, beside its FLOP: forward, backward (two), optimiser and
averages; measured."""
NOISE = 12e-6, 4.5e-9
"""Seconds of one image's own noise, and of each of its values: measured."""
EXACT = 20e-6, 0.9e-9
"""Seconds of checking a query's proposed neighbours, and of each value compared: measured."""
RANKING = 83e-9
"""Seconds per image of a resample of an area under the curve: measured."""
TABLE = 2e-3
"""Seconds of a resample of all other numbers of the extraction attack: measured."""
PAIR = 20e-9
"""Seconds of a pair of feature vectors, beside their product: measured."""
HASH = 150e-6
"""Seconds of an image's perceptual hash: assumed."""
NORMAL = 7e-9
"""Seconds of a random number of a dense projection: measured."""
PROJECTIONS = {"none": 0.3, "countsketch": 1.0, "srht": 3.0, "kronecker": 0.1, "gaussian": 1.0}
"""Time of each projection beside that of countsketch: measured on digits' network, but for
``none``, which is assumed."""
INCEPTION = 11.4e9
"""FLOP of an image in Inception: assumed."""


@dataclass(frozen=True)
class Work:
    """What a job computes.

    Attributes:
        fp32: FLOP of networks.
        bf16: Those under bf16 autocast.
        launches: Forward passes of a batch; a backward pass counts as two.
        touched: Weights projected, each counted once for every image.
        host: Seconds of one thread beside the networks.
    """

    fp32: float = 0.0
    bf16: float = 0.0
    launches: float = 0.0
    touched: float = 0.0
    host: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def __mul__(self, times: float) -> Work:
        return Work(*(value * times for value in vars(self).values()))


def shape(study: Study) -> tuple[int, int, int]:
    """Return height, width and channels of an image, as far as the study says."""
    return study.data.image_shape(assumed=(32, 32, 3))


def values(study: Study) -> int:
    """Return the numbers of one image."""
    return math.prod(shape(study))


def classifier(study: Study) -> network.Network:
    """Return the counts of the feature network, for ten labels."""
    return network.classifier(study.classifier, *shape(study), classes=10)


def networks(study: Study, arm: str) -> list[tuple[network.Network, float]]:
    """Return an arm's networks, each with its share of the timesteps."""
    parts = study.arms[arm].networks(study.rau_net_of(arm), study.diffusion.timesteps)
    return [(network.unet(study.model, *shape(study), blocks), share) for blocks, share in parts]


def forward(study: Study, arm: str) -> float:
    """Return the FLOP of one image's forward pass, mean over timesteps."""
    return sum(net.flop * share for net, share in networks(study, arm))


def weights(study: Study, arm: str) -> int:
    """Return how many weights an arm's networks have together."""
    return sum(net.parameters for net, _ in networks(study, arm))


def trained_images(study: Study, arm: str) -> int:
    """Return how many images an arm trains on, at most."""
    return max(1, round(study.arms[arm].fraction * study.data.split.train))


def forgotten(study: Study, name: str) -> int:
    """Return about how many different images a forget set has."""
    ids = study.forget[name].ids
    return len(ids) if ids else max(1, study.data.distinct // 10)


class Spent(NamedTuple):
    """The budget of a training, as ``job.Spent`` records it afterwards; samples that may be skipped
    count as kept."""

    updates: int
    updates_per_model: int
    kept_samples: int


def budget(study: Study, arm: str) -> int:
    """Return the optimiser updates that an arm's settings ask for, at most."""
    own, train = study.arms[arm], study.train_of(arm)
    if own.matched_to is not None:
        other = spent(study, own.matched_to.arm)
        if own.matched_to.by == "kept_samples":
            return max(1, -(-other.kept_samples // train.batch_size))
        return other._asdict()[own.matched_to.by]
    if train.epochs is not None:
        return -(-train.epochs * trained_images(study, arm) // train.batch_size)
    assert train.updates is not None
    return train.updates


def spent(study: Study, arm: str) -> Spent:
    """Return what the training of an arm spends, at most."""
    settings, size = study.arms[arm], study.train_of(arm).batch_size
    updates, per_model = settings.updates_of(budget(study, arm), study.diffusion.timesteps)
    return Spent(updates, per_model, updates * size)


# ---- parts of the work ------------------------------------------------------------------------------------------------------


def passes(
    flop: float, images: float, batch: float, precision: str = "fp32", *, backward: bool = False
) -> Work:
    """Return the work of images going through a network in batches; with ``backward`` back again,
    too, and an update."""
    whole = images * flop * (3 if backward else 1)
    launches = math.ceil(images / batch) * (UPDATE if backward else 1)
    return Work(**{precision: whole, "launches": launches})


def training(study: Study, arm: str) -> Work:
    """Return the work of one training, all its networks together."""
    settings, train, flop = study.arms[arm], study.train_of(arm), forward(study, arm)
    size = train.batch_size
    batch = size / train.accumulation
    count = settings.passes(spent(study, arm).updates, size, study.diffusion.timesteps)
    noise = Work(host=count.backward * size * NOISE[1] * values(study))
    trained = passes(flop, count.backward * size, batch, train.precision, backward=True)
    return trained + passes(flop, count.forward * size, batch, train.precision) + noise


def drawing(study: Study, arm: str, images: int) -> Work:
    """Return the work of drawing generations."""
    guided = study.condition_of(arm) == "label" and study.sample.guidance not in (0, 1)
    one_step = passes((1 + guided) * forward(study, arm), images, study.sample.batch_size)
    return one_step * study.sample.steps + Work(host=images * _noise(study))


def losses(
    study: Study, flop: float, images: int, levels: int, draws: int, *, flips: bool = False
) -> Work:
    """Return the work of measuring losses of single images (``attacks.losses``)."""
    one = passes(flop, images, 256) * (1 + flips) + Work(host=images * _noise(study))
    return one * (levels * draws)


def _noise(study: Study) -> float:
    return NOISE[0] + NOISE[1] * math.prod(shape(study))


def search(study: Study, queries: int, gallery: int, neighbours: int) -> Work:
    """Return the work of finding the neighbours of queries (``metrics.neighbours``)."""
    values = math.prod(shape(study))
    proposed = min(gallery, neighbours + 32)
    return Work(
        host=queries * (2 * gallery * values / SINGLE + EXACT[0] + EXACT[1] * proposed * values)
    )


def extraction(study: Study, arm: str, *, planted: bool) -> Work:
    """Return the work of the extraction attack: generations and held-out images, the means of what
    is found, and twins."""
    own, gallery = study.extraction, trained_images(study, arm)
    sides = 2 if study.data.flips else 1
    separate = study.data.flips or own.distance == "tiled"  # MQ then needs a search of its own

    def scored(queries: int) -> Work:
        found = min(queries, gallery)
        neighbours = search(study, queries + found, gallery, own.neighbours) * sides
        return neighbours + search(study, queries, gallery, own.mq_neighbours) * separate

    work = (
        scored(study.sample.images)
        + scored(study.data.split.holdout)
        + search(study, gallery, gallery, 0)
    )
    if planted and study.data.plant:
        work += scored(study.sample.images)
    return work + Work(host=study.statistics.bootstrap * TABLE)


def dimension(study: Study, space: str) -> int:
    """Return how many numbers an image has in a feature space of ``metrics.spaces``."""
    return {
        "classifier": study.classifier.features,
        "pixels": math.prod(shape(study)),
        "inception": 2048,
    }[space]


def embedding(study: Study, space: str, images: int) -> Work:
    """Return the work of mapping images to features on the host."""
    if space == "pixels":
        return Work()
    flop = (
        network.classifier(study.classifier, *shape(study), classes=10).flop
        if space == "classifier"
        else INCEPTION
    )
    return Work(host=images * flop / SINGLE)


def quality(study: Study, generations: int) -> Work:
    """Return the work of ``attacks.quality.measure``."""
    own, resamples = study.quality, study.statistics.bootstrap
    reference, d = reference_images(study), dimension(study, own.features)
    work = embedding(study, own.features, generations + study.data.split.holdout + reference)
    for count in (generations, study.data.split.holdout):
        wide = min(reference, d)
        side = min(count, wide)
        frechet = 2 * count * d * wide + resamples * (2 * count * wide * side + 10 * side**3)
        interval = 2 * count**2 * (resamples + d)
        pairs = count**2 + reference**2 + count * reference
        work += Work(host=(frechet + interval + 2 * d * pairs) / DOUBLE + PAIR * (count**2 + pairs))
    return work


def reference_images(study: Study) -> int:
    """Return how many reference images there are; where the study takes all that are left, as many
    as are held out."""
    return study.data.split.reference or study.data.split.holdout


def replication(study: Study, arm: str) -> Work:
    own, gallery, held = study.quality, trained_images(study, arm), study.data.split.holdout
    queries, d = study.sample.images + held + gallery, dimension(study, own.similarity)
    return embedding(study, own.similarity, queries + reference_images(study)) + Work(
        host=2 * queries * gallery * d / DOUBLE
    )


def gradients(study: Study, arm: str, images: int, settings: Features, readouts: int) -> Work:
    """Return the work of projected gradients: a forward pass, and one backward pass and one
    projection per readout."""
    precision, size = settings.precision, weights(study, arm)
    one = passes((1 + 2 * readouts) * forward(study, arm), images, settings.batch_size, precision)
    one += Work(
        launches=2 * readouts * math.ceil(images / settings.batch_size),
        touched=PROJECTIONS[settings.projection] * images * readouts * size,
        host=2 * images * _noise(study),
    )
    if settings.projection == "gaussian":  # its matrix is drawn anew for every batch
        drawn = math.ceil(images / settings.batch_size) * size * settings.dimension
        one += Work(host=NORMAL * drawn, fp32=2.0 * images * readouts * size * settings.dimension)
    return one * settings.timesteps


def readouts_of(settings: Features, final: bool = True) -> int:
    """Return how many numbers are read out of the final network, or of an earlier state
    (``attribution.features``)."""
    return 4 + settings.probes * settings.rows if final else 1
