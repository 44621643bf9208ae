"""Text-to-image training: our update against that of diffusers' text-to-image example, on the same networks and images.

    python benchmarks/text_update.py --results results/emoji_tiny [--arm plain] [--chunks 8] [--updates 20] [--threads 1]

Networks, images and captions are those of a finished study with an autoencoder. The recipe is that of diffusers' example: in every
update the autoencoder encodes the images and the text encoder the captions, and then come accelerate, clipping, AdamW, a learning rate
from ``get_scheduler`` and ``EMAModel``. Ours reads latents and embeddings that were encoded once (``data/latents``, ``data/encode``), and
its time is that of ``loop.run`` with its curves and one state per chunk. They take turns in chunks, and each chunk is compared with
the other of its round, in processor time. ``recipe without encoders`` is the recipe on the same stored latents and embeddings: what is
left of the difference then is the loop. Only ratios within one run mean something.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from training import captured
from transformers import AutoTokenizer, CLIPTextModel

from afterimage.attribution.judges.retrain import Recipe
from afterimage.diffusion.latents import EncodedImages
from afterimage.diffusion.pixels import to_float
from afterimage.diffusion.texts import Texts
from afterimage.training import loop
from afterimage.training.checkpoint import Store
from afterimage.training.job import TrainingRun


def training_of(results: Path, arm: str, folder: Path) -> tuple[Recipe, TrainingRun]:
    """Return the training of an arm's first replicate."""
    resolved = json.loads((results / "config" / "train" / arm / "rep0.json").read_text())
    stored = results / "train" / arm / "rep0"
    inputs = json.loads((stored / "run.json").read_text())["inputs"]
    recipe = Recipe.from_config(
        resolved,
        results / "data" / "planting" / "0" / "train.npz",
        stored / "members.parquet",
        Texts.load(results / "data" / "encode" / Path(inputs["texts"]["path"]).parent.name),
        EncodedImages.load(results / "data" / "latents"),
    )
    everything = np.ones(len(recipe.images), bool)
    store = Store(folder / "state", {"arm": arm})
    return recipe, recipe.training_run(everything, resolved["seed"], ("benchmark",), store)


def by_recipe(training: TrainingRun, recipe: Recipe, pipeline: Path, encode: bool) -> Iterator[int]:
    """Train as diffusers' text-to-image example does; yield the number of images after each update.

    Args:
        training: Has the network's shape and the settings.
        recipe: Has the images and their captions.
        pipeline: Folder with the autoencoder, the text encoder and the tokenizer.
        encode: Whether images and captions are encoded in every update.
    """
    train, accelerator, net = training.train, Accelerator(), training.build(None, "recipe")
    ema = EMAModel(net.parameters(), decay=train.ema)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay
    )
    rates = get_scheduler("constant", optimizer)
    vae: Any = AutoencoderKL.from_pretrained(pipeline / "vae").requires_grad_(False)
    encoder = CLIPTextModel.from_pretrained(pipeline / "text_encoder").requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(pipeline / "tokenizer")
    tokens = tokenizer(
        recipe.images.captions.tolist(),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
    clean = to_float(recipe.images.pixels)
    if not encode:
        with torch.no_grad():
            clean = vae.encode(clean).latent_dist.mean * vae.config.scaling_factor
            tokens = encoder(tokens)[0]
    loader = DataLoader(TensorDataset(clean, tokens), batch_size=train.batch_size, shuffle=True)
    net, optimizer, loader, rates = accelerator.prepare(net, optimizer, loader, rates)
    scheduler: Any = recipe.scheduler
    while True:
        net.train()
        for images, texts in loader:
            with accelerator.accumulate(net):
                latents, states = images, texts
                if encode:
                    latents = vae.encode(images).latent_dist.sample() * vae.config.scaling_factor
                    states = encoder(texts)[0]
                noise = torch.randn_like(latents)
                levels = scheduler.config["num_train_timesteps"]
                timesteps = torch.randint(0, levels, (len(latents),))
                noisy = scheduler.add_noise(latents, noise, timesteps)
                target = scheduler.get_velocity(latents, noise, timesteps)
                loss = functional.mse_loss(net(noisy, timesteps, states).sample, target)
                accelerator.gather(loss.repeat(train.batch_size)).mean().item()
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                rates.step()
                optimizer.zero_grad()
            ema.step(net.parameters())
            loss.detach().item()
            yield len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--arm", default="plain")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    pipeline = args.results / "train" / args.arm / "rep0" / "pipeline"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        recipe, training = training_of(args.results, args.arm, folder)
        update, parts = captured(training)
        theirs = {
            "recipe": by_recipe(training, recipe, pipeline, True),
            "recipe without encoders": by_recipe(training, recipe, pipeline, False),
        }

        def ours(k: int) -> None:
            loop.run(
                lambda s: update(k * args.updates + s),
                parts,
                Store(folder / "loop", {"chunk": k}),
                updates=args.updates,
                batch_size=training.train.batch_size,
                log_every=training.train.log_every,
                checkpoint_every=args.updates,
            )

        seconds: dict[str, list[float]] = {"ours": [], **{name: [] for name in theirs}}
        order = list(seconds)
        for k in range(args.chunks + 1):  # the first is warm-up
            order = order[1:] + order[:1]
            for name in order:
                started = time.process_time()
                if name == "ours":
                    ours(k)
                else:
                    for _ in range(args.updates):
                        next(theirs[name])
                if k:
                    seconds[name].append((time.process_time() - started) / args.updates)
    print(
        f"{args.arm}: {args.chunks} rounds of {args.updates} updates, {args.threads} thread(s), "
        f"batch {training.train.batch_size}"
    )
    for name, spent in seconds.items():
        ratios = [one / other for one, other in zip(seconds["recipe"], spent, strict=True)]
        print(
            f"{name:24} {1e3 * statistics.median(spent):8.1f} ms an update, "
            f"{statistics.median(ratios):.2f} times as fast as the recipe "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
