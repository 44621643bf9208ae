"""Every arm against its own control: differences with intervals, and a verdict that is computed.

Rules, all of them here:

- ``METRICS`` says of every compared number which direction is better, and whether it decides about memorization, quality or
  forgetting, or is only shown.
- With several replicates the difference is paired by replicate, with Student's interval. With one, it is that of two independent
  values with intervals of their own, by the square-and-add method: with Wilson's limits for shares (method 10 of Newcombe 1998),
  with the bootstrap's for other numbers (MOVER, Zou & Donner 2008). Arms of one replicate share their images, so that shares of
  them rise and fall together and the interval is rather too wide than too narrow.
- An arm is better (worse) in a number if the interval of the difference lies on that side of zero; else no difference was seen,
  which does not say that there is none. Replicates that all have the same difference have no spread: not measured, not certain.
- One training gives no verdict: its interval says nothing about another training.
- Where a control's copies do not exceed its false alarms, nothing can be seen to remember less than it: *not testable*. Copies
  are held against false alarms (generations flagged against held-out images flagged, planted images against their twins) within
  the trainings at hand, by the square-and-add method. An arm that does exceed its own false alarms may still remember more.
- A forget set that an extraction attack chose is not testable against the arm that it was chosen from: of images picked because
  they came back, some do not come back under other noise, with no remedy at all.
- About memorization, about quality, and about forgetting where an arm and its control are both judged on it: better if one deciding
  number is better and none is worse, worse the other way round, mixed if there are both.
- Where an arm and its control are both judged on a forget set, their quality is that of the other classes: a model that was never
  shown zeros draws none, which is not bad drawing.
- ``beats_control`` is ``yes`` if an arm is better about memorization and neither worse nor mixed about quality, ``no`` if it is worse
  or mixed in either, ``not shown`` if no difference in memorization was seen. A network that was trained for fewer updates than its
  control's, those of its base included, may remember less for that reason alone: then ``yes`` becomes ``control trained longer``.
  An arm that forgets need not beat retraining, its control: no difference is what it is meant to reach.

No verdict is corrected for how many there are: where nothing differs, one interval in twenty still leaves out zero at 95 %. That no
loss of quality was seen does not say that there is none: no margin is stated that the interval would have to keep.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
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
        alarms: The same count of images that no model saw, for counts of copies: the false alarms.
    """

    better: str = ""
    decides: str = ""
    alarms: str = ""


