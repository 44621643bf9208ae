"""Influence of a training image on a query's loss: by the Gauss-Newton matrix, or by retraining."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.artifacts import ArtifactError
from afterimage.attribution.attributors.inner_products import divide
from afterimage.attribution.attributors.inputs import AttributionInputs


def ggn_influence(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """Influence with the Gauss-Newton matrix (Mlodozeniec et al., ICLR 2025).

    grad l(z) (GGN + lambda I)^-1 grad l(i), with the matrix as the sum of outer products of
    ``ImageFeatures.rows``; the paper approximates it by Kronecker factors of each layer.
    """
    product = inputs.curvature.bilinear(
        inputs.queries.feature("loss"), inputs.train.feature("loss")
    )
    return lambda relative: product(relative, slice(None))


def empirical_influence(inputs: AttributionInputs) -> np.ndarray:
    """Empirical influence (Feldman & Zhang 2020), from networks retrained on subsets.

    The query's mean loss under the networks trained without image i, minus that under those trained
    with it; 0, for unknown, if all or none of the networks were trained with it.
    """
    if not len(inputs.masks):
        raise ArtifactError("empirical_influence needs retrained networks, and there are none")
    included = inputs.masks.astype(np.float64)
    count_with, count_without = included.sum(axis=0), (1 - included).sum(axis=0)
    influence = divide(inputs.losses.T @ (1 - included), count_without) - divide(
        inputs.losses.T @ included, count_with
    )
    influence[:, (count_with == 0) | (count_without == 0)] = 0
    return influence
