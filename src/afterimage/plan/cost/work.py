"""The passes through networks that the jobs of a study make, counted from its settings as FLOP.

A backward pass has twice the FLOP of a forward pass. What the processor does beside the networks
(neighbours, bootstraps, spectra) is not counted here but measured (``measured``).

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
from afterimage.config.autoencoder import TrainedAutoencoder
from afterimage.config.unet import StoredModel
from afterimage.plan.cost import network

UPDATE = 4
"""Passes that an update takes the time of, beside its FLOP: forward, backward (two), optimiser and
averages; measured."""
PROJECTION = {"none": 130, "countsketch": 420, "srht": 1300, "kronecker": 40, "gaussian": 420}
"""FLOP in whose time a weight's gradient is projected: measured on digits' network with one thread,
but for ``none``, which is assumed. The product with gaussian's dense matrix comes on top."""
FEATURES = {"inception": 11.4e9, "sscd": 13.6e9, "clip": 8.8e9, "dinov2": 46e9}
"""FLOP of an image in Inception, in SSCD's ResNet-50 at 288 pixels, and in CLIP's ViT-B/32 and
DINOv2's ViT-B/14 at 224: assumed. Networks of other sizes take others."""
CAPTIONS = 256
"""As in ``data.encode``, which planning does not import: captions of a batch."""


@dataclass(frozen=True)
class Work:
    """What a job computes with networks.

    Attributes:
        fp32: FLOP of networks.
        bf16: Those under bf16 autocast.
        launches: Forward passes of a batch; a backward pass counts as two.
    """

    fp32: float = 0.0
    bf16: float = 0.0
    launches: float = 0.0

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


def denoised(study: Study) -> tuple[int, int, int]:
    """Return height, width and channels of what networks see: an image, or its latent."""
    height, width, channels = shape(study)
    chosen = study.autoencoder
    return (height, width, channels) if chosen is None else chosen.latent(height, width)


def autoencoder(study: Study) -> network.Network:
    """Return the counts of a study's autoencoder: one image, encoded and decoded."""
    height, width, channels = shape(study)
    assert study.autoencoder is not None
    return network.autoencoder(study.autoencoder.network(channels), height, width, channels)


def autoencoding(study: Study, images: int) -> Work:
    """Return the work of encoding and decoding images."""
    return passes(autoencoder(study).flop, images, 16)


def autoencoder_training(study: Study) -> Work:
    """Return the work of training a study's autoencoder; a stored one takes none."""
    settings = study.autoencoder
    if not isinstance(settings, TrainedAutoencoder):
        return Work()
    size = settings.batch_size
    return passes(autoencoder(study).flop, settings.updates * size, size, backward=True)


def split_images(study: Study) -> int:
    """Return how many images all parts of the split have, and so how many texts a variant of the
    captions has, at most."""
    split = study.data.split
    return split.train + split.holdout + reference_images(study) + split.fusion


def text_encoder(study: Study) -> tuple[int, int]:
    """Return the FLOP of one text in a study's text encoder, and its weights: those of linear
    layers and attention, of a transformer as in CLIP (Radford et al. 2021), in closed form, so that
    planning needs no transformers library."""
    assert study.text is not None
    length, width = study.text.length, study.text.width
    layers, hidden, vocabulary = study.text.transformer
    matrices = 4 * width**2 + 2 * width * hidden
    flop = layers * (2 * length * matrices + 4 * length**2 * width)
    vectors = 9 * width + hidden  # biases, and two normalisations
    weights = (vocabulary + length + 2) * width + layers * (matrices + vectors)
    return flop, weights


def encoding(study: Study) -> Work:
    """Return the work of embedding the captions in one variant."""
    return passes(text_encoder(study)[0], split_images(study), CAPTIONS)


def networks(study: Study, arm: str) -> list[tuple[network.Network, float]]:
    """Return an arm's networks, each with its share of the timesteps."""
    parts = study.arms[arm].networks(study.rau_net_of(arm), study.diffusion.timesteps)
    text = None
    if study.text is not None and study.condition_of(arm) == "text":
        text = study.text.length, study.text.width
    return [
        (network.unet(study.model, *denoised(study), blocks, text), share)
        for blocks, share in parts
    ]


def forward(study: Study, arm: str) -> float:
    """Return the FLOP of one image's forward pass, mean over timesteps."""
    return sum(net.flop * share for net, share in networks(study, arm))


