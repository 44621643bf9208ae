"""Gather the results of all arms and replicates into the tidy tables that pages, DVC and MLflow show.

``arms.csv`` holds the headline numbers, ``extraction.csv`` and ``quality.csv`` every number of every replicate, ``copies.csv``
extraction against multiplicity pooled over replicates, ``union.csv`` what all replicates of an arm together gave back (the count
that Carlini et al. 2023 report for their 16 models), ``multiplicity.csv`` (calibrated alpha) and ``loss.csv`` wide tables for plots.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from afterimage import artifacts

CONFIDENCE = 0.95
ORDER = (
    "unique_images",
    "flagged_generations",
    "flagged_holdout",
    "twins_flagged",
    "unique_images_calibrated",
    "flagged_generations_calibrated",
    "flagged_holdout_calibrated",
    "twins_flagged_calibrated",
    "alpha_calibrated",
    "average_precision",
    "mq@0.5 (share)",
    "mq@0.5 (share) of holdout",
)
"""Headline numbers of extraction, in the order in which they are read; quality and budget follow."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, required=True, help="folder of the study's results")
    parser.add_argument("--config", type=Path, required=True, help="resolved config of step report")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")


def run(args: argparse.Namespace) -> None:
    config = artifacts.read_config(args.config, "report")
    cells = [(arm, k) for arm in config["settings"]["arms"] for k in range(config["settings"]["replicates"])]

    def folders(phase: str, *rest: str) -> dict[tuple[str, int], Path]:
        return {(arm, k): args.results.joinpath(phase, arm, f"rep{k}", *rest) for arm, k in cells}

    extraction, quality, training = folders("attack", "extraction"), folders("attack", "quality"), folders("train")
    inputs = {
        f"{name}/{arm}/rep{k}": folder / artifacts.RUN
        for name, by_cell in (("extraction", extraction), ("quality", quality), ("train", training))
        for (arm, k), folder in by_cell.items()
    }
    inputs["dedup"] = args.results / "data" / "dedup" / artifacts.RUN
    with artifacts.step(config, args.out, inputs, (__name__,)) as step:
        numbers = _concatenate(extraction, "results.csv")
        qualities = _concatenate(quality, "results.csv")
        anchor = artifacts.read_run(extraction[cells[0]])["config"]["settings"]["anchor"]
        arms = headline(numbers, qualities, training, anchor)
        copies = against_copies(numbers, anchor)
        tables = {
            "arms": arms,
            "extraction": numbers,
            "quality": qualities,
            "copies": copies,
            "union": union_over_replicates(extraction, anchor),
            "multiplicity": copies[copies["alpha"] == "calibrated"]
            .pivot(index="copies", columns="arm", values="share")
            .reset_index(),
            "loss": loss_curves(training),
            "dedup": _read(args.results / "data" / "dedup" / "table.csv"),
        }
        for name, table in tables.items():
            table.to_csv(step.folder / f"{name}.csv", index=False)
        artifacts.write_json(step.folder / "metrics.json", as_metrics(arms))


def _read(path: Path) -> pd.DataFrame:
    artifacts.check_file(path)
    return pd.read_csv(path)


def _concatenate(folders: dict[tuple[str, int], Path], name: str) -> pd.DataFrame:
    """Return one file of every cell below each other, with columns ``arm`` and ``replicate`` in front."""
    tables = [_read(folder / name).assign(arm=arm, replicate=k) for (arm, k), folder in folders.items()]
    joined = pd.concat(tables, ignore_index=True)
    return joined[["arm", "replicate", *[column for column in joined if column not in ("arm", "replicate")]]]


