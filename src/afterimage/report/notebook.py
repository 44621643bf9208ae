"""What the notebooks share: where a study's results lie, its tables, and how figures, tables and numbers are kept and shown."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure


class Notebook:
    """A notebook at work on the results of one study.

    Args:
        results: Folder of the study's results.
        figures: Folder to keep figures in; made if it is not there.
        confidence: Coverage of every interval of the tables.

    Attributes:
        level: The coverage in percent, as text.
    """

    def __init__(self, results: str | Path, figures: str | Path, confidence: float) -> None:
        self.results, self.figures = Path(results), Path(figures)
        self.figures.mkdir(exist_ok=True)
        plt.rcParams.update(
            {
                "figure.dpi": 110,
                "font.size": 9,
                "axes.spines.top": False,
                "axes.spines.right": False,
            }
        )
        self.level = f"{100 * confidence:g} %"

    def folder(self, phase: str, arm: str, *rest: str, replicate: int = 0) -> Path:
        """Return the folder, or a file in it, of one replicate of an arm."""
        return self.results.joinpath(phase, arm, f"rep{replicate}", *rest)

    def table(self, name: str) -> pd.DataFrame:
        """Return one of the study's tidy tables."""
        return pd.read_csv(self.results / "report" / "tables" / f"{name}.csv")

    def keep(self, figure: Figure, name: str) -> None:
        """Write a figure, the same bytes for the same figure, and show it."""
        import IPython.display

        figure.savefig(
            self.figures / f"{name}.png", bbox_inches="tight", metadata={"Software": None}
        )
        plt.close(figure)
        IPython.display.display(IPython.display.Image(filename=self.figures / f"{name}.png"))

    def show(
        self,
        frame: pd.DataFrame,
        shaded: Collection = (),
        shade: str = "#f0f0f0",
        cells: str = "white-space:nowrap",
    ) -> None:
        """Show a table whose cells are HTML, in a frame that scrolls.

        Args:
            frame: The table; its index only names rows.
            shaded: Index of the rows to shade.
            shade: Their colour.
            cells: CSS of the cells.
        """
        import IPython.display

        head = "".join(f"<th style='text-align:left'>{column}</th>" for column in frame)
        rows = [
            f"<tr style='background:{shade if at in shaded else 'white'}'>"
            + "".join(f"<td style='text-align:left;{cells}'>{entry}</td>" for entry in row)
            + "</tr>"
            for at, row in zip(frame.index, frame.itertuples(index=False), strict=True)
        ]
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        IPython.display.display(IPython.display.HTML(f"<div style='overflow-x:auto'>{table}</div>"))


def text(
    value: float,
    low: float = math.nan,
    high: float = math.nan,
    percent: bool = False,
    sign: str = "",
) -> str:
    """Return a number with its interval, if it has one, as HTML.

    Args:
        percent: Show a share in percent.
        sign: ``"+"`` shows the sign of positive numbers too.
    """
    if pd.isna(value):
        return "n/a"
    scale, form = (100, f"{sign}.1f") if percent else (1, f"{sign}.3g")
    shown = format(scale * value, form) + (" %" if percent else "")
    if pd.isna(low) or low == high:
        return shown
    return f"{shown} <small>[{format(scale * low, form)}, {format(scale * high, form)}]</small>"


def within(axis: Axes, top: float = 1.0) -> None:
    """Trim a dot plot to values from 0 to ``top``, those that can be: intervals between few replicates reach beyond."""
    axis.margins(x=0.12)
    low, high = (float(np.clip(end, -0.02 * min(top, 1), 1.02 * top)) for end in axis.get_xlim())
    axis.set_xlim(low, high if high > low else low + 0.1)
    axis.tick_params(labelsize=7.5, length=2)
    axis.grid(axis="y", color="0.93")
