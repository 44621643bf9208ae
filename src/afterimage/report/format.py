"""Formatting of numbers on pages: with intervals, as HTML, consistently.

Text that may come from a study (names of arms) is escaped; values returned as ``Markup`` are HTML
and shown as is.
"""

from __future__ import annotations

import math
from typing import Literal

import pandas as pd
from markupsafe import Markup, escape

Unit = Literal["", "%", "points"]
"""Plain numbers; shares in percent; differences of shares in percentage points."""
Table = list[dict[str, object]]
"""Rows of a table: heading -> cell."""
IMAGES_WITHHELD = "The study does not allow its images to be shown (`report.show_images: false`)."


def number(value: float, unit: Unit = "", sign: Literal["", "+"] = "", digits: int = 3) -> str:
    """Return a number as text.

    Args:
        value: Shares are fractions of one.
        unit: Unit of the text; shares get one decimal place.
        sign: ``"+"`` shows the sign of positive numbers too.
        digits: Significant digits of plain numbers; numbers of 1,000 or more are written in full.
    """
    if unit:
        return f"{100 * value:{sign}.1f}"
    return f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.{digits}g}"


def interval(
    value: float,
    low: float = float("nan"),
    high: float = float("nan"),
    *,
    unit: Unit = "",
    sign: Literal["", "+"] = "",
    digits: int = 3,
) -> Markup:
    """Return a number with its interval in brackets, unless it is missing or has no width.

    An interval from minus to plus infinity is said to have no bounds.

    Args:
        value: Shares are fractions of one; NaN is ``n/a``.
        low, high: Ends of the interval.
        unit, sign, digits: As in ``number``.
    """
    if pd.isna(value):
        return Markup("n/a")
    text = number(value, unit, sign, digits) + (" %" if unit == "%" else "")
    if pd.isna(low) or low == high:
        return Markup(text)
    if math.isinf(low) and math.isinf(high):
        return Markup("{} <small>[no bounds]</small>").format(text)
    return bracketed(text, *(number(end, unit, sign, digits) for end in (low, high)))


def p_value(value: float | None) -> str:
    """Return a p-value as text; nothing for none."""
    return "" if value is None or pd.isna(value) else f"{value:.2g}"


def bracketed(text: str, low: str, high: str) -> Markup:
    """Return a text followed by the ends of its interval."""
    return Markup("{} <small>[{}, {}]</small>").format(text, low, high)


def bold(text: object) -> Markup:
    """Return a text in bold."""
    return Markup("<b>{}</b>").format(text)


def italic(text: object) -> Markup:
    """Return a text in italics."""
    return Markup("<i>{}</i>").format(text)


def html(cell: object) -> Markup:
    """Return a cell of a table as HTML: escaped, unless it is HTML already; empty for NaN."""
    return Markup("") if isinstance(cell, float) and pd.isna(cell) else escape(cell)


def level(confidence: float) -> str:
    """Return the coverage of intervals in percent."""
    return f"{100 * confidence:g} %"


def spread(replicates: int) -> str:
    """Return a description of what the intervals of a study cover."""
    if replicates == 1:
        return "within the one training"
    return f"between {replicates} replicates (Student's t)"


def spread_in_full(replicates: int) -> str:
    """Return a description of what the intervals of a study cover, and of their computation."""
    if replicates == 1:
        return f"{spread(1)}, exact for shares and counts, bootstrap for all others"
    return (
        f"{spread(replicates)}; where all replicates are equal (nothing flagged in any), within one"
    )


def brackets(confidence: float, replicates: int) -> str:
    """Return a sentence that explains the brackets after the numbers of a table."""
    return f"In brackets: {level(confidence)} intervals {spread_in_full(replicates)}."


def plain_table(frame: pd.DataFrame) -> str:
    """Return a table of all numbers as HTML, without its index."""
    return frame.to_html(index=False, na_rep="", float_format="{:.4g}".format)
