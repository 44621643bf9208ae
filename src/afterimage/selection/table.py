"""``afterimage selection table``: rank skip groups and switch timesteps for the blocks
(LoyalDiffusion, Li et al. 2024).

For every arm of the selection, and every range of ``swap``: the relative decrease of copying
against the control that was trained equally long without blocks, s = (control - arm) / control, and
the relative increase of the Fréchet distance, c = (arm - control) / control. A network with blocks
at only some timesteps is one of two; so it is also compared with two such networks without blocks
(``split``), which alone change copying.

Groups with c of at most ``largest_cost`` are ranked by s, and the first ``keep`` that reduce
copying at all are chosen. Among the switch timesteps with c of at most ``largest_cost`` the
smallest is chosen: the largest affordable range with blocks.

The store: ``arms.csv``, every number of every replicate next to the held-out floor;
``changes.csv``: arm, against, measure, change (s for copying, c for the Fréchet distance), low, high
(Student's interval over replicates, paired), replicates; ``ranking.csv``: one row per group and
switch timestep, with s, c, admissible, rank and chosen; ``swap.csv``: the ranges of ``swap`` with s
and c against the first.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from afterimage import artifacts
from afterimage.config.selection import CONTROL
from afterimage.report.comparison import Interval, student

STEP = "selection/table"
COPYING = ("R", "similarity", "flagged_generations")
QUALITY = "frechet"
"""The Fréchet distance that decides: class-balanced where the classifier knows classes, since
copies move the shares of classes (``metrics.quality``)."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, required=True, metavar="DIR", help="folder of the study's results"
    )
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        metavar="JSON",
        help="resolved config of step report/selection",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the tables"
    )


def run(args: argparse.Namespace) -> None:
    resolved = artifacts.read_config(args.config, STEP)
    settings = resolved["settings"]
    replicates = range(settings["replicates"])
    stores = {
        f"{name}/{arm}/rep{k}": args.results / phase / arm / f"rep{k}" / attack
        for arm in (cell["arm"] for cell in settings["arms"])
        for k in replicates
        for name, phase, attack in (
            ("extraction", "attack", "extraction"),
            ("quality", "attack", "quality"),
            ("train", "train", ""),
        )
    }
    stores |= {
        f"swap/rep{k}": args.results / "selection" / "timestep_ablation" / f"rep{k}"
        for k in replicates
    }
    with artifacts.step(
        resolved,
        args.out,
        {name: path / artifacts.RUN for name, path in stores.items()},
        (__name__,),
    ) as step:
        arms = pd.DataFrame(
            [
                cell
                | {"groups": " ".join(map(str, cell["groups"])), "replicate": k}
                | _numbers(stores, cell["arm"], k)
                for cell in settings["arms"]
                for k in replicates
            ]
        )
        changed = changes(arms, settings["confidence"])
        ranked = ranking(arms, changed, settings["selection"])
        swaps = pd.concat(
            [_read(stores[f"swap/rep{k}"], "table.csv").assign(replicate=k) for k in replicates]
        )
        for name, table in (
            ("arms", arms),
            ("changes", changed),
            ("ranking", ranked),
            ("swap", against_first(swaps)),
        ):
            table.to_csv(step.folder / f"{name}.csv", index=False)
        chosen = ranked[ranked["chosen"]]
        taus = chosen["switch_timestep"].dropna().astype(int).tolist()
        step.note(
            chosen_groups=[int(group) for group in chosen["group"].dropna()],
            chosen_switch_timestep=taus[0] if taus else None,
        )


def _read(store: Path, name: str) -> pd.DataFrame:
    artifacts.check_file(store / name)
    return pd.read_csv(store / name)


def _numbers(stores: dict[str, Path], arm: str, k: int) -> dict[str, float]:
    """Return the numbers of one replicate of an arm: copying, quality, the same for held-out
    images, and the budget."""
    attack, judged, trained = (
        stores[f"{name}/{arm}/rep{k}"] for name in ("extraction", "quality", "train")
    )
    anchor = artifacts.read_run(attack)["config"]["settings"]["anchor"]
    counts = _read(attack, "results.csv")
    counts = counts[
        (counts["subset"] == "all") & (counts["anchor"] == anchor) & (counts["alpha"] == "fixed")
    ].set_index("metric")
    measured = _read(judged, "results.csv")
    measured["metric"] = measured["metric"].str.split("[").str[0]
    deciding = next(
        name for name in ("FD_balanced", "FD", "FID") if name in set(measured["metric"])
    )
    measured["metric"] = measured["metric"].replace({deciding: QUALITY})
    values = measured.set_index(["metric", "of"])["value"]
    numbers: dict[str, float] = {}
    for metric in ("R", "similarity", QUALITY):
        numbers |= {
            metric: values[metric, "generations"],
            f"{metric}_holdout": values[metric, "holdout"],
        }
    numbers |= {
        metric: counts.loc[metric, "value"] for metric in ("flagged_generations", "flagged_holdout")
    }
    facts = artifacts.read_run(trained)["facts"]
    return (
        numbers
        | {"extracted_images": counts.loc["extracted_images", "count"]}
        | {name: facts[name] for name in ("updates", "images_seen")}
    )


