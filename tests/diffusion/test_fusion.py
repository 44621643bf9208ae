"""Dual fusion: what is mixed into a batch, and that nothing else changes."""

import numpy as np
import pytest
import torch

from afterimage.config import Diffusion
from afterimage.diffusion.fusion import Fusion
from afterimage.diffusion.model import build_scheduler
from afterimage.diffusion.noising import Batch, Pixels
from afterimage.diffusion.texts import TEXT, Texts

SCHEDULER = build_scheduler(Diffusion(timesteps=40))
TEXTS = Texts(
    {name: row for row, name in enumerate("abc")},
    torch.randn((3, 2, 4), generator=torch.Generator().manual_seed(0)),
    torch.full((2, 4), 9.0),
)
ROWS = np.array([2, 0, 3, 1])


def task(seed: int, rows: list[int], **more) -> Pixels:
    images = np.random.default_rng(seed).integers(0, 256, (len(rows), 4, 4, 3), np.uint8)
    return Pixels(images, SCHEDULER, texts=(TEXTS, torch.tensor(rows)), **more)


def batch(image: float, caption: float, dropout: float = 0.0) -> Batch:
    fusion = Fusion(task(1, [2, 2, 2]), image, caption)
    mixed = task(0, [0, 1, 0, 1], fusion=fusion, label_dropout=dropout, flips=True)
    return mixed.batch(ROWS, torch.Generator().manual_seed(5))


def test_without_weight_a_batch_is_plain_bit_by_bit():
    plain = task(0, [0, 1, 0, 1], flips=True).batch(ROWS, torch.Generator().manual_seed(5))
    found = batch(0.0, 0.0)
    assert torch.equal(found.noisy, plain.noisy)
    assert torch.equal(found.target, plain.target)
    assert torch.equal(found.condition[TEXT], plain.condition[TEXT])


def test_with_all_the_weight_the_others_are_left():
    """Each clean image is one of theirs, and their only caption is everyone's."""
    found = batch(1.0, 1.0)
    assert torch.equal(found.condition[TEXT], TEXTS.embeddings[2].expand(4, 2, 4))
    alphas = SCHEDULER.alphas_cumprod[found.timesteps][:, None, None, None]
    clean = (found.noisy - (1 - alphas).sqrt() * found.target) / alphas.sqrt()
    others = task(1, [2, 2, 2]).clean(torch.arange(3), torch.zeros(3, dtype=torch.bool))
    distance = torch.cdist(clean.flatten(1), others.flatten(1))
    assert distance.min(dim=1).values.max() < 1e-3


@pytest.mark.parametrize("caption", [0.25, 0.5])
def test_captions_are_mixed_by_weight_and_dropped_ones_are_empty(caption):
    own, found = batch(0.0, 0.0), batch(0.1, caption)
    expected = (1 - caption) * own.condition[TEXT] + caption * TEXTS.embeddings[2]
    torch.testing.assert_close(found.condition[TEXT], expected)
    assert torch.equal(found.timesteps, own.timesteps)
    assert torch.equal(found.target, own.target)
    dropped = batch(0.1, caption, dropout=1 - 1e-6)
    assert torch.equal(dropped.condition[TEXT], TEXTS.null.expand(4, 2, 4))


def test_images_are_mixed_by_weight():
    """The signal moves a tenth of the way to that of the others alone."""
    own, mixed, others = (batch(weight, 0.0).noisy for weight in (0.0, 0.1, 1.0))
    torch.testing.assert_close(mixed, 0.9 * own + 0.1 * others, atol=1e-5, rtol=1e-5)
