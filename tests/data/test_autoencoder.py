"""The autoencoder of a study: trained on reference images, or a stored one, checked."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.config.autoencoder import StoredAutoencoder
from afterimage.data import autoencoder, latents
from afterimage.diffusion.autoencoder import Autoencoder
from afterimage.diffusion.latents import EncodedImages
from afterimage.images import Images

SETTINGS = {"kind": "trained", "channels": [8, 8], "norm_groups": 4, "latent_channels": 3}


def blobs(count: int, seed: int) -> np.ndarray:
    """Return images with two values, one per half: they need two numbers each."""
    rng = np.random.default_rng(seed)
    images = np.empty((count, 8, 8, 1), np.uint8)
    images[:, :, :4] = rng.integers(0, 256, (count, 1, 1, 1))
    images[:, :, 4:] = rng.integers(0, 256, (count, 1, 1, 1))
    return images


@pytest.fixture
def split(tmp_path):
    settings = {"step": "data/split", "arm": None, "replicate": None, "seed": 3, "settings": {}}
    with artifacts.step(settings, tmp_path / "split", {}, ("afterimage.seeds",)) as step:
        for number, name in enumerate(("reference", "holdout", "train")):
            Images.of(blobs(40, number)).save(step.folder / f"{name}.npz")
    return tmp_path / "split"


@pytest.fixture
def made(split, resolved):
    """Return the store for some settings."""

    def run(out: str, **settings) -> Path:
        config = Path(resolved("data/autoencoder", settings))
        folder = split.parent / out
        autoencoder.run(
            argparse.Namespace(reference=split / "reference.npz", config=config, out=folder)
        )
        return folder

    return run


def error(store: Path, name: str = "validation_rmse") -> float:
    rows = [json.loads(line) for line in (store / "metrics.jsonl").read_text().splitlines()]
    return next(row["value"] for row in rows if row["name"] == name)


def test_training_restores_unseen_images_and_repeats(made):
    settings = SETTINGS | {"batch_size": 16, "learning_rate": 3e-3}
    short, long = made("short", updates=1, **settings), made("long", updates=300, **settings)
    assert error(long) < error(short) / 2
    again = made("again", updates=300, **settings)
    outputs = [artifacts.read_run(store)["outputs"] for store in (long, again)]
    assert outputs[0] == outputs[1]


def test_latents_have_unit_variance_as_networks_see_them(made):
    store = made("vae", updates=30, batch_size=16, **SETTINGS)
    mean, deviation = Autoencoder.load(store / "vae").moments(blobs(36, 0))
    drawn = mean + deviation * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    assert float(drawn.std()) == pytest.approx(1, abs=0.1)


def test_moments_and_images_are_those_of_diffusers(made):
    store = made("vae", updates=5, batch_size=16, **SETTINGS)
    vae = AutoencoderKL.from_pretrained(store / "vae")
    opened, images = Autoencoder.load(store / "vae"), blobs(3, 5)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist
        scale = vae.config.scaling_factor
        mean, deviation = opened.moments(images)
        torch.testing.assert_close(mean, expected.mean * scale, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(deviation, expected.std * scale, atol=1e-5, rtol=1e-5)
        restored = vae.decode(expected.mean).sample
    torch.testing.assert_close(opened.decode(mean), restored, atol=1e-5, rtol=1e-5)
    off = (restored.clamp(-1, 1) - pixels).square().mean(dim=(1, 2, 3)).sqrt() / 2
    np.testing.assert_allclose(autoencoder.errors(opened, images, mean), off, atol=2e-3)


def test_a_stored_one_is_copied_and_checked(made, tmp_path):
    first = made("vae", updates=1, batch_size=4, **SETTINGS)
    (weights,) = (first / "vae").glob("*.safetensors")
    own = {key: value for key, value in SETTINGS.items() if key != "kind"}
    stored = own | {"kind": "stored", "path": str(first / "vae"), "layers_per_block": 1}
    right = {weights.name: artifacts.sha256(weights)}
    copied = made("copied", **stored, sha256=right)
    assert artifacts.sha256(copied / "vae" / weights.name) == right[weights.name]
    assert error(copied) == error(first)
    with pytest.raises(ArtifactError, match="not the expected 0000"):
        made("changed", **stored, sha256={weights.name: "0" * 64})
    with pytest.raises(ArtifactError, match=r"names other.safetensors, which .* does not have"):
        made("absent", **stored, sha256={"other.safetensors": "0" * 64})
    with pytest.raises(ArtifactError, match=r"autoencoder.path = 'no': there is no such folder"):
        made("none", **stored | {"path": "no"})
    with pytest.raises(ValueError, match=r"latent_channels = 4, but the autoencoder in path"):
        StoredAutoencoder(**stored | {"latent_channels": 4})
    elsewhere = StoredAutoencoder(**stored | {"path": "elsewhere", "latent_channels": 4})
    assert elsewhere.latent(16, 32) == (8, 16, 4)


def test_images_that_do_not_fit_are_refused(made, tmp_path):
    with pytest.raises(ConfigError, match="5 levels, which need image sides that are multiples"):
        made("deep", **SETTINGS | {"channels": [8] * 5})
    AutoencoderKL(block_out_channels=[8], norm_num_groups=4).save_pretrained(tmp_path / "rgb")
    own = {"channels": [8], "norm_groups": 4, "layers_per_block": 1}
    with pytest.raises(ConfigError, match="takes images of 3 channels, but the study's have 1"):
        made("rgb", kind="stored", path=str(tmp_path / "rgb"), **own)


def test_every_image_is_encoded_once(made, split, resolved, tmp_path):
    vae = made("vae", updates=2, batch_size=4, **SETTINGS)
    files = [split / "train.npz", split / "holdout.npz"]
    arguments = argparse.Namespace(
        autoencoder=vae,
        images=[*files, split / "train.npz"],
        config=Path(resolved("data/latents", {"flips": True})),
        out=tmp_path / "latents",
    )
    latents.run(arguments)
    encoded = EncodedImages.load(tmp_path / "latents")
    assert encoded.mean.shape == encoded.deviation.shape == (80, 2, 3, 4, 4)
    assert encoded.shape == (4, 4, 3)
    images = blobs(40, 1)
    opened = Autoencoder.load(vae / "vae")
    for view, turned in enumerate((images, images[:, :, ::-1])):
        mean, deviation = opened.moments(turned)
        rows = encoded.rows(images)
        torch.testing.assert_close(encoded.mean[rows, view], mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoded.deviation[rows, view], deviation, atol=1e-5, rtol=1e-4)
    restored = error(tmp_path / "latents", "reconstruction_rmse_largest")
    assert restored == pytest.approx(
        max(
            autoencoder.errors(opened, some, opened.moments(some)[0]).max()
            for some in (blobs(40, 1), blobs(40, 2))
        ),
        abs=1e-3,
    )
    with pytest.raises(ArtifactError, match="image 1 of 2 was not encoded"):
        encoded.rows(np.stack([images[0], 255 - images[1]]))
