"""Influence on the loss with the Gauss-Newton matrix (Mlodozeniec et al., ICLR 2025): grad l(z) (GGN + lambda I)^-1 grad l(i).

The matrix is the sum of outer products of ``Side.rows``; the paper approximates it further, by Kronecker factors of each layer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = True


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    return evidence.curvature.bilinear(
        evidence.queries.feature("loss"), evidence.train.feature("loss")
    )
