"""TracIn (Pruthi et al. 2020, TracInCP): mean over saved states of the inner product of the loss gradients.

All states weigh the same, as in D-TRAK's comparison; the paper weighs them by the learning rate.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors.inner_products import inner
from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = False


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    found = evidence.over_checkpoints(inner)
    return lambda _: found
