"""Leaving an image out of a linear model, where the formulas are exact: every image is left out and
the model fitted again."""

import numpy as np
import pytest

from afterimage.attribution.attributors.das import das, das_scalar
from afterimage.attribution.attributors.inputs import AttributionInputs, ImageFeatures
from afterimage.attribution.attributors.spectrum import Spectrum
from afterimage.images import Images


def fit(J: np.ndarray, y: np.ndarray, regulariser: float) -> np.ndarray:
    """Minimise sum |J_i theta - y_i|^2 + regulariser |theta|^2 over theta, for J, (N, R, p), and y,
    (N, R)."""
    rows = J.reshape(-1, J.shape[-1])
    return np.linalg.solve(rows.T @ rows + regulariser * np.eye(rows.shape[1]), rows.T @ y.ravel())


def linear(
    J: np.ndarray, y: np.ndarray, Jz: np.ndarray, relative: float
) -> tuple[AttributionInputs, np.ndarray]:
    """A linear model with all outputs as rows, and how its predictions change by a fit without each
    image, (Q, R, N)."""
    regulariser = Spectrum(J.reshape(-1, J.shape[-1])).regulariser(relative)
    theta = fit(J, y, regulariser)
    residuals = J @ theta - y
    gradients = np.einsum("nrp,nr->np", J, residuals)

    def side(rows: np.ndarray, loss: np.ndarray) -> ImageFeatures:
        images = Images.of(np.zeros((len(rows), 1, 1, 1), np.uint8))
        return ImageFeatures(images, {"loss": loss}, rows, np.ones(len(rows)), None)

    queries = side(Jz, np.zeros((len(Jz), J.shape[-1])))
    inputs = AttributionInputs(
        side(J, gradients), queries, (), np.zeros((0, len(J)), bool), np.zeros((0, len(Jz))), 0
    )
    rest = [
        fit(np.delete(J, i, axis=0), np.delete(y, i, axis=0), regulariser) for i in range(len(J))
    ]
    return inputs, np.stack([Jz @ (one - theta) for one in rest], axis=-1)


def dense(n: int, r: int, p: int, q: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + r + p)
    return (
        rng.standard_normal((n, r, p)),
        rng.standard_normal((n, r)),
        rng.standard_normal((q, r, p)),
    )


def random_features(
    n: int, timesteps: int, pixels: int, width: int, q: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A denoiser eps(x_t, t) = W psi(x_t, t), psi fixed random features: all outputs as rows, (n, T
    D, D width)."""
    rng = np.random.default_rng(5)
    into = rng.standard_normal((width, pixels + 1))

    def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.uniform(-1, 1, (count, 1, pixels))
        noise = rng.standard_normal((count, timesteps, pixels))
        level = np.linspace(0.1, 0.9, timesteps)[:, None]
        noisy = np.sqrt(1 - level) * x + np.sqrt(level) * noise
        psi = np.tanh(
            np.concatenate([noisy, np.broadcast_to(level, (count, timesteps, 1))], axis=2) @ into.T
        )
        J = np.einsum("ntw,cd->ntcdw", psi, np.eye(pixels))
        return J.reshape(count, timesteps * pixels, pixels * width), noise.reshape(count, -1)

    (J, y), (Jz, _) = rows(n), rows(q)
    return J, y, Jz


MODELS = {
    "many rows": dense(20, 5, 12),
    "few rows": dense(6, 3, 40),
    "one output": dense(9, 1, 4),
    "denoiser": random_features(10, 3, 4, 9),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("relative", [1e-4, 0.1, 30.0])
def test_das_is_the_squared_change_of_the_prediction(name, relative):
    """DAS known answers 2 and 3: the block form equals refitting without each image, whatever
    lambda."""
    inputs, change = linear(*MODELS[name], relative)
    np.testing.assert_allclose(das(inputs)(relative), np.square(change).mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("relative", [1e-4, 0.1, 30.0])
def test_the_scalar_shortcut_is_exact_for_one_output(relative):
    """DAS known answer 1: theta_-i - theta = A x_i r_i / (1 - h_i) for ridge regression."""
    inputs, change = linear(*MODELS["one output"], relative)
    np.testing.assert_allclose(
        das_scalar(inputs)(relative), np.square(change).mean(axis=1), rtol=1e-6
    )
    J, y, Jz = MODELS["one output"]
    spectrum = inputs.curvature
    residuals = J @ fit(J, y, spectrum.regulariser(relative)) - y
    signed = (
        spectrum.kernel(Jz[:, 0])(relative) * residuals[:, 0] / (1 - spectrum.leverage(relative))
    )
    np.testing.assert_allclose(signed, change[:, 0], rtol=1e-6)


@pytest.mark.parametrize("name", ["many rows", "few rows", "denoiser"])
def test_the_scalar_shortcut_is_not_exact_for_several_outputs(name):
    """DAS known answer 2: near, but not equal."""
    relative = 0.1
    inputs, change = linear(*MODELS[name], relative)
    truth = np.square(change).mean(axis=1)
    error = np.abs(das_scalar(inputs)(relative) / truth - 1)
    assert error.max() > 0.01
    assert np.median(error) < 0.5


def test_the_mean_of_squares_is_not_below_the_square_of_the_mean():
    """DAS known answer 9: equal for one timestep."""
    inputs, _ = linear(*MODELS["many rows"], 0.1)
    queries = inputs.queries
    mean = ImageFeatures(
        queries.images,
        queries.features,
        queries.rows.mean(axis=1, keepdims=True),
        queries.residual,
        None,
    )
    squared_mean = das(AttributionInputs(inputs.train, mean, (), inputs.masks, inputs.losses, 0))(
        0.1
    )
    assert (das(inputs)(0.1) > squared_mean).all()
    first = ImageFeatures(
        queries.images, queries.features, queries.rows[:, :1], queries.residual, None
    )
    thrice = ImageFeatures(
        queries.images,
        queries.features,
        np.repeat(queries.rows[:, :1], 3, axis=1),
        queries.residual,
        None,
    )
    one, three = (
        das(AttributionInputs(inputs.train, some, (), inputs.masks, inputs.losses, 0))(0.1)
        for some in (first, thrice)
    )
    np.testing.assert_allclose(one, three, rtol=1e-9)


def test_leaving_out_one_of_two_copies_moves_less_than_leaving_out_a_single_image():
    """A copy explains the other away: without it the prediction for the image hardly moves."""
    J, y, _ = dense(6, 3, 40)
    alone, _ = linear(J, y, J[:1], 0.01)
    J, y = np.concatenate([J, J[:1]]), np.concatenate([y, y[:1]])
    twice, change = linear(J, y, J[:1], 0.01)
    scores = das(twice)(0.01)
    np.testing.assert_allclose(scores, np.square(change).mean(axis=1), rtol=1e-6)
    assert scores[0, 0] == pytest.approx(scores[0, -1])
    assert scores[0, 0] < 0.1 * das(alone)(0.01)[0, 0]
