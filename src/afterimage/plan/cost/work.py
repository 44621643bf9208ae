"""What every job of a study computes, counted from the study's settings.

The networks' part is FLOP (``network``; a backward pass has twice those of a forward pass) and passes, whatever they run on.
What the processor does beside them, neighbours, bootstraps and random numbers, is given in seconds of one thread: as counts
too, with the speeds below. Those whose comment says measured were measured on one thread of a server processor (AMD EPYC with
AVX-512, torch 2.13, numpy 2.4).

What a study does not say is taken at its largest: an arm with ``matched_to: {by: kept_samples}`` skips nothing, deduplication
removes nothing. Images of a source whose size only the files know are taken for 32 x 32 x 3, and a forget set that only the
data or an attack knows for a tenth of the sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from afterimage.config import (
    DpSgd,
    EraseDiff,
    Features,
    GradientAscent,
    IetAgc,
    Loyal,
    SalUn,
    SelectiveAmnesia,
    Study,
)
from afterimage.config.attribution import FINAL
from afterimage.config.selection import CONTROL
from afterimage.plan.cost import network

SINGLE, DOUBLE = 60e9, 40e9
"""FLOP/s of products of matrices in float32 and float64: measured."""
UPDATE = 4
"""Passes that an update takes the time of, beside its FLOP: forward, backward (two), optimiser and averages; measured."""
PRIVATE = 2.6
"""Time of dp_sgd's update, image by image, beside that of a batch: measured."""
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
"""Time of each projection beside that of countsketch: measured on digits' network, but for ``none``, which is assumed."""
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


def networks(study: Study, arm: str) -> list[tuple[network.Network, float]]:
    """Return an arm's networks, each with its share of the timesteps."""
    own, blocks = study.arms[arm], study.rau_net_of(arm)
    if not isinstance(own, Loyal):
        return [(network.unet(study.model, *shape(study), blocks), 1.0)]
    front = own.switch_timestep / study.diffusion.timesteps
    return [
        (
            network.unet(
                study.model, *shape(study), blocks if own.blocks_in in (part, "both") else None
            ),
            share,
        )
        for part, share in (("front", front), ("tail", 1 - front))
    ]


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
    """The budget of a training, as ``job.Spent`` records it afterwards; samples that may be skipped count as kept."""

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
    own, size, updates = study.arms[arm], study.train_of(arm).batch_size, budget(study, arm)
    per_model = updates
    if isinstance(own, IetAgc):
        per_model = own.rounds * max(
            1, updates // (own.rounds * (own.shards if own.budget == "total" else 1))
        )
        updates = own.shards * per_model
    elif isinstance(own, Loyal):
        tau, timesteps = own.switch_timestep, study.diffusion.timesteps
        if own.budget == "literal":
            updates *= (tau > 0) + (tau < timesteps)
        else:
            per_model = max(
                round(updates * tau / timesteps), updates - round(updates * tau / timesteps)
            )
    return Spent(updates, per_model, updates * size)


# ---- parts of the work ------------------------------------------------------------------------------------------------------


def passes(
    flop: float, images: float, batch: float, precision: str = "fp32", *, backward: bool = False
) -> Work:
    """Return the work of images going through a network in batches; with ``backward`` back again, too, and an update."""
    whole = images * flop * (3 if backward else 1)
    launches = math.ceil(images / batch) * (UPDATE if backward else 1)
    return Work(**{precision: whole, "launches": launches})


