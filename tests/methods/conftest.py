"""The runs of training's tests."""

from ..training.conftest import *  # noqa: F403
