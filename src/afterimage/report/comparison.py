"""Every arm against its own control: differences with intervals, and a verdict that is computed.

The rules by which a verdict follows from numbers are in ``verdicts``; here are the numbers.

- ``METRICS`` says of every compared number which direction is better, and whether it decides about
  memorization, quality or forgetting, or is only shown.
- With several replicates a number has Student's interval, which ends where its values do and for
  shares is no narrower than that of the pooled counts. A difference has Student's, too: paired by
  replicate where an arm and its control were given the same images, Welch's where they were not.
  With one, it is that of two independent values with intervals of their own, by the square-and-add
  method, and gives no verdict: it says nothing about another training.
- Replicates that all have the same difference have no spread. The interval shown is then that
  within the trainings (exact for counts of zero), and the difference counts as not measured.
- The primary number of memorization is judged by its p-value adjusted over all arms with a control
  (Holm); ``p`` and ``p_adjusted`` stand side by side. Other counts of copies are read by their own
  intervals, without adjustment, and decide nothing.
- Where a control's copies do not exceed its false alarms (generations flagged against held-out
  images flagged, planted images against their twins), by the square-and-add method within the
  trainings at hand, it is *not testable* whether an arm remembers less. An arm that does exceed its
  own false alarms may still remember more.
- About forgetting, where an arm and its control are both judged on it: better if one deciding
  number is better and none is worse, worse the other way round, mixed if there are both. Not
  adjusted, and no part of whether an arm beats its control: an arm that forgets need not beat
  retraining, no difference is what it is meant to reach.
- Where an arm and its control are both judged on a forget set, their quality is that of the other
  classes, or prompts: a model that was never shown zeros draws none, which is not bad drawing. Text
  alignment is of all prompts, those of forgotten images too, and decides nothing there.
- ``detectable`` is the smallest difference that the replicates see with a chance of 80 %, their
  spread taken as the true one; of the primary number at the level of Holm's first step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from afterimage.config import Margin
from afterimage.metrics import replicates as over
from afterimage.metrics.intervals import Interval, square_and_add, wilson
from afterimage.report import verdicts as rules
from afterimage.report.verdicts import (
    BETTER,
    MIXED,
    NO_WORSE,
    NOT_SHOWN,
    NOT_TESTABLE,
    ONE_TRAINING,
    PRIMARY,
    TRAINED_LESS,
    UNMEASURED,
    UNSEEN,
    WORSE,
)


class Metric(NamedTuple):
    """How a number is read.

    Attributes:
        better: ``lower`` or ``higher``; empty where neither is (budgets, rates of false alarms).
        decides: ``memorization``, ``quality``, ``forgetting``, ``rest`` (quality where both arms
            are judged on forgetting), or empty: shown only.
        alarms: The same count of images that no model saw, for counts of copies: the false alarms.
        margin: Key of ``statistics.margin``, for numbers that decide about quality.
    """

    better: str = ""
    decides: str = ""
    alarms: str = ""
    margin: str = ""


METRICS = {
    PRIMARY: Metric("lower", "memorization", "flagged_holdout_calibrated"),
    "planted_extracted_calibrated": Metric("lower", alarms="twins_flagged_calibrated"),
    "flagged_holdout_calibrated": Metric(),
    "twins_flagged_calibrated": Metric(),
    "unique_images_calibrated": Metric("lower"),
    "flagged_generations": Metric("lower", alarms="flagged_holdout"),
    "flagged_holdout": Metric(),
    "unique_images": Metric("lower"),
    "mq@0.5 (share)": Metric("lower", alarms="mq@0.5 (share) of holdout"),
    "R": Metric("lower"),
    "remaining_FD_balanced": Metric("lower", "rest", margin="relative_fd"),
    "remaining_FD": Metric("lower", "rest", margin="relative_fd"),
    "remaining_FID": Metric("lower", "rest", margin="relative_fd"),
    "remaining_coverage": Metric("higher", "rest", margin="coverage"),
    "membership_auc": Metric("lower"),
    "prompt_auc": Metric(),  # of all captions, of groups of them and of twins
    "forgotten_probability": Metric("lower", "forgetting"),
    "forgotten_extracted_calibrated": Metric("lower", "forgetting"),
    "forgotten_copied_calibrated": Metric("lower"),
    "forgotten_brought_back_calibrated": Metric("lower"),
    "holdout_brought_back_calibrated": Metric(),
    "forgotten_auc": Metric("lower"),
    "FD_balanced": Metric("lower", "quality", margin="relative_fd"),
    "FD": Metric("lower", "quality", margin="relative_fd"),
    "FID": Metric("lower", "quality", margin="relative_fd"),
    "class_share_tv": Metric("lower"),
    "KID": Metric("lower"),
    "precision": Metric("higher"),
    "recall": Metric("higher"),
    "density": Metric("higher"),
    "coverage": Metric("higher", "quality", margin="coverage"),
    "text_alignment": Metric("higher", "quality", margin="text_alignment"),
    "updates": Metric(),
    "updates_per_model": Metric(),
    "network_updates": Metric(),
    "images_seen": Metric(),
    "kept_samples": Metric(),
    "backward_passes": Metric(),
    "training_images": Metric(),
    "passes": Metric(),
    "parameters": Metric(),
    "setup_seconds": Metric(),
    "training_seconds": Metric(),
    "epsilon": Metric(),
}
"""What is compared, in the order in which it is read. A name goes on with a feature space or a
forget set in brackets."""

LIMITS = {
    **dict.fromkeys(("R", "similarity"), (-1.0, 1.0)),
    **dict.fromkeys(
        (
            *("membership_auc", "prompt_auc", "forgotten_auc", "roc_auc"),
            *("forgotten_probability", "probability", "class_share_tv", "precision", "recall"),
            *("coverage", "remaining_coverage", "text_alignment", "similar", "average_precision"),
        ),
        (0.0, 1.0),
    ),
    **dict.fromkeys(
        (
            *("FD_balanced", "FD", "FID", "density", "entropy"),
            *("remaining_FD_balanced", "remaining_FD", "remaining_FID"),
            *("KID_sd", "missing_classes"),
            *("unique_images", "unique_images_calibrated", "setup_seconds", "training_seconds"),
        ),
        (0.0, math.inf),
    ),
}
"""Between what a number lies whatever a model does, for those that are no counted shares; without
the part in brackets. ``roc_auc``, ``probability`` and ``entropy`` are those of the attack
``forgetting``."""

MEMORIZATION = (PRIMARY, "planted_extracted_calibrated")
"""Counts of copies that are drawn against quality; the first one decides."""

PAIRED, WELCH = "paired t", "Welch's t"
"""Methods of a difference that several trainings tell."""
WITHIN = "within the trainings"
"""The method where several trainings show no spread."""

BALANCED = {
    f"{subset}{plain}": f"{subset}FD_balanced"
    for subset in ("", "remaining_")
    for plain in ("FD", "FID")
}
"""Fréchet distance of all images -> the class-balanced one, which decides in its place."""

_TEXTS = {
    "memorization": {
        BETTER: "remembers less",
        WORSE: "remembers more",
        UNSEEN: "no difference in memorization seen",
        UNMEASURED: "memorization not measured",
        NOT_TESTABLE: "memorization not testable: the control's copies do not exceed false alarms",
    },
    "quality": {
        BETTER: "better in {better}",
        NO_WORSE: "quality no worse within the margin",
        WORSE: "worse in {worse}",
        MIXED: "better in {better}, but worse in {worse}",
        NOT_SHOWN: "quality not shown to be kept",
        UNMEASURED: "quality not measured",
    },
    "forgetting": {
        BETTER: "forgets more",
        WORSE: "forgets less",
        MIXED: "forgets more by one measure and less by another",
        UNSEEN: "no difference in forgetting seen",
    },
}
"""About what -> verdict -> its words; ``{better}`` and ``{worse}`` name the numbers of quality of
which that is the verdict."""


def rule_of(metric: str) -> Metric | None:
    """Return how a metric is read, None if it is not compared: ``FD[classifier]`` is ``FD``."""
    return METRICS.get(metric.split("[")[0]) if " of " not in metric else None


def rules_of(metrics: Iterable[str]) -> dict[str, Metric]:
    """Return how each compared metric is read, in the order given.

    Where there is a class-balanced Fréchet distance, that of all images decides nothing: planted
    copies shift class shares, so that an arm that copies less has a lower one for that alone.
    """
    read_as = {metric: rule for metric in metrics if (rule := rule_of(metric)) is not None}
    stems = {metric: metric.partition("[")[0] for metric in read_as}
    for metric, stem in stems.items():
        if BALANCED.get(stem) in stems.values():
            read_as[metric] = read_as[metric]._replace(decides="")
    return read_as


# ---- numbers and differences


def student(values: np.ndarray, confidence: float) -> Interval:
    """Return the mean of at least two values, (R,), with Student's interval; without one where they
    are equal but for rounding."""
    return _floats(over.mean(np.asarray(values, float)).interval(confidence))


def _floats(interval: Interval) -> Interval:
    return Interval(*(float(number) for number in interval))


def widest(points: pd.DataFrame) -> Interval:
    """Return a number's mean over replicates with the interval that holds those within every
    replicate.

    Args:
        points: Rows of ``tables.points``, of one arm and metric.
    """
    return Interval(
        float(points["value"].mean()), float(points["low"].min()), float(points["high"].max())
    )


def over_replicates(points: pd.DataFrame, confidence: float) -> tuple[Interval, str]:
    """Return a number's mean over replicates with its interval, and of what kind that is.

    Between replicates it is Student's, of shares with counts ``replicates.mean_share``'s, and ends
    where the number's values do. Replicates that are all equal (none flagged in any) say nothing
    about their spread: what is left is the interval within them.

    Args:
        points: Rows of ``tables.points``, of one arm and metric.
    """
    if len(points) > 1:
        between = _between(points, confidence)
        if not math.isnan(between.low) or points["value"].isna().any():
            return between, "between replicates"
    return widest(points), "within the replicate"


def _between(points: pd.DataFrame, confidence: float) -> Interval:
    count, of = points["count"].to_numpy(float), points["of"].to_numpy(float)
    if not np.isnan([count, of]).any():
        return _floats(over.mean_share(count, of, confidence))
    interval = student(points["value"].to_numpy(float), confidence)
    return _floats(Interval(interval.value, *np.clip(interval[1:], *_limits(points))))


def _limits(points: pd.DataFrame) -> tuple[float, float]:
    """Return between what a number lies: 0 and 1 for a counted share, else its ``LIMITS``."""
    if points[["count", "of"]].notna().all(axis=None):
        return 0.0, 1.0
    stem = points["metric"].iloc[0].partition("[")[0]
    return LIMITS.get(stem, (-math.inf, math.inf))


class Replicates(NamedTuple):
    """The values of an arm and of its control, (R,) each, NaN where a replicate lacks one."""

    arm: np.ndarray
    control: np.ndarray
    is_paired: bool

    @classmethod
    def of(cls, own: pd.DataFrame, control: pd.DataFrame, is_paired: bool) -> Replicates:
        """Return the replicates of rows of ``tables.points``."""
        first, second = (
            pd.Series(rows["value"].to_numpy(float), rows["replicate"]) for rows in (own, control)
        )
        every = first.index.union(second.index)
        arm, other = (values.reindex(every).to_numpy(float) for values in (first, second))
        return cls(arm, other, is_paired)

    def several(self) -> bool:
        """Return whether there are two replicates at least, of both or of each."""
        arm, control = ~np.isnan(self.arm), ~np.isnan(self.control)
        pairs = int((arm & control).sum())
        return pairs > 1 if self.is_paired else min(int(arm.sum()), int(control.sum())) > 1

    def difference(self) -> over.Estimate:
        """Return the estimated difference, arm - control."""
        return (over.paired if self.is_paired else over.welch)(self.arm, self.control)

    def beyond(self, rule: Metric, margin: Margin) -> over.Estimate:
        """Return the difference to the control made worse by its margin."""
        worse = rules.at_margin(
            self.control,
            rule.better,
            getattr(margin, rule.margin),
            rule.margin.startswith("relative_"),
        )
        return self._replace(control=worse).difference()


class Difference(NamedTuple):
    """A difference of an arm to another in one number.

    Attributes:
        change: It, with its interval.
        method: By which the interval is made.
        p: Two-sided p-value of no difference; NaN where several trainings do not tell.
    """

    change: Interval
    method: str
    p: float = math.nan


def difference(
    own: pd.DataFrame, control: pd.DataFrame, confidence: float, is_paired: bool = True
) -> Difference:
    """Return the difference of an arm to its control in one metric; its interval ends where the
    difference of two such numbers does.

    Args:
        own: Rows of ``tables.points`` of the arm, one per replicate.
        control: The same of the control.
        confidence: Of the interval.
        is_paired: Whether replicate k of both was given the same images.
    """
    replicates = Replicates.of(own, control, is_paired)
    if replicates.several():
        estimate = replicates.difference()
        change = _floats(estimate.interval(confidence))
        if not math.isnan(change.low):
            method = PAIRED if is_paired else WELCH
            least, most = _limits(own)
            ends = np.clip(change[1:], least - most, most - least)
            change = _floats(Interval(change.value, *ends))
            return Difference(change, method, float(estimate.p_value()))
        inside = _floats(square_and_add(widest(own), widest(control)))
        inside = inside._replace(value=change.value)
        return Difference(inside, "" if math.isnan(inside.low) else WITHIN)
    return _of_one_training(own, control, confidence)


def _of_one_training(own: pd.DataFrame, control: pd.DataFrame, confidence: float) -> Difference:
    pairs = own.merge(control, on="replicate", suffixes=("", "_control")).dropna(
        subset=["value", "value_control"]
    )
    if pairs.empty:
        return Difference(Interval(math.nan, math.nan, math.nan), "")
    row = pairs.iloc[0]
    if not (math.isnan(row["count"]) or math.isnan(row["count_control"])):
        shares = [
            wilson(int(row[f"count{side}"]), int(row[f"of{side}"]), confidence)
            for side in ("", "_control")
        ]
        return Difference(_floats(square_and_add(*shares)), "score")
    ends = [
        Interval(*(row[f"{name}{side}"] for name in Interval._fields)) for side in ("", "_control")
    ]
    change = _floats(square_and_add(*ends))
    return Difference(change, "" if math.isnan(change.low) else "square-and-add")


# ---- verdicts on one number


def judged(table: Sequence[tuple[Difference, str]], confidence: float) -> list[str]:
    """Return what each difference of a table says of its arm, by p-values that are adjusted for how
    many there are (Holm).

    Args:
        table: The differences, each with the better side of zero, ``lower`` or ``higher``.
        confidence: Share of such tables without a false verdict where nothing differs, at least.
    """
    p_adjusted = over.holm(np.array([found.p for found, _ in table], float))
    return [
        _untold(found.change, found.method)
        or str(rules.by_p_value(found.change.value, p, better, 1 - confidence))
        for (found, better), p in zip(table, p_adjusted, strict=True)
    ]


def _untold(change: Interval, method: str) -> str:
    """Return the verdict on a difference that several trainings do not tell, else nothing."""
    if math.isnan(change.low) or math.isnan(change.high) or method == WITHIN:
        return UNMEASURED
    return "" if method in (PAIRED, WELCH) else ONE_TRAINING


def copies(flagged: pd.DataFrame, alarms: pd.DataFrame) -> bool | None:
    """Return whether an arm's count of copies exceeds its false alarms; None where that cannot be
    said.

    Args:
        flagged: Rows of ``tables.points`` of the arm, one per replicate: a share of what its
            networks made.
        alarms: The same share of images that no network saw.
    """
    excess = square_and_add(widest(flagged), widest(alarms))
    return None if math.isnan(excess.low) else bool(excess.low > 0)


def above_false_alarms(verdict: str, arm_copies: bool | None, control_copies: bool | None) -> str:
    """Return the verdict about a count of copies, given whether those of the arm and of its control
    exceed false alarms.

    A control at its false alarms cannot be beaten, whatever the difference; an arm that exceeds its
    own may still be worse.
    """
    if control_copies is None:
        return UNMEASURED
    if control_copies or verdict == ONE_TRAINING or (verdict == WORSE and arm_copies):
        return verdict
    return NOT_TESTABLE


def together(verdicts: Iterable[str]) -> str:
    """Return the verdict of several numbers about one thing other than quality."""
    words = set(verdicts) - {UNMEASURED}
    if {BETTER, WORSE} <= words:
        return MIXED
    return next(
        (word for word in (ONE_TRAINING, BETTER, WORSE, UNSEEN, NOT_TESTABLE) if word in words),
        UNMEASURED,
    )


# ---- tables


class _Comparison:
    """All arms of a study and their controls; arguments as of ``compare``."""

    def __init__(
        self,
        points: pd.DataFrame,
        controls: Mapping[str, str | None],
        paired: Mapping[str, bool],
        confidence: float,
        margin: Margin,
    ) -> None:
        self.controls, self.paired, self.confidence = controls, paired, confidence
        self.margin = margin
        self.cells = dict(list(points.groupby(["arm", "metric"])))
        order = {name: position for position, name in enumerate(METRICS)}
        self.read_as = rules_of(dict.fromkeys(points["metric"]))
        self.metrics = sorted(self.read_as, key=lambda metric: order[metric.split("[")[0]])
        self.judged = [arm for arm, control in controls.items() if control is not None]
        p_values = np.array([self._p_value(arm) for arm in self.judged], float)
        self.p_adjusted = dict(zip(self.judged, over.holm(p_values), strict=True))

    def _replicates(self, arm: str, metric: str) -> Replicates | None:
        """Return the values of an arm and its control, None unless both have several."""
        both = (arm, metric), (self.controls[arm], metric)
        if not all(key in self.cells for key in both):
            return None
        own, control = (self.cells[key] for key in both)
        replicates = Replicates.of(own, control, self.paired.get(arm, False))
        return replicates if replicates.several() else None

    def _p_value(self, arm: str) -> float:
        replicates = self._replicates(arm, PRIMARY)
        return math.nan if replicates is None else float(replicates.difference().p_value())

    def rows(self) -> list[dict[str, object]]:
        """Return one row per arm and metric."""
        return [
            self._row(arm, control, metric)
            for arm, control in self.controls.items()
            for metric in self.metrics
            if (arm, metric) in self.cells
        ]

    def _row(self, arm: str, control: str | None, metric: str) -> dict[str, object]:
        rule, own = self.read_as[metric], self.cells[arm, metric]
        value, _ = over_replicates(own, self.confidence)
        row: dict[str, object] = {"arm": arm, "control": control, "metric": metric}
        row |= {"better": rule.better, "decides": rule.decides, "replicates": len(own)}
        row.update(value._asdict())
        if control is None or (control, metric) not in self.cells:
            return row
        other = self.cells[control, metric]
        theirs, _ = over_replicates(other, self.confidence)
        row |= {f"control_{name}": number for name, number in theirs._asdict().items()}
        change, method, _ = difference(own, other, self.confidence, self.paired.get(arm, False))
        ends = ("difference", "difference_low", "difference_high")
        row |= dict(zip(ends, change, strict=True)) | {"method": method}
        if rule.margin:
            share = rule.margin.startswith("relative_")
            row["margin"] = getattr(self.margin, rule.margin) * (theirs.value if share else 1)
        row |= self._test(arm, metric, rule)
        return row | {"verdict": self._verdict(arm, control, metric, change, method)}

    def _test(self, arm: str, metric: str, rule: Metric) -> dict[str, float]:
        """Return the p-values of a difference and the smallest one detectable."""
        replicates = self._replicates(arm, metric)
        if replicates is None or not rule.better:
            return {}
        estimate, level = replicates.difference(), 1 - self.confidence
        found = {"p": float(estimate.p_value())}
        if metric == PRIMARY:
            found["p_adjusted"] = self.p_adjusted[arm]
            level /= len(self.judged)
        if rule.decides:
            found["detectable"] = over.detectable(
                float(estimate.error), float(estimate.freedom), level
            )
        return found

    def _verdict(self, arm: str, control: str, metric: str, change: Interval, method: str) -> str:
        rule = self.read_as[metric]
        if not rule.better:
            return ""
        if untold := _untold(change, method):
            verdict = untold
        elif metric == PRIMARY:
            p_adjusted = self.p_adjusted[arm]
            verdict = str(
                rules.by_p_value(change.value, p_adjusted, rule.better, 1 - self.confidence)
            )
        elif rule.margin:
            replicates = self._replicates(arm, metric)
            assert replicates is not None
            beyond = replicates.beyond(rule, self.margin).interval(self.confidence)
            verdict = str(rules.of_quality(change, beyond, rule.better))
        else:
            verdict = str(rules.by_interval(change, rule.better))
        if rule.alarms:
            exceeding = (self._copies(name, metric, rule.alarms) for name in (arm, control))
            return above_false_alarms(verdict, *exceeding)
        return verdict

    def _copies(self, arm: str, metric: str, alarms: str) -> bool | None:
        if (arm, metric) not in self.cells or (arm, alarms) not in self.cells:
            return None
        return copies(self.cells[arm, metric], self.cells[arm, alarms])


COLUMNS = (
    *("arm", "control", "metric", "better", "decides", "replicates", *Interval._fields),
    *(f"control_{name}" for name in Interval._fields),
    *("difference", "difference_low", "difference_high", "method"),
    *("p", "p_adjusted", "detectable", "margin", "verdict"),
)
"""Columns of ``compare``."""


def compare(
    points: pd.DataFrame,
    controls: Mapping[str, str | None],
    paired: Mapping[str, bool],
    confidence: float,
    margin: Margin,
) -> pd.DataFrame:
    """Return one row per arm and metric: its value, its control's, the difference, and the verdict.

    Args:
        points: The table of ``tables.points``.
        controls: Arm -> its control, or None; in the order of the study.
        paired: Arm -> whether it and its control were given the same images; False where missing.
        confidence: Of all intervals; 1 - confidence is the level of the adjusted p-values.
        margin: Losses of quality that do not matter.

    Returns:
        ``COLUMNS``; empty cells where there is no control. ``p`` is that of the difference,
        ``p_adjusted`` (primary number alone) that among all arms with a control, ``detectable`` the
        smallest difference seen with a chance of 80 %, ``margin`` the loss of quality that does not
        matter; the last two in the unit of the metric.
    """
    comparison = _Comparison(points, controls, paired, confidence, margin)
    return pd.DataFrame(comparison.rows(), columns=list(COLUMNS))


def _unseen_losses(group: pd.DataFrame) -> str:
    """Return the smallest losses that would have been seen, where quality is not shown."""
    open_rows = group[group["verdict"] == NOT_SHOWN].to_dict("records")
    losses = [
        f"{(row['difference_high'] - row['difference_low']) / 2:.2g} in {row['metric']}"
        for row in open_rows
    ]
    return f" (smallest loss that would have been seen: {', '.join(losses)})" if losses else ""


def verdicts(compared: pd.DataFrame) -> pd.DataFrame:
    """Return one row per arm that has a control: arm, control, memorization, quality, forgetting,
    beats_control, all in words, and the p-values and the detectable difference of the primary
    number.

    Args:
        compared: The table of ``compare``.
    """
    rows, numbers = [], ["p", "p_adjusted", "detectable"]
    for (arm, control), group in compared.dropna(subset=["control"]).groupby(
        ["arm", "control"], sort=False
    ):
        row, text = _verdict_on(group)
        rows.append({"arm": arm, "control": control, **row, "verdict": text})
    judged = pd.DataFrame(rows, columns=["arm", "control", *_TEXTS, "beats_control", "verdict"])
    primary = compared[compared["metric"] == PRIMARY][["arm", *numbers]]
    return judged.merge(primary, on="arm", how="left")[[*judged.columns[:-1], *numbers, "verdict"]]


def _verdict_on(group: pd.DataFrame) -> tuple[dict[str, str], str]:
    """Return the verdicts on one arm, and all in words."""
    about = {
        name: group[(group["decides"] == name) & group["verdict"].notna()]
        for name in (*_TEXTS, "rest")
    }
    kept = about["rest" if (about["rest"]["verdict"] != UNMEASURED).any() else "quality"]
    judged = {
        "memorization": together(about["memorization"]["verdict"]),
        "quality": str(rules.all_of_quality(list(kept["verdict"]))),
        "forgetting": together(about["forgetting"]["verdict"]),
    }
    updates = group[group["metric"] == "network_updates"]
    trained_less = bool((updates["value"] < 0.99 * updates["control_value"]).any())
    beats = str(rules.beats(judged["memorization"], judged["quality"], trained_less))
    row = judged | {"beats_control": beats}
    if ONE_TRAINING in row.values():
        return row | {"beats_control": ONE_TRAINING}, ONE_TRAINING
    named = {
        word: " and ".join(kept["metric"][kept["verdict"] == word]) for word in (BETTER, WORSE)
    }
    words = [
        _TEXTS[name][word].format(**named) for name, word in judged.items() if word in _TEXTS[name]
    ]
    if judged["quality"] == NOT_SHOWN:
        words[1] += _unseen_losses(kept)
    words += ["its control's network was trained longer"] if beats == TRAINED_LESS else []
    return row, ", ".join(words)


def wide(compared: pd.DataFrame) -> pd.DataFrame:
    """Return one row per arm: its verdict, then every compared number with its interval (``_low``,
    ``_high``), where it has one."""
    judged = verdicts(compared).drop(columns="control")
    arms = compared[["arm", "control"]].drop_duplicates().merge(judged, on="arm", how="left")
    for metric in dict.fromkeys(compared["metric"]):
        some = compared[compared["metric"] == metric].set_index("arm")[list(Interval._fields)]
        named = {"value": metric, "low": f"{metric}_low", "high": f"{metric}_high"}
        arms = arms.join(some.rename(columns=named).dropna(axis="columns", how="all"), on="arm")
    return arms


def replicate_points(points: pd.DataFrame) -> pd.DataFrame:
    """Return one row per arm and replicate with the counts of copies that are drawn against
    quality, and the numbers that decide about it."""
    read_as = rules_of(dict.fromkeys(points["metric"]))
    axes = [
        metric
        for metric, rule in read_as.items()
        if metric in MEMORIZATION or rule.decides == "quality"
    ]
    cells = points[["arm", "replicate"]].drop_duplicates()
    table = points[points["metric"].isin(axes)].pivot(
        index=["arm", "replicate"], columns="metric", values="value"
    )
    return cells.merge(table[axes].reset_index(), on=["arm", "replicate"])


def front(points: np.ndarray) -> np.ndarray:
    """Return which points no other point beats, bool (N,): none is lower in one coordinate and not
    higher in another.

    Args:
        points: (N, D), lower is better in each coordinate.
    """
    beaten = [
        ((points <= point).all(axis=1) & (points < point).any(axis=1)).any() for point in points
    ]
    return ~np.array(beaten, bool)