def weights(study: Study, arm: str) -> int:
    """Return how many weights an arm's networks have together."""
    return sum(net.parameters for net, _ in networks(study, arm))


def trained_weights(study: Study, arm: str) -> int:
    """Return how many of them a training changes."""
    return sum(net.trained for net, _ in networks(study, arm))


def attributed_weights(study: Study, arm: str) -> int:
    """Return how many weights' gradients are features: all, or those of adapters alone."""
    adapters = isinstance(study.model, StoredModel) and study.model.lora is not None
    return trained_weights(study, arm) if adapters else weights(study, arm)


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
    passes: int


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
    count = settings.passes(updates, size, study.diffusion.timesteps)
    return Spent(updates, per_model, updates * size, round(count.backward))


def passes(
    flop: float,
    images: float,
    batch: float,
    precision: str = "fp32",
    *,
    backward: bool = False,
    trained: float = 1.0,
    again: bool = False,
) -> Work:
    """Return the work of images going through a network in batches; with ``backward`` back again,
    too, and an update of a share of the weights, in proportion to which half of a backward pass
    is, with another forward pass if activations are computed ``again``."""
    whole = images * flop * (2 + again + trained if backward else 1)
    launches = math.ceil(images / batch) * (UPDATE + again if backward else 1)
    arithmetic = "fp32" if precision == "fp32" else "bf16"  # fp16 is as fast
    return Work(**{arithmetic: whole, "launches": launches})


def training(study: Study, arm: str) -> Work:
    """Return the work of one training, all its networks together."""
    settings = study.arms[arm].model_copy(update={"condition": study.condition_of(arm)})
    train, flop = study.train_of(arm), forward(study, arm)
    size = train.batch_size
    batch = size / train.accumulation
    count = settings.passes(spent(study, arm).updates, size, study.diffusion.timesteps)
    backward = (count.backward + count.setup) * settings.pass_time
    there_and_back = passes(
        flop,
        backward * size,
        batch,
        train.precision,
        backward=True,
        trained=trained_weights(study, arm) / weights(study, arm),
        again=train.gradient_checkpointing,
    )
    return there_and_back + passes(flop, count.forward * size, batch, train.precision)


def drawing(study: Study, arm: str, images: int) -> Work:
    """Return the work of drawing generations."""
    guided = study.condition_of(arm) != "none" and study.sample.guidance not in (0, 1)
    flop, batch = (1 + guided) * forward(study, arm), study.sample.batch_size
    drawn = passes(flop, images, batch, study.sample.precision) * study.sample.steps
    times = study.arms[arm].passes_of_drawing(study.sample.steps)
    drawn += passes(flop, times * images, batch, study.sample.precision, backward=True, trained=0)
    return drawn if study.autoencoder is None else drawn + autoencoding(study, images)


def losses(
    study: Study, arm: str, images: int, levels: int, draws: int, *, flips: bool = False
) -> Work:
    """Return the work of measuring losses of single images (``attacks.losses``)."""
    return passes(forward(study, arm), images, 256) * (levels * draws * (1 + flips))


def reference_images(study: Study) -> int:
    """Return how many reference images there are; where the study takes all that are left, as many
    as are held out."""
    return study.data.split.reference or study.data.split.holdout


def features(space: str, images: float) -> Work:
    """Return the work of images' features in a space of ``quality``; those of the study's own
    classifier are in what was measured."""
    return Work(fp32=images * FEATURES.get(space, 0.0))


def gradients(study: Study, arm: str, images: int, settings: Features, readouts: int) -> Work:
    """Return the work of projected gradients: a forward pass, and one backward pass and one
    projection per readout."""
    size, batches = attributed_weights(study, arm), math.ceil(images / settings.batch_size)
    flop = (1 + 2 * readouts) * forward(study, arm)
    flop += PROJECTION[settings.projection] * size * readouts
    if settings.projection == "gaussian":  # its matrix is drawn anew for every batch
        drawn = PROJECTION["gaussian"] * batches / max(1, images)
        flop += (2 * readouts + drawn) * size * settings.dimension
    launches = (1 + 2 * readouts) * batches
    return Work(**{settings.precision: images * flop, "launches": launches}) * settings.timesteps


def readouts_of(settings: Features, final: bool = True) -> int:
    """Return how many numbers are read out of the final network, or of an earlier state
    (``attribution.features``)."""
    return 4 + settings.probes * settings.rows if final else 1
