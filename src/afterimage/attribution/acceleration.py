"""``afterimage attribution acceleration``: cost and quality of cheaper features and of two stages.

Every variant of the features is compared with the reference, the most expensive one: by Spearman's
correlation of the two scores over the training images (mean over queries), and by the share of the
reference's ``TOP`` top-ranked images that are among the variant's. Two-stage ranking scores all
images with the main features and the top-ranked fraction of them again with the reference features.
In its linear data-modelling score (of the loss) the scores of all other images are 0; in its
ranking they follow in the order of the first stage.

The cost is the time to compute the features, for all readouts together; for two-stage ranking, that
of the main features plus a fraction of the reference's (of the training images; the queries need
both).

The result is ``acceleration.csv``, one row per variant, attributor and set of queries: seconds, lds
with low and high, agreement and first; and ``units.parquet``, what each reported subset says of
these scores (variant, attributor, queries, subset, lds), as in ``attribution scores``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file
from scipy.stats import rankdata

from afterimage import artifacts
from afterimage.attribution.consistency import read_retraining_effects
from afterimage.attribution.flags import add_inputs
from afterimage.attribution.judges import lds, subsets
from afterimage.attribution.judges.repeatability import agreement
from afterimage.attribution.ranking import TOP
from afterimage.attribution.replicate import root_seed
from afterimage.config.attribution import MAIN
from afterimage.data.members import trained_rows
from afterimage.images import load_images

STEP = "attribution/acceleration"
TWO_STAGE = "two_stage"
UNITS = ["variant", "attributor", "queries", "subset", "lds"]
"""Columns of ``units.parquet``."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_inputs(parser, "train", "members")
    parser.add_argument(
        "--scores",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="scores of main and every variant",
    )
    parser.add_argument(
        "--features",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="the features that they were computed from",
    )
    parser.add_argument(
        "--retrain",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="losses under retrained networks",
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="JSON", help="resolved config of this step"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def top_overlap(scores: np.ndarray, reference: np.ndarray, count: int = TOP) -> float:
    """Return the share of ``reference``'s ``count`` top-ranked images that are in ``scores``' top.

    Args:
        scores: (Q, N).
        reference: (Q, N).
        count: Images per query.

    Returns:
        The mean over queries.
    """
    tops, reference_tops = (
        np.argsort(-values, axis=1, kind="stable")[:, :count] for values in (scores, reference)
    )
    overlaps = [
        np.isin(reference_top, top).mean()
        for top, reference_top in zip(tops, reference_tops, strict=True)
    ]
    return float(np.mean(overlaps))


def rank_in_two_stages(
    first_stage: np.ndarray, second_stage: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and the ranking of images of which the top-ranked are scored again.

    Args:
        first_stage: Scores of the first stage, (Q, N).
        second_stage: Scores of the second stage, (Q, N).
        share: Fraction of the N images that the second stage scores, at least one image.

    Returns:
        Scores, those of the second stage for the images that it scores and 0 for the others, and
        ranks, larger for images that come earlier; both (Q, N).
    """
    count = max(1, round(share * first_stage.shape[1]))
    shortlisted = rankdata(-first_stage, axis=1, method="ordinal") <= count
    # Shortlisted images come first; the others follow in the order of the first stage.
    shortlist_ranks = np.where(shortlisted, rankdata(second_stage, axis=1), 0)
    ranks = np.where(
        shortlisted, first_stage.shape[1] + shortlist_ranks, rankdata(first_stage, axis=1)
    )
    return np.where(shortlisted, second_stage, 0), ranks


def run(args: argparse.Namespace) -> None:
    """Compare all variants and store their costs and qualities."""
    # Name all inputs.
    resolved = artifacts.read_config(args.config, STEP)
    settings, seed = resolved["settings"], root_seed(resolved["seed"], resolved["replicate"])
    reference_name, shortlist = settings["reference"], settings["shortlist"]
    inputs = {"train": args.train, "members": args.members}
    inputs |= {
        "/".join(store.parts[-4:]): store / artifacts.RUN
        for store in [*args.scores, *args.features, *args.retrain]
    }

    with artifacts.step(resolved, args.out, inputs, (__name__,)) as step:
        # Read the subsets, the losses, the seconds of every variant, its scores and their LDS.
        artifacts.check_file(args.members)
        train = trained_rows(load_images(args.train), pd.read_parquet(args.members))
        masks = subsets.masks(train.labels, settings["share"], settings["subsets"], seed)
        reported = lds.halves(settings["subsets"])[1]
        effects = read_retraining_effects(args.retrain, settings["subsets"], settings["seeds"])
        seconds: dict[str, float] = {}
        for store in args.features:
            variant = store.parts[-3]
            seconds[variant] = seconds.get(variant, 0) + artifacts.read_run(store)["seconds"]
        seconds[TWO_STAGE] = seconds[MAIN] + shortlist * seconds[reference_name]
        scores, lds_tables, units = {}, [], []
        for store in args.scores:
            for name in ("scores.safetensors", "lds.csv", "units.parquet"):
                artifacts.check_file(store / name)
            scores[store.name] = load_file(store / "scores.safetensors")
            lds_tables.append(pd.read_csv(store / "lds.csv").assign(variant=store.name))
            of_loss = pd.read_parquet(store / "units.parquet").query("target == 'loss'")
            units.append(of_loss.assign(variant=store.name)[UNITS])
        table = pd.concat(lds_tables).query("target == 'loss'")[
            ["variant", "attributor", "queries", "lds", "low", "high"]
        ]
        reference = scores[reference_name]

        # Compare every variant with the reference.
        rows = []
        for row in table.to_dict("records"):
            key = f"{row['attributor']}/{row['queries']}"
            if key in reference:
                variant_scores = scores[row["variant"]][key]
                rows.append(
                    row
                    | {
                        "agreement": agreement(variant_scores, reference[key]),
                        "first": top_overlap(variant_scores, reference[key]),
                    }
                )

        # Compare two-stage ranking with the reference.
        two_stage = reference_name != MAIN
        for key in (key for key in reference if two_stage and key in scores[MAIN]):
            attributor, set_name = key.split("/")
            staged, ranks = rank_in_two_stages(scores[MAIN][key], reference[key], shortlist)
            correlations = lds.correlate(
                lds.predictions(staged, masks[reported]),
                effects[f"{set_name}/loss"].mean(axis=0)[reported],
            )
            score = lds.score_of(correlations, settings["confidence"])
            values = correlations.units()
            part = {"subset": np.arange(len(values)), "lds": values}
            about = {"variant": TWO_STAGE, "attributor": attributor, "queries": set_name}
            units.append(pd.DataFrame(part).assign(**about)[UNITS])
            rows.append(
                {
                    "variant": TWO_STAGE,
                    "attributor": attributor,
                    "queries": set_name,
                    "lds": score.value,
                    "low": score.low,
                    "high": score.high,
                    "agreement": agreement(ranks, reference[key]),
                    "first": top_overlap(ranks, reference[key]),
                }
            )

        # Write the tables.
        pd.concat(units, ignore_index=True).to_parquet(step.folder / "units.parquet", index=False)
        result = pd.DataFrame(rows)
        result.insert(1, "seconds", result["variant"].map(seconds))
        result.to_csv(step.folder / "acceleration.csv", index=False)
        step.note(reference=reference_name, shortlist=max(1, round(shortlist * len(train))))
