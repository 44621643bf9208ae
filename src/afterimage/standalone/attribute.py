"""``afterimage attribute``: attribute images to training images, for any diffusers pipeline.

No study is needed: the gradient features of ``compute`` are computed for the network as it is, and
attributors that need nothing else score with them. What a study learns from retraining is missing:
the regulariser is fixed, in multiples of the mean eigenvalue (see ``spectrum``), where a study
tunes it; and no linear data-modelling score measures how reliable the answer is.
``afterimage attribute --help`` describes the files in ``--out`` and the memory needed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from safetensors.numpy import save_file

from afterimage import artifacts, config
from afterimage.attribution import attributors
from afterimage.attribution.attributors.inputs import AttributionInputs, ImageFeatures
from afterimage.attribution.gradients import compute
from afterimage.attribution.ranking import check_finite, top_images
from afterimage.config import ConfigError
from afterimage.config.attribution import ATTRIBUTOR_TABLE, readouts_of
from afterimage.config.base import Block
from afterimage.diffusion.noising import Pixels
from afterimage.images import Images
from afterimage.metrics import near_duplicates
from afterimage.standalone import flags, networks, output
from afterimage.standalone import images as image_sets
from afterimage.standalone.generations import device_of

STEP = "attribute"

ALLOWED = [name for name, attributor in ATTRIBUTOR_TABLE.items() if attributor.from_features]
"""Attributors for which a network and images suffice."""

SHOWN = 8
"""Queries in a picture, and training images for each."""

FROM_PIXELS = [name for name in ALLOWED if not readouts_of([name])]
FROM_ROWS = [name for name in ALLOWED if "probe" in readouts_of([name])]
FROM_MEANS = [name for name in ALLOWED if name not in FROM_PIXELS + FROM_ROWS]

HELP = f"""\
attributors:
  from the gradients of the network, averaged over timesteps:
              {", ".join(FROM_MEANS)}
  from the gradients at every timestep:
              {", ".join(FROM_ROWS)}
  from the pixels alone:
              {", ".join(FROM_PIXELS)}

files:
  first.csv   query, attributor, rank (from 0), id, score: the top-ranked training images of every
              query. query and id are the images' names, or their row numbers if they have none
  scores.safetensors
              for each attributor, float32 (queries, training images); the metadata has the names
              of both, in order, as JSON
  NAME.png    with --show-images, for each attributor: the first {SHOWN} queries (left), each with
              its {SHOWN} top-ranked training images
  run.json    settings, hashes of all inputs and outputs, versions

memory in bytes, with N training images, k = --dimension and T = --timesteps:
  averaged    8 N k for each readout (the mean, square, l1 or loss of the output), and 24 N k during
              the decomposition of one of them: 1.6 GB for the default attributors and 10,000 images
  every timestep
              another 4 N T k, and 24 N T k during the decomposition: 11 GB for 10,000 images
  gradients   those of the network's largest layer, for --batch-size images
"""


class Settings(Block):
    """What the scores depend on, besides the network and the images."""

    features: config.Features
    attributors: list[str]
    regulariser: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    first: Annotated[int, Field(ge=1)]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP
    networks.arguments(parser)
    _input_flags(parser)
    _score_flags(parser)
    _feature_flags(parser)
    image_sets.arguments(parser, ("train", "queries"))
    parser.add_argument(
        "--show-images",
        action="store_true",
        help="also write pictures; mind the privacy of people in them",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of noise and projection (default: %(default)s)"
    )


def _input_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the images and the result."""
    parser.add_argument(
        "--train",
        metavar="SOURCE",
        required=True,
        help="its training images: a folder or zip of images, .npz, parquet, or "
        "owner/name@revision",
    )
    parser.add_argument(
        "--queries",
        metavar="SOURCE",
        required=True,
        help="images to attribute, given like --train",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write; an earlier result in it is replaced",
    )


def _score_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--attributor",
        nargs="+",
        metavar="NAME",
        default=["das_revised", "dtrak"],
        help="scores to compute, see below (default: das_revised dtrak)",
    )
    parser.add_argument(
        "--regulariser",
        type=float,
        default=1.0,
        help="lambda in multiples of the mean eigenvalue of the features' Gram matrix (default: "
        "%(default)s, a convention; tuning it requires retrained networks)",
    )
    parser.add_argument(
        "--first",
        type=int,
        default=16,
        metavar="N",
        help="top-ranked training images listed per query (default: 16)",
    )


