"""Ambient training at high noise: the fixed noise, the targets, and what their minimiser is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from afterimage.config import Diffusion
from afterimage.diffusion.latents import EncodedImages, Latents
from afterimage.diffusion.model import build_scheduler
from afterimage.diffusion.noising import Pixels
from afterimage.methods import ambient, baseline
from afterimage.methods.ambient import NoisedOnce

ARM = {"method": "ambient", "level": 400}
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


@pytest.fixture
def made(make_job, tmp_path):
    """Return a function that builds a job on given images and its fixed noise."""

    def make(pixels=None, level=400, prediction="epsilon", schedule="cosine", **task):
        job = make_job(tmp_path, arm=ARM | {"level": level})
        scheduler = build_scheduler(Diffusion(prediction=prediction, schedule=schedule))
        if pixels is not None:
            job = replace(job, task=Pixels(pixels, scheduler, **task))
        job = replace(job, scheduler=scheduler)
        return job, NoisedOnce(job)

    return make


def constants(job, timestep: int, level: int) -> tuple[float, float, float]:
    """Return sqrt(abar_t), sigma_t and sigma_n."""
    abar = job.scheduler.alphas_cumprod.double()
    sigma = ((1 - abar) / abar).sqrt()
    return float(abar[timestep].sqrt()), float(sigma[timestep]), float(sigma[level - 1])


def drawn(job, once, rows, timestep: int, seed: int = 0):
    """Return a batch at one timestep."""
    generator = torch.Generator().manual_seed(seed)
    return job.task.batch(rows, generator, renoise=once, timesteps=(timestep, timestep + 1))


# ---- the fixed noise -----------------------------------------------------------------------------


def test_noise_is_a_function_of_the_image_alone(made, digits):
    pixels = digits[0][[3, 5, 3, 8]]
    once = made(pixels)[1]
    rows, straight = torch.tensor([0, 1, 2, 3]), torch.zeros(4, dtype=torch.bool)
    noise = once.noise(rows, straight)
    assert torch.equal(noise[0], noise[2])
    assert len({image.numpy().tobytes() for image in noise}) == 3
    other = made(digits[0][[8, 3]])[1]
    assert torch.equal(other.noise(torch.tensor([1, 0]), straight[:2]), noise[[0, 3]])
    assert torch.equal(once.noise(rows, ~straight), noise.flip(-1))
    many = torch.cat([made(digits[0][:500])[1].noise(torch.arange(500), straight[:1])])
    assert many.mean().abs() < 0.03
    assert many.var() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("timestep", [400, 401, 700, 998])
def test_images_of_a_batch_are_made_of_the_fixed_noisy_image(timestep, prediction, made, digits):
    """With one image the minimiser of the ambient loss is known: what it says of the fixed noisy
    image is exact, so that the clean image it stands for is (x_tn - r y_t) / kappa at every
    draw."""
    job, once = made(digits[0][[7]], prediction=prediction)
    root, sigma, fixed = constants(job, timestep, 400)
    clean = job.task.clean(torch.tensor([0]), torch.tensor([False]))
    noisy_image = (clean + fixed * once.noise(torch.tensor([0]), torch.tensor([False]))).double()
    share = (fixed / sigma) ** 2
    batch = drawn(job, once, np.zeros(64, np.int64), timestep)
    seen = batch.noisy.double() / root
    wanted = (noisy_image - share * seen) / (1 - share)
    noise = (seen - wanted) / sigma
    targets = {
        "epsilon": noise,
        "v_prediction": root * noise - (1 - root**2) ** 0.5 * wanted,
        "sample": wanted,
    }
    size = float(targets[prediction].abs().max())
    torch.testing.assert_close(
        batch.target.double(), targets[prediction], rtol=1e-3, atol=2e-4 * size
    )
    further = (seen - noisy_image) / (sigma**2 - fixed**2) ** 0.5
    assert further.var() == pytest.approx(1, abs=0.1)
    assert further.mean() == pytest.approx(0, abs=0.1)


def test_below_the_level_batches_are_plain_and_above_they_do_not_show_the_image(made, digits):
    job, once = made(digits[0][:50], level=400)
    rows = np.arange(50)
    plain = job.task.batch(rows, torch.Generator().manual_seed(1))
    batch = job.task.batch(rows, torch.Generator().manual_seed(1), renoise=once)
    low = batch.timesteps < 400
    assert 0 < low.sum() < 50
    for name in ("noisy", "target"):
        one, other = getattr(plain, name), getattr(batch, name)
        assert torch.equal(one[low], other[low])
        assert (one[~low] != other[~low]).flatten(1).any(1).all()


def test_averaging_draws_gives_the_noisy_image_not_the_image(made, digits):
    job, once = made(digits[0][[7]], level=400)
    root, _, fixed = constants(job, 450, 400)
    batch = drawn(job, once, np.zeros(4000, np.int64), 450)
    mean = batch.noisy.double().mean(0) / root
    clean = job.task.clean(torch.tensor([0]), torch.tensor([False]))[0]
    noise = once.noise(torch.tensor([0]), torch.tensor([False]))[0]
    assert (mean - clean - fixed * noise).abs().max() < 0.05
    assert (mean - clean).std() == pytest.approx(fixed * float(noise.std()), rel=0.1)


def test_mirror_images_have_mirrored_noise(made, digits):
    pixels = digits[0][[7]]
    job, once = made(pixels, flips=True)
    root, _, fixed = constants(job, 400, 400)
    batch = drawn(job, once, np.zeros(4000, np.int64), 400)
    straight = job.task.clean(torch.tensor([0]), torch.tensor([False]))
    straight = straight + fixed * once.noise(torch.tensor([0]), torch.tensor([False]))
    seen = batch.noisy / root
    nearer = [
        (seen - image).square().mean(dim=(1, 2, 3)) for image in (straight, straight.flip(-1))
    ]
    near = torch.minimum(*nearer)
    assert near.max() < 0.1  # the level's next step adds little noise
    assert 1500 < int((nearer[0] < nearer[1]).sum()) < 2500


def test_latents_have_fixed_noise_too(make_job, tmp_path, digits):
    job, pixels = make_job(tmp_path, arm=ARM), digits[0][:3]
    latents = EncodedImages({}, torch.randn((3, 1, 4, 2, 2)), torch.zeros((3, 1, 4, 2, 2)))
    scheduler = build_scheduler(Diffusion(), latents=True)
    row = {digest.tobytes(): k for k, digest in enumerate(ambient.contents(pixels))}
    task = Latents(pixels, replace(latents, row=row), scheduler)
    job = replace(job, task=task, scheduler=scheduler)
    once = NoisedOnce(job)
    root, sigma, fixed = constants(job, 400, 400)
    batch = drawn(job, once, np.arange(3), 400)
    noise = once.noise(torch.arange(3), torch.zeros(3, dtype=torch.bool))
    wanted = latents.mean[:, 0] + fixed * noise
    assert (batch.noisy / root - wanted).abs().max() < 5 * (sigma**2 - fixed**2) ** 0.5


# ---- the minimiser -------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_minimiser_is_the_conditional_expectation_given_the_noisy_image(prediction, made):
    """For Gaussian values the best prediction is linear in the noisy value, with known slope and
    intercept: those of E[x_0 | x_t] under the whole forward process, though only fixed noisy images
    were seen."""
    generator = np.random.default_rng(0)
    pixels = np.clip(generator.normal(150, 25, (6000, 4, 4, 1)).round(), 0, 255).astype(np.uint8)
    job, once = made(pixels, level=300, prediction=prediction)
    timestep = 500
    root, sigma, _ = constants(job, timestep, 300)
    batch = drawn(job, once, np.arange(6000), timestep)
    x, y = (tensor.double().flatten().numpy() for tensor in (batch.noisy, batch.target))
    slope, intercept = np.polyfit(x, y, 1)
    clean = pixels.astype(np.float64) / 127.5 - 1
    mean, variance = clean.mean(), clean.var()
    # E[x_0 | x_t] = mean + gain (x_t / root - mean)
    gain = variance / (variance + sigma**2)
    of_image = (gain / root, (1 - gain) * mean)
    of_noise = ((1 / root - of_image[0]) / sigma, -of_image[1] / sigma)
    deviation = (1 - root**2) ** 0.5
    wanted = {
        "epsilon": of_noise,
        "v_prediction": tuple(
            root * n - deviation * i for n, i in zip(of_noise, of_image, strict=True)
        ),
        "sample": of_image,
    }[prediction]
    assert slope == pytest.approx(wanted[0], abs=0.02)
    assert intercept == pytest.approx(wanted[1], abs=0.02)


def test_loss_is_that_of_the_paper(made, digits):
    """| kappa x(y_t) + r y_t - x_tn |^2 with plain training's weight, 1 / sigma_t^2 for epsilon."""
    job, once = made(digits[0][:6], level=400)
    rows = np.arange(6)
    batch = drawn(job, once, rows, 600)
    root, sigma, fixed = constants(job, 600, 400)
    share = (fixed / sigma) ** 2
    found, weights = ambient.ambient(job.task, once.kappa)(job.net.eval(), batch)
    with torch.no_grad():
        noise = job.task.predict(job.net, batch)
    seen = batch.noisy / root
    straight = torch.zeros(6, dtype=torch.bool)
    noisy_image = job.task.clean(torch.from_numpy(rows), straight)
    noisy_image = noisy_image + fixed * once.noise(torch.from_numpy(rows), straight)
    error = (1 - share) * (seen - sigma * noise) + share * seen - noisy_image
    wanted = error.square().mean(dim=(1, 2, 3)) / sigma**2
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert torch.equal(weights, torch.ones(6))


