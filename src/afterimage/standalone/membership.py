"""``afterimage membership``: do a network's losses tell which images it was trained on?

The loss-threshold attack (Yeom et al. 2018; Carlini et al. 2023, section 5.2.1) on any network
whose loss on an image is known: U-Nets of pixels, and latent networks with texts or labels, with
LoRA weights. Its attacker has the weights and the images; an audit asks what can be drawn instead.

Written to ``--out``: see ``HELP``, which ``afterimage membership --help`` prints.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from afterimage import __version__, artifacts, config
from afterimage.attacks import losses, membership
from afterimage.config import ConfigError
from afterimage.diffusion.noising import levels
from afterimage.images import contents
from afterimage.metrics import intervals
from afterimage.metrics.ranking import roc_auc
from afterimage.standalone import flags, networks, output
from afterimage.standalone import images as image_sets
from afterimage.standalone.generations import device_of
from afterimage.standalone.images import ImageSet

FILES = ("membership.json", "losses.csv")
SETS = ("train", "holdout")

HELP = """\
files:
  losses.csv       one row per different training image and per held-out image: set (train,
                   holdout), name, loss (mean over timesteps), and loss_<t> for each timestep
  membership.json  outcome and sentence; auc: the probability that the loss of a training image is
                   below that of a held-out one, with its interval; detected: at each rate of false
                   alarms the share of training images that a threshold detects, with its exact
                   interval; left_out: held-out images that are training images too; settings
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP
    networks.arguments(parser)
    for name, text in (
        (
            "train",
            "its training images: a folder or zip of images, .npz, parquet, or owner/name@revision",
        ),
        ("holdout", "images of the same distribution that it was not trained on, given alike"),
    ):
        parser.add_argument(f"--{name}", metavar="SOURCE", required=True, help=text)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("membership"),
        metavar="DIR",
        help="folder to write (default: %(default)s)",
    )
    settings = config.Membership()
    parser.add_argument(
        "--timesteps",
        type=int,
        default=settings.timesteps,
        help="noise levels, the middles of equal ranges (default: %(default)s)",
    )
    parser.add_argument(
        "--draws",
        type=int,
        default=settings.draws,
        help="noise draws per image and level (default: %(default)s)",
    )
    parser.add_argument(
        "--flips",
        action="store_true",
        help="the network was trained with mirrored images: average over both",
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, help="images per batch (default: %(default)s)"
    )
    image_sets.arguments(parser, SETS)
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the noise (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Measure the losses, compare them, and write the answer."""
    # Check the flags; read the images and the network.
    started = time.monotonic()
    with flags.named("membership"):
        settings = config.Membership(timesteps=args.timesteps, draws=args.draws)
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size = {args.batch_size}: allowed are numbers from 1")
    out = output.check(args.out, FILES)
    network, sets = networks.read(args, SETS)
    image_sets.check_shapes(sets)
    repeated = _repeated(sets)

    # Measure and compare the losses.
    device = device_of(args)
    total = network.scheduler_config["num_train_timesteps"]
    with flags.named("membership"):
        at = levels(settings.timesteps, total)
    net: torch.nn.Module = network.net
    net.to(device)
    tables = {}
    for name, image_set in sets.items():
        with flags.named("membership"):
            measured = losses.measure(
                net,
                networks.task(network, image_set, args, mirrors=args.flips),
                image_set.images.ids,
                name,
                at,
                settings.draws,
                args.seed,
                flips=args.flips,
                batch_size=args.batch_size,
            )
        table = pd.DataFrame({"set": name, "name": image_set.names, "loss": measured.mean(axis=1)})
        columns = [f"loss_{t}" for t in at]
        tables[name] = pd.concat([table, pd.DataFrame(measured, columns=columns)], axis=1)
    tables["holdout"] = tables["holdout"][~repeated]
    tables["train"] = tables["train"].iloc[_first_of_each(sets["train"])]
    members, others = (tables[name]["loss"].to_numpy() for name in SETS)
    record = _record(members, others, settings) | {
        "left_out": [str(name) for name in sets["holdout"].names[repeated]],
        "notices": [
            *(notice for image_set in sets.values() for notice in image_set.notices()),
            *(f"--pipeline: {note}" for note in network.notes),
        ],
        "inputs": {name: image_set.sha256 for name, image_set in sets.items()}
        | {"pipeline": network.weights_sha256},
        "settings": {flag: getattr(args, flag) for flag in ("pipeline", *SETS)}
        | networks.settings(network, args)
        | {"timesteps": at, "draws": settings.draws, "flips": args.flips}
        | {"colour": args.colour, "resize": args.resize}
        | {"network": network.facts(), "device": str(device)}
        | {"seed": args.seed, "version": __version__},
        "seconds": round(time.monotonic() - started, 2),
    }

    # Write and print the answer.
    artifacts.write_json(out / "membership.json", record)
    rows = pd.concat(tables.values())
    artifacts.write_atomically(out / "losses.csv", rows.to_csv(index=False).encode())
    for notice in record["notices"]:
        print(notice)
    if repeated.any():
        print(f"--holdout: {repeated.sum()} images are training images too, and were left out")
    print(f"\n{record['sentence']}\n\n{', '.join(FILES)} written to {args.out}")


def _repeated(sets: dict[str, ImageSet]) -> np.ndarray:
    """Return the held-out images that are training images too, bool (holdout,).

    Raises:
        ConfigError: if no held-out image is left.
    """
    train, holdout = (sets[name].images.pixels for name in SETS)
    repeated = np.isin(contents(holdout), contents(train))
    if repeated.all():
        raise ConfigError(
            f"--holdout: all {len(repeated)} images are training images too; images that the "
            "network was not trained on are needed"
        )
    return repeated


def _first_of_each(train: ImageSet) -> np.ndarray:
    """Return the rows of different training images: copies of one image are one member."""
    return np.sort(np.unique(contents(train.images.pixels), return_index=True)[1])


def _record(members: np.ndarray, others: np.ndarray, settings: config.Membership) -> dict[str, Any]:
    """Return the numbers, the outcome and the answer as a paragraph."""
    confidence = config.Statistics().confidence
    area = intervals.auc(roc_auc(members, others), len(members), len(others), confidence)
    detected = {}
    for rate in settings.false_positive_rates:
        if rate * len(others) < 1:
            continue  # no threshold is known to keep such a rate
        count = int(membership.found(members, others, rate).sum())
        low, high = intervals.exact_limits(count, len(members), confidence)
        detected[f"{rate:g}"] = {
            "count": count,
            "share": count / len(members),
            "low": float(low),
            "high": float(high),
        }
    numbers = f"AUC {area.value:.3f} ({area.low:.3f} to {area.high:.3f})"
    counts = f"{len(members)} training and {len(others)} held-out images"
    if area.low > 0.5:
        outcome = "membership shows"
        sentence = f"Losses tell training images from held-out ones: {numbers}, {counts}."
    elif area.high < 0.5:
        outcome = "cannot tell"
        sentence = (
            f"Cannot tell: the losses of training images are above those of held-out ones: "
            f"{numbers}, {counts}. The two sets differ in more than membership."
        )
    else:
        outcome = "not shown"
        sentence = (
            f"Losses do not tell training images from held-out ones: {numbers}, {counts}. An "
            f"AUC above {area.high:.3f} is excluded; stronger attacks (trained shadow models, "
            "gradients) may find more."
        )
    if "0.01" in detected:
        share = detected["0.01"]
        sentence += (
            f" At 1 % of false alarms, {100 * share['share']:.1f} % of the training images are "
            f"detected ({100 * share['low']:.1f} to {100 * share['high']:.1f} %)."
        )
    return {
        "outcome": outcome,
        "sentence": sentence + " Both sets have to be of one distribution.",
        "counts": {"train": len(members), "holdout": len(others)},
        "auc": area._asdict(),
        "detected": detected,
    }
