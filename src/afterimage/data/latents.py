"""``afterimage data latents``: encode every image that networks are trained on or attacked with.

Trainings then read latents by number, and need no autoencoder (``diffusion.latents``). The smallest
distance at which a generation can show a training image is that of the image to its reconstruction:
the median and the largest of the images' ``errors`` are recorded.

The store: ``latents.safetensors``; ``vae/``, the autoencoder, linked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from afterimage import artifacts, scratch
from afterimage.data.autoencoder import errors
from afterimage.diffusion.autoencoder import FOLDER, Autoencoder
from afterimage.diffusion.latents import EncodedImages
from afterimage.images import different, load_images

STEP = "data/latents"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--autoencoder", type=Path, required=True, help="result of `afterimage data autoencoder`"
    )
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True, help="images to encode (.npz)"
    )
    parser.add_argument(
        "--config", type=Path, required=True, help=f"resolved config of {STEP} (JSON)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> None:
    resolved = artifacts.read_config(args.config, STEP)
    stored = args.autoencoder / FOLDER
    inputs = {"autoencoder": stored}
    inputs |= {f"images{number}": path for number, path in enumerate(args.images)}
    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        autoencoder = Autoencoder.load(stored)
        images = scratch.joined([load_images(path).pixels for path in args.images])
        first, times = different(images)
        once = scratch.taken(images, first)
        encoded = EncodedImages.of(autoencoder, once, step.settings["flips"])
        encoded.save(step.folder)
        artifacts.link(stored, step.folder / FOLDER)
        off = np.repeat(errors(autoencoder, once, encoded.mean[:, 0]), times)
        step.metric("reconstruction_rmse_median", float(np.median(off)))
        step.metric("reconstruction_rmse_largest", float(off.max()))
        step.note(images=len(encoded.row), latent=list(encoded.shape))
