"""D-TRAK (Zheng et al., ICLR 2024): TRAK's kernel with the gradient of the mean square of the predicted noise on both sides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = True


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    return evidence.spectrum("square").kernel(evidence.queries.feature("square"))
