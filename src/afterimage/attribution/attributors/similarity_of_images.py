"""Similarity of the images themselves: of their pixels, or of a classifier's features."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from afterimage.artifacts import ArtifactError
from afterimage.attribution.attributors.inner_products import cosine
from afterimage.attribution.attributors.inputs import AttributionInputs


def pixel_cosine(inputs: AttributionInputs) -> np.ndarray:
    """Cosine of the pixels, as values in [-1, 1]."""
    return cosine(inputs.queries.pixels(), inputs.train.pixels())


def pixel_l2(inputs: AttributionInputs) -> np.ndarray:
    """Negative Euclidean distance of the pixels, as values in [-1, 1]."""
    return -cdist(inputs.queries.pixels(), inputs.train.pixels())


def feature_cosine(inputs: AttributionInputs) -> np.ndarray:
    """Cosine of a classifier's features (published: CLIP's)."""
    if inputs.queries.embedding is None or inputs.train.embedding is None:
        raise ArtifactError(
            "feature_cosine needs a classifier's features of the queries and the training images"
        )
    return cosine(inputs.queries.embedding, inputs.train.embedding)
