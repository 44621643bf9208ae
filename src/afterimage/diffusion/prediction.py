"""What the prediction of a network says about the image."""

from __future__ import annotations

import torch


def clean_image(
    noisy: torch.Tensor, prediction: torch.Tensor, signal: float, kind: str
) -> torch.Tensor:
    """Return the image that a prediction stands for, in units of the image.

    Args:
        noisy: ``signal`` times the image plus noise: of a variance that keeps the sum of squares
            at 1 or, for ``kind`` flow, ``signal`` plus the share of noise are 1; (n, ...).
        prediction: Of the network, same shape.
        signal: sqrt(alpha_bar), or 1 - sigma of a flow.
        kind: What is predicted: ``epsilon``, ``v_prediction``, ``sample`` or ``flow``.
    """
    noise = (1 - signal**2) ** 0.5
    if kind == "epsilon":
        return (noisy - noise * prediction) / signal
    if kind == "v_prediction":
        return signal * noisy - noise * prediction
    if kind == "flow":
        return noisy - (1 - signal) * prediction
    return prediction
