"""The page of an audit: what was asked, whether it can be answered, the answer, the pairs, what to do
next, the risk statement, and the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from afterimage.attacks import verdict
from afterimage.attacks.extraction import Extraction
from afterimage.images import Images
from afterimage.standalone import page, statement
from afterimage.standalone.record import AuditRecord, Settings

PAIRS, COLUMNS = 32, 8
"""Maximum number of pairs in a picture, and pairs per row."""

NOTES = (
    "The ratio of a generation is its distance to the nearest training image, divided by alpha "
    "times the mean distance of that image to its nearest neighbours among the training images "
    "(Carlini et al. 2023, section 5.1). A generation is flagged, and that training image "
    "extracted, if the ratio is at most 1. Intervals are exact (Clopper-Pearson) for counts and "
    "shares.",
)


def figures(
    extraction: Extraction, pairs: pd.DataFrame, samples: Images, train: Images, show: bool
) -> list[page.Figure]:
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
    record: AuditRecord,
    rows: list[tuple[str, str, str]],
    extracted: pd.DataFrame,
    drawn: list[page.Figure],
    by_condition: pd.DataFrame | None,
    pictures_shown: bool,
) -> str:
    """Return the page.

    Args:
        record: ``audit.json``.
        rows: Name, value and interval of each number.
        extracted: ``extracted.csv``.
        drawn: The figures.
        by_condition: ``conditions.csv``; None without.
        pictures_shown: Whether the figures show pairs.
    """
    return page.render(
        "audit.html",
        record=record,
        question=_question(record.settings),
        sets=_sets(record),
        limits=[*record.limits, *record.notices],
        cannot_tell=verdict.CANNOT_TELL,
        error_rate=statement.ERROR_RATE,
        columns=[str(column).replace("_", " ") for column in extracted],
        extracted=_first(extracted),
        more=max(0, len(extracted) - SHOWN),
        pictures_shown=pictures_shown,
        figures=drawn,
        by_condition=_first(by_condition),
        statement=[
            (heading, getattr(record.risk_statement, part))
            for part, heading in statement.HEADINGS.items()
        ],
        rows=rows,
        notes=[
            *NOTES,
            *(f"{metric} {reason}." for metric, reason in record.quality_missing.items()),
        ],
        generations=_generations(record.settings),
        settings=page.settings(record.settings),
    )


def _question(settings: Settings) -> str:
    if settings.pipeline is None:
        return (
            "Are there copies of training images among these generations? If so, some of them are "
            "nearer to a training image than real images that the model never saw."
        )
    return (
        "Does this model draw copies of its training images? If so, some of the images that it "
        "draws are nearer to a training image than real images that it never saw."
    )


def _sets(record: AuditRecord) -> list[tuple[str, int | str, str]]:
    """Return name, number and source of each set of images."""
    counts, settings = record.counts, record.settings
    generations = settings.samples
    if settings.pipeline is not None:
        generations = f"drawn from {settings.pipeline}"
    return [
        ("generations", counts.generations, generations or ""),
        ("training images", counts.training, settings.train),
        ("held-out images", counts.holdout, settings.holdout or "none were given"),
    ]


SHOWN = 50
"""Maximum number of rows of a table."""


def _first(table: pd.DataFrame | None) -> list[list[Any]]:
    return [] if table is None else table.head(SHOWN).round(3).to_numpy().tolist()


def _generations(settings: Settings) -> list[tuple[str, str]]:
    """Return name and value of what was drawn; empty for given samples."""
    drawn = settings.drawing or settings.network
    if drawn is None:
        return []
    rows: list[tuple[str, Any]] = []
    for name, value in drawn.items():
        if isinstance(value, dict):
            rows += [(f"{name}: {key}", entry) for key, entry in value.items()]
        else:
            rows.append((name, value))
    return [(name.replace("_", " "), str(value)) for name, value in rows if value not in (None, "")]


def _pairs(
    title: str, text: str, table: pd.DataFrame, samples: Images, train: Images
) -> page.Figure:
    rows = -(-len(table) // COLUMNS)
    figure, axes = page.pyplot().subplots(rows, COLUMNS, figsize=(12, 1.3 * rows), squeeze=False)
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
    return page.finish(figure, title, text)


def _distances(extraction: Extraction) -> page.Figure:
    figure, axes = page.pyplot().subplots(1, 2, figsize=(10, 3))
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
    return page.finish(figure, "Distances", text)
