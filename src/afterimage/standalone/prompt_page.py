"""The page of a ranking of prompts: the answer, each detector's statistics, and the first prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from afterimage.standalone import page

PROMPTS = 8
"""Prompts whose images are shown."""

SHOWN = 50
"""Rows of the table of prompts."""

_IMAGES = 8
"""Images of each prompt."""


def render(record: dict[str, Any], table: pd.DataFrame, images: dict[str, np.ndarray]) -> str:
    """Return the page.

    Args:
        record: ``prompts.json``.
        table: ``prompts.csv``.
        images: Images of the first prompts, by prompt, uint8 (n, H, W, C); empty for no pictures.
    """
    measured = {name: each for name, each in record["detectors"].items() if "auc" in each}
    columns = ["prompt", *(name for name in (*measured, "flagged") if name in table)]
    figures = [_statistics(table, list(measured), record["settings"]["decide_by"])]
    if images:
        figures.append(_pictures(images))
    return page.render(
        "prompts.html",
        record=record,
        figures=figures,
        columns=columns,
        rows=table.loc[table["set"] == "prompts", columns].head(SHOWN).round(4).to_numpy().tolist(),
        detectors=[
            (name, each["statistic"], *_area(each)) for name, each in record["detectors"].items()
        ],
        settings=page.settings(record["settings"].items()),
    )


def _area(detector: dict[str, Any]) -> tuple[str, str]:
    if "not_measured" in detector:
        return f"not measured: {detector['not_measured']}", ""
    if (area := detector["auc"]) is None:
        return "no held-out prompts", ""
    return f"{area['value']:.3f}", f"{area['low']:.3f} to {area['high']:.3f}"


def _statistics(table: pd.DataFrame, detectors: list[str], decisive: str) -> page.Figure:
    """Draw the distribution of each detector's statistic over prompts and held-out prompts."""
    figure, axes = page.pyplot().subplots(
        1, len(detectors), figsize=(2.6 * len(detectors), 2.4), squeeze=False
    )
    for axis, name in zip(axes.flat, detectors, strict=True):
        for group, label, style in (
            ("prompts", "prompts", {}),
            ("holdout", "held-out prompts", {"linestyle": "--", "color": "grey"}),
        ):
            values = np.sort(table.loc[table["set"] == group, name].to_numpy(float))
            values = values[np.isfinite(values)]
            if len(values):
                shares = 1 - np.arange(len(values)) / len(values)
                axis.step(values, shares, where="post", label=label, **style)
        axis.set_title(f"{name} (decides)" if name == decisive else name, fontsize=9)
        axis.set_ylim(0, 1)
        axis.tick_params(labelsize=7)
        axis.locator_params("x", nbins=4)
    axes[0, 0].set_ylabel("share at least as large", fontsize=8)
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    text = (
        "For each detector the share of prompts whose statistic is at least as large. Memorised "
        "prompts stand out to the right of all held-out ones."
    )
    return page.finish(figure, "Statistics", text)


def _pictures(images: dict[str, np.ndarray]) -> page.Figure:
    """Draw images of the first prompts, one prompt per row."""
    columns = min(_IMAGES, max(map(len, images.values())))
    figure, axes = page.pyplot().subplots(
        len(images), columns, figsize=(1.4 * columns, 1.6 * len(images)), squeeze=False
    )
    for row, (prompt, drawn) in zip(axes, images.items(), strict=True):
        for axis, pixels in zip(row, drawn[:columns], strict=True):
            axis.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.axis("off")
        row[0].set_title(
            prompt if len(prompt) < 80 else f"{prompt[:77]}...", fontsize=8, loc="left"
        )
    return page.finish(figure, "Images of the first prompts", "One prompt per row.")
