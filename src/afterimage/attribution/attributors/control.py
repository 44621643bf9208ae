"""Negative controls: scores that must not predict anything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage import seeds
from afterimage.attribution.attributors.inputs import AttributionInputs
from afterimage.attribution.attributors.trak import trak


def shuffled(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """TRAK's scores with the training images permuted, by one permutation for all queries."""
    unshuffled = trak(inputs)
    order = seeds.numpy_rng(inputs.seed, "attribution", "shuffled").permutation(
        len(inputs.train.images)
    )
    return lambda relative: unshuffled(relative)[:, order]
