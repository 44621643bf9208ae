"""Denoising of latents: what a training draws, what is measured, what is stored and drawn."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from afterimage import seeds
from afterimage.artifacts import ArtifactError
from afterimage.config import Diffusion, Model, Sample
from afterimage.config.texts import RandomTextEncoder
from afterimage.data.encode import build_encoder, embed, learn_tokenizer
from afterimage.diffusion import sample
from afterimage.diffusion.autoencoder import Autoencoder
from afterimage.diffusion.latents import EncodedImages, Latents
from afterimage.diffusion.model import build_scheduler, build_unet, save_pipeline
from afterimage.diffusion.noising import Pixels
from afterimage.diffusion.texts import Texts
from afterimage.images import contents

TINY = Model(
    channels=[8, 16],
    attention=[False, True],
    layers_per_block=1,
    norm_groups=4,
    attention_head_dim=8,
)
SCHEDULER = build_scheduler(Diffusion(timesteps=40), latents=True)
ROWS = np.array([3, 0, 3, 2])


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    """A random autoencoder of 2 x 2 pixels per latent value."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=[8, 8],
            norm_num_groups=4,
            scaling_factor=0.5,
        ).eval()


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("flips", [False, True])
def test_a_training_batch_is_drawn_from_the_encoders_distribution(vae, flips):
    """Its timesteps, noise, flips and dropped texts are those of a training on pixels."""
    encoded = EncodedImages.of(Autoencoder(vae), images(), flips)
    texts = Texts({"a": 0}, torch.ones(1, 2, 3), torch.zeros(2, 3))
    given = {
        "label_dropout": 0.5,
        "flips": flips,
        "texts": (texts, torch.zeros(5, dtype=torch.int64)),
    }
    task = Latents(images(), encoded, SCHEDULER, **given)
    batch = task.batch(ROWS, rng())

    # The same draws, in the documented order.
    generator = rng()
    timesteps = torch.randint(0, 40, (4,), generator=generator)
    noise = torch.randn((4, *task.shape), generator=generator)
    mirrored = torch.rand(4, generator=generator) < 0.5 if flips else torch.zeros(4) > 0
    dropped = torch.rand(4, generator=generator) < 0.5
    spread = torch.randn((4, *task.shape), generator=generator)
    for position, row in enumerate(ROWS):
        view = images()[row][:, :: -1 if mirrored[position] else 1]
        pixels = torch.from_numpy(view.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            latent = vae.encode(pixels).latent_dist
        clean = 0.5 * (latent.mean + latent.std * spread[position])
        signal = SCHEDULER.alphas_cumprod[timesteps[position]].sqrt()
        expected = signal * clean + (1 - signal**2).sqrt() * noise[position]
        torch.testing.assert_close(batch.noisy[position], expected[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(batch.timesteps, timesteps)
    assert torch.equal(batch.target, noise)
    shown = batch.condition["encoder_hidden_states"][:, 0, 0] == 1
    assert torch.equal(shown, ~dropped)


def test_losses_are_measured_at_the_mean(vae):
    encoded = EncodedImages.of(Autoencoder(vae), images(), mirrors=False)
    task = Latents(images(), encoded, SCHEDULER)
    rows = torch.arange(5)
    noise, plain = torch.zeros((5, *task.shape)), torch.zeros(5, dtype=torch.bool)
    batch = task.noised(rows, torch.zeros(5, dtype=torch.int64), noise, plain, {})
    signal = SCHEDULER.alphas_cumprod[0].sqrt()
    mean, _ = Autoencoder(vae).moments(images())
    torch.testing.assert_close(batch.noisy, signal * mean, atol=1e-5, rtol=1e-4)


def test_an_autoencoder_that_does_nothing_leaves_pixels():
    """Training on latents without deviation is training on pixels, bit by bit."""
    pixels = Pixels(images(), SCHEDULER, flips=True)
    rows = torch.arange(5)
    mean = torch.stack([pixels.clean(rows, torch.full((5,), on)) for on in (False, True)], dim=1)
    row = {digest.tobytes(): row for row, digest in enumerate(contents(images()))}
    encoded = EncodedImages(row, mean, torch.zeros_like(mean))
    ours = Latents(images(), encoded, SCHEDULER, flips=True).batch(ROWS, rng())
    theirs = pixels.batch(ROWS, rng())
    assert torch.equal(ours.noisy, theirs.noisy)
    assert torch.equal(ours.target, theirs.target)


@pytest.fixture(scope="module")
def stored(vae, tmp_path_factory):
    """A text-to-image pipeline as a training stores it, and its captions' embeddings."""
    folder = tmp_path_factory.mktemp("stored")
    captions = ["a red circle", "a blue square"]
    settings = RandomTextEncoder(vocabulary=300, length=16, width=12, layers=1, heads=2)
    tokenizer = learn_tokenizer(captions, settings)
    encoder = build_encoder(tokenizer, settings, seed=3)
    parts = {"vae": vae, "text_encoder": encoder, "tokenizer": tokenizer}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    net = build_unet(TINY, (8, 8, 4), seed=1, text_width=12)
    frozen = {name: folder / name for name in parts}
    save_pipeline(net, SCHEDULER, folder / "pipeline", frozen)
    rows = {caption: row for row, caption in enumerate(captions)}
    null = embed([""], tokenizer, encoder)[0]
    return folder, Texts(rows, embed(captions, tokenizer, encoder), null)


def test_diffusers_draws_the_same_images_without_our_code(stored):
    """Its own pipeline, from the same noise, with guidance; only roundings differ."""
    folder, texts = stored
    net, scheduler = sample.load_denoiser(folder / "pipeline")
    settings = Sample(images=2, sampler="ddim", steps=4, guidance=3.0, batch_size=2)
    prompts = texts, torch.tensor([1, 0])
    opened = Autoencoder.of(folder / "pipeline")
    ours = sample.generate(
        net, scheduler, [0, 1], settings, seed=5, texts=prompts, autoencoder=opened
    )
    assert ours.shape == (2, 16, 16, 3)
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "pipeline")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    noise = [torch.randn((4, 8, 8), generator=seeds.torch_rng(5, "sample", 0, i)) for i in (0, 1)]
    theirs = pipeline(
        ["a blue square", "a red circle"],
        num_inference_steps=4,
        guidance_scale=3.0,
        latents=torch.stack(noise),
        output_type="np",
    ).images
    assert np.abs(ours / 255 - theirs).max() < 2 / 255
    swapped = sample.generate(
        net, scheduler, [0, 1], settings, 5, texts=(texts, torch.tensor([0, 1])), autoencoder=opened
    )
    assert (swapped != ours).any()


def test_frozen_parts_are_stored_once(stored):
    folder, _ = stored
    for part in ("vae", "text_encoder", "tokenizer"):
        for file in (folder / part).iterdir():
            assert file.samefile(folder / "pipeline" / part / file.name)


def test_latents_are_not_clipped(vae):
    """A pixel scheduler clips to [-1, 1], where latents do not stay."""
    assert not SCHEDULER.config["clip_sample"]
    assert build_scheduler(Diffusion()).config["clip_sample"]


def test_an_autoencoder_with_other_weights_is_refused(stored, tmp_path):
    folder, _ = stored
    shutil.copytree(folder / "vae", tmp_path / "vae")
    (file,) = (tmp_path / "vae").glob("*.safetensors")
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if "conv_in" not in name}, file)
    with pytest.raises(ArtifactError, match=r"missing are .*conv_in"):
        Autoencoder.load(tmp_path / "vae")
