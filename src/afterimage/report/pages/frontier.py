"""The part of the comparison's page that shows trainings as paths, each against plain training that
is stopped early (``report.frontier``)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from afterimage import artifacts
from afterimage.report import arms as roles
from afterimage.report import figures, format, frontier, verdicts
from afterimage.report.format import Table
from afterimage.report.names import name_of
from afterimage.report.notebook import Notebook

HEADS = {
    verdicts.BETTER: "Copy less than plain training that is stopped at the same quality",
    verdicts.WORSE: "Copy more than plain training at the same quality",
    verdicts.UNSEEN: "No difference at equal quality seen (which does not say that there is none)",
    verdicts.NOT_TESTABLE: (
        "Not testable (plain training copies no more than false alarms at any quality that both "
        "reach)"
    ),
    frontier.NO_OVERLAP: "Not comparable (in some replicate no quality is reached by both)",
    verdicts.UNMEASURED: "Not measured",
    verdicts.ONE_TRAINING: "One training: no verdict",
}
"""Verdict -> head of the list of arms that it is about."""
PRICES = {
    "network_updates": "updates per network, one after the other",
    "kept_samples": "samples with gradient",
    "training_seconds": "seconds of training",
}


class Frontier:
    """Paths on the page of a study.

    Args:
        book: The notebook.
        methods: Arm -> its method, in the order of the study.

    Attributes:
        paths: Table of the states; empty in a study without paths.
        compared: Table of the comparisons.
        plain: Arms that are compared with.
        axis: The measure of quality that decides; nothing without paths.
    """

    def __init__(self, book: Notebook, methods: Mapping[str, str]) -> None:
        self.book, self.methods = book, methods
        self.paths, self.compared = book.table("paths"), book.table("frontier")
        self.plain = list(dict.fromkeys(self.compared["frontier"]))
        self.axis = next(iter(frontier.axes_of(map(str, self.paths.columns))), "")
        self.deciding = self.compared[self.compared["decides"].astype(bool)]

    def groups(self) -> str:
        """Return the arms by their verdict, in Markdown."""
        lines = []
        for word, head in HEADS.items():
            some = self.deciding[self.deciding["verdict"] == word]
            listed = [
                f"**{arm}** (beside {plain})"
                for arm, plain in zip(some["arm"], some["frontier"], strict=True)
            ]
            lines += [f"**{head}:** {', '.join(listed)}."] if listed else []
        return "\n\n".join(lines) or "No arm of this study is compared along a path."

    def rows(self) -> Table:
        """Return one row per compared arm."""
        replicates = int(self.compared["replicates"].max())
        rows: Table = []
        for arm, group in self.compared.groupby("arm", sort=False):
            (deciding,) = group[group["decides"]].to_dict("records")
            row: dict[str, object] = {"arm": format.bold(arm), "beside": deciding["frontier"]}
            row["verdict"] = deciding["verdict"]
            row["odds of a copy, times those of plain training"] = _factor(deciding)
            row[f"compared at {self.axis}"] = _range(deciding)
            if replicates > 1:
                row["adjusted p"] = "" if pd.isna(p := deciding["p_adjusted"]) else f"{p:.2g}"
                seen = deciding["detectable"]
                smallest = "" if pd.isna(seen) else f"{np.exp(-seen):.2g} or {np.exp(seen):.2g}"
                row["smallest factor detectable"] = smallest
            for other in group[~group["decides"]].to_dict("records"):
                name = name_of(other["metric"])
                if other["axis"] != self.axis:
                    name = f"{name}, at equal {other['axis'].partition('[')[0]}"
                row[name] = _factor(other)
            rows.append(row)
        return rows

    def winners(self) -> list[int]:
        """Return the positions in ``rows`` of arms that copy less at equal quality."""
        words = self.deciding["verdict"]
        return [row for row, word in enumerate(words) if word == verdicts.BETTER]

    def figure(self) -> Figure:
        """Draw copies against quality along every path, the plain ones in black."""
        plot, (axis,) = figures.grid(1, 1, 9.5, 6.2)
        ends, arms = [], list(dict.fromkeys(self.paths["arm"]))
        for arm in arms:
            mean = self._mean(arm)
            self._path(axis, arm, mean[self.axis], mean[verdicts.PRIMARY])
            ends.append((mean[self.axis].iloc[-1], mean[verdicts.PRIMARY].iloc[-1]))
        axis.set_xlabel(f"{self.axis} to images that no arm saw (log scale, lower is better)")
        axis.set_ylabel(f"{name_of(verdicts.PRIMARY)} (lower is better)")
        for which in ("x", "y"):
            figures.log_axis(axis, which, most=8)
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        figures.label_points(axis, np.array(ends), arms, [self._colour(arm) for arm in arms])
        methods = {self.methods[arm]: self._colour(arm) for arm in arms if arm not in self.plain}
        entries = {"plain training": "black"} | methods
        figures.legend_below(
            plot, {name: figures.dot(colour) for name, colour in entries.items()}, "colour: method"
        )
        return plot

    def caption(self) -> str:
        """Return what the figure of paths shows, in Markdown."""
        return (
            f"Points are the states of each training ({', '.join(self.spent())} of its budget), "
            f"geometric means over replicates; states without a copy stand at "
            f"{100 * self.least_share:.2g} %. Intervals in the table are {self.book.level}, "
            f"Student's over replicates; the p-values that decide are adjusted for "
            f"{len(self.deciding)} comparison(s) (Holm)."
        )

    def spent(self) -> list[str]:
        """Return the shares of the budget that the states have spent, in percent."""
        return [f"{100 * share:.3g} %" for share in sorted(set(self.paths["share"]))]

    def price_figure(self) -> Figure:
        """Draw what every state has cost, in three currencies, against its quality."""
        plot, axes = figures.grid(len(PRICES), len(PRICES), 4.2, 3.8, sharey=True)
        for axis, (price, label) in zip(axes, PRICES.items(), strict=True):
            for arm in dict.fromkeys(self.paths["arm"]):
                mean = self._mean(arm)
                self._path(axis, arm, mean[price], mean[self.axis])
            axis.set_xlabel(label)
            figures.log_axis(axis, "x", most=5)
        axes[0].set_ylabel(f"{self.axis} (lower is better)")
        figures.log_axis(axes[0], "y")
        arms = dict.fromkeys(self.paths["arm"])
        figures.legend_below(plot, {arm: figures.dot(self._colour(arm)) for arm in arms})
        plot.tight_layout(w_pad=2)
        return plot

    def _colour(self, arm: str) -> str:
        return "black" if arm in self.plain else roles.method_colour(self.methods[arm])

    def _mean(self, arm: str) -> pd.DataFrame:
        """Return the means of an arm's states over replicates: geometric, of shares those of
        ``least_share`` and more."""
        some = self.paths[self.paths["arm"] == arm].copy()
        some[verdicts.PRIMARY] = some[verdicts.PRIMARY].clip(lower=self.least_share)
        numbers = some[["share", self.axis, verdicts.PRIMARY, *PRICES]]
        means = numbers.apply(np.log).groupby(some["state"]).mean()
        return means.apply(np.exp).sort_values("share")

    @property
    def least_share(self) -> float:
        """The share that is drawn for none: half of one generation."""
        store = self.book.folder("attack", self.paths["arm"].iloc[0], "path")
        return 0.5 / artifacts.read_run(store)["facts"]["generations"]

    def _path(self, axis: Axes, arm: str, x: pd.Series, y: pd.Series) -> None:
        plain = arm in self.plain
        style: figures.Style = {"color": self._colour(arm), "marker": "o", "markersize": 3}
        style |= {"linewidth": 2.2 if plain else 1.1, "zorder": 4 if plain else 3}
        axis.plot(x, y, **style)


def _factor(row: Mapping[Hashable, Any]) -> str:
    """Return a difference in log-odds as a factor of the odds, with its interval."""
    ends = (row["difference"], row["difference_low"], row["difference_high"])
    return format.interval(*(float(np.exp(end)) for end in ends))


def _range(row: Mapping[Hashable, Any]) -> str:
    if pd.isna(row["best"]):
        return ""
    return f"{format.number(row['best'])} to {format.number(row['worst'])}"
