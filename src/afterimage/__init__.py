"""Afterimage: does a diffusion model still hold its training images, and which published remedy
helps?"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMED_BY_PIPELINES = {
    "RAUNet": "afterimage.diffusion.rau_net",
    "TimestepRouter": "afterimage.diffusion.router",
    "ModelMixin": "diffusers.models.modeling_utils",  # by which diffusers sees how the two are loaded
}


def __getattr__(name: str) -> Any:
    """Find the networks that stored pipelines name, so that diffusers opens them after ``import
    afterimage`` alone."""
    if name not in _NAMED_BY_PIPELINES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NAMED_BY_PIPELINES[name]), name)
