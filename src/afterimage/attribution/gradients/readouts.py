"""Readouts: scalar functions of a network's prediction whose gradients are compared between images.

TRAK calls them model output functions. With f the prediction for one image, D = C H W numbers, and
J its Jacobian, the gradient of a readout with respect to the weights is J^T c. The functions here
return c, the readout's gradient with respect to f, so that one forward pass serves all readouts.

- mean: the mean of f. The release of DAS (Lin et al., ICLR 2025).
- l1: the mean of |f|. What an archive of DAS results by its first author calls DAS.
- square: the mean of f^2. D-TRAK (Zheng et al., ICLR 2024).
- loss: the mean of (f - target)^2, the training loss. TRAK (Park et al., ICML 2023) as adapted to
  diffusion models by D-TRAK.
- probe: v . f with a random sign vector v. Since E[(v . J u)^2] = |J u|^2, probes represent the
  whole vector f, as in the definition of DAS in its paper, and the sum of their outer products is
  an unbiased estimate of the Gauss-Newton matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Readout = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(prediction, target) -> c; all (B, C, H, W)."""


def mean(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.full_like(prediction, 1 / prediction[0].numel())


def l1(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return prediction.sign() / prediction[0].numel()


def square(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 2 * prediction / prediction[0].numel()


def loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 2 * (prediction - target) / prediction[0].numel()


READOUTS: dict[str, Readout] = {"mean": mean, "l1": l1, "square": square, "loss": loss}
"""Name of a readout -> the function that returns c. That of ``probe`` is v itself."""
