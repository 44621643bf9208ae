"""Scores that say how much of an image each training image made, one module each.

An attributor is a module with ``REGULARISED`` and ``scores``. It is found by name through ``config.ATTRIBUTORS``; adding one
touches no other.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Protocol, cast

import numpy as np

from afterimage.attribution.attributors.inputs import Evidence
from afterimage.config import ATTRIBUTORS


class Attributor(Protocol):
    """What an attributor's module provides.

    Attributes:
        REGULARISED: Whether the scores depend on lambda.
    """

    REGULARISED: bool

    def scores(self, evidence: Evidence) -> Callable[[float], np.ndarray]:
        """Return relative lambda -> scores, float64 (Q, N); larger: the training image lowered the query's loss more.

        Squared scores have no sign: larger is a larger effect either way.

        Raises:
            ArtifactError: if what the score needs is not there.
        """


def find(name: str) -> Attributor:
    """Return the module of the attributor called ``name``."""
    return cast(Attributor, import_module(ATTRIBUTORS[name]))
