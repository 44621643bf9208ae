"""A few augmentations that suit any image: mirroring, shifts and brightness.

They replace the RandAugment of IET-AGC+ (Guan et al. 2025), which needs torchvision; which of
RandAugment's operations they use, and how strongly, is not published.
"""

from __future__ import annotations

import torch

SHIFT = 1 / 8
"""Largest shift as a share of the image's sides."""
BRIGHTNESS = 0.2
"""Largest change of brightness, in units of the range [-1, 1] of pixels."""


def vary(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return every image mirrored or not, shifted, and brighter or darker; pixels exposed by the
    shift replicate the border.

    Args:
        images: float32, (B, C, H, W), in [-1, 1], on the CPU.
        generator: All random numbers; draws for image i depend only on B and i, not on the images.
    """
    count, _, height, width = images.shape
    mirrored = torch.rand(count, generator=generator) < 0.5
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * SHIFT
    brightness = (torch.rand(count, generator=generator) * 2 - 1) * BRIGHTNESS
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    rows = (
        (torch.arange(height) - (shift[:, 0] * height).round()[:, None]).clamp(0, height - 1).long()
    )
    columns = (
        (torch.arange(width) - (shift[:, 1] * width).round()[:, None]).clamp(0, width - 1).long()
    )
    shifted = images[
        torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]
    ].permute(0, 3, 1, 2)
    return (shifted + brightness[:, None, None, None]).clamp(-1, 1)
