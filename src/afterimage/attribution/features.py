"""``afterimage attribution features``: projected gradients of one network for one block of images.

A job is named ``<variant>/<network>/<block>``. The variant selects how features are computed
(``config.Features``). The network is ``final``, the trained one; ``repeat``, the same with noise
and probes drawn anew, for some of the images; or an earlier checkpoint of its training, for which
only the loss readout is computed (TracIn). Block ``n`` is the n-th slice of the training images;
the first block has the queries, too. In a study that trains adapters (``model.lora``) gradients are
those of the adapters' weights. The computation itself is in ``gradients.compute``.

The result is ``features.safetensors``, float32, with ``<set>/<feature>``, ``<set>/rows`` and
``<set>/residual`` for each set of the block (``train``, and in the first block the sets of
queries); where requested, also ``<set>/journey`` for the generated queries.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from accelerate import PartialState
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors.numpy import save_file

from afterimage import artifacts, config
from afterimage.artifacts import ArtifactError
from afterimage.attribution import queries
from afterimage.attribution.flags import add_inputs
from afterimage.attribution.gradients import compute, journey
from afterimage.attribution.replicate import root_seed
from afterimage.config.attribution import FINAL, REPEAT
from afterimage.config.stored import validated
from afterimage.config.unet import StoredModel
from afterimage.data.members import trained_rows
from afterimage.diffusion.denoising import task_of
from afterimage.diffusion.latents import FILE as LATENTS
from afterimage.diffusion.latents import EncodedImages
from afterimage.diffusion.sample import load_trained, trained_pipeline
from afterimage.diffusion.start import stored_input, with_adapters
from afterimage.diffusion.texts import FILE, Texts
from afterimage.images import Images, load_images

STEP = "attribution/features"


def block_of(images: Images, block: int, size: int) -> Images:
    """Return the images of a training block: the ``block``-th ``size`` rows."""
    return images.take(np.arange(len(images))[block * size : (block + 1) * size])


def of_adapters(settings: config.Features) -> config.Features:
    """Return the settings for the weights of adapters alone, among the parameters that they
    choose."""
    patterns = [f"{pattern}lora_*" for pattern in settings.parameters if pattern.endswith("*")]
    return settings.model_copy(update={"parameters": patterns or settings.parameters})


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_inputs(parser, "model", "train", "members")
    # Queries: for the first block.
    add_inputs(parser, "queries", "texts", "latents", required=False)
    parser.add_argument(
        "--config", type=Path, required=True, metavar="JSON", help="resolved config of this job"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def run(args: argparse.Namespace) -> None:
    """Compute and store the features of one block."""
    # Read the job's settings and find its images.
    resolved = artifacts.read_config(args.config, STEP)
    settings, seed, replicate = resolved["settings"], resolved["seed"], resolved["replicate"]
    feature_settings = config.Features.model_validate(settings["features"])
    network, block = settings["network"], settings["block"]
    final = network in (FINAL, REPEAT)
    if block == 0 and args.queries is None:
        raise ArtifactError(f"--queries is missing: block 0 of {args.config} has the queries, too")
    pipeline = trained_pipeline(args.model, settings["weights"], None if final else network)
    inputs = {"model": pipeline, "train": args.train, "members": args.members}
    artifacts.check_file(args.members)
    members = trained_rows(load_images(args.train), pd.read_parquet(args.members))
    sets = {"train": block_of(members, block, settings["images_per_job"])}
    if block == 0:
        for name in queries.SETS:
            inputs[name] = args.queries / f"{name}.npz"
            images = load_images(inputs[name])
            sets[name] = images.take(np.arange(len(images))[: settings["queries"]])
    inputs |= {"texts": args.texts / FILE} if args.texts else {}
    inputs |= {"latents": args.latents / LATENTS} if args.latents else {}
    stored = None
    if "model" in settings:
        stored = validated(StoredModel, settings["model"], "model")
        inputs |= stored_input(stored)
        feature_settings = of_adapters(feature_settings)

    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        # Load the network and what it reads.
        texts = Texts.load(args.texts) if args.texts else None
        latents = EncodedImages.load(args.latents) if args.latents else None
        net, scheduler_config = load_trained(pipeline, seed, replicate)
        if stored is not None:
            net = cast(UNet2DModel, with_adapters(stored, pipeline))
        net.to(PartialState().device)
        readouts = ["loss"]
        if final:
            readouts = [*compute.READOUTS, *(["probe"] if feature_settings.rows else [])]

        # Compute the features of each set of images.
        tensors: dict[str, np.ndarray] = {}
        for name, images in sets.items():
            encoded = queries.texts_for(name, texts)
            projected = compute.project_gradients(
                net,
                task_of(
                    net,
                    scheduler_config,
                    images,
                    encoded,
                    queries.latents_for(name, images, latents, pipeline),
                ),
                images.ids,
                name,
                feature_settings,
                readouts,
                root_seed(seed, replicate),
                draw=int(network == REPEAT),
            )
            tensors |= {
                f"{name}/{feature}": values for feature, values in projected.features.items()
            }
            if final:
                tensors |= {f"{name}/rows": projected.rows, f"{name}/residual": projected.residual}
            if settings["journey"] and name in queries.GENERATED and len(images):
                sampling = config.Sample.model_validate(settings["journey"])
                tensors[f"{name}/journey"] = journey.project_journey_gradients(
                    net,
                    scheduler_config,
                    images,
                    name,
                    feature_settings,
                    sampling,
                    seed,
                    replicate,
                    encoded,
                )
        save_file(tensors, step.folder / "features.safetensors")
        step.note(images={name: len(images) for name, images in sets.items()})
