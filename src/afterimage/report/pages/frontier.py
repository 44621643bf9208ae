"""The part of the comparison's page that shows trainings as paths, each against plain training that
is stopped early (``report.frontier``)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from afterimage.report import format, frontier, verdicts
from afterimage.report.format import Table
from afterimage.report.names import name_of
from afterimage.report.notebook import Notebook
from afterimage.report.path_figures import PathFigures

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


class Frontier:
    """Paths on the page of a study.

    Args:
        book: The notebook.

    Attributes:
        paths: Table of the states; empty in a study without paths.
        compared: Table of the comparisons.
        drawings: Of the paths.
        axis: The measure of quality that decides; nothing without paths.
    """

    def __init__(self, book: Notebook) -> None:
        self.book, self.paths, self.compared = book, book.table("paths"), book.table("frontier")
        self.drawings = PathFigures(self.paths, self.compared)
        self.axis = self.drawings.axis
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
            row[f"compared at {self.axis}"] = frontier.compared_at(deciding)
            if replicates > 1:
                row["adjusted p"] = format.p_value(deciding["p_adjusted"])
                row["smallest factor detectable"] = frontier.smallest_factor(deciding)
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

    def caption(self) -> str:
        """Return what the figure of paths shows, in Markdown."""
        points = (
            f"Points are the states of each training ({self.drawings.spent()} of its budget), "
            f"geometric means over replicates; states without a copy stand at "
            f"{100 * self.drawings.least_share:.2g} %."
        )
        if self.deciding.empty:
            return points
        if self.deciding["replicates"].max() == 1:
            return f"{points} One training of each arm has no interval and decides nothing."
        return (
            f"{points} Intervals in the table are {self.book.level}, Student's over replicates; the "
            f"p-values that decide are adjusted for {len(self.deciding)} comparison(s) (Holm)."
        )


def _factor(row: Mapping[Hashable, Any]) -> str:
    """Return a difference in log-odds as a factor of the odds, with its interval."""
    ends = (row["difference"], row["difference_low"], row["difference_high"])
    return format.interval(*(float(np.exp(end)) for end in ends))
