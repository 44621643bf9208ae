"""Samplers against closed forms, guidance, and independence of the batch size."""

import copy

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from afterimage import artifacts, cli
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError, Diffusion, Model, Sample
from afterimage.diffusion.model import build_scheduler, build_unet
from afterimage.diffusion.noising import Pixels
from afterimage.diffusion.pixels import to_uint8
from afterimage.diffusion.sample import denoise, generate, grid, load_denoiser
from afterimage.images import load_images
from afterimage.seeds import torch_rng

TINY = Model(channels=[8, 16], attention=[False, True], layers_per_block=1, norm_groups=4)


class Gaussian(nn.Module):
    """The best denoiser for pixels that are independent N(mean, s^2): E[x_0 | x_t] = m + a s^2 (x_t
    - a m) / (a^2 s^2 + b^2)."""

    def __init__(self, scheduler, mean: torch.Tensor, s: float) -> None:
        super().__init__()
        self.scheduler, self.mean, self.s = scheduler, mean, s

    def forward(self, x, t, return_dict=False):
        square = self.scheduler.alphas_cumprod[t].double()
        a, b = square.sqrt(), (1 - square).sqrt()
        clean = self.mean + a * self.s**2 * (x - a * self.mean) / (square * self.s**2 + 1 - square)
        noise = (x - a * clean) / b
        kind = self.scheduler.config["prediction_type"]
        return ({"epsilon": noise, "sample": clean, "v_prediction": a * noise - b * clean}[kind],)


def draw(net, scheduler, count=4, shape=(1, 4, 4), **settings):
    generators = [torch_rng(0, "test", i) for i in range(count)]
    start = torch.stack([torch.randn(shape, generator=g, dtype=torch.float64) for g in generators])
    sample = Sample.model_validate({"images": count, "steps": 50} | settings)
    return start, denoise(net, dict(scheduler.config), start, generators, sample)


