"""Journey-TRAK (Georgiev et al. 2023): TRAK with the query's gradients at the states of its own sampling (generations only)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = True


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    return evidence.spectrum("loss").kernel(evidence.queries.feature("journey"))