def relative(values: np.ndarray, control: np.ndarray, measure: str, confidence: float) -> Interval:
    """Return s (c for the Fréchet distance) as the mean over replicates, with Student's interval if
    there are several.

    Args:
        values: Values of the arm, (replicates,).
        control: Values of its control, (replicates,); replicates where it is 0 are ignored.
        measure: Name of the measure.
        confidence: Confidence of the interval.
    """
    sign = 1 if measure == QUALITY else -1
    change = sign * (values - control)[control != 0] / control[control != 0]
    if len(change) > 1:
        return student(change, confidence)
    return Interval(float(change[0]) if len(change) else math.nan, math.nan, math.nan)


def changes(arms: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Return ``changes.csv`` from ``arms.csv``."""
    by_arm = dict(list(arms.sort_values("replicate").groupby("arm", sort=False)))
    splits = {
        replicates["switch_timestep"].iloc[0]: arm
        for arm, replicates in by_arm.items()
        if replicates["arrangement"].iloc[0] == "split"
    }
    rows = []
    for arm, replicates in by_arm.items():
        if arm == CONTROL:
            continue
        controls: list[Any] = [CONTROL]
        if replicates["arrangement"].iloc[0] in ("tail", "front"):
            controls.append(splits[replicates["switch_timestep"].iloc[0]])
        for control in controls:
            for measure in (*COPYING, QUALITY):
                values, against = (
                    table[measure].to_numpy(float) for table in (replicates, by_arm[control])
                )
                change = relative(values, against, measure, confidence)
                row = {"arm": arm, "against": control, "measure": measure, "change": change.value}
                row |= {"low": change.low, "high": change.high, "replicates": len(replicates)}
                rows.append(row)
    return pd.DataFrame(rows)


def ranking(arms: pd.DataFrame, changed: pd.DataFrame, selection: dict[str, Any]) -> pd.DataFrame:
    """Return ``ranking.csv``: groups first, by s, then the tails, by timestep."""
    against = changed[changed["against"] == CONTROL].set_index(["arm", "measure"])
    rows = []
    for arm in arms.drop_duplicates("arm").to_dict("records"):
        if arm["arrangement"] not in ("groups", "tail"):
            continue
        row = {"arm": arm["arm"], "group": None, "switch_timestep": None}
        row |= (
            {"group": int(arm["groups"])}
            if arm["arrangement"] == "groups"
            else {"switch_timestep": arm["switch_timestep"]}
        )
        for letter, measure in (("s", selection["by"]), ("c", QUALITY)):
            change = against.loc[(arm["arm"], measure)]
            row |= {
                letter: change["change"],
                f"{letter}_low": change["low"],
                f"{letter}_high": change["high"],
            }
        rows.append(row | {"admissible": row["c"] <= selection["largest_cost"]})
    table = pd.DataFrame(rows)
    groups = table[table["group"].notna()].sort_values("s", ascending=False, kind="stable")
    groups["rank"] = groups["admissible"].cumsum().where(groups["admissible"])
    groups["chosen"] = (
        groups["admissible"] & (groups["s"] > 0) & (groups["rank"] <= selection["keep"])
    )
    tails = table[table["switch_timestep"].notna()].sort_values("switch_timestep", kind="stable")
    tails["rank"] = tails["admissible"].cumsum().where(tails["admissible"])
    tails["chosen"] = tails["rank"] == 1
    return pd.concat([groups, tails], ignore_index=True)


def against_first(swaps: pd.DataFrame) -> pd.DataFrame:
    """Return the ranges of ``swap`` with ``s_<measure>`` and ``c`` of each replicate against its
    own first range, the control."""
    first = swaps.groupby("replicate").transform("first")
    table = swaps[["replicate", *[name for name in swaps if name != "replicate"]]].copy()
    for measure in COPYING:
        table[f"s_{measure}"] = (first[measure] - swaps[measure]) / first[measure].where(
            first[measure] != 0
        )
    table["c"] = (swaps[QUALITY] - first[QUALITY]) / first[QUALITY].where(first[QUALITY] != 0)
    return table
