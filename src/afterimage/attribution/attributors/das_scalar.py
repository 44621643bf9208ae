"""DAS with a scalar leverage: theta_-i - theta = A u_i / (1 - h_i), h_i the mean leverage of image i's rows (see ``das``).

Exact for an output of one value; otherwise a shortcut.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = True


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    spectrum, gradients = evidence.curvature, evidence.train.feature("loss")
    step = spectrum.bilinear(evidence.queries.rows.reshape(-1, gradients.shape[1]), gradients)

    def at(relative: float) -> np.ndarray:
        leverage = spectrum.leverage(relative).reshape(len(gradients), -1).mean(axis=1)
        moved = step(relative) / (1 - leverage)
        return np.square(moved).reshape(*evidence.queries.rows.shape[:2], -1).mean(axis=1)

    return at
