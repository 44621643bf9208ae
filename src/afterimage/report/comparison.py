"""Every arm against its own control: differences with intervals, and a verdict that is computed.

Rules, all of them here:

- ``METRICS`` says of every compared number which direction is better, and whether it decides about memorization, quality or
  forgetting, or is only shown.
- With several replicates the difference is paired by replicate, with Student's interval. With one, it is that of two independent
  values with intervals of their own, by the square-and-add method: with Wilson's limits for shares (method 10 of Newcombe 1998),
  with the bootstrap's for other numbers (MOVER, Zou & Donner 2008). Arms of one replicate share their images, so that shares of
  them rise and fall together and the interval is rather too wide than too narrow.
- An arm is better (worse) in a number if the interval of the difference lies on that side of zero; else no difference was seen,
  which does not say that there is none.
- About memorization, about quality, and about forgetting where an arm and its control are both judged on it: better if one deciding
  number is better and none is worse, worse the other way round, mixed if there are both.
- Where an arm and its control are both judged on a forget set, their quality is that of the other classes: a model that was never
  shown zeros draws none, which is not bad drawing.
- An arm beats its control if it is better about memorization and neither worse nor mixed about quality. An arm that forgets need
  not beat retraining, its control: no difference is what it is meant to reach.

Nothing is corrected for the number of comparisons: where nothing differs, one in twenty still comes out at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats


class Metric(NamedTuple):
    """How a number is read.

    Attributes:
        better: ``lower`` or ``higher``; empty where neither is (budgets, rates of false alarms).
        decides: ``memorization``, ``quality``, ``forgetting``, ``rest`` (quality where both arms are judged on forgetting), or empty:
            shown only.
    """

    better: str = ""
    decides: str = ""


METRICS = {
    "flagged_generations_calibrated": Metric("lower", "memorization"),
    "planted_extracted_calibrated": Metric("lower", "memorization"),
    "flagged_holdout_calibrated": Metric(),
    "twins_flagged_calibrated": Metric(),
    "unique_images_calibrated": Metric("lower"),
    "flagged_generations": Metric("lower"),
    "flagged_holdout": Metric(),
    "unique_images": Metric("lower"),
    "mq@0.5 (share)": Metric("lower"),
    "R": Metric("lower"),
    "remaining_FD": Metric("lower", "rest"),
    "remaining_FID": Metric("lower", "rest"),
    "remaining_coverage": Metric("higher", "rest"),
    "membership_auc": Metric("lower"),
    "forgotten_probability": Metric("lower", "forgetting"),
    "forgotten_extracted_calibrated": Metric("lower", "forgetting"),
    "forgotten_auc": Metric("lower"),
    "FD": Metric("lower", "quality"),
    "FID": Metric("lower", "quality"),
    "KID": Metric("lower"),
    "precision": Metric("higher"),
    "recall": Metric("higher"),
    "density": Metric("higher"),
    "coverage": Metric("higher", "quality"),
    "updates": Metric(),
    "updates_per_model": Metric(),
    "images_seen": Metric(),
    "kept_samples": Metric(),
    "training_images": Metric(),
    "passes": Metric(),
    "parameters": Metric(),
    "setup_seconds": Metric(),
    "training_seconds": Metric(),
    "epsilon": Metric(),
}
"""What is compared, in the order in which it is read. A name goes on with a feature space or a forget set in brackets."""

BETTER, WORSE, MIXED, UNSEEN, UNMEASURED = "better", "worse", "mixed", "no difference seen", "not measured"

_TEXTS = {
    "memorization": {
        BETTER: "remembers less",
        WORSE: "remembers more",
        MIXED: "remembers less by one measure and more by another",
        UNSEEN: "no difference in memorization seen",
        UNMEASURED: "memorization not measured",
    },
    "quality": {
        BETTER: "better quality",
        WORSE: "worse quality",
        MIXED: "better quality by one measure and worse by another",
        UNSEEN: "no loss of quality seen",
        UNMEASURED: "quality not measured",
    },
    "forgetting": {
        BETTER: "forgets more",
        WORSE: "forgets less",
        MIXED: "forgets more by one measure and less by another",
        UNSEEN: "no difference in forgetting seen",
    },
}


class Interval(NamedTuple):
    """A number with its interval; NaN where there is none."""

    value: float
    low: float
    high: float


def rule_of(metric: str) -> Metric | None:
    """Return how a metric is read, None if it is not compared: ``FD[classifier]`` is read as ``FD``."""
    return METRICS.get(metric.split("[")[0]) if " of " not in metric else None


def wilson(count: int, of: int, confidence: float) -> Interval:
    """Return a share with its score interval (Wilson 1927)."""
    limits = stats.binomtest(count, of).proportion_ci(confidence, method="wilson")
    return Interval(count / of, float(limits.low), float(limits.high))


def square_and_add(one: Interval, other: Interval) -> Interval:
    """Return the difference ``one`` - ``other`` of two independent estimates, from their own intervals of the same confidence.

    With Wilson's limits this is method 10 of Newcombe (1998, Statistics in Medicine 17:873); in general it is the MOVER of Zou and
    Donner (2008, Statistics in Medicine 27:1693). With symmetric intervals it is the normal interval of the difference.
    """
    difference = one.value - other.value
    down = math.hypot(one.value - one.low, other.high - other.value)
    up = math.hypot(one.high - one.value, other.value - other.low)
    return Interval(difference, difference - down, difference + up)


def student(values: np.ndarray, confidence: float) -> Interval:
    """Return the mean of at least two values, (R,), with Student's interval."""
    mean = float(values.mean())
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def over_replicates(points: pd.DataFrame, confidence: float) -> tuple[Interval, str]:
    """Return a number's mean over replicates with its interval, and of what kind that is.

    Args:
        points: Rows of ``tables.points``, of one arm and metric.
    """
    if len(points) == 1:
        row = points.iloc[0]
        return Interval(row["value"], row["low"], row["high"]), "within the replicate"
    return student(points["value"].to_numpy(float), confidence), "between replicates"