def headline(
    numbers: pd.DataFrame, qualities: pd.DataFrame, training: dict[tuple[str, int], Path], anchor: str
) -> pd.DataFrame:
    """Return the headline numbers: one row per arm and metric, with a 95 % interval.

    With one replicate the interval is the replicate's own (exact for shares and counts, bootstrap for others); with several it is
    Student's t between them.
    """
    rows: list[tuple[str, int, str, float, float, float]] = []
    overall = numbers[(numbers["subset"] == "all") & numbers["anchor"].isin([anchor, "none"])]
    for row in overall.to_dict("records"):
        cell, exact = (row["arm"], row["replicate"]), not math.isnan(row["exact_low"])
        interval = (row["exact_low"], row["exact_high"]) if exact else (row["low"], row["high"])
        suffix = "_calibrated" if row["alpha"] == "calibrated" else ""
        if row["metric"] in ("mq@0.5", "mq_holdout@0.5"):
            metric = "mq@0.5 (share)" + (" of holdout" if row["metric"].startswith("mq_holdout") else "")
            rows.append((*cell, metric, row["value"], *interval))
        elif row["metric"] == "extracted_images":
            rows.append((*cell, f"unique_images{suffix}", row["count"], *(end * row["of"] for end in interval)))
            if suffix:
                rows.append((*cell, "alpha_calibrated", row["alpha_value"], math.nan, math.nan))
        elif row["metric"] in ("flagged_generations", "flagged_holdout", "twins_flagged", "average_precision"):
            rows.append((*cell, row["metric"] + suffix, row["value"], *interval))
    for row in qualities.to_dict("records"):
        metric = row["metric"] if row["of"] == "generations" else f"{row['metric']} of {row['of']}"
        rows.append((row["arm"], row["replicate"], metric, row["value"], row["low"], row["high"]))
    for (arm, k), folder in training.items():
        facts = artifacts.read_run(folder)["facts"]
        for fact in ("updates", "images_seen", "training_images"):
            rows.append((arm, k, fact, facts[fact], math.nan, math.nan))
        rows.append((arm, k, "passes", facts["images_seen"] / facts["training_images"], math.nan, math.nan))
    single = pd.DataFrame(rows, columns=["arm", "replicate", "metric", "value", "low", "high"])
    metrics = list(dict.fromkeys([metric for metric in ORDER if metric in set(single["metric"])] + list(single["metric"])))
    cells = [(arm, metric) for metric in metrics for arm in dict.fromkeys(single["arm"])]
    there = set(zip(single["arm"], single["metric"], strict=True))
    return pd.DataFrame(
        [
            _over_replicates(arm, metric, single[(single["arm"] == arm) & (single["metric"] == metric)])
            for arm, metric in cells
            if (arm, metric) in there
        ]
    )


def _over_replicates(arm: str, metric: str, group: pd.DataFrame) -> dict:
    n, mean = len(group), group["value"].mean()
    if n == 1:
        low, high, kind = group["low"].iloc[0], group["high"].iloc[0], "within the replicate"
    else:
        half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * group["value"].std(ddof=1) / np.sqrt(n)
        low, high, kind = mean - half, mean + half, "between replicates"
    return {"arm": arm, "metric": metric, "value": mean, "low": low, "high": high, "replicates": n, "interval": kind}


def against_copies(numbers: pd.DataFrame, anchor: str) -> pd.DataFrame:
    """Return the share of images extracted by number of planted copies, pooled over replicates, with exact intervals.

    ``twins_share`` is the same for the twins: images drawn together with the planted ones but never trained on.
    """
    grouped = numbers[numbers["subset"].str.startswith("copies=") & (numbers["anchor"] == anchor)]
    keys = ["arm", "alpha", "subset"]
    counted, twins = (
        grouped[grouped["metric"] == metric].groupby(keys)[["count", "of"]].sum()
        for metric in ("extracted_by_copies", "twins_flagged_by_copies")
    )
    joined = counted.join(twins, rsuffix="_twins").reset_index()
    rows = []
    for row in joined.to_dict("records"):
        count, of = int(row["count"]), int(row["of"])
        exact = stats.binomtest(count, of).proportion_ci(CONFIDENCE, method="exact")
        copies = int(row["subset"].removeprefix("copies="))
        one = {"arm": row["arm"], "alpha": row["alpha"], "copies": copies, "count": count, "of": of}
        one |= {"share": count / of, "low": exact.low, "high": exact.high}
        one |= {"twins_count": row["count_twins"], "twins_of": row["of_twins"]}
        rows.append(one | {"twins_share": row["count_twins"] / row["of_twins"]})
    return pd.DataFrame(rows).sort_values(["arm", "alpha", "copies"], kind="stable")


def union_over_replicates(folders: dict[tuple[str, int], Path], anchor: str) -> pd.DataFrame:
    """Return how many different training images at least one replicate of each arm gave back."""
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in folders):
        for alpha in ("fixed", "calibrated"):
            own = [folder / "images.parquet" for (other, _), folder in folders.items() if other == arm]
            found: set = set()
            for path in own:
                artifacts.check_file(path)
                images = pd.read_parquet(path)
                found |= set(images.source[images[f"extracted_{anchor}_{alpha}"]])
            rows.append({"arm": arm, "alpha": alpha, "replicates": len(own), "unique_images": len(found)})
    return pd.DataFrame(rows)


def loss_curves(folders: dict[tuple[str, int], Path]) -> pd.DataFrame:
    """Return the training loss of every arm by update, averaged over replicates."""
    curves = []
    for (arm, _), folder in folders.items():
        artifacts.check_file(folder / "metrics.jsonl")
        lines = pd.read_json(folder / "metrics.jsonl", lines=True)
        curves.append(lines[lines.name == "loss"].assign(arm=arm))
    long = pd.concat(curves).rename(columns={"step": "update"})
    return long.pivot_table(index="update", columns="arm", values="value", aggfunc="mean").reset_index()


def as_metrics(arms: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the headline numbers as arm -> metric -> value, numbers that do not exist left out."""
    metrics: dict[str, dict[str, float]] = {}
    for row in json.loads(arms.to_json(orient="records")):
        if row["value"] is not None:
            metrics.setdefault(row["arm"], {})[row["metric"]] = row["value"]
    return metrics
