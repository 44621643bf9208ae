"""One-step extraction (Webster 2023): memorised prompts give a sharp image after one step.

With the network's parameters at hand, the statistic is the denoising confidence score: the mean
squared difference between the initial noise and the image of one step. Without them, it is the
share of edges that the one-step images of several seeds have in common.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

SEEDS = 4
"""Images whose edges are compared, as published."""

SIDE = 256
"""Larger images are resized to this width and height, as published."""

EDGE = 0.5
"""Gradient magnitude per channel, of values in [0, 1], from which a pixel is an edge; 1.5 over
three channels, as published."""


def confidence(noise: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Return the denoising confidence score, float32 (n,).

    Args:
        noise: Initial noise in units of the image, i.e. with the standard deviation sigma that it
            has there, (n, ...).
        image: Images of one step, of the same shape.
    """
    return (noise.float() - image.float()).square().flatten(1).mean(dim=1)


def edge_consistency(images: np.ndarray) -> float:
    """Return the share of pixels that are edges in more than half of the images, in [0, 1].

    Args:
        images: uint8, (n, H, W, C), one-step images of one prompt with different seeds.
    """
    edges = np.mean([_edges(_resized(image)) for image in images], axis=0)
    return float((edges > 0.5).mean())


def _resized(image: np.ndarray) -> np.ndarray:
    """Return an image of at most ``SIDE`` pixels per side, with values in [0, 1]."""
    if max(image.shape[:2]) <= SIDE:
        return image / 255
    small = Image.fromarray(image.squeeze()).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(small).reshape(SIDE, SIDE, -1) / 255


def _edges(image: np.ndarray) -> np.ndarray:
    gradients = (ndimage.sobel(image, axis=axis) for axis in (0, 1))
    return np.hypot(*gradients).mean(axis=2) > EDGE
