"""The kernels of torch's meta device, on which tensors have a shape and no data.

Many of them are written in Python. torch imports them with itself, and with them all its
decompositions: a sixth of a step's start-up. Steps use networks with data, so they put this import
off; what computes on the meta device imports the kernels first. Written for torch 2.13.0.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

MODULE = "torch._meta_registrations"


class _Without(MetaPathFinder, Loader):
    """Does, in the place of the module, the one thing that networks need of what it imports (at the
    end of ``torch._prims.rng_prims``): generators get their metaclass."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        return spec_from_loader(fullname, self) if fullname == MODULE else None

    def exec_module(self, module: ModuleType) -> None:
        sys.meta_path.remove(self)
        metaclass = import_module("torch._opaque_base").OpaqueBaseMeta
        import_module("torch._C")._set_generator_metaclass(metaclass)


def put_off_kernels() -> None:
    """Import torch without the kernels from now on; where it is imported already, they stay."""
    sys.meta_path.insert(0, _Without())


def import_kernels() -> None:
    """Import the kernels, if they were put off and torch is imported."""
    if isinstance(getattr(sys.modules.get(MODULE), "__loader__", None), _Without):
        del sys.modules[MODULE]
        import_module(MODULE)
