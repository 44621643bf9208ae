"""TRAK (Park et al. 2023) for diffusion models, as in D-TRAK's comparison: phi_z A phi_i, phi the gradient of the loss.

TRAK for classifiers multiplies by the training image's residual; the version for diffusion models leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = True


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    return evidence.spectrum("loss").kernel(evidence.queries.feature("loss"))
