"""Cosine of the classifier's features of query and training image (published: of CLIP's)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from afterimage.artifacts import ArtifactError
from afterimage.attribution.attributors.inner_products import cosine
from afterimage.attribution.attributors.inputs import Evidence

REGULARISED = False


def scores(evidence: Evidence) -> Callable[[float], np.ndarray]:
    if evidence.queries.embedding is None or evidence.train.embedding is None:
        raise ArtifactError(
            "feature_cosine needs a classifier's features of the queries and the training images"
        )
    found = cosine(evidence.queries.embedding, evidence.train.embedding)
    return lambda _: found
