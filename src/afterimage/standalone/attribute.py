"""``afterimage attribute``: which training images made these images, for somebody's own diffusers pipeline.

No study is needed: the gradient features of ``compute`` are taken of the network as it is, and attributors that read no more
score by them. What a study learns by retraining is missing here. The regulariser is one given value, in multiples of the
mean eigenvalue (see ``spectrum``), where a study chooses among several; and no linear data-modelling score says how far the
answer can be trusted. What is written to ``--out``, and how much memory it takes, ``afterimage attribute --help`` prints.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import pandas as pd
from accelerate import PartialState
from pydantic import Field
from safetensors.numpy import save_file

from afterimage import artifacts, config
from afterimage.artifacts import ArtifactError
from afterimage.attribution import attributors
from afterimage.attribution.attributors.inputs import Evidence, Side
from afterimage.attribution.gradients import compute
from afterimage.attribution.scores import finite, leaders
from afterimage.config import ConfigError
from afterimage.config.base import Block
from afterimage.diffusion.pipelines import Opened, open_pipeline
from afterimage.images import Images
from afterimage.metrics import near_duplicates
from afterimage.standalone import flags, output
from afterimage.standalone import images as image_sets

STEP = "attribute"

READOUTS_OF: dict[str, tuple[str, ...]] = {
    "das": ("loss", "probe"),
    "das_scalar": ("loss", "probe"),
    "das_released": ("mean",),
    "das_released_squared": ("mean",),
    "das_revised": ("mean",),
    "das_archive": ("l1",),
    "trak": ("loss",),
    "dtrak": ("square",),
    "relative_influence": ("loss",),
    "renormalised_influence": ("loss",),
    "ggn_influence": ("loss", "probe"),
    "gradient_dot": ("loss",),
    "gradient_cosine": ("loss",),
    "pixel_cosine": (),
    "pixel_l2": (),
    "shuffled": ("loss",),
}
"""Attributor that a network and images are enough for -> the readouts whose gradients it takes."""

SHOWN = 8
"""Queries in a picture, and training images beside each."""

HELP = f"""\
attributors:
  from the gradients of the network, averaged over timesteps:
              {", ".join(name for name, readouts in READOUTS_OF.items() if readouts and "probe" not in readouts)}
  from those of every timestep apart:
              {", ".join(name for name, readouts in READOUTS_OF.items() if "probe" in readouts)}
  from the pixels alone:
              {", ".join(name for name, readouts in READOUTS_OF.items() if not readouts)}

files:
  first.csv   query, attributor, rank (from 0), id, score: the first training images of every query. query and id are the
              images' names, or their rows where they have none
  scores.safetensors
              by attributor: float32 (queries, training images); the metadata has the names of both, in order, as JSON
  NAME.png    with --show-images, by attributor: the first {SHOWN} queries (left), each with its first {SHOWN} training images
  run.json    settings, hashes of what was read and written, versions

memory in bytes, with N training images, k = --dimension and T = --timesteps:
  averaged    8 N k for each readout (the mean, square, l1 or loss of the output), and 24 N k while one of them is
              decomposed: 1.6 GB for the default attributors and 10,000 images
  apart       beside that 4 N T k, and 24 N T k while they are decomposed: 11 GB for 10,000 images
  gradients   of the network's largest layer, for --batch-size images
