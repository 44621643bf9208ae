"""DAS as its authors first released it (2024), before squaring: one scalar readout in place of all outputs.

    s_i(z) = phi_z A phi_i r_i / (1 - h_i)

phi is the gradient of the mean of the predicted noise, divided by its length at each timestep; r_i is the image's error weight
and h_i its leverage. Later releases divide by (1 - h_i)^2, with h_i taken from products of queries and training images under a
rescaled inverse, which is no leverage; or they leave the division out. The exponent 1 is what the theory gives for one output.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = True
_FEATURE = "mean/normalised"


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    spectrum = evidence.spectrum(_FEATURE)
    kernel = spectrum.kernel(evidence.queries.feature(_FEATURE))
    return lambda relative: (
        kernel(relative) * evidence.train.residual / (1 - spectrum.leverage(relative))
    )
