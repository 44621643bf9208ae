"""Renormalised influence (Hammoudeh & Lowd 2022): TRAK over |phi_i|, the length of the training image's gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors import trak
from afterimage.attribution.attributors.inner_products import lengths, over
from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = True


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    influence, norms = trak.scores(evidence), lengths(evidence.train.feature("loss"))
    return lambda relative: over(influence(relative), norms)
