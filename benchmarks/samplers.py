"""What each sampler finds for its network evaluations: copies from one trained network.

    python benchmarks/samplers.py [--results results/default] [--arm baseline] [--images 512]

The network of a finished study's arm is sampled by DDIM and by ancestral sampling with several numbers of steps, from the same
starting noise, and attacked as the study does, at the threshold calibrated on held-out images. A row has the share of generations
flagged, the different training images extracted, and both per 1,000 network evaluations: what an attacker gets for the same work.
Class-balanced Fréchet distances stand beside them. One network: no row says anything about another.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from diffusers.utils.logging import disable_progress_bar

from afterimage import config
from afterimage.attacks import twins
from afterimage.attacks.path import Copies, Quality
from afterimage.data.members import trained_rows
from afterimage.diffusion.model import classes_of
from afterimage.diffusion.sample import generate, load_trained, trained_pipeline
from afterimage.images import load_images
from afterimage.plan.data import planting_of, training_images

SAMPLERS = [(name, steps) for name in ("ddim", "ddpm") for steps in (10, 20, 50, 100)]


def rows(root: Path, arm: str, count: int) -> list[dict]:
    """Return one row per sampler, of replicate 0 of an arm."""
    study = config.load(root / "config" / "study.json")
    model, planting = root / "train" / arm / "rep0", root / planting_of(study, 0)
    members = pd.read_parquet(model / "members.parquet")
    train = trained_rows(load_images(root / training_images(study, arm, 0)), members)
    split = root / "data" / "split"
    planted = twins.read(
        pd.read_parquet(planting / "index.parquet"), load_images(planting / "twins.npz")
    )
    copies = Copies(
        train,
        load_images(split / "holdout.npz"),
        planted.among(train.sources),
        study.extraction,
        study.mirrors,
        study.seed,
    )
    quality = Quality(
        load_images(split / "reference.npz"), study.quality, root / "data" / "classifier"
    )
    net, scheduler = load_trained(trained_pipeline(model, study.sample.weights), study.seed, 0)
    ids, classes = np.arange(count), classes_of(net)
    table = []
    for sampler, steps in SAMPLERS:
        sample = study.sample.model_copy(update={"sampler": sampler, "steps": steps})
        labels = None if classes is None else ids % classes
        pixels = generate(net, scheduler, ids, sample, study.seed, 0, labels)
        found = {row["metric"]: row for row in copies.numbers(pixels)}
        flagged = found["flagged_generations_calibrated"]
        extracted = found["unique_images_calibrated"]["value"]
        evaluations = count * steps / 1000
        table.append(
            {
                "sampler": sampler,
                "steps": steps,
                "flagged %": 100 * flagged["value"],
                "images": extracted,
                "flagged per 1,000": flagged["count"] / evaluations,
                "images per 1,000": extracted / evaluations,
                quality.frechet: quality.numbers(pixels)[quality.frechet],
            }
        )
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("results/default"))
    parser.add_argument("--arm", default="baseline")
    parser.add_argument("--images", type=int, default=512)
    args = parser.parse_args()
    disable_progress_bar()
    print(pd.DataFrame(rows(args.results, args.arm, args.images)).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
