"""Adversarial embeddings: a known answer, and that each depends on its own image alone."""

import numpy as np
import pytest
import torch
from torch import nn

from afterimage.attacks import dori
from afterimage.config import Diffusion, Forgetting
from afterimage.diffusion.model import build_scheduler
from afterimage.diffusion.noising import Pixels

IDS = np.array([7, 3, 12])
NULL = torch.zeros((2, 8))


class Painter(nn.Module):
    """A network that draws what the text says, number by number."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((), 2.0))

    def forward(self, x, t, return_dict=False, encoder_hidden_states=None):
        return (self.gain * encoder_hidden_states.reshape(x.shape),)


@pytest.fixture
def task():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    return Pixels(images, build_scheduler(Diffusion(prediction="sample")))


def settings(**keys) -> Forgetting:
    return Forgetting(**{"embedding_updates": 300, "embedding_batch_size": 2} | keys)


def test_the_embedding_of_an_image_is_found(task):
    """The loss is that of a picture painted with gain 2: least at half the image."""
    net = Painter()
    found = dori.optimised(net, task, IDS, NULL, settings(), 0)
    expected = task.clean(torch.arange(3), torch.zeros(3, dtype=torch.bool)).reshape(3, 2, 8) / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert net.gain == 2
    assert net.gain.grad is None


def test_the_first_update_moves_every_number_by_the_step_size(task):
    """Adam's does, against the sign of the gradient."""
    one = settings(embedding_updates=1, embedding_learning_rate=0.3)
    found = dori.optimised(Painter(), task, IDS, NULL, one, 0)
    clean = task.clean(torch.arange(3), torch.zeros(3, dtype=torch.bool)).reshape(3, 2, 8)
    torch.testing.assert_close(found, 0.3 * clean.sign(), rtol=0, atol=1e-4)


class Noisy(Painter):
    """Its prediction depends on the noisy image and the timestep, too."""

    def forward(self, x, t, return_dict=False, encoder_hidden_states=None):
        painted = encoder_hidden_states.reshape(x.shape)
        return ((painted + x * t.view(-1, 1, 1, 1) / 1000) * painted.cos(),)


@pytest.mark.parametrize("together", [1, 2, 32])
def test_an_embedding_depends_on_its_own_image(task, together):
    keys = settings(embedding_updates=5, relearn_batch_size=together)
    found = dori.optimised(Noisy(), task, IDS, NULL, keys, 0)
    alone = Pixels(task.images[1:2].numpy().transpose(0, 2, 3, 1), task.scheduler)
    again = dori.optimised(Noisy(), alone, IDS[1:2], NULL, keys, 0)
    torch.testing.assert_close(again[0], found[1])
    other = dori.optimised(Noisy(), alone, IDS[2:3], NULL, keys, 0)
    assert not torch.allclose(other[0], found[1]), "another id has other noise"
