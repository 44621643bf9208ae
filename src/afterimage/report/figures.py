"""Drawing shared by several pages: panels of intervals, logarithmic axes, labels, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator

from afterimage.report import verdicts

Style = dict[str, Any]
"""Options of a call of matplotlib."""
RC: dict[Any, Any] = {
    "figure.dpi": 110,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
"""Matplotlib's settings for all figures."""
VERDICTS = {
    verdicts.BETTER: ("C0", "better"),
    verdicts.NO_WORSE: ("#9ecae1", "no worse, within the margin"),
    verdicts.WORSE: ("C1", "worse"),
}
"""Verdict -> colour and label; any other is ``UNDECIDED``. Every eye tells blue from orange."""
UNDECIDED = ("0.5", "not shown, or no verdict")
FLOOR = "C3"
"""Colour of chance levels and limits."""


def verdict_colour(verdict: object) -> str:
    """Return the colour of a verdict."""
    return VERDICTS.get(str(verdict), UNDECIDED)[0]


def error(value: float, low: float, high: float) -> list[list[float]] | None:
    """Return the lengths of an error bar, (2, 1), for matplotlib; None without an interval."""
    return None if pd.isna(low) else [[max(value - low, 0)], [max(high - value, 0)]]


def grid(
    count: int, columns: int, width: float, height: float, **shared: Any
) -> tuple[Figure, Any]:
    """Return a figure of ``count`` panels in rows of ``columns``, and its panels.

    Args:
        width, height: Size of one panel, in inches.
        shared: Options of ``plt.subplots``.
    """
    columns = max(1, min(columns, count))
    lines = max(1, -(-count // columns))
    size = (width * columns, height * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, **shared)
    for axis in axes.flat[count:]:
        axis.axis("off")
    for axis in axes.flat[max(0, count - columns) : count]:  # also if the panel below is blank
        axis.tick_params(labelbottom=True)
    return figure, axes.flat[:count]


def row_panels(
    labels: Sequence[str],
    panels: int,
    width: float = 2.2,
    height: float = 0.3,
    at: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of adjacent panels whose common rows are labelled on the left.

    Args:
        labels: Names of the rows, from the top.
        panels: Number of panels.
        width: Width of a panel, in inches.
        height: Height of a row, in inches.
        at: Positions of the rows; by default 0, 1, ...
    """
    at = range(len(labels)) if at is None else at
    size = (width * panels + 1, height * (max(at, default=0) + 1) + 1)
    figure, axes = plt.subplots(1, panels, figsize=size, sharey=True, squeeze=False)
    axes[0, 0].set_yticks(at, labels, fontsize=8)
    axes[0, 0].set_ylim(max(at, default=0) + 0.6, -0.6)
    for axis in axes.flat:
        axis.tick_params(labelsize=8, length=2)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="y", color="0.93")
        axis.set_axisbelow(True)
    return figure, list(axes.flat)


def legend_right(axis: Axes) -> None:
    """Write a legend to the right of a panel."""
    axis.legend(fontsize=8, bbox_to_anchor=(1.02, 1), loc="upper left")


def legend_below(figure: Figure, entries: Mapping[str, Any], title: str = "") -> None:
    """Write a legend below all that a figure shows so far.

    Args:
        entries: Label -> artist.
    """
    if entries:
        lowest = figure.get_tightbbox().y0 / figure.get_figheight()
        options: Style = {
            "loc": "upper center",
            "bbox_to_anchor": (0.5, min(lowest, 0)),
            "ncol": min(len(entries), 5),
        }
        figure.legend(list(entries.values()), list(entries), title=title or None, **options)


def dot(colour: str, marker: str = "o") -> Line2D:
    """Return the legend entry of points of a colour."""
    return Line2D([], [], marker=marker, linestyle="", color=colour)


def verdict_legend(figure: Figure) -> None:
    """Write a legend of the verdicts' colours below a figure."""
    legend_below(figure, {label: dot(colour) for colour, label in (*VERDICTS.values(), UNDECIDED)})


def percent_axis(axis: Axes, which: Literal["x", "y"]) -> None:
    """Write the ticks of an axis of shares in percent."""
    getattr(axis, f"{which}axis").set_major_formatter(lambda value, _: f"{100 * value:g} %")


def log_axis(axis: Axes, which: Literal["x", "y"], most: int = 6) -> None:
    """Make an axis logarithmic, with plain ticks at 1, 2 and 5 times powers of ten.

    Args:
        most: Maximum number of ticks; an axis with fewer than two of that kind gets even ticks.
    """
    getattr(axis, f"set_{which}scale")("log")
    low, high = getattr(axis, f"get_{which}lim")()
    ticks = [
        tick
        for tick in np.outer(10.0 ** np.arange(-9, 9), [1, 2, 5]).ravel()
        if low <= tick <= high
    ]
    if len(ticks) < 2:
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    ticks = ticks[:: -(-len(ticks) // most) or 1]
    getattr(axis, f"set_{which}ticks")(ticks, [_tick(tick) for tick in ticks])
    getattr(axis, f"set_{which}ticks")([], minor=True)


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def trim(axis: Axes, top: float = 1.0) -> None:
    """Limit a dot plot to values from 0 to ``top``, the possible ones: intervals between few
    replicates extend beyond."""
    axis.margins(x=0.12)
    low, high = (float(np.clip(end, -0.02 * min(top, 1), 1.02 * top)) for end in axis.get_xlim())
    axis.set_xlim(low, high if high > low else low + 0.1)


def label_points(
    axis: Axes, points: np.ndarray, labels: Sequence[str], colours: Sequence[str]
) -> None:
    """Write each label near its point without overlap, with a line to distant ones.

    Args:
        points: (N, 2), in data coordinates. Limits of the axis are final.
        labels, colours: N of each.
    """
    from adjustText import adjust_text

    halo = [Stroke(linewidth=2, foreground="white"), Normal()]
    texts = [
        axis.text(x, y, label, fontsize=8, color=colour, zorder=6, path_effects=halo)
        for (x, y), label, colour in zip(points, labels, colours, strict=True)
    ]
    axis.figure.canvas.draw()
    adjust_text(  # a limit of iterations, not of time: the same figure every time
        texts,
        *points.T,
        ax=axis,
        iter_lim=400,
        expand=(1.1, 1.4),
        arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5},
    )


def picture(axis: Axes, pixels: np.ndarray) -> None:
    """Draw an image, uint8 (H, W, 1 or 3), without ticks or frame."""
    axis.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def row_title(axis: Axes, text: str) -> None:
    """Write the name of a row of pictures to the left of the first."""
    axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)


def side_by_side(images: Sequence[np.ndarray], gap: int = 1) -> np.ndarray:
    """Return images, uint8 (H, W, C) each, in one row with ``gap`` white pixels between them."""
    white = np.full((images[0].shape[0], gap, images[0].shape[2]), 255, np.uint8)
    strips = [strip for image in images for strip in (white, image)][1:]
    return np.concatenate(strips, axis=1)
