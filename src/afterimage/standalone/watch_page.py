"""The page of a watch: the answer, the curves of copying and quality, and the looks."""

from __future__ import annotations

from typing import Any

import pandas as pd

from afterimage.standalone import page


def render(record: dict[str, Any], looks: pd.DataFrame) -> str:
    """Return the page of a watch.

    Args:
        record: ``watch.json``.
        looks: ``looks.csv``.
    """
    return page.render(
        "watch.html",
        record=record,
        columns=[str(column).replace("_", " ") for column in looks],
        rows=looks.round(3).to_numpy().tolist(),
        figures=[_curves(record, looks)],
        settings=[
            (name, str(value)) for name, value in record["settings"].items() if value is not None
        ],
    )


def _curves(record: dict[str, Any], looks: pd.DataFrame) -> page.Figure:
    figure, (copying, distance) = page.pyplot().subplots(1, 2, figsize=(10, 3))
    updates, line = looks["update"], {"marker": "o", "markersize": 4}
    copying.plot(updates, looks["copies"] / looks["generations"], label="copies, at least", **line)
    copying.plot(updates, looks["flagged_share"], label="flagged generations", **line)
    copying.plot(updates, looks["held_out_share"], ":", color="grey", label="flagged unseen images")
    copying.set_ylim(bottom=0)
    copying.set_ylabel("share")
    copying.legend(frameon=False)
    distance.plot(updates, looks["distance"].astype(float), color="C2", **line)
    distance.set_ylabel("Fréchet distance to unseen images")
    for axis in (copying, distance):
        axis.set_xlabel("updates")
        if record["onset"] is not None:
            axis.axvline(record["onset"], color="firebrick", linewidth=0.8)
    text = (
        "Left the lower bound on copies and the share of generations below the threshold that is "
        "calibrated on unseen images; right the quality, smaller is better. The red line is the "
        "first look that shows copies."
    )
    return page.finish(figure, "Copying and quality along the training", text)
