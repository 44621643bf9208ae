"""Norm and alignment of the guidance (Asthana and Belagiannis 2026).

Two evaluations on pure noise: at the noisiest step the norm of the difference between the
predictions with and without text, which Wen et al. (2024) use, and at a timestep of little noise
the cosine between that difference and the prediction without text. The statistic is their weighted
sum. The cosine is over channels, averaged over positions, as in the authors' code.
"""

from __future__ import annotations

import torch

LATE = 0.04
"""Timestep of little noise, as a share of the training's: the third last of 50 in the authors'
code."""

WEIGHT = 2.0
"""Weight of the alignment next to the norm: theirs for Stable Diffusion 1; 0.1 for version 2."""


def alignment(unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
    """Return the cosine between the guidance and the unconditional prediction, float32 (n,).

    Args:
        unconditional: Predictions without text, (n, C, ...).
        conditional: Predictions with text, of the same shape.
    """
    guidance = conditional.float() - unconditional.float()
    cosine = torch.nn.functional.cosine_similarity(unconditional.float(), guidance, dim=1)
    return cosine.flatten(1).mean(dim=1)
