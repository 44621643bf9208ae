"""The spectrum against inverses written out, on random features with fewer and with more images
than coordinates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage.artifacts import ArtifactError
from afterimage.attribution.attributors.inner_products import cosine, inner, norms
from afterimage.attribution.attributors.spectrum import Spectrum

SHAPES = [(6, 15), (15, 6), (8, 8)]


def features(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k))


def inverse(phi: np.ndarray, relative: float) -> np.ndarray:
    """A of the training rows ``phi``, (N, k), written out, (k, k)."""
    n, k = phi.shape
    regulariser = relative * np.trace(phi.T @ phi) / min(n, k)
    return np.linalg.inv(phi.T @ phi + regulariser * np.eye(k))


def relative_for(phi: np.ndarray, regulariser: float) -> float:
    return regulariser / Spectrum(phi).regulariser(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relative", [1e-3, 0.7, 50.0])
def test_primal_and_dual_give_what_the_inverse_gives(shape, relative):
    """DAS known answer 4: kernel, leverage and length of A phi, from one decomposition, in both
    forms."""
    phi, z = features(*shape), features(3, shape[1], 1)
    spectrum, A = Spectrum(phi), inverse(phi, relative)
    kernel = spectrum.kernel(z)(relative)
    np.testing.assert_allclose(kernel, z @ A @ phi.T, rtol=1e-8, atol=1e-10)
    gram = phi @ phi.T + spectrum.regulariser(relative) * np.eye(len(phi))
    np.testing.assert_allclose(kernel, z @ phi.T @ np.linalg.inv(gram), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(
        spectrum.leverage(relative), np.diag(phi @ A @ phi.T), rtol=1e-8, atol=1e-10
    )
    np.testing.assert_allclose(spectrum.preconditioned_norms(relative), norms(phi @ A), rtol=1e-8)

    U, S, _ = np.linalg.svd(phi, full_matrices=False)
    s, regulariser = S**2, spectrum.regulariser(relative)
    np.testing.assert_allclose(
        spectrum.leverage(relative), U**2 @ (s / (s + regulariser)), rtol=1e-8
    )
    np.testing.assert_allclose(
        spectrum.preconditioned_norms(relative) ** 2, U**2 @ (s / (s + regulariser) ** 2), rtol=1e-8
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relative", [1e-6, 1e-3, 1e3])
def test_vectors_outside_the_rows_meet_lambda_alone(shape, relative):
    """a A b^T for vectors that are no mixtures of the rows, and for linearly dependent rows."""
    phi = features(*shape)
    phi[1] = phi[0]
    phi[2] = phi[3] - phi[4]
    a, b = features(4, shape[1], 1), features(5, shape[1], 2)
    spectrum, A = Spectrum(phi), inverse(phi, relative)
    np.testing.assert_allclose(
        spectrum.bilinear(a, b)(relative, slice(None)), a @ A @ b.T, atol=1e-9 * np.abs(A).max()
    )

    U, S, _ = np.linalg.svd(phi, full_matrices=False)
    within = (U * S**2 / (S**2 + spectrum.regulariser(relative))) @ U.T
    np.testing.assert_allclose(
        spectrum.bilinear(phi, phi)(relative, slice(None)), within, rtol=1e-8, atol=1e-8
    )


def test_one_direction_that_no_row_has():
    spectrum = Spectrum(np.array([[2.0, 0, 0], [0, 2.0, 0]]))
    unit = np.eye(3)
    assert spectrum.regulariser(0.25) == pytest.approx(1)
    np.testing.assert_allclose(
        spectrum.bilinear(unit, unit)(0.25, slice(None)), np.diag([0.2, 0.2, 1]), atol=1e-15
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(-6, 6), st.integers(0, 1000))
def test_leverages_are_shares(n, k, power, seed):
    """DAS known answer 7: 0 <= h < 1, and their sum is the trace of K (K + lambda)^-1, at most
    min(N, k)."""
    phi, relative = features(n, k, seed), 10.0**power
    spectrum = Spectrum(phi)
    h = spectrum.leverage(relative)
    assert (h >= 0).all()
    assert (h < 1).all()
    gram, regulariser = phi @ phi.T, spectrum.regulariser(relative)
    trace = np.trace(gram @ np.linalg.inv(gram + regulariser * np.eye(n)))
    np.testing.assert_allclose(h.sum(), trace, rtol=1e-5)
    assert h.sum() <= min(n, k)


@pytest.mark.parametrize("shape", SHAPES)
def test_large_lambda_leaves_the_inner_product(shape):
    """DAS known answer 8."""
    phi, z = features(*shape), features(4, shape[1], 1)
    spectrum = Spectrum(phi)
    kernel = spectrum.kernel(z)(1e9)
    np.testing.assert_allclose(kernel * spectrum.regulariser(1e9), z @ phi.T, rtol=1e-6)
    np.testing.assert_array_equal(np.argsort(kernel, axis=1), np.argsort(z @ phi.T, axis=1))


def test_small_lambda_gives_every_training_image_to_itself():
    """DAS known answer 8: with at least as many coordinates as images the kernel goes to the
    identity, the leverages to 1."""
    phi = features(6, 15)
    spectrum = Spectrum(phi)
    np.testing.assert_allclose(spectrum.kernel(phi)(1e-12), np.eye(6), atol=1e-9)
    np.testing.assert_allclose(spectrum.leverage(1e-12), 1, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_scaling_all_gradients_is_scaling_lambda(shape):
    """DAS known answer 6: gradients times c at lambda are gradients at lambda / c^2; a relative
    lambda does not notice."""
    phi, z, c = features(*shape), features(3, shape[1], 1), 7.0
    plain = Spectrum(phi).kernel(z)
    scaled = Spectrum(c * phi).kernel(c * z)
    np.testing.assert_allclose(scaled(0.3), plain(0.3), rtol=1e-9, atol=1e-12)
    absolute = scaled(relative_for(c * phi, 2.0))
    np.testing.assert_allclose(
        absolute, plain(relative_for(phi, 2.0 / c**2)), rtol=1e-9, atol=1e-12
    )
    assert np.abs(absolute - plain(relative_for(phi, 2.0))).max() > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_order_does_not_matter_and_copies_are_alike(shape):
    """DAS known answer 6."""
    phi, z = features(*shape), features(3, shape[1], 1)
    order = np.random.default_rng(2).permutation(len(phi))
    np.testing.assert_allclose(
        Spectrum(phi[order]).kernel(z)(0.1), Spectrum(phi).kernel(z)(0.1)[:, order], atol=1e-10
    )
    twice = Spectrum(np.concatenate([phi, phi[:1]]))
    np.testing.assert_allclose(twice.kernel(z)(0.1)[:, 0], twice.kernel(z)(0.1)[:, -1], atol=1e-10)
    assert twice.leverage(0.1)[0] == pytest.approx(twice.leverage(0.1)[-1])
    assert twice.leverage(0.1)[0] < 0.5


def test_a_rescaled_inverse_ranks_alike_but_has_no_leverages():
    """DAS known answer 6: A over its mean absolute entry multiplies all scores by one number, and
    puts h outside [0, 1)."""
    phi, z = 10 * features(6, 15), features(3, 15, 1)
    A = inverse(phi, 1e-3)
    rescaled = A / np.abs(A).mean()
    spectrum = Spectrum(phi)
    ratio = spectrum.kernel(z)(1e-3) / (z @ rescaled @ phi.T)
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-6)
    assert (spectrum.leverage(1e-3) < 1).all()
    assert (np.diag(phi @ rescaled @ phi.T) > 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_numbers_are_refused(bad):
    phi = features(3, 4)
    phi[1, 2] = bad
    with pytest.raises(ArtifactError, match="NaN or infinite"):
        Spectrum(phi)


def test_features_of_nothing_but_zeros_are_refused():
    with pytest.raises(ArtifactError, match="all 0"):
        Spectrum(np.zeros((3, 4), np.float32))


def test_products_are_summed_in_float64_over_many_blocks():
    a, b = (
        np.random.default_rng(seed).standard_normal((3, 10_000)).astype(np.float32)
        for seed in (0, 1)
    )
    exact = a.astype(np.float64) @ b.astype(np.float64).T
    np.testing.assert_allclose(inner(a, b), exact, rtol=1e-12)
    np.testing.assert_allclose(norms(a), np.linalg.norm(a.astype(np.float64), axis=1), rtol=1e-12)
    np.testing.assert_allclose(
        inner(a, a), a.astype(np.float64) @ a.astype(np.float64).T, rtol=1e-12
    )


def test_cosines_of_known_angles():
    angles = np.radians([0, 60, 180])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(
        cosine(5 * vectors[:1], np.concatenate([vectors, np.zeros((1, 2))])),
        [[1, 0.5, -1, 0]],
        atol=1e-12,
    )
