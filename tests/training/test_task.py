"""Targets, losses, flips and dropped labels of the pixel task."""

import numpy as np
import pytest
import torch
from torch import nn

from afterimage.artifacts import ArtifactError
from afterimage.config import Diffusion
from afterimage.diffusion.model import build_scheduler
from afterimage.diffusion.noising import Pixels

PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(n: int = 6, size: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


def make(prediction: str = "epsilon", schedule: str = "linear", **options) -> Pixels:
    return Pixels(
        pixels(), build_scheduler(Diffusion(prediction=prediction, schedule=schedule)), **options
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clean_image_follows_from_each_target_in_closed_form(prediction, schedule):
    task = make(prediction, schedule)
    batch = task.batch(np.arange(6), generator())
    a = task.scheduler.alphas_cumprod[batch.timesteps].double()[:, None, None, None]
    x, y = batch.noisy.double(), batch.target.double()
    clean = {
        "epsilon": lambda: (x - (1 - a).sqrt() * y) / a.sqrt(),
        "v_prediction": lambda: a.sqrt() * x - (1 - a).sqrt() * y,
        "sample": lambda: y,
    }[prediction]()
    expected = torch.from_numpy(pixels().transpose(0, 3, 1, 2)).double() / 127.5 - 1
    tolerance = 1e-6 / float(a.sqrt().min())
    torch.testing.assert_close(clean, expected, atol=tolerance, rtol=0)
    assert expected.min() >= -1
    assert expected.max() <= 1


class Oracle(nn.Module):
    """Knows the only image of the data set."""

    def __init__(self, clean: torch.Tensor, task: Pixels) -> None:
        super().__init__()
        self.clean, self.task = clean, task

    def forward(self, x, t, return_dict=False):
        a = self.task.scheduler.alphas_cumprod[t].double()[:, None, None, None]
        noise = (x - a.sqrt() * self.clean) / (1 - a).sqrt()
        kind = self.task.scheduler.config["prediction_type"]
        return (
            {
                "epsilon": noise,
                "sample": self.clean.expand_as(x),
                "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * self.clean,
            }[kind],
        )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_perfect_denoiser_has_no_loss_and_a_shifted_one_has_the_square_of_the_shift(prediction):
    scheduler = build_scheduler(Diffusion(prediction=prediction))
    task = Pixels(pixels()[:1], scheduler)
    clean = torch.from_numpy(pixels()[:1].transpose(0, 3, 1, 2)).double() / 127.5 - 1
    oracle = Oracle(clean, task)
    batch = task.batch(np.zeros(32, np.int64), generator())
    losses = task.losses(oracle, batch)
    assert losses.shape == (32,)
    assert losses.dtype == torch.float32
    assert losses.max() < 1e-8
    shifted = task.losses(lambda x, t, return_dict: (oracle(x, t)[0] + 0.5,), batch)
    torch.testing.assert_close(shifted, torch.full((32,), 0.25), rtol=1e-4, atol=0)


def test_the_net_that_predicts_nothing_has_loss_one_in_epsilon():
    task = make()
    batch = task.batch(np.arange(6).repeat(200), generator())
    assert task.losses(
        lambda x, t, return_dict: (torch.zeros_like(x),), batch
    ).mean() == pytest.approx(1, abs=0.02)


def test_timesteps_cover_the_whole_range():
    timesteps = make().batch(np.zeros(20_000, np.int64), generator()).timesteps
    assert timesteps.min() == 0
    assert timesteps.max() == 999
    assert timesteps.float().mean() == pytest.approx(499.5, abs=4 * 288.7 / 20_000**0.5)


def test_flips_mirror_half_of_the_images_and_leave_noise_and_timesteps():
    plain = make("sample").batch(np.zeros(1000, np.int64), generator())
    flipped = make("sample", flips=True).batch(np.zeros(1000, np.int64), generator())
    assert torch.equal(plain.timesteps, flipped.timesteps)
    changed = (plain.target != flipped.target).flatten(1).any(1)
    assert torch.equal(flipped.target[changed], plain.target[changed].flip(-1))
    assert torch.equal(flipped.noisy[~changed], plain.noisy[~changed])
    assert changed.float().mean() == pytest.approx(0.5, abs=4 * 0.5 / 1000**0.5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
def test_labels_are_dropped_to_the_null_label_at_the_asked_rate(share):
    labels = np.array([0, 1, 2, 0, 1, 2])
    task = make(labels=labels, classes=3, label_dropout=share)
    rows = np.arange(6).repeat(1000)
    batch = task.batch(rows, generator())
    null = batch.condition["class_labels"] == 3
    assert null.float().mean() == pytest.approx(share, abs=4 * (share * (1 - share) / 6000) ** 0.5)
    assert torch.equal(
        batch.condition["class_labels"][~null], torch.from_numpy(labels[rows])[~null]
    )


def test_micro_batches_together_are_the_batch():
    batch = make(labels=np.arange(6), classes=6).batch(np.arange(6), generator())
    parts = batch.split(3)
    assert [len(part) for part in parts] == [2, 2, 2]
    for name in ("rows", "noisy", "timesteps", "target"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    labels = [part.condition["class_labels"] for part in parts]
    assert torch.equal(torch.cat(labels), batch.condition["class_labels"])


def test_missing_labels_are_refused():
    with pytest.raises(ArtifactError, match=r"\[0, 3\).*from -1"):
        make(labels=np.array([0, 1, 2, -1, 1, 2]), classes=3)
