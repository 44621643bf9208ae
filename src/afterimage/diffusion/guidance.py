"""Classifier-free guidance (Ho & Salimans 2022): the predictions of a network for a batch with its
conditions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

Conditions = dict[str, torch.Tensor]
"""Argument of a network -> labels int64, (n,), or embeddings of texts float32, (n, L, D)."""


@dataclass(frozen=True)
class Guided:
    """A network and the conditions of a batch of n images.

    Attributes:
        net: Called as ``net(x, t)``, with the conditions by name.
        given: Conditions of the images; empty for a network without.
        nulls: Those of no condition; empty if the network does not know them.
        scale: w: the prediction is null + w (conditional - null).
        precision: Arithmetic of the network, ``fp32`` or ``bf16``.
    """

    net: torch.nn.Module
    given: Conditions
    nulls: Conditions
    scale: float
    precision: str = "fp32"

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the prediction for images, (n, C, H, W), at one timestep."""
        if self.scale == 1 or not self.nulls:
            return self.predicted(x, t, self.given)
        if self.scale == 0:
            return self.predicted(x, t, self.nulls)
        return self.combined(*self.branches(x, t))

    def combined(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        """Return the prediction that is made of those with conditions and without."""
        return unconditional + self.scale * (conditional - unconditional)

    def branches(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the predictions with conditions and without; in one pass."""
        both = {name: torch.cat([self.given[name], self.nulls[name]]) for name in self.given}
        conditional, unconditional = self.predicted(torch.cat([x, x]), t, both).chunk(2)
        return conditional, unconditional

    def predicted(self, x: torch.Tensor, t: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """Return what the network predicts for images under some conditions, of their type."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            prediction = self.net(x, t, return_dict=False, **conditions)[0]
        return prediction.to(x.dtype)

    def with_conditions(self, given: Conditions) -> Guided:
        """Return the same network with other conditions of the images."""
        return replace(self, given=given)

    def __getitem__(self, rows: torch.Tensor) -> Guided:
        """Return the network with the conditions of some images."""
        given, nulls = (
            {name: tensor[rows] for name, tensor in conditions.items()}
            for conditions in (self.given, self.nulls)
        )
        return replace(self, given=given, nulls=nulls)
