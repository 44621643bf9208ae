"""The page that sets every arm against its own control: verdicts, budgets, trade-offs, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETLEFT, CARETRIGHT

from afterimage import artifacts
from afterimage.report import arms as roles
from afterimage.report import comparison, figures, format, verdicts
from afterimage.report.format import Table
from afterimage.report.names import frechet_of, name_of, unit_of
from afterimage.report.notebook import Notebook, by_keys
from afterimage.report.pages.frontier import Frontier

BUDGETS = (
    *("updates", "updates_per_model", "network_updates", "kept_samples", "backward_passes"),
    "training_images",
)
"""In what an arm and its control may be equal."""
COSTS = (
    *("updates", "updates_per_model", "network_updates", "images_seen", "kept_samples"),
    "backward_passes",
    *("training_images", "passes", "parameters", "setup_seconds", "training_seconds", "epsilon"),
)
HEADS = {
    verdicts.YES: "Beat their own control, adjusted for {count} verdict(s)",
    verdicts.NO: "Do not (remember more, or are worse in quality)",
    verdicts.NOT_SHOWN: (
        "Not shown (no difference in memorization seen, or a loss of quality not ruled out; "
        "neither says what is true)"
    ),
    verdicts.TRAINED_LESS: (
        "Remember less, but so may any network that was trained for as few updates: the control's "
        "was trained longer"
    ),
    verdicts.NOT_TESTABLE: (
        "Not testable (the control's copies do not exceed false alarms: nothing can remember less "
        "than nothing)"
    ),
    verdicts.UNMEASURED: "Not measured",
    verdicts.ONE_TRAINING: (
        "One training: no verdict (another training of the same arm would give other numbers)"
    ),
}
"""``beats_control`` -> head of the list of arms of which it is true."""
ABOUT = ("memorization", "quality", "rest", "forgetting")
"""What a number may decide about, see ``comparison.Metric``."""


class Comparison:
    """What the page shows of a study.

    Args:
        book: The notebook.
        arms: Names of the arms, in the order of the study.
        replicates: Trainings of each.

    Attributes:
        control_of: Arm -> its control, of arms that have one.
        beats: Arm -> ``beats_control``, of the same arms.
        deciding: One of ``ABOUT`` -> the metrics that decide about it.
        frechet: The Fréchet distance among them.
        memorization: The counts of copies that are drawn against quality; the first one decides.
        margin: Losses of quality that do not matter, as in ``statistics.margin``.
        paired: Arm -> whether it and its control were given the same images.
    """

    def __init__(self, book: Notebook, arms: Sequence[str], replicates: int) -> None:
        self.book, self.arms, self.replicates = book, arms, replicates
        self.compared, self.points = book.table("comparison"), book.table("points")
        wide = book.table("comparison_wide").set_index("arm")
        self.control_of = book.controls()
        self.verdict = wide["verdict"]
        self.beats = {arm: str(wide["beats_control"][arm]) for arm in self.control_of}
        self.cell = by_keys(self.compared, "arm", "metric")
        self.known = {key for key, row in self.cell.items() if pd.notna(row["value"])}
        self.deciding: dict[str, list[str]] = {
            about: list(dict.fromkeys(self.compared["metric"][self.compared["decides"] == about]))
            for about in ABOUT
        }
        self.frechet = frechet_of(self.deciding["quality"])
        compared = set(self.compared["metric"])
        self.memorization = [m for m in comparison.MEMORIZATION if m in compared]
        tables = artifacts.read_run(book.results / "report" / "tables")["config"]["settings"]
        self.margin: dict[str, float] = tables["margin"]
        self.paired: dict[str, bool] = tables["paired"]
        self.settings = {arm: book.training(arm)["config"]["settings"]["arm"] for arm in arms}
        self.methods = {arm: roles.method_of(settings) for arm, settings in self.settings.items()}

    @property
    def frontier(self) -> Frontier:
        """The part of the page about paths."""
        return Frontier(self.book)

    def value(self, arm: str, metric: str) -> str:
        """Return a number of an arm with its interval; nothing if it has none."""
        if (arm, metric) not in self.known:
            return ""
        row = self.cell[arm, metric]
        return format.interval(row["value"], row["low"], row["high"], unit=unit_of(metric))

    def difference(self, arm: str, metric: str) -> str:
        """Return an arm's number minus its control's with the interval.

        Nothing where one is missing.
        """
        if (arm, metric) not in self.known or pd.isna(self.cell[arm, metric]["difference"]):
            return ""
        row = self.cell[arm, metric]
        ends = (row["difference"], row["difference_low"], row["difference_high"])
        return format.interval(*ends, unit=unit_of(metric, difference=True), sign="+")

    # ---- verdicts

    def groups(self) -> str:
        """Return the arms by whether they beat their control, in Markdown."""
        if not self.beats:
            return "No arm of this study names a control."
        lines = []
        for word, head in HEADS.items():
            arms = [arm for arm, beats in self.beats.items() if beats == word]
            listed = ", ".join(f"**{arm}** (over {self.control_of[arm]})" for arm in arms)
            lines += [f"**{head.format(count=len(self.beats))}:** {listed}."] if arms else []
        return "\n\n".join(lines)

    def verdicts(self) -> Table:
        """Return one row per arm with a control: the verdict, and the differences that decide."""
        rows: Table = []
        for arm, control in self.control_of.items():
            row: dict[str, object] = {"arm": format.bold(arm), "control": control}
            row["verdict"] = self.verdict[arm]
            if self.replicates > 1:
                won = self.beats[arm] == verdicts.YES
                row["beats its control"] = format.bold("yes") if won else self.beats[arm]
            row[name_of(verdicts.PRIMARY)] = self.difference(arm, verdicts.PRIMARY)
            if self.replicates > 1:
                row |= self._test(arm)
            others = [metric for about in ABOUT[1:] for metric in self.deciding[about]]
            for metric in [*others, *self.memorization[1:]]:
                row[name_of(metric)] = self.difference(arm, metric)
            rows.append(row)
        return rows

    def _test(self, arm: str) -> dict[str, object]:
        """Return the p-values of the primary number and the smallest difference detectable."""
        row = self.cell[arm, verdicts.PRIMARY]
        seen = row["detectable"]
        unit = unit_of(verdicts.PRIMARY, difference=True)
        return {
            "p": format.p_value(row["p"]),
            "adjusted p": format.p_value(row["p_adjusted"]),
            "smallest difference detectable": "" if pd.isna(seen) else format.number(seen, unit),
        }

    def winners(self) -> list[int]:
        """Return the positions of the arms that beat their control in ``verdicts``."""
        return [row for row, beats in enumerate(self.beats.values()) if beats == verdicts.YES]

    def criteria(self) -> str:
        """Return how the intervals are made and what decides, as far as it depends on the study."""
        if not self.beats:
            return ""
        quality, rest, forgetting = (
            [name_of(metric) for metric in self.deciding[about]] for about in ABOUT[1:]
        )
        reported = [name_of(metric) for metric in self.memorization[1:]]
        text = (
            f"Numbers are the arm's minus its control's, with {self.book.level} intervals (shares "
            f"in percentage points){self._method()} One number decides about memorization: "
            f"{name_of(verdicts.PRIMARY)}{self._adjusted()}. "
        )
        text += f"Reported, without deciding: {', '.join(reported)}. " if reported else ""
        text += (
            f"*Quality* is judged by {' and '.join(quality)}{self._of_the_rest(rest)}: *no worse* "
            f"if a {self._margins()} is ruled out by the interval of each."
        )
        if forgetting:
            text += (
                f" *Forgetting* is judged by {' and '.join(forgetting)}, not adjusted; an arm "
                "whose control is retraining need not beat it: no difference is what it is meant "
                "to reach."
            )
        return text

    def _method(self) -> str:
        if self.replicates == 1:
            return (
                ": score intervals for shares, the two bootstrap intervals combined for others, "
                "all **within one training**. They do not say what another training would have "
                "given, so no verdict is given."
            )
        paired = [arm for arm in self.control_of if self.paired[arm]]
        others = [arm for arm in self.control_of if not self.paired[arm]]
        methods = []
        if paired:
            methods.append(
                f"paired by replicate for {', '.join(paired)}, which were given the same images as "
                "their controls"
            )
        if others:
            methods.append(f"Welch's for {', '.join(others)}, which were given other images")
        return (
            f" over {self.replicates} replicates (Student's t, {'; '.join(methods)}). Where all "
            "replicates have the same difference the interval is that within the trainings, and "
            "gives no verdict."
        )

    def _adjusted(self) -> str:
        if self.replicates == 1:
            return ""
        return (
            f", by its p-value adjusted for {len(self.beats)} verdict(s) (Holm): where nothing "
            f"differs, at most {100 * (1 - self.book.confidence):.3g} % of such tables hold any "
            "false one. *Smallest difference detectable*: seen with a chance of 80 %, in points"
        )

    def _of_the_rest(self, remaining: Sequence[str]) -> str:
        """Return by what quality is judged where forgetting is, too, as a clause."""
        if not remaining:
            return ""
        aligned = "; text alignment, of all prompts, decides nothing there" if self._texts else ""
        return (
            " (where an arm and its control are both judged on a forget set, by "
            f"{' and '.join(remaining)} alone, of the images that remain{aligned})"
        )

    @property
    def _texts(self) -> bool:
        """Whether text alignment is among the numbers."""
        return any(metric.startswith("text_alignment[") for _, metric in self.known)

    def _margins(self) -> str:
        rise, fall = self.margin["relative_fd"], self.margin["coverage"]
        aligned = (
            f" and a text alignment {100 * self.margin['text_alignment']:.3g} points below"
            if self._texts
            else ""
        )
        return (
            f"Fréchet distance {100 * rise:.3g} % above the control's, and a coverage "
            f"{100 * fall:.3g} points below{aligned},"
        )

    # ---- what an arm and its control share

    def budgets(self) -> Table:
        """Return one row per arm with a control.

        Which budgets are equal, which not, initial weights.
        """
        rows: Table = []
        for arm, control in self.control_of.items():
            equal, unequal = [], []
            for metric in BUDGETS:
                if {(arm, metric), (control, metric)} <= self.known and self._applies(metric, arm):
                    own, other = (self.cell[name, metric]["value"] for name in (arm, control))
                    if abs(own - other) <= 0.01 * max(own, other):
                        equal.append(name_of(metric))
                    else:
                        unequal.append(f"{name_of(metric)} ({own:,.0f} against {other:,.0f})")
            rows.append(
                {
                    "arm": format.bold(arm),
                    "control": control,
                    "equal, to one in a hundred": ", ".join(equal) or "no budget",
                    "not equal": ", ".join(unequal),
                    "initial weights": self.initial_weights(arm),
                }
            )
        return rows

    def _applies(self, metric: str, arm: str) -> bool:
        """Updates since the first weights say more only where an arm starts from another, and
        backward passes where an update makes several."""
        arms = (arm, self.control_of[arm])
        if metric == "network_updates":
            return any(self.settings[name]["base"] for name in arms)
        if metric == "backward_passes":
            return any(
                self.cell[name, metric]["value"] > self.cell[name, "updates"]["value"]
                for name in arms
            )
        return True

    def initial_weights(self, arm: str) -> str:
        """Return where the weights of an arm and of its control come from, in words."""
        arms = [self.settings[name] for name in (arm, self.control_of[arm])]
        own, other = (settings["base"] for settings in arms)
        if not own and not other:
            # As ``job.stream_path``; labels are further weights, which move all later draws.
            keys = ("data", "without", "fraction", "condition")
            same = all(arms[0][key] == arms[1][key] for key in keys)
            return "the same" if same else "each its own"
        if own == other:
            return format.Markup("both of {}").format(format.bold(own))
        origins = (
            format.Markup("of {}").format(format.bold(base)) if base else "drawn"
            for base in (own, other)
        )
        return format.Markup(" against ").join(origins)

    # ---- memorization against quality

    def trade_off(self) -> tuple[Figure, str]:
        """Draw memorization against the Fréchet distance, and say which arms form the front."""
        measures = self.memorization
        side_by_side = len(self.arms) <= 4
        width, height = (4.8, 3.6) if side_by_side else (9.5, 6.2)
        columns = len(measures) if side_by_side else 1
        figure, axes = figures.grid(len(measures), columns, width, height)
        figure.tight_layout(h_pad=3, w_pad=4)
        fronts = {
            memory: self._trade_off(axis, memory)
            for memory, axis in zip(measures, axes, strict=True)
        }
        methods = dict.fromkeys(self.methods.values())
        entries = {method: figures.dot(roles.method_colour(method)) for method in methods}
        figures.legend_below(figure, entries, title="colour: method")
        named = "; ".join(
            f"{', '.join(arms)} ({name_of(memory)})" for memory, arms in fronts.items()
        )
        replicates = "small points are their replicates" if self.replicates > 1 else ""
        intervals = f"{self.book.level} intervals {format.spread(self.replicates)}"
        return figure, (
            f"Large points are the arms with {intervals}{'; ' if replicates else ''}{replicates}. "
            f"On the dashed front: {named}."
        )

    def _trade_off(self, axis: Axes, memory: str) -> list[str]:
        shown = [
            arm for arm in self.arms if {(arm, memory), (arm, self.frechet)} <= self.known
        ]  # both coordinates
        across = pd.DataFrame([self.cell[arm, self.frechet] for arm in shown])
        up = pd.DataFrame([self.cell[arm, memory] for arm in shown])
        means = np.stack([across["value"], up["value"]], axis=1)
        colours = [roles.method_colour(self.methods[arm]) for arm in shown]
        single = self.points[self.points["arm"].isin(shown)].dropna(subset=[self.frechet, memory])
        self._points(axis, shown, means, (across, up), colours)
        if self.replicates > 1:
            of_each = [roles.method_colour(self.methods[arm]) for arm in single["arm"]]
            options: figures.Style = {"color": of_each, "alpha": 0.45, "linewidth": 0, "zorder": 3}
            axis.scatter(single[self.frechet], single[memory], s=7, **options)
        self._limits(axis, means, (across, up), single[[self.frechet, memory]].to_numpy())
        axis.set_xlabel(f"{self.frechet} to images that no arm saw\n(log scale, lower is better)")
        axis.set_ylabel(f"{name_of(memory)} (lower is better)")
        on_front = comparison.front(means)
        _stairs(axis, means[on_front])
        figures.label_points(axis, means, shown, colours)
        return [arm for arm, on in zip(shown, on_front, strict=True) if on]

    def _points(
        self,
        axis: Axes,
        shown: list[str],
        means: np.ndarray,
        tables: tuple[pd.DataFrame, pd.DataFrame],
        colours: list[str],
    ) -> None:
        """Draw every arm's mean with its intervals, and a line to its control."""
        bar: figures.Style = {"fmt": "none", "elinewidth": 0.8, "alpha": 0.45, "zorder": 2}
        for row, (arm, mean, colour) in enumerate(zip(shown, means, colours, strict=True)):
            lengths = [
                figures.error(mean[i], table["low"].iloc[row], table["high"].iloc[row])
                for i, table in enumerate(tables)
            ]
            x, y = mean
            axis.errorbar(x, y, xerr=lengths[0], yerr=lengths[1], ecolor=colour, **bar)
            if self.control_of.get(arm) in shown:
                control = means[shown.index(self.control_of[arm])]
                axis.plot(*zip(mean, control, strict=True), color=colour, lw=0.6, alpha=0.5)
        dots: figures.Style = {"edgecolor": "white", "linewidth": 0.6, "zorder": 4}
        axis.scatter(means[:, 0], means[:, 1], s=36, color=colours, **dots)

    @staticmethod
    def _limits(
        axis: Axes,
        means: np.ndarray,
        tables: tuple[pd.DataFrame, pd.DataFrame],
        single: np.ndarray,
    ) -> None:
        """Fit the axes to what was drawn; very wide intervals end at the frame."""
        left = np.nanmin([*tables[0]["low"], *single[:, 0], *means[:, 0]])
        right = np.nanmax([*tables[0]["high"], *single[:, 0], *means[:, 0]])
        low, high = 0.93 * max(left, means[:, 0].min() / 2), 1.1 * min(right, 2 * means[:, 0].max())
        axis.set_xlim(low, high)
        top = np.nanmax([*tables[1]["high"], *single[:, 1], *means[:, 1], 0.01])
        axis.set_ylim(-0.04 * top, min(1.03, 1.04 * top))
        figures.log_axis(axis, "x")
        axis.set_xlim(low, high)
        figures.percent_axis(axis, "y")

    # ---- differences

    def moved(self) -> list[str]:
        """Return the metrics of ``differences``."""
        return [*self.memorization, *self.deciding["quality"], "membership_auc"]

    def differences(self) -> Figure:
        """Draw how far each arm is from its control: one panel per metric, one row per arm."""
        order = list(self.arms)
        rows = sorted(
            self.control_of, key=lambda arm: (order.index(self.control_of[arm]), order.index(arm))
        )
        controls = [self.control_of[arm] for arm in rows]
        new = np.array([False, *(first != second for first, second in pairwise(controls))])
        at = np.arange(len(rows)) + 0.8 * np.cumsum(new)
        labels = [f"{arm}  –  {control}" for arm, control in zip(rows, controls, strict=True)]
        figure, axes = figures.row_panels(labels, len(self.moved()), height=0.24, at=list(at))
        for axis, metric in zip(axes, self.moved(), strict=True):
            found = {
                y: self.cell[arm, metric]
                for arm, y in zip(rows, at, strict=True)
                if (arm, metric) in self.known and pd.notna(self.cell[arm, metric]["difference"])
            }
            unit = unit_of(metric, difference=True)
            _differences(axis, found, 100 if unit else 1)
            axis.set_title(
                name_of(metric) + ("\n(percentage points)" if unit else "\n"), fontsize=8
            )
        figure.tight_layout(w_pad=1.5)
        figures.verdict_legend(figure)
        return figure

    def better_higher(self) -> str:
        """Return in which metrics of ``differences`` higher is better, in words."""
        better = self.compared.drop_duplicates("metric").set_index("metric")["better"]
        return " and ".join(m for m in self.moved() if better.get(m) == "higher") or "none"

    # ---- every arm

    def grouped(self, metrics: Sequence[str]) -> tuple[Table, list[int]]:
        """Return the numbers of every arm, controls before the arms compared with them.

        Returns:
            The rows, and the positions of the heads of groups.
        """
        there = set(self.compared["metric"])
        columns = [metric for metric in metrics if metric in there]
        rows: Table = []
        heads = []
        for group in groups(self.arms, self.control_of):
            heads.append(len(rows))
            for arm in group:
                indented = format.Markup("&nbsp;&nbsp;&nbsp;{}").format(arm)
                row: dict[str, object] = {"arm": format.bold(arm) if arm == group[0] else indented}
                rows.append(row | {name_of(metric): self.value(arm, metric) for metric in columns})
        return rows, heads

    def results(self) -> tuple[Table, list[int]]:
        """Return what the attacks found of every arm, ``grouped``."""
        false_alarms = ["flagged_holdout_calibrated", "twins_flagged_calibrated"]
        shown = [*self.memorization, *false_alarms, "unique_images_calibrated"]
        return self.grouped([*shown, *self.deciding["quality"], "membership_auc"])

    def costs(self) -> tuple[Table, list[int]]:
        """Return what every arm cost, ``grouped``."""
        return self.grouped(COSTS)