def difference(own: pd.DataFrame, control: pd.DataFrame, confidence: float) -> tuple[Interval, str]:
    """Return the difference of an arm to its control in one metric, with its interval, and by which method.

    Args:
        own: Rows of ``tables.points`` of the arm, one per replicate.
        control: The same of the control.
    """
    pairs = own.merge(control, on="replicate", suffixes=("", "_control")).dropna(subset=["value", "value_control"])
    if len(pairs) > 1:
        return student((pairs["value"] - pairs["value_control"]).to_numpy(float), confidence), "paired t"
    if pairs.empty:
        return Interval(math.nan, math.nan, math.nan), ""
    row = pairs.iloc[0]
    if not (math.isnan(row["count"]) or math.isnan(row["count_control"])):
        shares = [wilson(int(row[f"count{side}"]), int(row[f"of{side}"]), confidence) for side in ("", "_control")]
        return square_and_add(*shares), "score"
    change = square_and_add(*(Interval(*(row[f"{name}{side}"] for name in Interval._fields)) for side in ("", "_control")))
    return change, "" if math.isnan(change.low) else "square-and-add"


def judge(change: Interval, better: str) -> str:
    """Return what the interval of a difference says of an arm, in the direction that is ``better``."""
    if math.isnan(change.low) or math.isnan(change.high):
        return UNMEASURED
    if change.low <= 0 <= change.high:
        return UNSEEN
    return BETTER if (change.high < 0) == (better == "lower") else WORSE


def together(verdicts: Iterable[str]) -> str:
    """Return the verdict of several numbers about one thing."""
    said = set(verdicts) - {UNMEASURED}
    if not said:
        return UNMEASURED
    if {BETTER, WORSE} <= said:
        return MIXED
    return next((verdict for verdict in (BETTER, WORSE) if verdict in said), UNSEEN)


