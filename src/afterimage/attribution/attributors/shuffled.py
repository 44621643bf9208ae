"""A control that must fail: TRAK's scores, each given to another training image, the same one for all queries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage import seeds
from afterimage.attribution.attributors import trak
from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = True


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    true = trak.scores(evidence)
    order = seeds.numpy_rng(evidence.seed, "attribution", "shuffled").permutation(
        len(evidence.train.images)
    )
    return lambda relative: true(relative)[:, order]
