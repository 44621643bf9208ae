"""The magnitude of the text-conditional noise difference (Wen et al. 2024, equation 3).

On a memorised prompt the text pulls the prediction of the network further away from the prediction
without text: the statistic is the l2 norm of their difference, averaged over the steps of a drawing
and over drawings. The first step alone is almost as good.
"""

from __future__ import annotations

import torch


def magnitude(unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
    """Return the l2 norm of the difference of two predictions, float32 (n,).

    Args:
        unconditional: Predictions without text, (n, ...).
        conditional: Predictions with text, of the same shape.
    """
    return (conditional.float() - unconditional.float()).flatten(1).norm(dim=1)
