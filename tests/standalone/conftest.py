"""The tiny networks and images of attribution's tests."""

from ..attribution.conftest import images, one_thread, scheduler_config, tiny_net

__all__ = ["images", "one_thread", "scheduler_config", "tiny_net"]
