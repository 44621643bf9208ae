"""Empirical influence (Feldman & Zhang 2020): mean loss of the query of networks trained without an image minus with it.

0 for an image that all of these networks saw, or none: nothing is known of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.artifacts import ArtifactError
from afterimage.attribution.attributors.inner_products import over
from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = False


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    if not len(evidence.masks):
        raise ArtifactError(
            "empirical_influence needs retrained networks to learn from, and there are none"
        )
    seen = evidence.masks.astype(np.float64)
    with_it, without = seen.sum(axis=0), (1 - seen).sum(axis=0)
    found = over(evidence.losses.T @ (1 - seen), without) - over(evidence.losses.T @ seen, with_it)
    found[:, (with_it == 0) | (without == 0)] = 0
    return lambda _: found