@pytest.mark.parametrize("sampler", [{}, {"eta": 1.0}, {"sampler": "ddpm", "steps": 1000}])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_model_of_a_single_image_returns_this_image(prediction, schedule, sampler):
    scheduler = build_scheduler(Diffusion(prediction=prediction, schedule=schedule))
    point = torch.rand((1, 4, 4), generator=torch_rng(1), dtype=torch.float64) * 2 - 1
    _, images = draw(Gaussian(scheduler, point, 0.0), scheduler, **sampler)
    torch.testing.assert_close(images, point.expand_as(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [10, 50])
def test_ddim_on_a_gaussian_is_the_product_of_its_steps(steps):
    """For N(0, s^2) every DDIM step is x -> c x with c = (a' a s^2 + b' b) / (a^2 s^2 + b^2)."""
    s = 0.2
    scheduler = build_scheduler(Diffusion())
    start, images = draw(Gaussian(scheduler, torch.zeros(()), s), scheduler, steps=steps)
    square = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    times = np.arange(steps)[::-1] * (1000 // steps)
    now, then = square[times], np.append(square[times[1:]], 1.0)
    factor = np.prod(
        (np.sqrt(then * now) * s**2 + np.sqrt((1 - then) * (1 - now))) / (now * s**2 + 1 - now)
    )
    torch.testing.assert_close(images, start * factor, rtol=1e-4, atol=1e-6)


def test_ancestral_sampling_gives_the_variance_of_the_data():
    s = 0.2
    scheduler = build_scheduler(Diffusion())
    _, images = draw(
        Gaussian(scheduler, torch.zeros(()), s),
        scheduler,
        count=200,
        shape=(1, 8, 8),
        sampler="ddpm",
        steps=1000,
    )
    assert images.std().item() == pytest.approx(s, rel=0.03)
    assert images.mean().item() == pytest.approx(0, abs=4 * s / 12_800**0.5)


class Labelled(nn.Module):
    """Predicts a constant per label, and counts the images that go through."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x, t, class_labels, return_dict=False):
        self.seen.append(len(x))
        return (class_labels.to(x.dtype)[:, None, None, None].expand_as(x) / 10,)


@pytest.mark.parametrize(
    ("w", "expected", "forwards"),
    [(1.0, [0.0, 0.3], 2), (0.0, [0.8, 0.8], 2), (0.5, [0.4, 0.55], 4), (1.2, [-0.16, 0.2], 4)],
)
def test_guidance_goes_from_the_null_prediction_to_the_conditional_one_and_beyond(
    w, expected, forwards
):
    """null + w (conditional - null), with labels 0 and 3 that predict 0.0 and 0.3, and null label
    8."""
    scheduler = build_scheduler(Diffusion(prediction="sample"))
    net = Labelled()
    start = torch.zeros(2, 1, 2, 2)
    settings = Sample(images=2, steps=1, guidance=w)
    images = denoise(
        net,
        dict(scheduler.config),
        start,
        [torch_rng(i) for i in range(2)],
        settings,
        torch.tensor([0, 3]),
        8,
    )
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor(expected))
    assert net.seen == [forwards]


@pytest.mark.parametrize("w", [0.0, 0.7, 1.0, 3.0])
def test_guidance_changes_nothing_where_the_label_does_not(w, trained):
    """Conditional and null prediction are equal: the image does not depend on w."""
    net, scheduler = trained
    start = torch.randn((2, 1, 8, 8), generator=torch_rng(3))

    def drawn(guidance: float) -> torch.Tensor:
        settings = Sample(images=2, steps=5, guidance=guidance)
        labels = torch.tensor([0, 3])
        blind = lambda x, t, class_labels, return_dict: net(x, t, return_dict=return_dict)  # noqa: E731
        return denoise(
            blind, scheduler, start, [torch_rng(i) for i in range(2)], settings, labels, 8
        )

    torch.testing.assert_close(drawn(w), drawn(1.0), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def trained():
    """A small net after 200 updates on digits: far enough that its images are not noise."""
    torch.set_num_threads(1)
    pixels = np.round(load_digits().images[:200] * 255 / 16).astype(np.uint8)[..., None]
    scheduler = build_scheduler(Diffusion(schedule="cosine"))
    net, task = build_unet(TINY, (8, 8, 1), seed=0), Pixels(pixels, scheduler)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        batch = task.batch(torch.randint(200, (32,), generator=generator).numpy(), generator)
        optimizer.zero_grad()
        task.losses(net, batch).mean().backward()
        optimizer.step()
    return net.eval(), dict(scheduler.config)


@pytest.mark.parametrize("sampler", [{}, {"eta": 0.5}, {"sampler": "ddpm"}], ids=str)
def test_batch_size_changes_no_more_than_rounding(trained, sampler):
    """Stated: floats agree to 1e-4 and 8-bit values differ by at most one level, in at most 0.1 %
    of all.

    The difference comes from the convolutions alone: another batch size may choose another kernel,
    with another order of sums.
    """
    net, scheduler = trained
    floats = {}
    for size in (1, 7, 64):
        settings = Sample.model_validate({"images": 64, "batch_size": size, "steps": 10} | sampler)
        parts = []
        for at in range(0, 64, size):
            generators = [torch_rng(9, "sample", 0, i) for i in range(at, min(at + size, 64))]
            start = torch.cat([torch.randn((1, 1, 8, 8), generator=g) for g in generators])
            parts.append(denoise(net, scheduler, start, generators, settings))
        floats[size] = torch.cat(parts)
    np.testing.assert_array_equal(
        generate(net, scheduler, range(64), settings, seed=9), to_uint8(floats[64])
    )
    assert floats[64].std() > 0.3
    for size in (1, 7):
        assert (floats[size] - floats[64]).abs().max() < 1e-4
        gap = np.abs(to_uint8(floats[size]).astype(int) - to_uint8(floats[64]).astype(int))
        assert gap.max() <= 1
        assert (gap > 0).mean() <= 0.001


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_half_precision_is_the_networks_alone(sampler, trained):
    """The sampler's state stays in single precision, and the image is the same picture."""
    net, scheduler = trained
    start = torch.randn((8, 1, 8, 8), generator=torch_rng(3))
    seen = []
    hook = net.conv_in.register_forward_hook(lambda layer, x, out: seen.append(out.dtype))
    images = {}
    try:
        for precision in ("fp32", "bf16"):
            settings = Sample(images=8, steps=10, sampler=sampler, precision=precision)
            images[precision] = denoise(
                net, scheduler, start, [torch_rng(i) for i in range(8)], settings
            )
    finally:
        hook.remove()
    assert seen == [torch.float32] * 10 + [torch.bfloat16] * 10
    assert images["bf16"].dtype == torch.float32
    difference = images["bf16"] - images["fp32"]
    assert 0 < float(difference.square().mean().sqrt()) < 0.05


def test_a_network_that_is_laid_out_otherwise_draws_the_same(trained, compiled):
    """Compiled once for all drawings, with weights that are channels last; neither is the
    default."""
    net, scheduler = copy.deepcopy(trained[0]), trained[1]
    settings = Sample(images=8, steps=5, batch_size=4)
    expected = generate(net, scheduler, range(8), settings, seed=9)
    assert net.conv_in.weight.is_contiguous()
    assert compiled == []
    switched = settings.model_copy(update={"channels_last": True, "compile": True})
    for _ in range(2):
        found = generate(net, scheduler, range(8), switched, seed=9)
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert compiled == ["UNet2DModel"]
    assert net.mid_block.resnets[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not net.mid_block.resnets[0].conv1.weight.is_inference()


def test_an_image_depends_on_seed_replicate_and_id_only(trained):
    net, scheduler = trained
    settings = Sample(images=4, steps=5, batch_size=4)
    four = generate(net, scheduler, [0, 1, 2, 3], settings, seed=9)
    np.testing.assert_array_equal(
        generate(net, scheduler, [3, 1, 0, 2], settings, seed=9), four[[3, 1, 0, 2]]
    )
    np.testing.assert_array_equal(generate(net, scheduler, [0, 1, 2, 3], settings, seed=9), four)
    for other in ({"seed": 10}, {"seed": 9, "replicate": 1}):
        assert (generate(net, scheduler, [0, 1, 2, 3], settings, **other) != four).any()


def test_eight_bit_values_are_rounded_not_cut():
    values = torch.tensor([-1.2, -1.0, -1 + 1.9 / 255, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 6)
    assert to_uint8(values).ravel().tolist() == [0, 0, 1, 128, 255, 255]
    back = torch.arange(256).float() / 127.5 - 1
    assert to_uint8(back.reshape(1, 1, 16, 16)).ravel().tolist() == list(range(256))


def test_more_steps_than_timesteps_are_refused(trained):
    with pytest.raises(ConfigError, match="steps = 1001 is more than the model's 1000 timesteps"):
        generate(*trained, [0], Sample(images=1, steps=1001), seed=0)


def test_labels_and_net_must_agree(trained):
    with pytest.raises(ConfigError, match="knows no labels, but labels were given"):
        generate(*trained, [0], Sample(images=1, steps=1), seed=0, labels=np.zeros(1, np.int64))
    net = build_unet(TINY, (8, 8, 1), classes=10)
    with pytest.raises(ConfigError, match="knows 10 labels, but labels were not given"):
        generate(net, trained[1], [0], Sample(images=1, steps=1), seed=0)


def test_grid_is_enlarged_without_smoothing():
    images = np.zeros((5, 8, 8, 1), np.uint8)
    images[1, 0, 0] = 200
    picture = np.asarray(grid(images, columns=4))
    assert picture.shape == (2 * 66, 4 * 66)
    assert (picture[1:9, 67:75] == 200).all()
    assert picture[1:9, 75].max() == 0
    colour = grid(np.zeros((3, 32, 32, 3), np.uint8), columns=2)
    assert isinstance(colour, Image.Image)
    assert colour.mode == "RGB"


def test_any_pipeline_of_pixels_opens_and_others_are_refused(tmp_path, trained):
    net, scheduler = trained
    DDIMPipeline(net, DDIMScheduler.from_config(scheduler)).save_pretrained(tmp_path / "ddim")
    opened, read = load_denoiser(tmp_path / "ddim")
    settings = Sample(images=2, steps=3)
    np.testing.assert_array_equal(
        generate(opened, read, [0, 1], settings, seed=1),
        generate(net, scheduler, [0, 1], settings, seed=1),
    )
    with pytest.raises(ArtifactError, match="cannot be opened as a diffusers pipeline"):
        load_denoiser(tmp_path)


def test_store_of_generations(model_store, command, tmp_path):
    assert cli.main(command(model_store())) == 0
    run = artifacts.check_store(tmp_path / "out")
    assert set(run["outputs"]) == {"images.npz", "grid.png"}
    images = load_images(tmp_path / "out" / "images.npz")
    assert images.pixels.shape == (12, 8, 8, 1)
    assert images.ids.tolist() == list(range(12))
    assert set(images.labels) == {-1}
    assert run["facts"]["batch_size"] == 5


def test_arms_start_from_the_same_noise_and_weights_are_those_asked_for(
    model_store, command, tmp_path
):
    model = model_store()
    for out, more in (("a", {}), ("b", {"arm": "dedup"}), ("raw", {"weights": "raw"})):
        assert cli.main(command(model, out, **more)) == 0
    a, b, raw = (load_images(tmp_path / out / "images.npz").pixels for out in ("a", "b", "raw"))
    np.testing.assert_array_equal(a, b)
    assert (a != raw).any()


def test_labels_of_a_conditional_net_are_balanced(model_store, command, tmp_path):
    assert cli.main(command(model_store(classes=5), guidance=2.0)) == 0
    images = load_images(tmp_path / "out" / "images.npz")
    assert images.labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_damaged_weights_are_refused(model_store, command, capsys):
    model = model_store()
    weights = model / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert cli.main(command(model)) == 2
    assert "truncated or changed" in capsys.readouterr().err
