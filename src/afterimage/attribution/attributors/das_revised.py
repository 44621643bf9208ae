"""DAS as its first author computes it in a later release (2026): (phi_z A phi_i)^2, without error weight and leverage.

phi is the gradient of the mean of the predicted noise, divided by its length at each timestep (see ``das_released``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = True


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    return squared_kernel(evidence, "mean/normalised")


def squared_kernel(evidence: Evidence, feature: str) -> Callable[[float], np.ndarray]:
    """Return relative lambda -> (phi_z A phi_i)^2, float64 (Q, N), for the features of that name."""
    kernel = evidence.spectrum(feature).kernel(evidence.queries.feature(feature))
    return lambda relative: np.square(kernel(relative))