def compare(points: pd.DataFrame, controls: Mapping[str, str | None], confidence: float) -> pd.DataFrame:
    """Return one row per arm and metric: its value, its control's, the difference, and the verdict.

    Args:
        points: The table of ``tables.points``.
        controls: Arm -> its control, or None; in the order of the study.
        confidence: Of all intervals.

    Returns:
        Columns arm, control, metric, better, decides, replicates, value, low, high, control_value, control_low, control_high,
        difference, difference_low, difference_high, method and verdict; empty cells where there is no control.
    """
    order = {name: at for at, name in enumerate(METRICS)}
    metrics = [metric for metric in dict.fromkeys(points["metric"]) if rule_of(metric) is not None]
    metrics.sort(key=lambda metric: order[metric.split("[")[0]])
    cells = dict(list(points.groupby(["arm", "metric"])))
    rows = []
    for arm, control in controls.items():
        for metric in metrics:
            if (arm, metric) not in cells:
                continue
            rule, own = rule_of(metric), cells[arm, metric]
            assert rule is not None
            value, _ = over_replicates(own, confidence)
            row = {"arm": arm, "control": control, "metric": metric, "better": rule.better, "decides": rule.decides}
            row |= {"replicates": len(own), **value._asdict()}
            if control is not None and (control, metric) in cells:
                other = cells[control, metric]
                theirs, _ = over_replicates(other, confidence)
                change, method = difference(own, other, confidence)
                row |= {f"control_{name}": number for name, number in theirs._asdict().items()}
                row |= dict(zip(("difference", "difference_low", "difference_high"), change, strict=True))
                row |= {"method": method, "verdict": judge(change, rule.better) if rule.better else ""}
            rows.append(row)
    ends = ("difference", "difference_low", "difference_high", "method", "verdict")
    columns = ["arm", "control", "metric", "better", "decides", "replicates", *Interval._fields]
    return pd.DataFrame(rows, columns=[*columns, *(f"control_{name}" for name in Interval._fields), *ends])


def verdicts(compared: pd.DataFrame) -> pd.DataFrame:
    """Return one row per arm that has a control: arm, control, memorization, quality, forgetting, beats_control, and all in words.

    Args:
        compared: The table of ``compare``.
    """
    rows = []
    for (arm, control), group in compared.dropna(subset=["control"]).groupby(["arm", "control"], sort=False):
        judged = {about: together(group["verdict"][group["decides"] == about].dropna()) for about in (*_TEXTS, "rest")}
        rest = judged.pop("rest")
        said = judged | ({} if rest == UNMEASURED else {"quality": rest})
        beats = said["memorization"] == BETTER and said["quality"] in (BETTER, UNSEEN)
        words = ", ".join(_TEXTS[about][verdict] for about, verdict in said.items() if verdict in _TEXTS[about])
        rows.append({"arm": arm, "control": control, **said, "beats_control": beats, "verdict": words})
    return pd.DataFrame(rows, columns=["arm", "control", *_TEXTS, "beats_control", "verdict"])


def wide(compared: pd.DataFrame) -> pd.DataFrame:
    """Return one row per arm: its verdict, then every compared number with its interval (``_low``, ``_high``), where it has one."""
    said = verdicts(compared).drop(columns="control")
    arms = compared[["arm", "control"]].drop_duplicates().merge(said, on="arm", how="left")
    for metric in dict.fromkeys(compared["metric"]):
        some = compared[compared["metric"] == metric].set_index("arm")[list(Interval._fields)]
        named = {"value": metric, "low": f"{metric}_low", "high": f"{metric}_high"}
        arms = arms.join(some.rename(columns=named).dropna(axis="columns", how="all"), on="arm")
    return arms


def replicate_points(points: pd.DataFrame) -> pd.DataFrame:
    """Return one row per arm and replicate with the numbers that decide about memorization and about quality."""
    rules = {metric: rule_of(metric) for metric in dict.fromkeys(points["metric"])}
    axes = [metric for metric, rule in rules.items() if rule and rule.decides in ("memorization", "quality")]
    cells = points[["arm", "replicate"]].drop_duplicates()
    table = points[points["metric"].isin(axes)].pivot(index=["arm", "replicate"], columns="metric", values="value")
    return cells.merge(table[axes].reset_index(), on=["arm", "replicate"])


def front(points: np.ndarray) -> np.ndarray:
    """Return which points no other point beats, bool (N,): none is lower in one coordinate and not higher in another.

    Args:
        points: (N, D), lower is better in each coordinate.
    """
    beaten = [((points <= point).all(axis=1) & (points < point).any(axis=1)).any() for point in points]
    return ~np.array(beaten, bool)
