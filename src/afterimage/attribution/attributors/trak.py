"""TRAK (Park et al. 2023) and relatives: phi_z A phi_i, A = (Phi^T Phi + lambda I)^-1.

phi_i is the projected gradient of a scalar readout for training image i, phi_z that of the query,
and Phi stacks the phi_i.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors.inner_products import divide, norms
from afterimage.attribution.attributors.inputs import AttributionInputs


def trak(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """TRAK for diffusion models, as in D-TRAK's comparison: phi_z A phi_i, phi the loss gradient.

    For classifiers, TRAK also multiplies by the training image's residual; for diffusion models
    this factor is omitted.
    """
    return inputs.spectrum("loss").kernel(inputs.queries.feature("loss"))


def dtrak(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """D-TRAK (Zheng et al., ICLR 2024): phi is the gradient of the mean squared prediction."""
    return inputs.spectrum("square").kernel(inputs.queries.feature("square"))


def relative_influence(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """Relative influence (Barshan et al. 2020): TRAK / |A phi_i|, the norm of the change."""
    influence, spectrum = trak(inputs), inputs.spectrum("loss")
    return lambda relative: divide(influence(relative), spectrum.preconditioned_norms(relative))


def renormalised_influence(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """Renormalised influence (Hammoudeh & Lowd 2022): TRAK / |phi_i|, the gradient's norm."""
    influence, gradient_norms = trak(inputs), norms(inputs.train.feature("loss"))
    return lambda relative: divide(influence(relative), gradient_norms)


def journey_trak(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """Journey-TRAK (Georgiev et al. 2023): TRAK with phi_z along the query's sampling trajectory.

    Defined for generations only.
    """
    return inputs.spectrum("loss").kernel(inputs.queries.feature("journey"))
