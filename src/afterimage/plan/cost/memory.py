"""What the jobs of a study hold in memory, beside their libraries: a few large tensors and arrays, counted from the settings.

Only what grows with the study is counted. How often an array is there at once was read in the step's code; nothing here is
exact.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from afterimage.config import DpSgd, IetAgc, Study
from afterimage.plan.cost import network
from afterimage.plan.cost.work import dimension, networks, readouts_of, shape, swap_base, weights

SINGLE, DOUBLE = 4, 8
"""Bytes of a number."""


class Bytes(NamedTuple):
    """What a job holds.

    Attributes:
        networks: Weights, moments and activations: on the device that networks run on.
        arrays: All else, on the host.
    """

    networks: float
    arrays: float


def needed(study: Study, step: str, name: str) -> Bytes:
    """Return what the job of a step with this name holds.

    Args:
        study: The study.
        step: Key of ``config.STEPS``.
        name: An arm, or what tells the step's jobs apart.
    """
    split, values = study.data.split, math.prod(shape(study))
    train, holdout, drawn = (
        split.train * values,
        split.holdout * values,
        study.sample.images * values,
    )
    explained = study.attribution
    if step == "train":
        return learning(study, name, train)
    if step == "sample":
        return Bytes(passing(study, name, study.sample.batch_size), 2 * drawn)
    if step == "attack/extraction":
        return Bytes(0, searched(study))
    if step == "attack/quality":
        return Bytes(0, resampled(study) + compared(study) + train + holdout + drawn)
    if step == "attack/membership":
        return Bytes(passing(study, name, 256), 3 * (train + holdout))
    if step == "attack/forgetting":
        relearned = learning(study, name, train).networks + passing(
            study, name, study.sample.batch_size
        )
        return Bytes(relearned, searched(study) + resampled(study))
    if step == "report/swap":
        return Bytes(
            2 * passing(study, swap_base(study), study.sample.batch_size),
            searched(study) + compared(study),
        )
    if step == "data/classifier":
        net = network.classifier(study.classifier, *shape(study), classes=10)
        return Bytes(
            16 * net.parameters + study.classifier.batch_size * net.values * SINGLE,
            2 * (train + holdout),
        )
    if step == "data/dedup":
        return Bytes(0, train * (1 + 2 * DOUBLE * (study.dedup.embedding.features == "pca")))
    if explained is not None and step in ("attribution/retrain", "attribution/counterfactual"):
        together = (
            explained.networks_per_job if explained.stacked and step == "attribution/retrain" else 1
        )
        one = learning(study, explained.arm, train)
        return Bytes(
            together * one.networks + passing(study, explained.arm, 256), one.arrays * together
        )
    if explained is not None and step == "attribution/features":
        return projected(study, explained.arm, name.split("/")[0], explained.images_per_job)
    if explained is not None and step == "attribution/remedied":
        return projected(study, name, "main", split.train)
    if explained is not None and step == "attribution/scores":
        settings = explained.features_of(name)
        matrix = split.train * settings.dimension
        rows = (
            settings.timesteps * settings.rows * (SINGLE + 3 * DOUBLE)
        )  # as stored, and in the basis of the eigenvectors
        kinds = (2 * len(explained.attributors_of(name)) + explained.checkpoints) * DOUBLE
        return Bytes(0, matrix * (rows + kinds) + 6 * DOUBLE * settings.dimension**2)
    return Bytes(0, 3 * (train + holdout) + 2 * drawn)


def learning(study: Study, arm: str, images: int) -> Bytes:
    """Return what a training holds: five copies of the weights of every network, activations of a micro-batch, a state to be
    saved.

    With dp_sgd the gradients of each image of a micro-batch are there too, several times (as measured on digits).

    Args:
        study: The study.
        arm: Its arm.
        images: Bytes of the training images, which are there three times.
    """
    own, train = study.arms[arm], study.train_of(arm)
    held = weights(study, arm) * (own.shards + 1 if isinstance(own, IetAgc) else 1)
    batch = train.batch_size / train.accumulation
    activations = (
        batch
        * max(net.values for net, _ in networks(study, arm))
        * (SINGLE if train.precision == "fp32" else SINGLE * 0.6)
    )
    if isinstance(own, DpSgd):
        activations = 4 * activations + 6 * batch * weights(study, arm) * SINGLE
    return Bytes(5 * held * SINGLE + activations, 3 * images + 4 * held * SINGLE)


def passing(study: Study, arm: str, batch: int) -> float:
    """Return the bytes of forward passes without gradients: the weights, and some six tensors of the finest level."""
    height, width, _ = shape(study)
    return SINGLE * (weights(study, arm) + 6 * batch * study.model.channels[0] * height * width)


def searched(study: Study) -> float:
    """Return the bytes of a search for neighbours: the gallery, as floating numbers too, and what is compared with it."""
    values = math.prod(shape(study))
    split = study.data.split
    return values * (split.train * (SINGLE + 2) + split.holdout + 2 * study.sample.images)


def resampled(study: Study) -> float:
    """Return the bytes of the intervals of distances between features: resamples of all images, and blocks of pairs."""
    width = study.statistics.bootstrap + 4 * 1024 + 2 * dimension(study, study.quality.features)
    return DOUBLE * study.sample.images * width


def compared(study: Study) -> float:
    """Return the bytes of the replication score: features as they are, centred and of unit length."""
    images = 2 * study.data.split.train + 3 * study.sample.images
    return DOUBLE * images * dimension(study, study.quality.similarity)


def projected(study: Study, arm: str, variant: str, images: int) -> Bytes:
    """Return what projected gradients of images hold: what layers keep, a batch's largest gradients, and the features."""
    assert study.attribution is not None
    settings = study.attribution.features_of(variant)
    size, readouts = weights(study, arm), readouts_of(settings)
    k = size if settings.projection == "none" else settings.dimension
    largest = (
        18 * max(study.model.channels) ** 2
    )  # a 3 x 3 convolution of the deepest state and skip
    kept = max(net.values for net, _ in networks(study, arm))
    on_device = 5 * SINGLE * size + settings.batch_size * SINGLE * (
        kept + 2 * readouts * largest + readouts * k
    )
    features = images * k * SINGLE * (2 * readouts + settings.timesteps * settings.rows)
    return Bytes(on_device, 2 * features + 3 * study.data.split.train * math.prod(shape(study)))