"""


class Settings(Block):
    """What the scores depend on, beside the network and the images."""

    features: config.Features
    attributors: list[str]
    regulariser: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    first: Annotated[int, Field(ge=1)]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP
    features = config.Features()
    parser.add_argument(
        "--pipeline",
        metavar="DIR|ID",
        required=True,
        help="diffusers pipeline (pixels, no text), or a trainer's checkpoint-N folder",
    )
    parser.add_argument(
        "--weights",
        choices=["ema", "raw"],
        help="averaged weights or those of the last update, of a checkpoint that has both (default: ema)",
    )
    parser.add_argument(
        "--train",
        metavar="SOURCE",
        required=True,
        help="its training images: a folder or zip of images, .npz, parquet, or owner/name@revision",
    )
    parser.add_argument(
        "--queries",
        metavar="SOURCE",
        required=True,
        help="images whose origin is asked for, as --train",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write; an earlier result in it is replaced",
    )
    parser.add_argument(
        "--attributor",
        nargs="+",
        metavar="NAME",
        default=["das_revised", "dtrak"],
        help="which scores, see below (default: das_revised dtrak)",
    )
    parser.add_argument(
        "--regulariser",
        type=float,
        default=1.0,
        help="lambda in multiples of the mean eigenvalue of the features' Gram matrix (default: %(default)s, a convention that "
        "was not tuned: choosing it takes retrained networks)",
    )
    parser.add_argument(
        "--first",
        type=int,
        default=16,
        metavar="N",
        help="training images named per query (default: 16)",
    )
    parser.add_argument(
        "--timesteps",
        type=int,
        default=features.timesteps,
        help="noise levels per image (default: %(default)s)",
    )
    for flag, help_ in (
        ("grid", "regular: t = 0, 1000/T, ...; stratified: one at random in each of T equal parts"),
        ("projection", "of the gradients; none keeps all coordinates, for small networks"),
        ("precision", "of the forward and backward pass"),
    ):
        choices = get_args(config.Features.model_fields[flag].annotation)
        default = getattr(features, flag)
        parser.add_argument(
            f"--{flag}", choices=choices, default=default, help=f"{help_} (default: %(default)s)"
        )
    parser.add_argument(
        "--dimension",
        type=int,
        default=features.dimension,
        help="coordinates of a projected gradient (default: %(default)s)",
    )
    parser.add_argument(
        "--parameters",
        nargs="+",
        metavar="PATTERN",
        default=features.parameters,
        help="names of the parameters whose gradients count, e.g. 'up_blocks.*' (default: all)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=features.batch_size,
        help="images at once; bounds memory (default: %(default)s)",
    )
    image_sets.arguments(parser, ("train", "queries"))
    parser.add_argument(
        "--show-images", action="store_true", help="write pictures too; mind who is in them"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of noise and projection (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Compute the features, score, and write the result."""
    settings, out = (
        _settings(args),
        output.check(args.out, output.earlier(args.out, STEP), replaced=True),
    )
    given = {flag: getattr(args, flag) for flag in ("pipeline", "train", "queries")}
    for flag in ("train", "queries"):
        image_sets.source_of(flag, args)
    read = {name: image_sets.read_set(name, args) for name in ("train", "queries")}
    height, width = read["train"].images.pixels.shape[1:3]
    try:
        opened = open_pipeline(given["pipeline"], args.weights, size=(height, width))
    except ArtifactError as error:
        raise ArtifactError(f"--pipeline: {error}") from error
    if opened.classes is not None:  # labels are asked for only where the network takes them
        read = {name: image_sets.read_set(name, args, labels=True) for name in read}
        read["queries"] = image_sets.with_classes_of(read["train"], read["queries"])
    sets = {name: each.images for name, each in read.items()}
    (train, train_names), (queries, query_names) = (
        (each.images, each.names) for each in read.values()
    )
    _check(opened, sets)
    notices = [notice for each in read.values() for notice in each.notices()]
    notices += [f"--pipeline: {note}" for note in opened.notes] + _trained_on(
        queries, query_names, train
    )
    net, scheduler_config = opened.net, opened.scheduler_config

    said = given | {"weights": opened.weights, "colour": args.colour, "resize": args.resize}
    said |= (
        {"resize_filter": args.resize_filter or "bilinear", "crop": args.crop or "centre"}
        if args.resize
        else {}
    )
    resolved = {"step": STEP, "seed": args.seed, "settings": settings.model_dump() | said}
    inputs = {flag: Path(value) for flag, value in given.items() if Path(value).exists()}
    entries = (__name__, *(config.ATTRIBUTORS[name] for name in settings.attributors))
    with artifacts.step(resolved, out, inputs, entries) as step:
        step.note(
            images={name: len(images) for name, images in sets.items()},
            contents_sha256={
                "pipeline": opened.weights_sha256,
                **{name: each.sha256 for name, each in read.items()},
            },
            pipeline=opened.facts(),
            notices=notices,
            manifests={name: each.manifest for name, each in read.items()},
            scheduler=scheduler_config,
            device=str(PartialState().device),
        )
        net.to(PartialState().device)
        readouts = {readout for name in settings.attributors for readout in READOUTS_OF[name]}
        sides = {}
        for name, images in sets.items():
            made = compute.Projected(
                {},
                np.empty((len(images), 0, 0), np.float32),
                np.full(len(images), np.nan, np.float32),
            )
            if readouts:
                with flags.named("attribution.features"):
                    made = compute.features(
                        net, scheduler_config, images, name, settings.features, readouts, args.seed
                    )
            sides[name] = Side(images, made.features, made.rows, made.residual, embedding=None)

        scores: dict[str, np.ndarray] = {}
        firsts: dict[str, pd.DataFrame] = {}
        # An evidence keeps what it decomposed. It serves the attributors of the same readouts and goes with them.
        for _, names in groupby(
            sorted(settings.attributors, key=READOUTS_OF.__getitem__), READOUTS_OF.__getitem__
        ):
            evidence = Evidence(
                sides["train"],
                sides["queries"],
                checkpoints=(),
                masks=np.zeros((0, len(train)), bool),
                losses=np.zeros((0, len(queries))),
                seed=args.seed,
            )
            for name in names:
                found = attributors.find(name).scores(evidence)(settings.regulariser)
                finite(found, name, settings.regulariser)
                scores[name] = np.ascontiguousarray(
                    found, np.float32
                )  # safetensors writes bytes as they lie
                firsts[name] = leaders(found, np.arange(len(train)), settings.first).assign(
                    attributor=name
                )
                if args.show_images:
                    order = firsts[name]["id"].to_numpy().reshape(len(queries), -1)
                    _picture(
                        queries, query_names, train, train_names, order, step.folder / f"{name}.png"
                    )

        table = pd.concat([firsts[name] for name in settings.attributors]).sort_values(
            "query", kind="stable"
        )
        table["query"], table["id"] = query_names[table["query"]], train_names[table["id"]]
        table[["query", "attributor", "rank", "id", "score"]].to_csv(
            step.folder / "first.csv", index=False
        )
        order_of = {
            "queries": json.dumps(query_names.tolist()),
            "train": json.dumps(train_names.tolist()),
        }
        save_file(scores, step.folder / "scores.safetensors", metadata=order_of)
    print(*notices, sep="\n", end="\n" if notices else "")
    print(
        f"{len(queries)} queries, {len(train)} training images; first.csv and scores.safetensors written to {args.out}"
    )
    print(
        "Without retraining nothing says how far these scores can be trusted; a study with `attribution` measures it."
    )


