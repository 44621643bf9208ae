"""Tiny networks and a few digits to take gradients of."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from sklearn.datasets import load_digits

from afterimage.config import Diffusion, Model, TransferBlocks
from afterimage.diffusion.model import build_scheduler, build_unet
from afterimage.images import Images

TINY = Model(channels=[8, 16], attention=[False, True], layers_per_block=1, norm_groups=4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums come in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_net():
    """Return a function that builds an untrained U-Net with attention: plain, conditional (10
    labels) or rau_net."""

    def build(kind: str = "plain", channels: int = 1, dropout: float = 0.0) -> UNet2DModel:
        blocks = TransferBlocks(groups=[1, 2], variant="k_conv_silu") if kind == "rau_net" else None
        model = TINY.model_copy(update={"dropout": dropout})
        return build_unet(
            model, (8, 8, channels), 10 if kind == "conditional" else None, seed=1, blocks=blocks
        ).eval()

    return build


@pytest.fixture(scope="session")
def scheduler_config() -> dict:
    return dict(build_scheduler(Diffusion()).config)


@pytest.fixture(scope="session")
def images() -> Images:
    """17 digits with labels, and with ids that are not their places."""
    digits = load_digits()
    pixels = np.round(digits.images[:17] * 255 / 16).astype(np.uint8)[..., None]
    return Images.of(pixels, np.arange(17) * 3 + 5, digits.target[:17])