def training(study: Study, arm: str) -> Work:
    """Return the work of one training, all its networks together."""
    own, train, flop = study.arms[arm], study.train_of(arm), forward(study, arm)
    size = train.batch_size
    batch = size / train.accumulation

    def there_and_back(batches: float) -> Work:
        noise = Work(host=batches * size * NOISE[1] * math.prod(shape(study)))
        return passes(flop, batches * size, batch, train.precision, backward=True) + noise

    def there(batches: float) -> Work:
        return passes(flop, batches * size, batch, train.precision)

    updates = spent(study, arm).updates
    if isinstance(own, DpSgd):
        return there_and_back(updates) * PRIVATE
    if isinstance(own, EraseDiff):
        inner = updates * own.inner_updates if own.barrier == "gap" or own.log_gap else 0
        targets = updates + inner if own.target.endswith("relabel") else 0
        return there_and_back(2 * updates + inner) + there(targets + (updates if inner else 0))
    if isinstance(own, SalUn):
        return there_and_back(2 * updates + -(-own.saliency_samples // size)) + there(updates)
    if isinstance(own, GradientAscent):
        sides = 1 + (0 < own.remain < 1)
        return there_and_back(sides * updates) + there((2 - sides) * updates)
    if isinstance(own, SelectiveAmnesia):
        levels = own.fisher_timesteps or study.diffusion.timesteps
        steps = min(50, study.diffusion.timesteps) if own.replay == "generated" else 0
        fisher = passes(flop, levels, batch, backward=True) * own.fisher_samples
        return there_and_back(2 * updates) + fisher + passes(flop, own.replay_images, size) * steps
    return there_and_back(updates)


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


def _search(study: Study, queries: int, gallery: int, neighbours: int) -> Work:
    """Return the work of finding the neighbours of queries (``metrics.neighbours``)."""
    values = math.prod(shape(study))
    proposed = min(gallery, neighbours + 32)
    return Work(
        host=queries * (2 * gallery * values / SINGLE + EXACT[0] + EXACT[1] * proposed * values)
    )


def _attack(study: Study, arm: str, *, planted: bool) -> Work:
    """Return the work of the extraction attack: generations and held-out images, the means of what is found, and twins."""
    own, gallery = study.extraction, trained_images(study, arm)
    sides = 2 if study.data.flips else 1
    separate = study.data.flips or own.distance == "tiled"  # MQ then needs a search of its own

    def scored(queries: int) -> Work:
        found = min(queries, gallery)
        neighbours = _search(study, queries + found, gallery, own.neighbours) * sides
        return neighbours + _search(study, queries, gallery, own.mq_neighbours) * separate

    work = (
        scored(study.sample.images)
        + scored(study.data.split.holdout)
        + _search(study, gallery, gallery, 0)
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


def _embedding(study: Study, space: str, images: int) -> Work:
    """Return the work of mapping images to features on the host."""
    if space == "pixels":
        return Work()
    flop = (
        network.classifier(study.classifier, *shape(study), classes=10).flop
        if space == "classifier"
        else INCEPTION
    )
    return Work(host=images * flop / SINGLE)


def _quality(study: Study, generations: int) -> Work:
    """Return the work of ``attacks.quality.measure``."""
    own, resamples = study.quality, study.statistics.bootstrap
    reference, d = reference_images(study), dimension(study, own.features)
    work = _embedding(study, own.features, generations + study.data.split.holdout + reference)
    for count in (generations, study.data.split.holdout):
        wide = min(reference, d)
        side = min(count, wide)
        frechet = 2 * count * d * wide + resamples * (2 * count * wide * side + 10 * side**3)
        interval = 2 * count**2 * (resamples + d)
        pairs = count**2 + reference**2 + count * reference
        work += Work(host=(frechet + interval + 2 * d * pairs) / DOUBLE + PAIR * (count**2 + pairs))
    return work


def reference_images(study: Study) -> int:
    """Return how many reference images there are; where the study takes all that are left, as many as are held out."""
    return study.data.split.reference or study.data.split.holdout


def _replication(study: Study, arm: str) -> Work:
    own, gallery, held = study.quality, trained_images(study, arm), study.data.split.holdout
    queries, d = study.sample.images + held + gallery, dimension(study, own.similarity)
    return _embedding(study, own.similarity, queries + reference_images(study)) + Work(
        host=2 * queries * gallery * d / DOUBLE
    )


def gradients(study: Study, arm: str, images: int, settings: Features, readouts: int) -> Work:
    """Return the work of projected gradients: a forward pass, and one backward pass and one projection per readout."""
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
    """Return how many numbers are read out of the final network, or of an earlier state (``attribution.features``)."""
    return 4 + settings.rows if final else 1


def _queries(study: Study) -> int:
    assert study.attribution is not None
    own = study.attribution.queries
    return own.holdout + own.generated + own.extracted


# ---- the steps --------------------------------------------------------------------------------------------------------------


def _sample(study: Study, name: str) -> Work:
    return drawing(study, name, study.sample.images)


def _extraction(study: Study, name: str) -> Work:
    return _attack(study, name, planted=True)


def _judge_quality(study: Study, name: str) -> Work:
    return _quality(study, study.sample.images) + _replication(study, name)


def _membership(study: Study, name: str) -> Work:
    own, data = study.membership, study.data
    images = data.distinct + data.split.holdout + sum(plant.images for plant in data.plant)
    work = losses(study, forward(study, name), images, own.timesteps, own.draws, flips=data.flips)
    curves = 2 + own.timesteps + len({plant.copies for plant in data.plant}) + bool(data.plant)
    return work + Work(host=study.statistics.bootstrap * curves * images * RANKING)


def _forgetting(study: Study, name: str) -> Work:
    own, flop, levels = study.forgetting, forward(study, name), study.membership
    work = _attack(study, name, planted=False)
    for chosen in study.forget_sets_of(name):
        of_class = study.forget[chosen].label is not None
        count = forgotten(study, chosen)
        looks = own.relearn_updates // own.relearn_every + 1
        measured = losses(
            study, flop, count, levels.timesteps, levels.draws, flips=study.data.flips
        )
        held = study.data.split.holdout // (10 if of_class else 1)
        work += losses(study, flop, held, levels.timesteps, levels.draws, flips=study.data.flips)
        work += measured * (looks + 1)
        batch = own.relearn_batch_size
        work += passes(flop, own.relearn_updates * batch, batch, backward=True)
        if of_class:
            work += drawing(study, name, own.relearn_images) * looks + _quality(
                study, study.sample.images
            )
    return work


def _classifier(study: Study, name: str) -> Work:
    flop = network.classifier(study.classifier, *shape(study), classes=10).flop
    return Work(fp32=3 * study.classifier.epochs * reference_images(study) * flop)


def _dedup(study: Study, name: str) -> Work:
    own, count = study.dedup.embedding, study.data.split.train
    d = {
        "pca": own.components,
        "pixels": math.prod(shape(study)),
        "classifier": study.classifier.features,
    }[own.features]
    pairs = 2 * count**2 * (d + 2) / SINGLE
    reduction = (
        4 * count * math.prod(shape(study)) * own.components / SINGLE
        if own.features == "pca"
        else 0
    )
    return Work(host=count * HASH + pairs + reduction)


def _features(study: Study, name: str) -> Work:
    assert study.attribution is not None
    chosen = study.attribution
    variant, state, block = name.split("/")
    settings, final = chosen.features_of(variant), state == FINAL
    if block != "queries":
        count = min(
            chosen.images_per_job,
            trained_images(study, chosen.arm)
            - int(block.removeprefix("train")) * chosen.images_per_job,
        )
        return gradients(study, chosen.arm, max(0, count), settings, readouts_of(settings, final))
    work = gradients(study, chosen.arm, _queries(study), settings, readouts_of(settings, final))
    if final and "journey_trak" in chosen.attributors_of(variant):
        count = chosen.queries.generated + chosen.queries.extracted
        work += drawing(study, chosen.arm, count) + gradients(study, chosen.arm, count, settings, 1)
    return work


def _retrain(study: Study, name: str) -> Work:
    assert study.attribution is not None
    own = study.attribution
    bundle = min(own.networks_per_job, own.subsets * own.seeds - int(name) * own.networks_per_job)
    fitted = training(study, own.arm) * own.share
    measured = losses(
        study,
        forward(study, own.arm),
        _queries(study),
        own.ground_truth.timesteps,
        own.ground_truth.draws,
    )
    together = fitted * bundle
    if own.stacked:
        together = Work(**vars(together) | {"launches": fitted.launches})
    return together + measured * bundle


def _counterfactual(study: Study, name: str) -> Work:
    assert study.attribution is not None
    assert study.attribution.counterfactual is not None
    own, truth = study.attribution, study.attribution.ground_truth
    again = name == "again"
    asked = study.attribution.counterfactual.queries if again else 1
    left = 1 - (
        0 if again else study.attribution.counterfactual.remove / trained_images(study, own.arm)
    )
    measured = losses(study, forward(study, own.arm), asked, truth.timesteps, truth.draws)
    return training(study, own.arm) * left + drawing(study, own.arm, asked) + measured


def _scores(study: Study, name: str) -> Work:
    assert study.attribution is not None
    own = study.attribution
    settings, count, asked = own.features_of(name), trained_images(study, own.arm), _queries(study)
    k = min(settings.dimension, weights(study, own.arm))
    timesteps = settings.timesteps if settings.rows else 0
    spectrum = 2 * count * k**2 + 10 * min(k, count) ** 3
    kernels = 2 * asked * count * k * len(own.regularisers)
    flop = len(own.attributors_of(name)) * (spectrum + kernels)
    flop += timesteps * (2 * count * k**2 + 2 * kernels) + (10 * k**3 if timesteps else 0)
    bootstraps = (
        len(own.attributors)
        * asked
        * 2
        * study.statistics.bootstrap
        * 2
        * (own.subsets / 2) ** 2
        * 2
    )
    return Work(host=(flop + bootstraps) / DOUBLE) + _embedding(study, "classifier", count + asked)


def _acceleration(study: Study, name: str) -> Work:
    assert study.attribution is not None
    own = study.attribution
    ranked = (
        (1 + len(own.variants))
        * len(own.attributors)
        * _queries(study)
        * trained_images(study, own.arm)
    )
    return Work(host=2 * ranked * RANKING)


def _remedied(study: Study, name: str) -> Work:
    assert study.attribution is not None
    assert study.attribution.remedied is not None
    chosen, settings = study.attribution.remedied, study.attribution.features
    count = trained_images(study, chosen.before)
    work = Work()
    for arm in (chosen.before, name):
        work += gradients(study, arm, count + chosen.queries, settings, readouts_of(settings))
    k = settings.dimension
    return work + Work(
        host=2 * len(chosen.attributors) * (2 * count * k**2 + 10 * min(k, count) ** 3) / DOUBLE
    )


def swap_base(study: Study) -> str:
    """Return the arm that the selection starts from; the study is one with the selection's arms."""
    base = study.arms[CONTROL].base
    assert base is not None
    return base


def _swap(study: Study, name: str) -> Work:
    base = swap_base(study)
    switches = {
        own.switch_timestep
        for arm, own in study.arms.items()
        if arm.startswith("select_") and isinstance(own, Loyal)
    }
    drawn = drawing(study, base, study.sample.images)
    searched = _search(
        study, 2 * study.sample.images, trained_images(study, base), study.extraction.neighbours
    )
    return (drawn + searched) * (2 + 3 * len(switches))


def _small(study: Study, name: str) -> Work:
    """Return the work of a step that gathers, copies or draws pictures; on digits none took longer."""
    return Work(host=20.0)


WORK: dict[str, Callable[[Study, str], Work]] = {
    "data/fetch": _small,
    "data/split": _small,
    "data/classifier": _classifier,
    "data/dedup": _dedup,
    "train": training,
    "sample": _sample,
    "attack/extraction": _extraction,
    "attack/quality": _judge_quality,
    "attack/membership": _membership,
    "attack/forgetting": _forgetting,
    "attribution/queries": _small,
    "attribution/features": _features,
    "attribution/retrain": _retrain,
    "attribution/scores": _scores,
    "attribution/acceleration": _acceleration,
    "attribution/counterfactual": _counterfactual,
    "attribution/remedied": _remedied,
    "report/tables": _small,
    "report/page": _small,
    "report/swap": _swap,
    "report/selection": _small,
}
"""Step -> the work of the job with that name: an arm, or what tells a step's jobs apart."""
