"""Inner product of the loss gradients of query and training image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.evidence import Evidence
from afterimage.attribution.products import inner

REGULARISED = False


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    found = inner(evidence.queries.feature("loss"), evidence.train.feature("loss"))
    return lambda _: found
