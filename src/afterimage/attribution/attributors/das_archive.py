"""DAS as the later release (2026) names it for its archived scores: ``das_revised`` with the mean of |f| as readout.

That the kernel is squared is taken over from the rest of that release.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors.das_revised import squared_kernel
from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = True


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    return squared_kernel(evidence, "l1/normalised")
