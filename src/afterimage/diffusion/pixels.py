"""Images as stored, uint8 in (N, H, W, C), and as networks see them, float in (N, C, H, W) and
[-1, 1]."""

from __future__ import annotations

import numpy as np
import torch


def to_float(images: np.ndarray) -> torch.Tensor:
    """Scale uint8 images, (N, H, W, C), to float32 in [-1, 1], (N, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))) / 127.5 - 1


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Round float images in [-1, 1], (n, C, H, W), to uint8, (n, H, W, C)."""
    scaled = ((images / 2 + 0.5).clamp(0, 1) * 255).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
