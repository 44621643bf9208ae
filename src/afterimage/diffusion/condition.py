"""What a network is given besides noisy images and timesteps: labels, texts, or several tensors by
name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

Condition = Mapping[str, "torch.Tensor | Condition"]
"""Argument of a network -> a tensor with one row per sample, or several of them by name. Empty
without a condition."""


def each_tensor(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return ``value`` with ``change`` applied to every tensor in it: in mappings, tuples and
    objects of dataclasses, at any depth. Everything else stays."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: each_tensor(part, change) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(each_tensor(part, change) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        return replace(value, **{name: each_tensor(getattr(value, name), change) for name in names})
    return value
