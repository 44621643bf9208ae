"""Diffusion attribution score, DAS (Lin et al., ICLR 2025): the paper's form and the released ones.

How far the network's prediction for query z moves when training image i is left out:

    tau_i(z) = mean_t |J_zt (theta_-i - theta)|^2

The network is linearised in its parameters; J_i is image i's Jacobian and u_i the gradient of its
squared error. By Woodbury's identity one Newton step without image i, exact for a linear network,
gives

    theta_-i - theta = A u_i + A J_i^T (I - J_i A J_i^T)^-1 J_i A u_i,
    A = (sum_i J_i^T J_i + lambda I)^-1.

J_i is represented by ``ImageFeatures.rows``: random combinations of the outputs, one per timestep,
instead of all outputs. All timesteps share one A, since they share the parameters; the paper builds
one per timestep. u_i is the ``loss`` feature, which differs from the gradient of the squared error
by one factor for all images.

``das`` is this formula; ``das_scalar`` replaces the inverse by 1 / (1 - h_i). ``das_released``,
``das_released_squared``, ``das_revised`` and ``das_archive`` are what the authors' codes compute.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage import scratch
from afterimage.attribution.attributors.inputs import AttributionInputs


def das(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """DAS as in the paper: tau_i(z), with the inverse of I - J_i A J_i^T for each image."""
    spectrum, gradients = inputs.curvature, inputs.train.feature("loss")
    query_rows = inputs.queries.rows.reshape(-1, gradients.shape[1])
    newton_step = spectrum.bilinear(query_rows, gradients)
    z, u = spectrum.rotate(query_rows), spectrum.rotate(gradients)
    images, rows = inputs.train.rows.shape[:2]
    jacobians = spectrum.coordinates.reshape(images, rows, -1)

    def change(relative: float, some: slice) -> np.ndarray:
        weights = spectrum.weights(relative)
        weighted = jacobians[some] * weights
        block = np.eye(rows) - weighted @ jacobians[some].swapaxes(1, 2)
        solved = np.linalg.solve(block, weighted @ u[some, :, None])
        correction = (solved.swapaxes(1, 2) @ jacobians[some])[:, 0]
        return newton_step(relative, some) + (z * weights) @ correction.T

    return _mean_square(inputs, change)


def das_scalar(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """DAS with theta_-i - theta = A u_i / (1 - h_i), h_i the mean leverage of image i's rows.

    Exact for a network with a single output; otherwise an approximation.
    """
    spectrum, gradients = inputs.curvature, inputs.train.feature("loss")
    query_rows = inputs.queries.rows.reshape(-1, gradients.shape[1])
    newton_step = spectrum.bilinear(query_rows, gradients)
    rows = inputs.train.rows.shape[1]

    def change(relative: float, some: slice) -> np.ndarray:
        of_rows = slice(some.start * rows, some.stop * rows)
        leverage = spectrum.leverage(relative, of_rows).reshape(-1, rows).mean(axis=1)
        return newton_step(relative, some) / (1 - leverage)

    return _mean_square(inputs, change)


def _mean_square(
    inputs: AttributionInputs, change: Callable[[float, slice], np.ndarray]
) -> Callable[[float], np.ndarray]:
    """Return relative lambda -> mean squared change of each query over its rows, float64 (Q, N).

    In blocks of training images: all queries' rows for all of them would be T R times the scores.

    Args:
        inputs: What the scores are computed from.
        change: Relative lambda, training images -> change of every row of the queries.
    """
    images, rows, width = inputs.train.rows.shape
    queries, own = inputs.queries.rows.shape[:2]

    def scores(relative: float) -> np.ndarray:
        means = np.empty((queries, images))
        for some in scratch.blocks(images, max(rows * width, queries * own)):
            squares = np.square(change(relative, some))
            means[:, some] = squares.reshape(queries, own, -1).mean(axis=1)
        return means

    return scores


def das_released(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """DAS as first released (2024), before squaring: s_i(z) = phi_z A phi_i r_i / (1 - h_i).

    phi is the gradient of the mean predicted noise, a single scalar readout, divided by its norm at
    each timestep; r_i is the image's error weight and h_i its leverage. Later releases divide by
    (1 - h_i)^2, with h_i computed from products of queries and training images under a rescaled
    inverse, which is not a leverage; or they omit the division. For a scalar output, the theory
    gives the exponent 1.
    """
    spectrum = inputs.spectrum("mean/normalised")
    kernel = inputs.kernel("mean/normalised")
    return lambda relative: (
        kernel(relative) * inputs.train.residual / (1 - spectrum.leverage(relative))
    )


def das_released_squared(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """DAS as first released: s_i(z)^2, the square of a mean; the paper has the mean of squares."""
    released = das_released(inputs)
    return lambda relative: np.square(released(relative))


def das_revised(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """DAS of a later release (2026): (phi_z A phi_i)^2, phi as in ``das_released``."""
    return inputs.squared_kernel("mean/normalised")


def das_archive(inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """DAS of the archived scores (2026): ``das_revised`` with the mean of |f| as the readout.

    That the kernel is squared is inferred from the rest of that release.
    """
    return inputs.squared_kernel("l1/normalised")
