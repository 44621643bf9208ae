"""Drawings of trainings as paths: copies against quality, and what every state has cost.

They need nothing but the tables ``paths`` and ``frontier`` of a study (``report.tables``).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from afterimage.report import arms as roles
from afterimage.report import figures, frontier, verdicts
from afterimage.report.frontier import PRICES
from afterimage.report.names import name_of

DASHES = ("-", "--", ":", "-.")


class PathFigures:
    """Drawings of a study's paths, those of plain training in black; arms of one colour differ in
    their dashes.

    Args:
        paths: Table ``paths``, one row per arm, replicate and state.
        compared: Table ``frontier``, one row per comparison.

    Attributes:
        plain: Arms that are compared with.
        axis: The measure of quality that decides; nothing without paths.
    """

    def __init__(self, paths: pd.DataFrame, compared: pd.DataFrame) -> None:
        self.paths = paths
        self.plain = list(dict.fromkeys(compared["frontier"]))
        self.axis = next(iter(frontier.axes_of(map(str, paths.columns))), "")
        self.method = dict(zip(paths["arm"], paths["method"], strict=True))
        self._beside = dict(zip(compared["arm"], compared["frontier"], strict=True))
        self._beside |= {arm: arm for arm in self.plain}

    @property
    def least_share(self) -> float:
        """The share that is drawn for none: half of one generation."""
        return 0.5 / float(self.paths["generations"].max())

    def spent(self) -> str:
        """Return the shares of the budget that the states have spent, in percent."""
        return ", ".join(f"{100 * share:.3g} %" for share in sorted(set(self.paths["share"])))

    def copies(self) -> Figure:
        """Draw copies against quality along every path: a panel for each plain training with the
        arms that are compared with it, and one for arms that are compared with none."""
        panels: dict[str | None, list[str]] = {}
        for arm in self.method:
            panels.setdefault(self._beside.get(arm), []).append(arm)
        plot, axes = figures.grid(len(panels), 1, 9.5, 5.4)
        for axis, (plain, arms) in zip(axes, panels.items(), strict=True):
            ends = []
            for arm in arms:
                mean = self._mean(arm)
                self._path(axis, arm, mean[self.axis], mean[verdicts.PRIMARY])
                ends.append((mean[self.axis].iloc[-1], mean[verdicts.PRIMARY].iloc[-1]))
            axis.set_title(f"beside {plain}" if plain else "compared with no plain training")
            axis.set_xlabel(f"{self.axis} to images that no arm saw (log scale, lower is better)")
            axis.set_ylabel(f"{name_of(verdicts.PRIMARY)} (lower is better)")
            for which in ("x", "y"):
                figures.log_axis(axis, which, most=8)
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
            figures.label_points(axis, np.array(ends), arms, [self._colour(arm) for arm in arms])
        plot.tight_layout(h_pad=2)
        methods = {
            method: self._colour(arm)
            for arm, method in self.method.items()
            if arm not in self.plain
        }
        entries = {"plain training": "black"} | methods
        figures.legend_below(
            plot, {name: figures.dot(colour) for name, colour in entries.items()}, "colour: method"
        )
        return plot

    def prices(self) -> Figure:
        """Draw what every state has cost, in three currencies, against its quality."""
        plot, axes = figures.grid(len(PRICES), len(PRICES), 4.2, 3.8, sharey=True)
        for axis, (price, label) in zip(axes, PRICES.items(), strict=True):
            for arm in self.method:
                mean = self._mean(arm)
                self._path(axis, arm, mean[price], mean[self.axis])
            axis.set_xlabel(label)
            figures.log_axis(axis, "x", most=5)
        axes[0].set_ylabel(f"{self.axis} (lower is better)")
        figures.log_axis(axes[0], "y")
        figures.legend_below(plot, {line.get_label(): line for line in axes[0].get_lines()})
        plot.tight_layout(w_pad=2)
        return plot

    def _colour(self, arm: str) -> str:
        return "black" if arm in self.plain else roles.method_colour(self.method[arm])

    def _mean(self, arm: str) -> pd.DataFrame:
        """Return the means of an arm's states over replicates: geometric, of shares those of
        ``least_share`` and more."""
        some = self.paths[self.paths["arm"] == arm].copy()
        some[verdicts.PRIMARY] = some[verdicts.PRIMARY].clip(lower=self.least_share)
        numbers = some[["share", self.axis, verdicts.PRIMARY, *PRICES]]
        means = numbers.apply(np.log).groupby(some["state"]).mean()
        return means.apply(np.exp).sort_values("share")

    def _path(self, axis: Axes, arm: str, x: pd.Series, y: pd.Series) -> None:
        plain = arm in self.plain
        style: figures.Style = {"color": self._colour(arm), "marker": "o", "markersize": 3}
        of_colour = [other for other in self.method if self._colour(other) == self._colour(arm)]
        style |= {"label": arm, "linestyle": DASHES[of_colour.index(arm) % len(DASHES)]}
        style |= {"linewidth": 2.2 if plain else 1.1, "zorder": 4 if plain else 3}
        axis.plot(x, y, **style)
