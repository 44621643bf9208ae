"""Copying at equal quality: every path against that of plain training, stopped early.

- ``paths``: one row per arm, replicate and state, with copies, quality and price;
- ``compare``: one row per arm, axis of quality and count of copies: how much more or less the arm
  copies than the plain arm of its condition at the qualities that both reach
  (``metrics.equal_quality``), replicate by replicate, with Student's interval.

The difference in log-odds of ``PRIMARY`` along the class-balanced Fréchet distance decides; its
p-values are adjusted after Holm over all arms that are compared. What decides is read as in
``report.verdicts``, with two more outcomes: ``NO_OVERLAP`` where in some replicate no quality is
reached by both paths, and *not testable* where the plain path's copies at the best common quality
do not exceed false alarms. Other rows are reported and decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from afterimage.metrics import equal_quality
from afterimage.metrics import replicates as over
from afterimage.report import format, verdicts
from afterimage.report.comparison import MEMORIZATION, METRICS

NO_OVERLAP = "no quality reached by both"
ALARMS = METRICS[verdicts.PRIMARY].alarms
"""Images that no arm saw, flagged at the same threshold."""
PRICES = {
    "network_updates": "updates per network, one after the other",
    "kept_samples": "samples with gradient",
    "training_seconds": "seconds of training",
}
"""What a state has cost, with what its base cost -> its name."""
CELL = ["arm", "replicate"]

Prices = Mapping[tuple[str, int], Mapping[str, tuple[float, float]]]
"""(arm, replicate) -> one of ``PRICES`` -> what the arms that it starts from cost, and what its own
training did."""


def axes_of(metrics: Iterable[str]) -> list[str]:
    """Return the measures of quality that paths are compared along, the deciding one first."""
    measures = list(metrics)
    frechet = [name for name in measures if name.startswith(("FD_balanced[", "FD[", "FID["))]
    return [*frechet[:1], *(name for name in measures if name.startswith("coverage["))]


def paths(path: pd.DataFrame, prices: Prices) -> pd.DataFrame:
    """Return one row per arm, replicate and state: share of the budget, ``PRICES``, all numbers.

    Args:
        path: Results of the attack ``path``, with columns arm and replicate.
        prices: Of every training.
    """
    keys = [*CELL, "state", "share"]
    wide = path.pivot(index=keys, columns="metric", values="value").reset_index()
    order = {arm: k for k, arm in enumerate(dict.fromkeys(path["arm"]))}
    wide = wide.rename_axis(columns=None).sort_values(
        [*CELL, "share"], key=lambda c: c.map(order) if c.name == "arm" else c, ignore_index=True
    )
    cells = list(zip(wide["arm"], wide["replicate"], wide["share"], strict=True))
    for position, name in enumerate(PRICES, len(keys)):
        costs = [(*prices[arm, replicate][name], share) for arm, replicate, share in cells]
        wide.insert(position, name, [before + share * own for before, own, share in costs])
    return wide


def _quality(states: pd.DataFrame, axis: str) -> np.ndarray:
    """Return an axis of quality with lower values better: a logarithm, or the loss of coverage."""
    values = states.loc[states["metric"] == axis, "value"].to_numpy(float)
    return -values if axis.startswith("coverage[") else np.log(values)


def _log_odds(states: pd.DataFrame, metric: str) -> np.ndarray:
    some = states[states["metric"] == metric]
    return over.log_odds(some["count"].to_numpy(float), some["of"].to_numpy(float))


def _shown(axis: str, quality: float) -> float:
    """Return a value of ``_quality`` in the unit of its axis."""
    return -quality if axis.startswith("coverage[") else float(np.exp(quality))


COLUMNS = (
    *("arm", "frontier", "axis", "metric", "decides", "replicates", "overlapping"),
    *("best", "worst", "difference", "difference_low", "difference_high"),
    *("p", "p_adjusted", "detectable", "verdict"),
)
"""Columns of ``compare``."""


def compare(
    path: pd.DataFrame, frontiers: Mapping[str, str | None], confidence: float
) -> pd.DataFrame:
    """Return the table of ``COLUMNS``.

    Differences are in log-odds, the arm's minus the plain arm's; below 0 it copies less.
    ``overlapping`` is the number of replicates in which some quality is reached by both, ``best``
    and ``worst`` the mean ends of these qualities, ``detectable`` the smallest difference seen with
    a chance of 80 % at the level of Holm's first step.

    Args:
        path: Results of the attack ``path``, with columns arm and replicate.
        frontiers: Arm -> the plain arm that it is compared with, or None; in the study's order.
        confidence: Of the intervals; 1 - confidence is the level of the adjusted p-values.
    """
    cells = {key: states.sort_values("share", kind="stable") for key, states in path.groupby(CELL)}
    compared = {arm: plain for arm, plain in frontiers.items() if plain is not None}
    rows = [
        _row(cells, arm, plain, axis, metric, confidence, len(compared))
        for arm, plain in compared.items()
        for axis in axes_of(dict.fromkeys(path["metric"]))
        for metric in MEMORIZATION
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    deciding = table["decides"].to_numpy(bool)
    table.loc[deciding, "p_adjusted"] = over.holm(table.loc[deciding, "p"].to_numpy(float))
    judged = verdicts.by_p_value(
        table["difference"], table["p_adjusted"].to_numpy(float), "lower", 1 - confidence
    )
    open_rows = deciding & table["verdict"].eq("").to_numpy()
    table.loc[open_rows, "verdict"] = judged[open_rows]
    return table


def _row(
    cells: Mapping[Any, pd.DataFrame],
    arm: str,
    plain: str,
    axis: str,
    metric: str,
    confidence: float,
    family: int,
) -> dict[str, object]:
    """Return one row of ``compare``, without what depends on the others."""
    pairs = [(cells[arm, k], cells[plain, k]) for name, k in cells if name == arm]
    found = [
        equal_quality.difference(
            *(_quality(own, axis), _log_odds(own, metric)),
            *(_quality(other, axis), _log_odds(other, metric)),
        )
        for own, other in pairs
    ]
    values = np.array([each.value for each in found])
    estimate = over.mean(values)
    change = estimate.interval(confidence)
    decides = axis.startswith(("FD", "FID")) and metric == verdicts.PRIMARY
    row: dict[str, object] = {
        **{"arm": arm, "frontier": plain, "axis": axis, "metric": metric, "decides": decides},
        **{"replicates": len(pairs), "overlapping": int((~np.isnan(values)).sum())},
        "verdict": "",
    }
    if not np.isnan(values).all():
        row |= {
            "best": _shown(axis, float(np.nanmean([each.best for each in found]))),
            "worst": _shown(axis, float(np.nanmean([each.worst for each in found]))),
            "difference": float(change.value),
        }
    if np.isnan(values).any():
        return row | {"verdict": NO_OVERLAP if decides else ""}
    if len(pairs) == 1:
        return row | {"verdict": verdicts.ONE_TRAINING if decides else ""}
    row |= {"difference_low": float(change.low), "difference_high": float(change.high)}
    row["p"] = float(estimate.p_value())
    if decides:
        level = (1 - confidence) / family
        row["detectable"] = over.detectable(float(estimate.error), float(estimate.freedom), level)
        alarms = np.array([_log_odds(other, ALARMS)[0] for _, other in pairs])
        above = over.mean(np.array([each.other for each in found]) - alarms).interval(confidence)
        if np.isnan(above.low):  # no spread: nothing is known of other trainings
            row["verdict"] = verdicts.UNMEASURED
        elif above.low <= 0:
            row["verdict"] = verdicts.NOT_TESTABLE
    return row


# ---- a row in words


def compared_at(row: Mapping[Any, Any]) -> str:
    """Return the qualities that a row of ``compare`` is about; nothing if there are none."""
    if pd.isna(row["best"]):
        return ""
    return f"{format.number(row['best'])} to {format.number(row['worst'])}"


def smallest_factor(row: Mapping[Any, Any]) -> str:
    """Return the smallest factors of the odds that the replicates see; nothing if not known."""
    seen = row["detectable"]
    return "" if pd.isna(seen) else f"{np.exp(-seen):.2g} or {np.exp(seen):.2g}"
