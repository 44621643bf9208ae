"""The page of an audit: the answer and its limitations, the extracted images, and the distances."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from afterimage.attacks.extraction import Extraction
from afterimage.images import Images

PAIRS, COLUMNS = 32, 8
"""Maximum number of pairs in a picture, and pairs per row."""

NOTES = (
    "The answer compares generations with held-out images over all thresholds at once: without "
    "copies, at most 5 of 100 audits report copies. Another training run of the same model may "
    "give a different answer.",
    "The ratio of a generation is its distance to the nearest training image, divided by alpha "
    "times the mean distance of that image to its nearest neighbours among the training images "
    "(Carlini et al. 2023, section 5.1). A generation is flagged, and that training image "
    "extracted, if the ratio is at most 1. Intervals are exact (Clopper-Pearson) for counts and "
    "shares.",
)

Figure = tuple[str, str, str]
"""Title, explanation, and PNG (base64)."""


def figures(
    extraction: Extraction, pairs: pd.DataFrame, samples: Images, train: Images, show: bool
) -> list[Figure]:
    """Return the figures of an audit, with pictures of pairs only if ``show``.

    Args:
        extraction: The attack's tables.
        pairs: Its pairs with names, and ``sample_row`` and ``nearest_row``.
        samples: The generations.
        train: The training images.
        show: Whether pictures may be shown.
    """
    drawn = [_distances(extraction)]
    if show:
        low = pairs["low_detail"]
        if len(blurred := pairs[low].sort_values("l2", kind="stable").head(PAIRS)):
            text = (
                "On the left the generation, on the right its nearest training image. These are "
                "not counted as copies."
            )
            drawn.insert(0, _pairs("Blank or blurred generations", text, blurred, samples, train))
        best = (
            pairs[~low]
            .sort_values("ratio_training", kind="stable")
            .drop_duplicates("nearest")
            .head(PAIRS)
        )
        text = (
            "On the left the generation, on the right its nearest training image, with their "
            "distance and ratio; one pair per training image, smallest ratio first. Pairs that the "
            "verdict flags have a red title."
        )
        if len(best):
            drawn.insert(0, _pairs("The nearest pairs", text, best, samples, train))
    return drawn


def render(
    record: dict[str, Any],
    rows: list[tuple[str, str, str]],
    extracted: pd.DataFrame,
    drawn: list[Figure],
    by_condition: pd.DataFrame | None,
) -> str:
    """Return the page.

    Args:
        record: ``audit.json``.
        rows: Name, value and interval of each number.
        extracted: ``extracted.csv``.
        drawn: The figures.
        by_condition: ``conditions.csv``; None without.
    """
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(
        (files("afterimage.standalone") / "audit.html").read_text()
    )
    return template.render(
        verdict=record["verdict"],
        similarity=record["similarity"],
        limits=[*record["limits"], *record["notices"]],
        columns=list(extracted),
        extracted=_first(extracted),
        more=max(0, len(extracted) - SHOWN),
        rows=rows,
        notes=[
            *NOTES,
            *(f"{metric} {reason}." for metric, reason in record["quality_missing"].items()),
        ],
        figures=drawn,
        conditions=record["conditions"],
        by_condition=_first(by_condition),
        generations=_generations(record["settings"]),
        settings=[
            (name, value)
            for name, value in record["settings"].items()
            if value is not None and not isinstance(value, dict)
        ],
    )


SHOWN = 50
"""Maximum number of rows of a table."""


def _first(table: pd.DataFrame | None) -> list[list[Any]]:
    return [] if table is None else table.head(SHOWN).round(3).to_numpy().tolist()


def _generations(settings: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return name and value of what was drawn; empty for given samples."""
    drawn = settings.get("drawing", settings.get("network"))
    if drawn is None:
        return []
    rows: list[tuple[str, Any]] = []
    for name, value in drawn.items():
        if isinstance(value, dict):
            rows += [(f"{name}: {key}", entry) for key, entry in value.items()]
        else:
            rows.append((name, value))
    return [(name.replace("_", " "), value) for name, value in rows if value not in (None, "")]


def pyplot() -> Any:
    """Return matplotlib's pyplot, which draws into files."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def finish(figure: Any, title: str, text: str) -> Figure:
    """Return a drawn figure as it goes on the page."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, bbox_inches="tight")
    pyplot().close(figure)
    return title, text, base64.b64encode(png.getvalue()).decode()


def _pairs(title: str, text: str, table: pd.DataFrame, samples: Images, train: Images) -> Figure:
    rows = -(-len(table) // COLUMNS)
    figure, axes = pyplot().subplots(rows, COLUMNS, figsize=(12, 1.3 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, pair in zip(axes.flat, table.to_dict("records"), strict=False):
        generation, nearest = samples.pixels[pair["sample_row"]], train.pixels[pair["nearest_row"]]
        height, width, channels = generation.shape
        gap = np.full((height, max(1, width // 16), channels), 255, np.uint8)
        image = np.concatenate([generation, gap, nearest], axis=1)
        axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        colour = "firebrick" if pair["flagged_verdict"] else "black"
        axis.set_title(
            f"{pair['l2']:.3f}  ratio {pair['ratio_training']:.2f}", fontsize=8, pad=2, color=colour
        )
    return finish(figure, title, text)


def _distances(extraction: Extraction) -> Figure:
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 3))
    labels = {
        "l2": "distance to the nearest training image",
        "ratio_training": "ratio at the fixed alpha",
    }
    for axis, (column, label) in zip(axes, labels.items(), strict=True):
        shown = {"generations": extraction.pairs[column]}
        if extraction.holdout_pairs is not None:
            shown["held-out images"] = extraction.holdout_pairs[column]
        finite = np.concatenate([values[np.isfinite(values)] for values in shown.values()])
        top = float(np.quantile(finite, 0.995)) if len(finite) else 1.0
        bins = np.linspace(0, top or 1.0, 50)
        for (name, values), kind in zip(shown.items(), ("stepfilled", "step"), strict=False):
            inside = values[np.isfinite(values)].clip(upper=bins[-1])
            if len(inside):
                axis.hist(inside, bins, density=True, histtype=kind, alpha=0.8, label=name)
        if len(finite) < sum(map(len, shown.values())):
            axis.set_title("pairs without a ratio are not drawn", fontsize=8)
        axis.set_xlabel(label)
        axis.set_yticks([])
    axes[1].axvline(1, color="red", linewidth=0.8)
    handles, names = axes[0].get_legend_handles_labels()
    if handles:
        axes[0].legend(handles, names, frameon=False)
    text = "The attack looks for generations that are nearer to training images than unseen images."
    return finish(figure, "Distances", text)
