"""``afterimage data autoencoder``: make the autoencoder of a study whose arms denoise latents.

A small one is trained on the reference images, which no arm sees, with the loss of Rombach et al.
2022 but for its perceptual and adversarial terms: per image and value

    |x - D(z)|^2 + kl_weight KL(q(z | x) || N(0, 1)) / values,    z ~ q(z | x),

and half of the images are mirrored. Its ``scaling_factor`` is one over the standard deviation of
the reference images' latents, as there. A stored one is checked and copied.

What no generation can show, the autoencoder cannot restore: ``validation_rmse`` is the root mean
squared error of the images that it was not trained on (on the scale [0, 1] of extraction's
distances). The store: ``vae/``, which diffusers opens.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from afterimage import artifacts, config, scratch, seeds
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.config.autoencoder import StoredAutoencoder, TrainedAutoencoder
from afterimage.config.stored import validated
from afterimage.diffusion.autoencoder import FOLDER, Autoencoder
from afterimage.diffusion.pixels import to_float, to_uint8
from afterimage.images import load_images

STEP = "data/autoencoder"
VALIDATION_SHARE = 0.1
LOGGED = 50
"""Updates between two points of the training curve."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reference", type=Path, required=True, help="reference.npz of data split")
    parser.add_argument(
        "--config", type=Path, required=True, help=f"resolved config of {STEP} (JSON)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> None:
    resolved = artifacts.read_config(args.config, STEP)
    settings = validated(config.Autoencoder, resolved["settings"], "autoencoder")
    inputs = {"reference": args.reference}
    if isinstance(settings, StoredAutoencoder):
        inputs["stored"] = settings.folder
        if not inputs["stored"].is_dir():
            raise ArtifactError(f"autoencoder.path = {settings.path!r}: there is no such folder")
    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        reference = load_images(args.reference).pixels
        if refused := settings.refusal(*reference.shape[1:]):
            raise ConfigError(refused)
        order = seeds.numpy_rng(resolved["seed"], "autoencoder", "order").permutation(
            len(reference)
        )
        held = max(1, round(VALIDATION_SHARE * len(reference)))
        validation = reference[order[:held]]
        if isinstance(settings, StoredAutoencoder):
            _copy(settings, inputs["stored"], step.folder / FOLDER)
        else:
            vae, curve = fit(reference[order[held:]], settings, resolved["seed"])
            vae.save_pretrained(step.folder / FOLDER)
            for update, values in curve:
                for name, value in values.items():
                    step.metric(name, value, update)
        opened = Autoencoder.load(step.folder / FOLDER)
        off = errors(opened, validation, opened.moments(validation)[0])
        step.metric("validation_rmse", float(np.median(off)))
        step.note(
            parameters=sum(weight.numel() for weight in opened.vae.parameters()),
            validation_images=held,
        )


def errors(autoencoder: Autoencoder, images: np.ndarray, means: torch.Tensor) -> np.ndarray:
    """Return how far each image is from its reconstruction out of the mean latent: the root mean
    squared error on the scale [0, 1], float64, (N,).

    Args:
        autoencoder: The autoencoder.
        images: uint8, (N, H, W, C).
        means: Their mean latents, float32, (N, c, h, w).
    """
    errors = np.empty(len(images))
    for some in scratch.blocks(len(images), images[:1].size):
        restored = to_uint8(autoencoder.decode(means[some].to(autoencoder.vae.device)))
        differences = (restored.astype(np.float64) - images[some]) / 255
        errors[some] = np.sqrt((differences**2).mean(axis=(1, 2, 3)))
    return errors


def fit(
    images: np.ndarray, settings: TrainedAutoencoder, seed: int
) -> tuple[AutoencoderKL, list[tuple[int, dict[str, float]]]]:
    """Train an autoencoder.

    Args:
        images: uint8, (N, H, W, C).
        settings: Width, length and pace of the training.
        seed: The study's root seed.

    Returns:
        The autoencoder, and after some updates its loss, squared error and KL divergence, means
        over the updates since the last.

    Raises:
        ConfigError: if the loss is no longer finite.
    """
    device = PartialState().device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seeds.derive(seed, "autoencoder", "init"))
        vae: Any = AutoencoderKL(**settings.network(images.shape[-1])).to(device)
    generator = seeds.torch_rng(seed, "autoencoder", "updates")
    optimiser = torch.optim.AdamW(vae.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.updates)
    curve: list[tuple[int, dict[str, float]]] = []
    sums = {"loss": 0.0, "squared_error": 0.0, "kl": 0.0}
    for update, batch in enumerate(_batches(images, settings, generator), start=1):
        batch = batch.to(device)
        latent = vae.encode(batch).latent_dist
        noise = torch.randn(latent.mean.shape, generator=generator).to(device)
        restored = vae.decode(latent.mean + latent.std * noise).sample
        squared_error = (restored - batch).square().mean()
        kl = latent.kl().mean() / batch[0].numel()
        loss = squared_error + settings.kl_weight * kl
        if not torch.isfinite(loss):
            raise ConfigError(
                f"autoencoder.learning_rate = {settings.learning_rate}: the loss is no longer "
                "finite; lower it"
            )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        for name, value in zip(sums, (loss, squared_error, kl), strict=True):
            sums[name] += value.item()
        if update % LOGGED == 0 or update == settings.updates:
            since = update - (curve[-1][0] if curve else 0)
            curve.append((update, {name: total / since for name, total in sums.items()}))
            sums = dict.fromkeys(sums, 0.0)
    vae.eval()
    means, deviations = Autoencoder(vae).moments(images)
    spread = (means.double().var() + deviations.double().square().mean()).sqrt()
    vae.register_to_config(scaling_factor=float(vae.config["scaling_factor"] / spread))
    return vae.cpu(), curve


def _batches(
    images: np.ndarray, settings: TrainedAutoencoder, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield one batch per update, float32 in [-1, 1], (B, C, H, W): images drawn with replacement,
    half of them mirrored."""
    for _ in range(settings.updates):
        rows = torch.randint(len(images), (settings.batch_size,), generator=generator)
        batch = to_float(images[rows.numpy()])
        mirrored = torch.rand(len(rows), generator=generator) < 0.5
        yield torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)


def _copy(settings: StoredAutoencoder, stored: Path, folder: Path) -> None:
    """Copy the files of a stored autoencoder.

    Raises:
        ArtifactError: if one has another checksum.
    """
    folder.mkdir()
    for pattern in ("config.json", "diffusion_pytorch_model*.safetensors*"):
        for file in stored.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    artifacts.check_sums(stored, settings.sha256, "autoencoder.sha256")
