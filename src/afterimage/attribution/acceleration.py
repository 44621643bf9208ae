"""``afterimage attribution acceleration``: what cheaper features, and two-stage ranking, cost in quality.

Every variant of the features is compared with the dearest, the reference: by Spearman's correlation of the two scores over the training
images, mean over queries, and by the share of the reference's first ``FIRST`` images that are among its own. Two-stage ranking scores
all images with the main features and the best share of them again with the reference's; the others count nothing in its linear
data-modelling score (of the loss), and keep their order behind the best in its ranking.

The cost is the time that the features took, all readouts together; of two stages, the main features' and the share of the reference's
(of the training images; queries need both).

The store that the verb leaves: ``acceleration.csv``, one row per variant, attributor and set of queries: seconds, lds with low and high,
agreement and first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file
from scipy.stats import rankdata

from afterimage import artifacts, config, seeds
from afterimage.attribution.judges import lds, subsets
from afterimage.attribution.scores import FIRST, measured
from afterimage.config.attribution import MAIN
from afterimage.data.members import trained_rows
from afterimage.images import load_images

STEP = "attribution/acceleration"
TWO_STAGE = "two_stage"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument("--train", type=Path, required=True, metavar="NPZ", help="training images")
    parser.add_argument(
        "--members",
        type=Path,
        required=True,
        metavar="PARQUET",
        help="which of them the arm trained on",
    )
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
        help="features that they come from",
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


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's correlation of two scores, (Q, N), over the images, mean over the queries that have one."""
    each = lds.spearman(one.T, other.T)
    return float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")


def first_found(one: np.ndarray, other: np.ndarray, count: int = FIRST) -> float:
    """Return the share of the ``count`` highest scores of ``other``, (Q, N), that are among those of ``one``; mean over queries."""
    tops = [np.argsort(-scores, axis=1, kind="stable")[:, :count] for scores in (one, other)]
    return float(
        np.mean([np.isin(theirs, mine).mean() for mine, theirs in zip(*tops, strict=True)])
    )


def two_stages(
    cheap: np.ndarray, careful: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and the ranking of the best images by ``cheap``, looked at again by ``careful``.

    Args:
        cheap: Scores of the first stage, (Q, N).
        careful: Those of the second.
        share: Share of the N images that the second stage sees, at least one.

    Returns:
        Scores, those of ``careful`` for the images it sees and 0 for others, and ranks, larger for an earlier place; (Q, N) both.
    """
    count = max(1, round(share * cheap.shape[1]))
    seen = rankdata(-cheap, axis=1, method="ordinal") <= count
    among = np.where(
        seen, rankdata(careful, axis=1), 0
    )  # behind them, the others in the order of the first stage
    return np.where(seen, careful, 0), np.where(
        seen, cheap.shape[1] + among, rankdata(cheap, axis=1)
    )


def run(args: argparse.Namespace) -> None:
    """Compare all variants and store what they cost."""
    resolved = artifacts.read_config(args.config, STEP)
    own, seed = resolved["settings"], resolved["seed"]
    statistics = config.Statistics(**own["statistics"])
    inputs = {"train": args.train, "members": args.members}
    inputs |= {
        "/".join(store.parts[-4:]): store / artifacts.RUN
        for store in [*args.scores, *args.features, *args.retrain]
    }
    with artifacts.step(resolved, args.out, inputs, (__name__,)) as step:
        artifacts.check_file(args.members)
        train = trained_rows(load_images(args.train), pd.read_parquet(args.members))
        masks = subsets.masks(train.labels, own["share"], own["subsets"], seed)
        reported = lds.halves(own["subsets"])[1]
        truth = {
            name: values.mean(axis=0)
            for name, values in measured(args.retrain, own["subsets"], own["seeds"]).items()
        }
        seconds: dict[str, float] = {}
        for store in args.features:
            variant = store.parts[-3]
            seconds[variant] = seconds.get(variant, 0) + artifacts.read_run(store)["seconds"]
        seconds[TWO_STAGE] = seconds[MAIN] + own["shortlist"] * seconds[own["reference"]]
        scores, tables = {}, []
        for store in args.scores:
            for name in ("scores.safetensors", "lds.csv"):
                artifacts.check_file(store / name)
            scores[store.name] = load_file(store / "scores.safetensors")
            tables.append(pd.read_csv(store / "lds.csv").assign(variant=store.name))
        table = pd.concat(tables).query("target == 'loss'")[
            ["variant", "attributor", "queries", "lds", "low", "high"]
        ]
        reference = scores[own["reference"]]
        rows = []
        for row in table.to_dict("records"):
            key = f"{row['attributor']}/{row['queries']}"
            if key in reference:
                mine = scores[row["variant"]][key]
                rows.append(
                    row
                    | {
                        "agreement": agreement(mine, reference[key]),
                        "first": first_found(mine, reference[key]),
                    }
                )
        if own["reference"] != MAIN:
            for key in [key for key in reference if key in scores[MAIN]]:
                attributor, part = key.split("/")
                staged, ranks = two_stages(scores[MAIN][key], reference[key], own["shortlist"])
                predicted = lds.predictions(staged, masks[reported])
                rng = seeds.numpy_rng(seed, "attribution", "lds", TWO_STAGE, part)
                score = lds.lds(
                    predicted,
                    truth[f"{part}/loss"][reported],
                    statistics.bootstrap,
                    statistics.confidence,
                    rng,
                )
                rows.append(
                    {
                        "variant": TWO_STAGE,
                        "attributor": attributor,
                        "queries": part,
                        "lds": score.value,
                        "low": score.low,
                        "high": score.high,
                        "agreement": agreement(ranks, reference[key]),
                        "first": first_found(ranks, reference[key]),
                    }
                )
        made = pd.DataFrame(rows)
        made.insert(1, "seconds", made["variant"].map(seconds))
        made.to_csv(step.folder / "acceleration.csv", index=False)
        step.note(
            reference=own["reference"], shortlist=max(1, round(own["shortlist"] * len(train)))
        )