@pytest.mark.parametrize(("schedule", "level"), [("linear", 145), ("cosine", 289)])
def test_the_example_of_the_released_code_in_steps(schedule, level, made):
    """As the setting's description says."""
    assert made(schedule=schedule, level=level)[1].sigma < 0.5
    assert made(schedule=schedule, level=level + 1)[1].sigma > 0.5


# ---- whole runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "same"), [(0, True), (400, False)])
@pytest.mark.parametrize("condition", ["none", "label", "text"])
def test_level_zero_is_plain_training_bit_for_bit(condition, level, same, make_job, tmp_path):
    plain = baseline.train(make_job(tmp_path / "plain", condition=condition, flips=True))
    job = make_job(tmp_path / "own", condition=condition, flips=True, arm=ARM | {"level": level})
    found = ambient.train(job)
    states = zip(plain.average.parameters(), found.average.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in states) == same
    assert plain.spent == found.spent
    sigma = constants(job, 0, level)[2] if level else 0
    assert found.facts["ambient_sigma"] == pytest.approx(sigma)


def test_stopped_after_any_update_it_ends_with_the_same_bits(
    make_job, tmp_path, same_bits_after_stops
):
    def job(folder: str):
        return make_job(tmp_path / folder, arm=ARM, dropout=0.2, updates=4)

    same_bits_after_stops(ambient.train, job, range(1, 3))


def test_first_losses_are_those_on_record(make_job, tmp_path, series, golden):
    job = make_job(tmp_path, arm=ARM, images=64, updates=10, batch_size=16, log_every=1)
    ambient.train(job)
    golden("ambient", {"losses": series(job.store.curves)["loss"]})
