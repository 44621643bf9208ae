"""Gradient aggregated similarity (Hammoudeh & Lowd 2022): mean over saved states of the cosine of the loss gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors.inner_products import cosine
from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = False


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    found = evidence.over_checkpoints(cosine)
    return lambda _: found
