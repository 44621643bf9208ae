"""What the notebooks share: where a study's results lie, its tables, and how figures and tables are kept and shown."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from afterimage.artifacts import read_run


class Notebook:
    """A notebook at work on the results of one study.

    Args:
        results: Folder of the study's results.
        figures: Folder to keep figures in; made if it is not there.

    Attributes:
        confidence: Coverage of every interval of the tables.
        level: The same in percent, as text.
    """

    def __init__(self, results: str | Path, figures: str | Path) -> None:
        self.results, self.figures = Path(results), Path(figures)
        self.figures.mkdir(exist_ok=True)
        plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
        self.confidence: float = read_run(self.results / "report" / "tables")["config"]["settings"]["confidence"]
        self.level = f"{100 * self.confidence:g} %"

    def folder(self, phase: str, arm: str, *rest: str, replicate: int = 0) -> Path:
        """Return the folder, or a file in it, of one replicate of an arm."""
        return self.results.joinpath(phase, arm, f"rep{replicate}", *rest)

    def table(self, name: str) -> pd.DataFrame:
        """Return one of the study's tidy tables."""
        return pd.read_csv(self.results / "report" / "tables" / f"{name}.csv")

    def keep(self, figure: Figure, name: str) -> None:
        """Write a figure, the same bytes for the same figure, and show it."""
        import IPython.display

        figure.savefig(self.figures / f"{name}.png", bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        IPython.display.display(IPython.display.Image(filename=self.figures / f"{name}.png"))

    def show(
        self, frame: pd.DataFrame, shaded: Collection = (), shade: str = "#f0f0f0", cells: str = "white-space:nowrap"
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
