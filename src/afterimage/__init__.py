"""Afterimage: does a diffusion model still hold its training images, and which published remedy
helps?"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMED_BY_PIPELINES = {
    "RAUNet": "afterimage.diffusion.rau_net",
    "RAUNetCondition": "afterimage.diffusion.rau_net",
    "TimestepRouter": "afterimage.diffusion.router",
    # diffusers looks it up to decide how to load the two.
    "ModelMixin": "diffusers.models.modeling_utils",
}


def __getattr__(name: str) -> Any:
    """Look up the networks named by stored pipelines, so that diffusers opens them after ``import
    afterimage`` alone."""
    if name not in _NAMED_BY_PIPELINES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NAMED_BY_PIPELINES[name]), name)
