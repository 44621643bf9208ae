"""Cosine of the loss gradients of query and training image (Charpiat et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors.inner_products import cosine
from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = False


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    found = cosine(evidence.queries.feature("loss"), evidence.train.feature("loss"))
    return lambda _: found
