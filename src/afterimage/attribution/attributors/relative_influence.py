"""Relative influence (Barshan et al. 2020): TRAK over |A phi_i|, the length of the parameters' change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors import trak
from afterimage.attribution.attributors.inner_products import over
from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = True


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    influence, spectrum = trak.scores(evidence), evidence.spectrum("loss")
    return lambda relative: over(influence(relative), spectrum.preconditioned_norms(relative))
