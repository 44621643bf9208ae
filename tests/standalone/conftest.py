"""The tiny networks and images of attribution's tests."""

from ..attribution.conftest import *  # noqa: F403
