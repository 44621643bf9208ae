"""What each published method changes about plain training, one module per method.

A method is a module with ``train(run: TrainingRun) -> Trained``. It is looked up by name in
``config.METHODS``; adding one leaves the others unchanged. It builds its learners, defines an
update, and passes both to ``TrainingRun.run``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from afterimage.config import METHODS
from afterimage.training.job import Trained, TrainingRun


class Method(Protocol):
    """What a method's module provides."""

    def train(self, run: TrainingRun) -> Trained:
        """Train, or resume training."""


def find(name: str) -> Method:
    """Return the module of the method called ``name``."""
    return cast(Method, import_module(METHODS[name]))
