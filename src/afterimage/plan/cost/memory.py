"""What the jobs of a study hold in memory, beside their libraries: a few large tensors and arrays,
counted from the settings.

Only what grows with the study is counted. How often an array is there at once was read in the
step's code; nothing here is exact.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from afterimage.config import Study
from afterimage.plan.cost.work import dimension, networks, readouts_of, shape, weights

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


def learning(study: Study, arm: str, images: int) -> Bytes:
    """Return what a training holds: five copies of the weights of every network, activations of a
    micro-batch, a state to be saved.

    With dp_sgd the gradients of each image of a micro-batch are there too, several times (as
    measured on digits).

    Args:
        study: The study.
        arm: Its arm.
        images: Bytes of the training images, which are there three times.
    """
    own, train = study.arms[arm], study.train_of(arm)
    held = weights(study, arm) * own.networks_held
    batch = train.batch_size / train.accumulation
    activations = (
        batch
        * max(net.values for net, _ in networks(study, arm))
        * (SINGLE if train.precision == "fp32" else SINGLE * 0.6)
    )
    if own.per_sample_gradients:
        activations = 4 * activations + 6 * batch * weights(study, arm) * SINGLE
    return Bytes(5 * held * SINGLE + activations, 3 * images + 4 * held * SINGLE)


def passing(study: Study, arm: str, batch: int) -> float:
    """Return the bytes of forward passes without gradients: the weights, and some six tensors of
    the finest level."""
    height, width, _ = shape(study)
    return SINGLE * (weights(study, arm) + 6 * batch * study.model.channels[0] * height * width)


def searched(study: Study) -> float:
    """Return the bytes of a search for neighbours: the gallery, as floating numbers too, and what
    is compared with it."""
    values = math.prod(shape(study))
    split = study.data.split
    return values * (split.train * (SINGLE + 2) + split.holdout + 2 * study.sample.images)


def resampled(study: Study) -> float:
    """Return the bytes of the intervals of distances between features: resamples of all images, and
    blocks of pairs."""
    width = study.statistics.bootstrap + 4 * 1024 + 2 * dimension(study, study.quality.features)
    return DOUBLE * study.sample.images * width


def compared(study: Study) -> float:
    """Return the bytes of the replication score: features as they are, centred and of unit
    length."""
    images = 2 * study.data.split.train + 3 * study.sample.images
    return DOUBLE * images * dimension(study, study.quality.similarity)


def projected(study: Study, arm: str, variant: str, images: int) -> Bytes:
    """Return what projected gradients of images hold: what layers keep, a batch's largest
    gradients, and the features."""
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
    features = (
        images * k * SINGLE * (2 * readouts + settings.timesteps * settings.probes * settings.rows)
    )
    return Bytes(on_device, 2 * features + 3 * study.data.split.train * math.prod(shape(study)))
