"""The context of a running notebook: where results are, and how figures, tables and sentences are
shown."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import IPython.display
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from afterimage import artifacts
from afterimage.report import figures as drawing
from afterimage.report import format

GREY, GREEN = "#f0f0f0", "#e9f5e9"
"""Shades of rows: a heading or a control; a choice or a winner."""
_STYLES: list[Any] = [
    {"selector": "", "props": "border-collapse:collapse"},
    {"selector": "th, td", "props": "text-align:left;padding:0.35em 0.7em;vertical-align:top"},
    {"selector": "th", "props": "vertical-align:bottom"},
    {"selector": "b, small", "props": "white-space:nowrap"},
]


class Notebook:
    """A notebook that shows the results of one study.

    Args:
        results: Folder of the study's results.
        figures: Folder for figures; created if missing.
        confidence: Coverage of every interval of the tables.
        plantings: Number of the study's plantings.

    Attributes:
        level: The coverage in percent, as text.
    """

    def __init__(
        self, results: str | Path, figures: str | Path, confidence: float, plantings: int = 1
    ) -> None:
        self.results, self.figures, self.confidence = Path(results), Path(figures), confidence
        self.plantings = plantings
        self.figures.mkdir(exist_ok=True)
        self.level = format.level(confidence)
        self._tables = 0
        plt.rcParams.update(drawing.RC)

    def folder(self, phase: str, arm: str, *rest: str, replicate: int = 0) -> Path:
        """Return the folder, or a file in it, of one replicate of an arm."""
        return self.results.joinpath(phase, arm, f"rep{replicate}", *rest)

    def planting(self, replicate: int = 0) -> Path:
        """Return the folder of the planting that a replicate of any arm was trained on."""
        return self.results / "data" / "planting" / str(replicate % self.plantings)

    def table(self, name: str) -> pd.DataFrame:
        """Return one of the study's tidy tables."""
        return pd.read_csv(self.results / "report" / "tables" / f"{name}.csv")

    def controls(self) -> dict[str, str]:
        """Return arm -> its control, of arms that have one, in the order of the study."""
        control = self.table("comparison_wide").set_index("arm")["control"].dropna()
        return {str(arm): str(name) for arm, name in control.items()}

    def training(self, arm: str, replicate: int = 0) -> dict:
        """Return ``run.json`` of an arm's training."""
        return artifacts.read_run(self.folder("train", arm, replicate=replicate))

    def say(self, text: str) -> None:
        """Show a Markdown text, unless it is empty."""
        if text:
            IPython.display.display(IPython.display.Markdown(text))

    def html(self, text: str) -> None:
        """Show HTML, in a frame that scrolls if it is wider than the page."""
        framed = f"<div style='overflow-x:auto'>{text}</div>"
        IPython.display.display(IPython.display.HTML(framed))

    def keep(self, figure: Figure, name: str) -> None:
        """Write a figure, the same bytes for the same figure, and show it."""
        path = self.figures / f"{name}.png"
        # bbox_inches="tight" would find the same box by drawing everything once more.
        box = figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])
        figure.savefig(path, bbox_inches=box, metadata={"Software": None})
        plt.close(figure)
        IPython.display.display(IPython.display.Image(filename=path))

    def show(
        self,
        rows: pd.DataFrame | format.Table,
        shaded: Collection[int] = (),
        shade: str = GREY,
    ) -> None:
        """Show a table, which scrolls if it is wider than the page.

        Args:
            rows: The table, without its index. Texts are escaped, unless they are HTML
                (``format``).
            shaded: Positions of the rows to shade.
            shade: Their colour.
        """
        frame = pd.DataFrame(rows, dtype=object).reset_index(
            drop=True
        )  # otherwise HTML becomes text
        self._tables += 1
        styler = frame.style.format(format.html).format_index(format.html, axis="columns")
        styler = styler.hide(axis="index").set_uuid(f"{self._tables}").set_table_styles(_STYLES)
        styler = styler.apply(
            lambda row: [f"background:{shade if row.name in set(shaded) else 'white'}"] * len(row),
            axis="columns",
        )
        self.html(styler.to_html())


def by_keys(table: pd.DataFrame, *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the rows of a table by their values in some columns.

    Raises:
        ArtifactError: if two rows have the same.
    """
    records = [{str(key): cell for key, cell in row.items()} for row in table.to_dict("records")]
    rows = {tuple(row[key] for key in keys): row for row in records}
    if len(rows) < len(table):
        raise artifacts.ArtifactError(f"two rows of a table have the same {' and '.join(keys)}")
    return rows
