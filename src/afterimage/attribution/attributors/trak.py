"""TRAK (Park et al. 2023) and relatives: phi_z A phi_i, A = (Phi^T Phi + lambda I)^-1.

phi_i is the projected gradient of a scalar readout for training image i, phi_z that of the query,
and Phi stacks the phi_i.

Released DAS differs from TRAK and D-TRAK in three things at once: the readout, gradients of unit
norm at each timestep, and the square. The attributors named ``_normalised`` and ``_squared`` change
one thing each, so that their differences tell what each is worth; ``das_revised`` is both with
another readout.
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
    return inputs.kernel("loss")


def trak_normalised(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """``trak`` with each gradient divided by its norm before gradients are averaged."""
    return inputs.kernel("loss/normalised")


def trak_squared(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """``trak`` squared: the size of the influence, whatever its sign."""
    return inputs.squared_kernel("loss")


def trak_normalised_squared(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """``trak_normalised`` squared: ``das_revised`` with the loss as its readout."""
    return inputs.squared_kernel("loss/normalised")


def dtrak(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """D-TRAK (Zheng et al., ICLR 2024): phi is the gradient of the mean squared prediction."""
    return inputs.kernel("square")


def dtrak_normalised(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """``dtrak`` with each gradient divided by its norm before gradients are averaged."""
    return inputs.kernel("square/normalised")


def dtrak_squared(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """``dtrak`` squared."""
    return inputs.squared_kernel("square")


def dtrak_normalised_squared(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """``dtrak_normalised`` squared: ``das_revised`` with the mean of f^2 as its readout."""
    return inputs.squared_kernel("square/normalised")


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
