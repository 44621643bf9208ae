"""Diffusion attribution score, DAS (Lin et al., ICLR 2025), in the paper's form: how far the prediction moves without an image.

    tau_i(z) = mean_t |J_zt (theta_-i - theta)|^2

The network is taken as linear in its parameters, with J_i the rows of image i's Jacobian and u_i the gradient of its squared
error. One Newton step without image i is then, by Woodbury's identity and exactly so for a linear network,

    theta_-i - theta = A u_i + A J_i^T (I - J_i A J_i^T)^-1 J_i A u_i,    A = (sum_i J_i^T J_i + lambda I)^-1.

The rows are those of ``Side.rows``: random mixtures of the outputs, one per timestep, in place of all outputs. All timesteps
share one A, since they share the parameters; the paper builds one per timestep. u_i is the ``loss`` feature, which differs from
the gradient of the squared error by one factor for all images.

``das_scalar`` replaces the inverse by 1 / (1 - h_i). ``das_released``, ``das_released_squared``, ``das_revised`` and
``das_archive`` are what the authors' codes compute instead.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = True


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    spectrum, gradients = evidence.curvature, evidence.train.feature("loss")
    outputs = evidence.queries.rows.reshape(-1, gradients.shape[1])
    step = spectrum.bilinear(outputs, gradients)
    z, u = spectrum.rotate(outputs), spectrum.rotate(gradients)
    rows = spectrum.coordinates.reshape(*evidence.train.rows.shape[:2], -1)

    def at(relative: float) -> np.ndarray:
        weights = spectrum.weights(relative)
        correction = np.empty_like(u)
        for i, own in enumerate(rows):
            weighted = own * weights
            correction[i] = (
                np.linalg.solve(np.eye(len(own)) - weighted @ own.T, weighted @ u[i]) @ own
            )
        moved = step(relative) + (z * weights) @ correction.T
        return np.square(moved).reshape(*evidence.queries.rows.shape[:2], -1).mean(axis=1)

    return at
