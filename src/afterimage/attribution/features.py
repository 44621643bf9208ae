"""``afterimage attribution features``: projected gradients of one network for one block of images.

A job is named ``<variant>/<network>/<block>``. The variant says how features are made (``config.Features``). The network is ``final``,
the trained one, or an earlier state of its training, of which only the loss is read (TracIn). The block is ``queries`` or a slice of
the training images. ``compute`` is the work itself.

The store that the verb leaves: ``features.safetensors``, with ``<set>/<feature>``, ``<set>/rows`` and ``<set>/residual`` for each set of
the block (``train``, or the sets of queries), as float32; for the generations among the queries also ``<set>/journey``, where that is
asked for. ``read`` puts stores together again and refuses to mix what does not belong
together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import PartialState
from safetensors.numpy import load_file, save_file

from afterimage import artifacts, config
from afterimage.artifacts import ArtifactError
from afterimage.attribution import queries
from afterimage.attribution.consistency import check_alike
from afterimage.attribution.gradients import compute, journey
from afterimage.config.attribution import FINAL
from afterimage.data.members import trained_rows
from afterimage.diffusion.sample import load_trained, trained_pipeline
from afterimage.images import Images, load_images

STEP = "attribution/features"
FILE = "features.safetensors"


def block_of(images: Images, block: str, size: int) -> Images:
    """Return the training images of ``train<n>``: the n-th ``size`` rows."""
    at = int(block.removeprefix("train"))
    return images.take(np.arange(len(images))[at * size : (at + 1) * size])


def read(stores: list[Path]) -> dict[str, np.ndarray]:
    """Return what stores of one variant and network hold, the training blocks put together in the order given.

    Raises:
        ArtifactError: if a file is not as it was left, the stores differ in settings, network or code, or a block is not in its place.
    """
    check_alike(stores, ["model"], free=("block", "journey"))
    blocks = [artifacts.read_run(store)["config"]["settings"]["block"] for store in stores]
    train = [block for block in blocks if block != "queries"]
    if train != [f"train{at}" for at in range(len(train))]:
        raise ArtifactError(
            f"{stores[0].parent}: training blocks must come in order, each once, not {', '.join(train)}"
        )
    parts: dict[str, list[np.ndarray]] = {}
    for store in stores:
        artifacts.check_file(store / FILE)
        for name, values in load_file(store / FILE).items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="result of `afterimage train run`"
    )
    parser.add_argument("--train", type=Path, required=True, metavar="NPZ", help="training images")
    parser.add_argument(
        "--members",
        type=Path,
        required=True,
        metavar="PARQUET",
        help="which of them the arm trained on",
    )
    parser.add_argument(
        "--queries",
        type=Path,
        required=True,
        metavar="DIR",
        help="result of `afterimage attribution queries`",
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="JSON", help="resolved config of this job"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def run(args: argparse.Namespace) -> None:
    """Compute and store the features of one block."""
    resolved = artifacts.read_config(args.config, STEP)
    own = resolved["settings"]
    settings = config.Features.model_validate(own["features"])
    final = own["network"] == FINAL
    pipeline = trained_pipeline(args.model, own["weights"], None if final else own["network"])
    inputs = {"model": pipeline, "train": args.train, "members": args.members}
    sets: dict[str, Images]
    if own["block"] == "queries":
        paths = {name: args.queries / f"{name}.npz" for name in queries.SETS}
        inputs, sets = (
            {"model": pipeline} | paths,
            {name: load_images(path) for name, path in paths.items()},
        )
    else:
        artifacts.check_file(args.members)
        members = trained_rows(load_images(args.train), pd.read_parquet(args.members))
        sets = {"train": block_of(members, own["block"], own["images_per_job"])}
    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        net, scheduler_config = load_trained(pipeline, resolved["seed"], 0)
        net.to(PartialState().device)
        readouts = (
            [name for name in compute.READOUTS if settings.rows or name != "probe"]
            if final
            else ["loss"]
        )
        tensors: dict[str, np.ndarray] = {}
        for name, images in sets.items():
            made = compute.features(
                net, scheduler_config, images, name, settings, readouts, resolved["seed"]
            )
            tensors |= {f"{name}/{feature}": values for feature, values in made.features.items()}
            if final:
                tensors |= {f"{name}/rows": made.rows, f"{name}/residual": made.residual}
            if own["journey"] and name in queries.GENERATED and len(images):
                sampling = config.Sample.model_validate(own["journey"])
                along = journey.features(
                    net, scheduler_config, images, name, settings, sampling, resolved["seed"]
                )
                tensors[f"{name}/journey"] = along
        save_file(tensors, step.folder / FILE)
        step.note(images={name: len(images) for name, images in sets.items()})
