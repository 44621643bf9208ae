"""``afterimage selection timestep_ablation``: at which timesteps do blocks matter? An ablation
without further training.

Two arms of the selection, the control without blocks and the one with blocks at all timesteps,
alternate during sampling: the network with blocks predicts for t in [low, high), the control for
all other t. The ranges are all ranges that start or end at one of the study's ``switch_timesteps``,
and the pieces in between. Neither network was trained for its part of the range alone, so this is
an indication of what two networks trained for it would do, not a measurement of LoyalDiffusion.

The store: ``table.csv``, one row per range: low, high, R, similarity, flagged_generations (fixed
alpha, headline anchor) and frechet (``attacks.path.Quality``); the first row is the control alone
(an empty range), the second the network with blocks alone.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from accelerate import PartialState
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.utils.logging import disable_progress_bar

from afterimage import artifacts, config
from afterimage.attacks import adaptive
from afterimage.attacks.path import Quality
from afterimage.attacks.quality import similar_space
from afterimage.attacks.target import Target
from afterimage.data.members import trained_rows
from afterimage.diffusion.model import classes_of
from afterimage.diffusion.router import TimestepRouter
from afterimage.diffusion.sample import generate, load_trained, trained_pipeline
from afterimage.images import load_images
from afterimage.metrics import similarity

STEP = "selection/timestep_ablation"


def ranges(switch_timesteps: list[int], timesteps: int) -> list[tuple[int, int]]:
    """Return the ranges [low, high) to compare: none, all, every end and every piece, each once."""
    cuts = sorted(set(switch_timesteps))
    ends = [(tau, timesteps) for tau in cuts] + [(0, tau) for tau in cuts]
    return list(dict.fromkeys([(0, 0), (0, timesteps), *ends, *pairwise([0, *cuts, timesteps])]))


def swapped(control: UNet2DModel, blocks: UNet2DModel, low: int, high: int) -> TimestepRouter:
    """Return the network that is ``blocks`` for t in [low, high) and ``control`` elsewhere."""
    return TimestepRouter(control, TimestepRouter(blocks, control, high), low)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--control",
        type=Path,
        required=True,
        metavar="DIR",
        help="training of the arm without blocks",
    )
    parser.add_argument(
        "--blocks",
        type=Path,
        required=True,
        metavar="DIR",
        help="training of the arm with blocks at all timesteps",
    )
    parser.add_argument(
        "--train", type=Path, required=True, metavar="NPZ", help="training images of both"
    )
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="NPZ", help="reference split"
    )
    parser.add_argument(
        "--classifier",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the feature network",
    )
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        metavar="JSON",
        help="resolved config of step selection/timestep_ablation",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def run(args: argparse.Namespace) -> None:
    resolved = artifacts.read_config(args.config, STEP)
    settings = resolved["settings"]
    sample, measures = config.Sample(**settings["sample"]), config.Quality(**settings["quality"])
    attack = config.Extraction(**settings["extraction"])
    pipelines = [trained_pipeline(model, sample.weights) for model in (args.control, args.blocks)]
    members = args.control / "members.parquet"
    inputs = {
        "control": pipelines[0],
        "blocks": pipelines[1],
        "members": members,
        "train": args.train,
    }
    inputs |= {"reference": args.reference, "classifier": args.classifier}
    with artifacts.step(resolved, args.out, inputs, (__name__,)) as step:
        disable_progress_bar()
        (control, scheduler), (blocks, _) = (
            load_trained(pipeline, resolved["seed"], resolved["replicate"])
            for pipeline in pipelines
        )
        classes = classes_of(control)
        ids = np.arange(sample.images)
        labels = None if classes is None else ids % classes
        artifacts.check_file(members)
        train = trained_rows(load_images(args.train), pd.read_parquet(members))
        target = Target(train.pixels, attack, settings["mirrors"])
        reference = load_images(args.reference)
        near = similar_space(measures, args.classifier, reference)
        drawn, gallery = Quality(reference, measures, args.classifier), near(train.pixels)
        rows = []
        for low, high in ranges(settings["switch_timesteps"], scheduler["num_train_timesteps"]):
            net = swapped(control, blocks, low, high).eval().to(PartialState().device)
            pixels = generate(
                net, scheduler, ids, sample, resolved["seed"], resolved["replicate"], labels
            )
            similarities = similarity.top1(near(pixels), gallery)
            flags = adaptive.flagged(target.score(pixels).relative[attack.anchor], attack.alpha)
            row = {
                "low": low,
                "high": high,
                "R": similarity.replication(similarities),
                "similarity": similarities.mean(),
            }
            rows.append(
                row
                | {
                    "flagged_generations": flags.mean(),
                    "frechet": drawn.numbers(pixels)[drawn.frechet],
                }
            )
        pd.DataFrame(rows).to_csv(step.folder / "table.csv", index=False)
        step.note(generations=len(ids), ranges=len(rows))
