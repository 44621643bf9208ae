"""Inner products and cosines of the loss gradients of query and training image."""

from __future__ import annotations

import numpy as np

from afterimage.attribution.attributors.inner_products import cosine, inner
from afterimage.attribution.attributors.inputs import AttributionInputs


def gradient_dot(inputs: AttributionInputs) -> np.ndarray:
    """Inner product of the loss gradients at the final network: phi_z . phi_i."""
    return inner(inputs.queries.feature("loss"), inputs.train.feature("loss"))


def gradient_cosine(inputs: AttributionInputs) -> np.ndarray:
    """Cosine of the loss gradients at the final network (Charpiat et al. 2019)."""
    return cosine(inputs.queries.feature("loss"), inputs.train.feature("loss"))


def tracin(inputs: AttributionInputs) -> np.ndarray:
    """TracInCP (Pruthi et al. 2020): mean over checkpoints of the inner product of loss gradients.

    All checkpoints have the same weight, as in D-TRAK's comparison; the paper weights them by the
    learning rate.
    """
    return inputs.mean_over_checkpoints(inner)


def gas(inputs: AttributionInputs) -> np.ndarray:
    """Gradient aggregated similarity (Hammoudeh & Lowd 2022): mean cosine over checkpoints."""
    return inputs.mean_over_checkpoints(cosine)
