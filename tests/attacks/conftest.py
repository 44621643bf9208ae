"""Diffusion models in closed form, and a small DDIM sampler to draw from them: known truth without any training.

Each denoiser takes noisy images, (B, d) around [-1, 1], and alpha-bar, and returns the expected clean image under its own idea of
the training distribution.
"""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import softmax


def empirical_bayes(data, bandwidth=0.0):
    """The perfect memoriser: the data are points (or, with a bandwidth, narrow Gaussians around points)."""

    def denoise(x, abar):
        signal = np.sqrt(abar)
        variance = 1 - abar + abar * bandwidth**2
        squares = (x**2).sum(1)[:, None] - 2 * signal * x @ data.T + abar * (data**2).sum(1)
        mean = softmax(-squares / (2 * variance), axis=1) @ data
        return mean + signal * bandwidth**2 / variance * (x - signal * mean)

    return denoise


def gaussian_fit(data):
    """The model that knows mean and covariance and nothing of any single image."""
    mean = data.mean(0)
    values, vectors = np.linalg.eigh(np.cov(data.T))

    def denoise(x, abar):
        gain = np.sqrt(abar) * values / (abar * values + 1 - abar)
        return mean + ((x - np.sqrt(abar) * mean) @ vectors * gain) @ vectors.T

    return denoise


def ddim(denoise, count, size, seed, steps=50):
    """Draw deterministic DDIM samples, float64 (count, size), on a cosine schedule."""
    abars = np.cos(np.linspace(0.999, 0, steps + 1) * np.pi / 2) ** 2
    x = np.random.default_rng(seed).standard_normal((count, size))
    for abar, following in pairwise(abars):
        clean = denoise(x, abar)
        noise = (x - np.sqrt(abar) * clean) / np.sqrt(1 - abar)
        x = np.sqrt(following) * clean + np.sqrt(1 - following) * noise
    return x


def smooth_images(count, seed, side=8):
    """Smooth random grey images, float64 (count, side, side, 1) in [0, 1]: a few random low waves each."""
    rng = np.random.default_rng(seed)
    grid = (np.arange(side) + 0.5) / side
    waves = np.cos(np.pi * np.arange(4)[:, None] * grid)
    fields = np.einsum(
        "nij,ih,jw->nhw", rng.standard_normal((count, 4, 4)) / (1 + np.add.outer(np.arange(4), np.arange(4))), waves, waves
    )
    low, high = fields.min((1, 2), keepdims=True), fields.max((1, 2), keepdims=True)
    return ((fields - low) / (high - low))[..., None]


def to_uint8(x, shape):
    """Quantise samples around [-1, 1] to images."""
    return np.rint(np.clip((x.reshape(-1, *shape) + 1) / 2, 0, 1) * 255).astype(np.uint8)


@pytest.fixture(scope="session")
def oracles():
    """The functions above."""
    return SimpleNamespace(
        empirical_bayes=empirical_bayes, gaussian_fit=gaussian_fit, ddim=ddim, smooth_images=smooth_images, to_uint8=to_uint8
    )
