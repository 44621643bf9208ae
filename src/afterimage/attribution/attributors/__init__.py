"""Attributors: scores that say how much each training image contributed to an image.

An attributor is a function of the name that it has in ``config.attribution.ATTRIBUTOR_TABLE``, in
the module of its family. To add one, write the function and its row of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import numpy as np

from afterimage.attribution.attributors.inputs import AttributionInputs
from afterimage.config.attribution import ATTRIBUTOR_TABLE, ATTRIBUTORS


def scorer(name: str, inputs: AttributionInputs) -> Callable[[float], np.ndarray]:
    """Return relative lambda -> scores of one attributor, float64 (Q, N).

    A larger score means that the training image lowered the query's loss more; squared scores
    measure the size of the effect, whatever its sign. Attributors that are not regularised give the
    same scores for every lambda.

    Args:
        name: Key of ``ATTRIBUTOR_TABLE``.
        inputs: What the scores are computed from.

    Raises:
        ArtifactError: if an input that the attributor needs is missing.
        TypeError: if the attributor's row of the table is wrong about ``regularised``.
    """
    scores = getattr(import_module(ATTRIBUTORS[name]), name)(inputs)
    if callable(scores) is not ATTRIBUTOR_TABLE[name].regularised:
        raise TypeError(
            f"attributor {name}: must return a function of lambda if and only if regularised is "
            "True in config.attribution.ATTRIBUTOR_TABLE"
        )
    return scores if callable(scores) else lambda relative: scores
