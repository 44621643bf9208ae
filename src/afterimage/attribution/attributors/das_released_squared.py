"""The square of ``das_released``: the square of a mean over timesteps, where the paper has the mean of squares."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors import das_released
from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = True


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    released = das_released.scores(evidence)
    return lambda relative: np.square(released(relative))