def _feature_flags(parser: argparse.ArgumentParser) -> None:
    features = config.Features()
    parser.add_argument(
        "--timesteps",
        type=int,
        default=features.timesteps,
        help="noise levels per image (default: %(default)s)",
    )
    for flag, help_ in (
        (
            "grid",
            "regular: t = 0, 1000/T, ...; stratified: one at random in each of T equal intervals",
        ),
        (
            "projection",
            "projection of the gradients; none keeps all coordinates, for small networks",
        ),
        ("precision", "precision of the forward and backward pass"),
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
        help="dimension of a projected gradient (default: %(default)s)",
    )
    parser.add_argument(
        "--parameters",
        nargs="+",
        metavar="PATTERN",
        default=features.parameters,
        help="names of the parameters whose gradients are used, e.g. 'up_blocks.*' (default: all)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=features.batch_size,
        help="images per batch; bounds the memory (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Compute the features, score, and write the result."""
    # Check the flags and read the images and the network.
    settings = _settings(args)
    out = output.check(args.out, output.earlier(args.out, STEP), replaced=True)
    sources = {flag: getattr(args, flag) for flag in ("pipeline", "train", "queries")}
    device = device_of(args)
    opened, read = networks.read(args, ("train", "queries"))
    sets = {name: image_set.images for name, image_set in read.items()}
    names = {name: image_set.names for name, image_set in read.items()}
    tasks = {name: networks.task(opened, image_set, args) for name, image_set in read.items()}
    notices = [notice for image_set in read.values() for notice in image_set.notices()]
    notices += [f"--pipeline: {note}" for note in opened.notes]
    notices += _notice_of_training_images(sets["queries"], names["queries"], sets["train"])

    # Name everything that the result depends on.
    options: dict[str, Any] = networks.settings(opened, args)
    options |= {"colour": args.colour, "resize": args.resize}
    if args.resize:
        options |= {
            "resize_filter": args.resize_filter or "bilinear",
            "crop": args.crop or "centre",
        }
    resolved = {
        "step": STEP,
        "seed": args.seed,
        "settings": settings.model_dump() | sources | options,
    }
    inputs = {flag: Path(value) for flag, value in sources.items() if Path(value).exists()}
    modules = dict.fromkeys(config.ATTRIBUTORS[name] for name in settings.attributors)
    with artifacts.step(resolved, out, inputs, (__name__, *modules)) as step:
        step.note(
            images={name: len(images) for name, images in sets.items()},
            contents_sha256={
                "pipeline": opened.weights_sha256,
                **{name: image_set.sha256 for name, image_set in read.items()},
            },
            pipeline=opened.facts(),
            notices=notices,
            manifests={name: image_set.manifest for name, image_set in read.items()},
            scheduler=opened.scheduler_config,
            device=str(device),
        )

        # Score with every attributor.
        features = _features(opened.net, device, sets, tasks, settings, args.seed)
        scores: dict[str, np.ndarray] = {}
        top: dict[str, pd.DataFrame] = {}
        for name, values in _scores(features, settings, args.seed):
            # safetensors ignores strides: the array has to be contiguous.
            scores[name] = np.ascontiguousarray(values, np.float32)
            positions = np.arange(len(sets["train"]))
            top[name] = top_images(values, positions, settings.first).assign(attributor=name)
            if args.show_images:
                order = top[name]["id"].to_numpy().reshape(len(sets["queries"]), -1)
                _picture(sets, names, order, step.folder / f"{name}.png")

        # Write scores and top-ranked images under the images' names.
        table = pd.concat([top[name] for name in settings.attributors])
        table = table.sort_values("query", kind="stable")
        table["query"] = names["queries"][table["query"]]
        table["id"] = names["train"][table["id"]]
        columns = ["query", "attributor", "rank", "id", "score"]
        table[columns].to_csv(step.folder / "first.csv", index=False)
        metadata = {name: json.dumps(names[name].tolist()) for name in ("queries", "train")}
        save_file(scores, step.folder / "scores.safetensors", metadata=metadata)
    print(*notices, sep="\n", end="\n" if notices else "")
    print(
        f"{len(sets['queries'])} queries, {len(sets['train'])} training images; first.csv and "
        f"scores.safetensors written to {args.out}"
    )
    print(
        "Without retraining, the reliability of these scores is unknown; a study with "
        "`attribution` measures it."
    )


def _features(
    net: torch.nn.Module,
    device: torch.device,
    sets: dict[str, Images],
    tasks: dict[str, Pixels],
    settings: Settings,
    seed: int,
) -> dict[str, ImageFeatures]:
    """Return the features of each set of images: those of the readouts that attributors need."""
    net.to(device)
    readouts = readouts_of(settings.attributors)
    features = {}
    for name, images in sets.items():
        projected = compute.ProjectedGradients(
            features={},
            rows=np.empty((len(images), 0, 0), np.float32),
            residual=np.full(len(images), np.nan, np.float32),
        )
        if readouts:
            with flags.named("attribution.features"):
                projected = compute.project_gradients(
                    net, tasks[name], images.ids, name, settings.features, readouts, seed
                )
        features[name] = ImageFeatures(
            images, projected.features, projected.rows, projected.residual, embedding=None
        )
    return features


def _scores(
    features: dict[str, ImageFeatures], settings: Settings, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield attributor and scores, float64 (Q, N), one group of attributors after the other.

    The decompositions of features are kept as long as the inputs are. A group has the same readouts
    and shares its inputs, so that only one group's decompositions are in memory at a time.
    """

    def needs(name: str) -> tuple[str, ...]:
        return ATTRIBUTOR_TABLE[name].needs

    for _, group in groupby(sorted(settings.attributors, key=needs), needs):
        inputs = AttributionInputs(
            features["train"],
            features["queries"],
            checkpoints=(),
            masks=np.zeros((0, len(features["train"].images)), bool),
            losses=np.zeros((0, len(features["queries"].images))),
            seed=seed,
        )
        for name in group:
            scores = attributors.scorer(name, inputs)(settings.regulariser)
            yield name, check_finite(scores, name, settings.regulariser)


# ---- checks -----------------------------------------------------------------------------------


def _settings(args: argparse.Namespace) -> Settings:
    """Return the settings of the flags.

    Raises:
        ConfigError: naming the flag, its value and what is allowed.
    """
    names = list(dict.fromkeys(args.attributor))
    for name in names:
        if name not in ATTRIBUTOR_TABLE:
            reason = "is not an attributor"
        elif name not in ALLOWED:
            inputs = [
                need for need in ATTRIBUTOR_TABLE[name].needs if need not in readouts_of([name])
            ]
            reason = f"needs a study, for its {' and '.join(inputs)}"
        else:
            continue
        raise ConfigError(f"--attributor = {name!r} {reason}; allowed are {', '.join(ALLOWED)}")
    keys = ("timesteps", "grid", "projection", "dimension", "parameters", "precision", "batch_size")
    features = {key: getattr(args, key) for key in keys}
    with flags.named("attribution"):
        return Settings.model_validate(
            {
                "features": features | {"rows": "probe" in readouts_of(names)},
                "attributors": names,
                "regulariser": args.regulariser,
                "first": args.first,
            }
        )


def _notice_of_training_images(queries: Images, names: np.ndarray, train: Images) -> list[str]:
    """Return a notice of queries that are (nearly) training images themselves, if there are any."""
    duplicates = near_duplicates.find(queries.pixels, train.pixels, flips=False)
    is_duplicate, exact = duplicates.rows >= 0, int(duplicates.exact.sum())
    if not is_duplicate.any():
        return []
    listed = ", ".join(str(name) for name in names[is_duplicate][: image_sets.NAMED])
    return [
        f"--queries: {is_duplicate.sum()} of {len(queries)} are training images themselves "
        f"({exact} exactly): {listed}"
    ]


# ---- pictures ---------------------------------------------------------------------------------


def _picture(
    sets: dict[str, Images], names: dict[str, np.ndarray], order: np.ndarray, path: Path
) -> None:
    """Draw the first queries, one per row, each with its top-ranked training images to its right.

    Args:
        sets: The images: ``train`` and ``queries``.
        names: Their names.
        order: Positions of the top-ranked training images of each query, (Q, F).
        path: File to write.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    order = order[:SHOWN, :SHOWN]
    rows, columns = len(order), 1 + order.shape[1]
    figure, axes = plt.subplots(rows, columns, figsize=(1.4 * columns, 1.5 * rows), squeeze=False)
    for query, row in enumerate(axes):
        pictures = [sets["queries"].pixels[query], *sets["train"].pixels[order[query]]]
        titles = [
            str(name)[-20:] for name in (names["queries"][query], *names["train"][order[query]])
        ]
        titles[0] = f"query {titles[0]}"
        for axis, pixels, title in zip(row, pictures, titles, strict=True):
            axis.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_title(title, fontsize=7, pad=2)
            axis.axis("off")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