def groups(arms: Sequence[str], control_of: dict[str, str]) -> list[list[str]]:
    """Return the arms in groups, a control first, then those compared with it; others alone.

    An arm that is a control and has one stands in two groups.
    """
    controls = [arm for arm in arms if arm in control_of.values()]
    grouped = [[head, *(arm for arm in arms if control_of.get(arm) == head)] for head in controls]
    return grouped + [[arm] for arm in arms if arm not in controls and arm not in control_of]


def _stairs(axis: Axes, front: np.ndarray) -> None:
    """Draw the front, (N, 2), as stairs from its left to the edge."""
    stairs = front[np.lexsort(front.T[::-1])]
    end = axis.get_xlim()[1]
    style: figures.Style = {
        "color": "black",
        "linewidth": 0.9,
        "linestyle": "--",
        "alpha": 0.6,
        "zorder": 1,
    }
    axis.step([*stairs[:, 0], end], [*stairs[:, 1], stairs[-1, 1]], where="post", **style)


def axis_limit(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return how far a panel of differences reaches.

    Intervals much wider than most end at its edge.
    """
    ends = [(row["difference_low"], row["difference_high"]) for row in rows]
    known = [pair for pair in ends if not np.isnan(pair).any()]
    pairs = known or [(row["difference"], 0) for row in rows]
    if not pairs:
        return 1
    sizes = np.abs(pairs).max(axis=1)
    return 1.1 * max(sizes[sizes <= 3 * np.quantile(sizes, 0.75)].max(), 1e-9)


def _differences(axis: Axes, rows: Mapping[float, Mapping[str, Any]], scale: float) -> None:
    """Draw differences with intervals, coloured by verdict, and the margins of quality.

    An arrow stands for those beyond the panel.
    """
    limit = scale * axis_limit(list(rows.values()))
    for y, row in rows.items():
        colour = figures.verdict_colour(row["verdict"])
        value, low, high = (
            scale * row[name] for name in ("difference", "difference_low", "difference_high")
        )
        if abs(value) > limit:
            right = value > 0
            edge = limit if right else -limit
            arrow = CARETRIGHT if right else CARETLEFT
            axis.plot(edge, y, marker=arrow, color=colour, markersize=5, clip_on=False)
            options: figures.Style = {"textcoords": "offset points", "fontsize": 7, "va": "center"}
            side: figures.Style = (
                {"xytext": (-6, 0), "ha": "right"} if right else {"xytext": (6, 0), "ha": "left"}
            )
            axis.annotate(f"{value:+.3g}", (edge, y), color=colour, **options, **side)
        else:
            axis.plot(np.clip([low, high], -limit, limit), [y, y], color=colour, linewidth=1.2)
            axis.plot(value, y, "o", color=colour, markersize=4)
        margin = scale * row["margin"] * (1 if row["better"] == "lower" else -1)
        if abs(margin) < limit:
            axis.plot(margin, y, "|", color="black", markersize=7)
    axis.axvline(0, color="black", linewidth=0.7)
    axis.set_xlim(-limit, limit)
