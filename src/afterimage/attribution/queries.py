"""``afterimage attribution queries``: the images whose origin is asked for.

Three sets: held-out images and the arm's own generations, as in the LDS protocol of D-TRAK and DAS, and generations in which the
extraction attack found a training image, whose origin is therefore known.

The store that the verb leaves: ``holdout.npz``, ``generated.npz`` and ``extracted.npz``. An extracted generation has the training
image that it shows as its source; the last set may be empty.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from afterimage import artifacts, config, seeds
from afterimage.images import Images, load_images

STEP = "attribution/queries"
EXTRACTED = "extracted"
GENERATED = ("generated", EXTRACTED)
SETS = ("holdout", *GENERATED)


def extracted(samples: Images, images: pd.DataFrame, anchor: str, count: int) -> Images:
    """Return generations that show a training image, each with its nearest as the source, nearest first, at most ``count``.

    Args:
        samples: The generations.
        images: ``images.parquet`` of the extraction attack on them.
        anchor: Whose neighbours normalise the distance; the calibrated threshold counts.
    """
    found = images[images[f"extracted_{anchor}_calibrated"]].sort_values("best_l2", kind="stable")
    found = found.drop_duplicates("best_sample").head(count)
    rows = (
        pd.Series(np.arange(len(samples)), samples.ids)
        .loc[found["best_sample"]]
        .to_numpy(dtype=np.int64)
    )
    chosen = samples.take(rows)
    return Images.of(chosen.pixels, chosen.ids, chosen.labels, sources=found["source"].to_numpy())


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument(
        "--holdout", type=Path, required=True, metavar="NPZ", help="held-out part of the split"
    )
    parser.add_argument(
        "--samples",
        type=Path,
        required=True,
        metavar="NPZ",
        help="generations of the explained arm",
    )
    parser.add_argument(
        "--extraction", type=Path, required=True, metavar="DIR", help="extraction attack on them"
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="JSON", help="resolved config of this step"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def run(args: argparse.Namespace) -> None:
    """Choose the queries and store them."""
    resolved = artifacts.read_config(args.config, STEP)
    settings = config.Queries.model_validate(resolved["settings"])
    inputs = {
        "holdout": args.holdout,
        "samples": args.samples,
        "extraction": args.extraction / "images.parquet",
    }
    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        artifacts.check_file(inputs["extraction"])
        holdout, samples = load_images(args.holdout), load_images(args.samples)
        drawn = seeds.numpy_rng(resolved["seed"], "attribution", "queries").permutation(
            len(holdout)
        )[: settings.holdout]
        anchor = artifacts.read_run(args.extraction)["config"]["settings"]["anchor"]
        sets = {
            "holdout": holdout.take(np.sort(drawn)),
            "generated": samples.take(np.arange(settings.generated)),
            "extracted": extracted(
                samples, pd.read_parquet(inputs["extraction"]), anchor, settings.extracted
            ),
        }
        for name, images in sets.items():
            images.save(step.folder / f"{name}.npz")
        step.note(**{name: len(images) for name, images in sets.items()})