METRICS = {
    "flagged_generations_calibrated": Metric("lower", "memorization", "flagged_holdout_calibrated"),
    "planted_extracted_calibrated": Metric("lower", "memorization", "twins_flagged_calibrated"),
    "flagged_holdout_calibrated": Metric(),
    "twins_flagged_calibrated": Metric(),
    "unique_images_calibrated": Metric("lower"),
    "flagged_generations": Metric("lower", alarms="flagged_holdout"),
    "flagged_holdout": Metric(),
    "unique_images": Metric("lower"),
    "mq@0.5 (share)": Metric("lower", alarms="mq@0.5 (share) of holdout"),
    "R": Metric("lower"),
    "remaining_FD_balanced": Metric("lower", "rest"),
    "remaining_FD": Metric("lower", "rest"),
    "remaining_FID": Metric("lower", "rest"),
    "remaining_coverage": Metric("higher", "rest"),
    "membership_auc": Metric("lower"),
    "forgotten_probability": Metric("lower", "forgetting"),
    "forgotten_extracted_calibrated": Metric("lower", "forgetting"),
    "forgotten_auc": Metric("lower"),
    "FD_balanced": Metric("lower", "quality"),
    "FD": Metric("lower", "quality"),
    "FID": Metric("lower", "quality"),
    "class_share_tv": Metric("lower"),
    "KID": Metric("lower"),
    "precision": Metric("higher"),
    "recall": Metric("higher"),
    "density": Metric("higher"),
    "coverage": Metric("higher", "quality"),
    "updates": Metric(),
    "updates_per_model": Metric(),
    "network_updates": Metric(),
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

BALANCED = {
    f"{subset}{plain}": f"{subset}FD_balanced"
    for subset in ("", "remaining_")
    for plain in ("FD", "FID")
}
"""Fréchet distance of all images -> the class-balanced one, which decides in its place."""

BETTER, WORSE, MIXED, UNSEEN, UNMEASURED = (
    "better",
    "worse",
    "mixed",
    "no difference seen",
    "not measured",
)
NOT_TESTABLE, ONE_TRAINING = "not testable", "one training: no verdict"
YES, NO, NOT_SHOWN, TRAINED_LESS = "yes", "no", "not shown", "control trained longer"
PAIRED = "paired t"
"""The method of a difference that several trainings tell."""

_TEXTS = {
    "memorization": {
        BETTER: "remembers less",
        WORSE: "remembers more",
        MIXED: "remembers less by one measure and more by another",
        UNSEEN: "no difference in memorization seen",
        UNMEASURED: "memorization not measured",
        NOT_TESTABLE: "memorization not testable: the control's copies do not exceed false alarms",
    },
    "quality": {
        BETTER: "better Fréchet distance or coverage",
        WORSE: "worse Fréchet distance or coverage",
        MIXED: "Fréchet distance and coverage disagree",
        UNSEEN: "no loss of quality seen",
        UNMEASURED: "quality not measured",
    },
    "forgetting": {
        BETTER: "forgets more",
        WORSE: "forgets less",
        MIXED: "forgets more by one measure and less by another",
        UNSEEN: "no difference in forgetting seen",
        NOT_TESTABLE: "forgetting not testable: the control's own copies chose the set",
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


def rules_of(metrics: Iterable[str]) -> dict[str, Metric]:
    """Return how each compared metric is read, in the order given.

    Where there is a class-balanced Fréchet distance, that of all images decides nothing: planted
    copies shift class shares, so that an arm that copies less has a lower one for that alone.
    """
    rules = {metric: rule for metric in metrics if (rule := rule_of(metric)) is not None}
    stems = {metric: metric.partition("[")[0] for metric in rules}
    for metric, stem in stems.items():
        if BALANCED.get(stem) in stems.values():
            rules[metric] = rules[metric]._replace(decides="")
    return rules


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
    """Return the mean of at least two values, (R,), with Student's interval; without one where they are equal but for rounding."""
    mean = float(values.mean())
    if np.allclose(values, values[0], rtol=1e-9, atol=0):
        return Interval(mean, math.nan, math.nan)
    half = float(
        stats.t.ppf((1 + confidence) / 2, len(values) - 1)
        * values.std(ddof=1)
        / np.sqrt(len(values))
    )
    return Interval(mean, mean - half, mean + half)


def widest(points: pd.DataFrame) -> Interval:
    """Return a number's mean over replicates with the interval that holds those within every replicate.

    Args:
        points: Rows of ``tables.points``, of one arm and metric.
    """
    return Interval(
        float(points["value"].mean()), float(points["low"].min()), float(points["high"].max())
    )


def over_replicates(points: pd.DataFrame, confidence: float) -> tuple[Interval, str]:
    """Return a number's mean over replicates with its interval, and of what kind that is.

    Replicates that are all equal (none flagged in any) say nothing about their spread: what is left is the interval within them.

    Args:
        points: Rows of ``tables.points``, of one arm and metric.
    """
    if len(points) > 1:
        between = student(points["value"].to_numpy(float), confidence)
        if not math.isnan(between.low) or points["value"].isna().any():
            return between, "between replicates"
    return widest(points), "within the replicate"


def difference(own: pd.DataFrame, control: pd.DataFrame, confidence: float) -> tuple[Interval, str]:
    """Return the difference of an arm to its control in one metric, with its interval, and by which method.

    Args:
        own: Rows of ``tables.points`` of the arm, one per replicate.
        control: The same of the control.
    """
    pairs = own.merge(control, on="replicate", suffixes=("", "_control")).dropna(
        subset=["value", "value_control"]
    )
    if len(pairs) > 1:
        return student(
            (pairs["value"] - pairs["value_control"]).to_numpy(float), confidence
        ), PAIRED
    if pairs.empty:
        return Interval(math.nan, math.nan, math.nan), ""
    row = pairs.iloc[0]
    if not (math.isnan(row["count"]) or math.isnan(row["count_control"])):
        shares = [
            wilson(int(row[f"count{side}"]), int(row[f"of{side}"]), confidence)
            for side in ("", "_control")
        ]
        return square_and_add(*shares), "score"
    change = square_and_add(
        *(
            Interval(*(row[f"{name}{side}"] for name in Interval._fields))
            for side in ("", "_control")
        )
    )
    return change, "" if math.isnan(change.low) else "square-and-add"


def judge(change: Interval, better: str, method: str) -> str:
    """Return what the interval of a difference says of an arm, in the direction that is ``better``.

    Args:
        method: Of ``difference``: without ``PAIRED`` the interval is that of one training, which gives no verdict.
    """
    if math.isnan(change.low) or math.isnan(change.high):
        return UNMEASURED
    if method != PAIRED:
        return ONE_TRAINING
    if change.low <= 0 <= change.high:
        return UNSEEN
    return BETTER if (change.high < 0) == (better == "lower") else WORSE


def copies(flagged: pd.DataFrame, alarms: pd.DataFrame) -> bool | None:
    """Return whether an arm's count of copies exceeds its false alarms; None where that cannot be said.

    Args:
        flagged: Rows of ``tables.points`` of the arm, one per replicate: a share of what its networks made.
        alarms: The same share of images that no network saw.
    """
    excess = square_and_add(widest(flagged), widest(alarms))
    return None if math.isnan(excess.low) else excess.low > 0


def above_false_alarms(verdict: str, arm_copies: bool | None, control_copies: bool | None) -> str:
    """Return the verdict about a count of copies, given whether those of the arm and of its control exceed false alarms.

    A control at its false alarms cannot be beaten, whatever the difference; an arm that exceeds its own may still be worse.
    """
    if control_copies is None:
        return UNMEASURED
    if control_copies or verdict == ONE_TRAINING or (verdict == WORSE and arm_copies):
        return verdict
    return NOT_TESTABLE


def together(verdicts: Iterable[str]) -> str:
    """Return the verdict of several numbers about one thing."""
    said = set(verdicts) - {UNMEASURED}
    if {BETTER, WORSE} <= said:
        return MIXED
    return next(
        (one for one in (ONE_TRAINING, BETTER, WORSE, UNSEEN, NOT_TESTABLE) if one in said),
        UNMEASURED,
    )


def compare(
    points: pd.DataFrame,
    controls: Mapping[str, str | None],
    confidence: float,
    chosen_from: Mapping[str, str] = MappingProxyType({}),
) -> pd.DataFrame:
    """Return one row per arm and metric: its value, its control's, the difference, and the verdict.

    Args:
        points: The table of ``tables.points``.
        controls: Arm -> its control, or None; in the order of the study.
        confidence: Of all intervals.
        chosen_from: Forget set -> the arm whose extracted images it is, for sets that an attack chose.

    Returns:
        Columns arm, control, metric, better, decides, replicates, value, low, high, control_value, control_low, control_high,
        difference, difference_low, difference_high, method and verdict; empty cells where there is no control.
    """
    order = {name: at for at, name in enumerate(METRICS)}
    rules = rules_of(dict.fromkeys(points["metric"]))
    metrics = sorted(rules, key=lambda metric: order[metric.split("[")[0]])
    cells = dict(list(points.groupby(["arm", "metric"])))

    def copying(arm: str, metric: str, alarms: str) -> bool | None:
        there = (arm, metric) in cells and (arm, alarms) in cells
        return copies(cells[arm, metric], cells[arm, alarms]) if there else None

    def verdict_on(arm: str, control: str, metric: str, change: Interval, method: str) -> str:
        rule = rules[metric]
        if not rule.better:
            return ""
        verdict = judge(change, rule.better, method)
        if rule.alarms:
            return above_false_alarms(
                verdict, *(copying(one, metric, rule.alarms) for one in (arm, control))
            )
        name, _, of = metric.partition("[")
        chosen = (
            name == "forgotten_extracted_calibrated"
            and chosen_from.get(of.removesuffix("]")) == control
        )
        return NOT_TESTABLE if chosen and verdict not in (UNMEASURED, ONE_TRAINING) else verdict

    rows = []
    for arm, control in controls.items():
        for metric in metrics:
            if (arm, metric) not in cells:
                continue
            rule, own = rules[metric], cells[arm, metric]
            value, _ = over_replicates(own, confidence)
            row: dict[str, object] = {
                "arm": arm,
                "control": control,
                "metric": metric,
                "better": rule.better,
                "decides": rule.decides,
            }
            row |= {"replicates": len(own), **value._asdict()}
            if control is not None and (control, metric) in cells:
                other = cells[control, metric]
                theirs, _ = over_replicates(other, confidence)
                change, method = difference(own, other, confidence)
                row |= {f"control_{name}": number for name, number in theirs._asdict().items()}
                row |= dict(
                    zip(("difference", "difference_low", "difference_high"), change, strict=True)
                )
                row |= {
                    "method": method,
                    "verdict": verdict_on(arm, control, metric, change, method),
                }
            rows.append(row)
    ends = ("difference", "difference_low", "difference_high", "method", "verdict")
    columns = ["arm", "control", "metric", "better", "decides", "replicates", *Interval._fields]
    return pd.DataFrame(
        rows, columns=[*columns, *(f"control_{name}" for name in Interval._fields), *ends]
    )


def _beats(said: Mapping[str, str], trained_less: bool) -> str:
    """Return whether an arm beats its control, in the words of the module's docstring."""
    memorization, quality = said["memorization"], said["quality"]
    if ONE_TRAINING in said.values():
        return ONE_TRAINING
    if memorization in (NOT_TESTABLE, UNMEASURED):
        return memorization
    if {memorization, quality} & {WORSE, MIXED}:
        return NO
    if memorization == UNSEEN:
        return NOT_SHOWN
    if quality == UNMEASURED:
        return UNMEASURED
    return TRAINED_LESS if trained_less else YES


def verdicts(compared: pd.DataFrame) -> pd.DataFrame:
    """Return one row per arm that has a control: arm, control, memorization, quality, forgetting, beats_control, and all in words.

    Args:
        compared: The table of ``compare``.
    """
    rows = []
    for (arm, control), group in compared.dropna(subset=["control"]).groupby(
        ["arm", "control"], sort=False
    ):
        judged = {
            about: together(group["verdict"][group["decides"] == about].dropna())
            for about in (*_TEXTS, "rest")
        }
        rest = judged.pop("rest")
        said = judged | ({} if rest == UNMEASURED else {"quality": rest})
        updates = group[group["metric"] == "network_updates"]
        beats = _beats(said, bool((updates["value"] < 0.99 * updates["control_value"]).any()))
        words = [
            _TEXTS[about][verdict] for about, verdict in said.items() if verdict in _TEXTS[about]
        ]
        words += ["its control's network was trained longer"] if beats == TRAINED_LESS else []
        text = ONE_TRAINING if beats == ONE_TRAINING else ", ".join(words)
        rows.append(
            {"arm": arm, "control": control, **said, "beats_control": beats, "verdict": text}
        )
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
    rules = rules_of(dict.fromkeys(points["metric"]))
    axes = [metric for metric, rule in rules.items() if rule.decides in ("memorization", "quality")]
    cells = points[["arm", "replicate"]].drop_duplicates()
    table = points[points["metric"].isin(axes)].pivot(
        index=["arm", "replicate"], columns="metric", values="value"
    )
    return cells.merge(table[axes].reset_index(), on=["arm", "replicate"])


def front(points: np.ndarray) -> np.ndarray:
    """Return which points no other point beats, bool (N,): none is lower in one coordinate and not higher in another.

    Args:
        points: (N, D), lower is better in each coordinate.
    """
    beaten = [
        ((points <= point).all(axis=1) & (points < point).any(axis=1)).any() for point in points
    ]
    return ~np.array(beaten, bool)
