"""What jobs that run networks hold in memory, next to their libraries: weights, activations and a
few large arrays, counted from the settings.

How often an array is there at once was read in the step's code; nothing here is exact. What other
jobs hold is measured (``measured``).
"""

from __future__ import annotations

from typing import NamedTuple

from afterimage.config import Study
from afterimage.config.autoencoder import TrainedAutoencoder
from afterimage.plan.cost import work
from afterimage.plan.cost.work import (
    attributed_weights,
    denoised,
    networks,
    readouts_of,
    trained_weights,
    values,
    weights,
)

SINGLE = 4
"""Bytes of a number."""
BLOCK, MAPPED = 2**27, 2**28
"""As in ``scratch``, which planning does not import: bytes of a block of rows in float64, and of
the largest array that is not memory-mapped."""


class Bytes(NamedTuple):
    """What a job holds.

    Attributes:
        networks: Weights, moments and activations: on the device that networks run on.
        arrays: All else, on the host.
    """

    networks: float = 0.0
    arrays: float = 0.0


def learning(study: Study, arm: str) -> Bytes:
    """Return what a training holds: of every network the weights and their average, and of those
    that are trained gradients and two moments; activations of a micro-batch, a state to be saved,
    and the training images three times, as far as they are in memory.

    With dp_sgd the gradients of each image of a micro-batch are there too, several times (as
    measured on digits).
    """
    own, train = study.arms[arm], study.train_of(arm)
    held = weights(study, arm) * own.networks_held
    moved = trained_weights(study, arm) * own.networks_held
    moments = 2 * (1 if train.optimizer == "adamw_8bit" else SINGLE)
    batch = train.batch_size / train.accumulation
    activations = (
        batch
        * max(
            net.checkpointed if train.gradient_checkpointing else net.values
            for net, _ in networks(study, arm)
        )
        * (SINGLE if train.precision == "fp32" else SINGLE * 0.6)
    )
    if own.per_sample_gradients:
        activations = 4 * activations + 6 * batch * weights(study, arm) * SINGLE
    images = in_memory(study.data.split.train * values(study))
    return Bytes(
        (2 * held + moved) * SINGLE + moved * moments + activations,
        3 * images + 2 * held * SINGLE + moved * moments,
    )


def relearning(study: Study, arm: str) -> float:
    """Return the bytes that relearning holds on the device that networks run on: plain training of
    all weights on batches of its own size, whatever the arm's ``train`` says: in fp32, without
    accumulation and without computing activations again."""
    kept = max(net.values for net, _ in networks(study, arm))
    batch = study.forgetting.relearn_batch_size
    return SINGLE * (5.0 * weights(study, arm) + batch * kept)


def in_memory(size: float) -> float:
    """Return how much of images of so many bytes is held at once; larger sets are memory-mapped."""
    return min(size, MAPPED)


def passing(study: Study, arm: str, batch: int) -> float:
    """Return the bytes of forward passes without gradients: the weights, and some six tensors of
    the finest level."""
    height, width, _ = denoised(study)
    level = study.model.channels[0] * height * width
    own = SINGLE * (weights(study, arm) + 6.0 * batch * level)
    return own if study.autoencoder is None else max(own, autoencoder(study).networks)


def autoencoder(study: Study, name: str = "") -> Bytes:
    """Return what the training of the autoencoder holds, or its passes over a few images."""
    counts, settings = work.autoencoder(study), study.autoencoder
    batch = settings.batch_size if isinstance(settings, TrainedAutoencoder) else 1
    images = in_memory(work.reference_images(study) * values(study))
    return Bytes(SINGLE * (5 * counts.parameters + batch * counts.values), 3 * images)


def texts(study: Study, name: str = "") -> Bytes:
    """Return what the embedding of the captions holds: the encoder, a batch of its activations, and
    all embeddings three times, in parts, joined and as they are written; the images are there in
    three parts."""
    assert study.text is not None
    length, width, captions = study.text.length, study.text.width, work.split_images(study)
    _, size = work.text_encoder(study)
    batch = min(work.CAPTIONS, captions) * length
    activations = batch * (2 * study.text.transformer.hidden + 6 * width)
    images = in_memory(captions * values(study))
    embeddings = captions * length * width
    return Bytes(SINGLE * (size + activations), 3 * (images + SINGLE * embeddings))


def projected(study: Study, arm: str, variant: str, images: int) -> Bytes:
    """Return what projected gradients of images hold: what layers keep, a batch's largest
    gradients, and the features."""
    assert study.attribution is not None
    settings = study.attribution.features_of(variant)
    size, readouts = attributed_weights(study, arm), readouts_of(settings)
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
    pixels = in_memory(study.data.split.train * values(study))
    return Bytes(on_device, 2 * features + 3 * pixels)
