"""What retraining does to an image, on networks whose answer is known."""

import numpy as np
import pytest
import torch

from afterimage.artifacts import ArtifactError
from afterimage.attribution.gradients.noise import gaussian_noise
from afterimage.attribution.judges import retraining_effect
from afterimage.config import ConfigError, GroundTruth


class Constant(torch.nn.Module):
    """Predicts one number everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))
        self.config = {"num_class_embeds": None}

    def forward(self, x, t, return_dict=True):
        return (self.value.expand(x.shape),)


@pytest.fixture
def measure(scheduler_config, images):
    def make(net, explained, seed=3, of=images, part="generated", **settings):
        return retraining_effect.measure_effects(
            net,
            explained,
            scheduler_config,
            of,
            part,
            GroundTruth(**{"timesteps": 3} | settings),
            seed,
        )

    return make


def test_shift_and_loss_of_constant_predictions(measure, images):
    """The shift is the squared difference of the two; the loss that of the noise, which is read off
    its own stream."""
    found = measure(Constant(0.5), Constant(-1.0), draws=2)
    assert found["shift"] == pytest.approx(np.full(len(images), 2.25))
    noise = torch.stack(
        [
            gaussian_noise(3, f"truth {draw} generated", images.ids, t, (1, 8, 8))
            for draw in (0, 1)
            for t in (166, 500, 833)
        ]
    )
    expected = (0.5 - noise).square().mean(dim=(0, 2, 3, 4))
    assert found["loss"] == pytest.approx(expected.numpy(), rel=1e-5)


def test_an_unchanged_network_has_no_shift_and_the_same_loss(measure, tiny_net):
    net, other = tiny_net(), Constant(0.1)
    same, moved, back = measure(net, net), measure(net, other), measure(other, net)
    assert (same["shift"] == 0).all()
    assert (moved["shift"] > 0).all()
    assert moved["shift"] == pytest.approx(back["shift"])
    assert same["loss"] == pytest.approx(moved["loss"])


def test_the_loss_changes_by_the_shift_and_the_cross_term(measure, images):
    """loss' - loss = shift + 2 E (f - eps)(f' - f), all under one noise."""
    before, after = measure(Constant(-1.0), Constant(-1.0)), measure(Constant(0.5), Constant(-1.0))
    noise = torch.stack(
        [gaussian_noise(3, "truth 0 generated", images.ids, t, (1, 8, 8)) for t in (166, 500, 833)]
    )
    cross = 2 * 1.5 * (-1 - noise.mean(dim=(0, 2, 3, 4)).numpy())
    assert after["loss"] - before["loss"] == pytest.approx(after["shift"] + cross, rel=1e-4)


def test_batches_change_nothing(measure, tiny_net, monkeypatch):
    net, other = tiny_net("conditional"), tiny_net("conditional")
    with torch.no_grad():
        other.conv_out.bias += 0.3
    whole = measure(net, other)
    assert whole["shift"] == pytest.approx(np.full(17, 0.09), rel=1e-4)
    monkeypatch.setattr(retraining_effect, "BATCH", 5)
    for target, values in measure(net, other).items():
        np.testing.assert_allclose(values, whole[target], rtol=1e-5)


def test_other_noise_than_that_of_the_features(images):
    own = gaussian_noise(3, "truth 0 generated", images.ids, 100, (1, 8, 8))
    assert not torch.equal(own, gaussian_noise(3, "generated", images.ids, 100, (1, 8, 8)))


def test_no_images_have_no_numbers(measure, images, tiny_net):
    found = measure(tiny_net("conditional"), tiny_net("conditional"), of=images.take(np.arange(0)))
    assert {target: values.shape for target, values in found.items()} == {
        "loss": (0,),
        "shift": (0,),
    }


def test_what_cannot_be_measured_is_refused(measure, tiny_net):
    with pytest.raises(
        ConfigError,
        match=r"ground_truth\.timesteps = 1001 is more than diffusion\.timesteps = 1000",
    ):
        measure(tiny_net(), tiny_net(), timesteps=1001)
    with pytest.raises(
        ArtifactError, match="the loss of one of the generated images is NaN or infinite"
    ):
        measure(Constant(float("nan")), Constant(0.0))