# ---- what is allowed ----------------------------------------------------------------------------------------------------


def _settings(args: argparse.Namespace) -> Settings:
    names = list(dict.fromkeys(args.attributor))
    for name in names:
        if name not in READOUTS_OF:
            raise ConfigError(
                f"--attributor = {name!r}: a network and images are not enough for it, or it is none; allowed are "
                f"{', '.join(READOUTS_OF)}"
            )
    keys = ("timesteps", "grid", "projection", "dimension", "parameters", "precision", "batch_size")
    features = {key: getattr(args, key) for key in keys} | {
        "rows": any("probe" in READOUTS_OF[name] for name in names)
    }
    with flags.named("attribution"):
        return Settings.model_validate(
            {
                "features": features,
                "attributors": names,
                "regulariser": args.regulariser,
                "first": args.first,
            }
        )


def _trained_on(queries: Images, names: np.ndarray, train: Images) -> list[str]:
    """Return a sentence on the queries that are training images themselves, exactly or nearly."""
    duplicates = near_duplicates.find(queries.pixels, train.pixels, flips=False)
    same, exact = duplicates.rows >= 0, int(duplicates.exact.sum())
    if not same.any():
        return []
    listed = ", ".join(str(name) for name in names[same][: image_sets.NAMED])
    return [
        f"--queries: {same.sum()} of {len(queries)} are training images themselves ({exact} exactly): {listed}"
    ]


def _check(opened: Opened, sets: dict[str, Images]) -> None:
    """Check that the images and labels suit the network.

    Raises:
        ConfigError: naming the flag.
    """
    wanted, classes = opened.shape, opened.classes
    for name, images in sets.items():
        if images.pixels.shape[1:] != wanted:
            given, needed = (
                "x".join(map(str, shape)) for shape in (images.pixels.shape[1:], wanted)
            )
            raise ConfigError(
                f"--{name}: images are {given}, but {needed} is needed; --resize and --colour make them so"
            )
        low, high = images.labels.min(), images.labels.max()
        if classes is not None and (low < 0 or high >= classes):
            raise ConfigError(
                f"--{name}: labels go from {low} to {high} (-1: none), but the network knows 0 to {classes - 1}; labels are "
                "the sub-folders of a folder, or the array labels of an .npz"
            )


# ---- the picture --------------------------------------------------------------------------------------------------------


def _picture(
    queries: Images,
    query_names: np.ndarray,
    train: Images,
    train_names: np.ndarray,
    order: np.ndarray,
    path: Path,
) -> None:
    """Draw the first queries, one per row, each with its first training images, (Q, F), to its right."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    order = order[:SHOWN, :SHOWN]
    rows, columns = len(order), 1 + order.shape[1]
    figure, axes = plt.subplots(rows, columns, figsize=(1.4 * columns, 1.5 * rows), squeeze=False)
    for at, row in enumerate(axes):
        pictures = [queries.pixels[at], *train.pixels[order[at]]]
        names = [str(name)[-20:] for name in (query_names[at], *train_names[order[at]])]
        for axis, pixels, name in zip(
            row, pictures, [f"query {names[0]}", *names[1:]], strict=True
        ):
            axis.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_title(name, fontsize=7, pad=2)
            axis.axis("off")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
