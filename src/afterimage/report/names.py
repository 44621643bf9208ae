"""Names of metrics on pages, and their units."""

from __future__ import annotations

from collections.abc import Iterable

from afterimage.report.format import Unit

NAMES = {
    "flagged_generations_calibrated": "generations flagged",
    "flagged_holdout_calibrated": "held-out images flagged",
    "planted_extracted_calibrated": "planted images extracted",
    "twins_flagged_calibrated": "never-trained twins “extracted”",
    "unique_images_calibrated": "different images extracted",
    "flagged_generations": "generations flagged, published threshold",
    "flagged_holdout": "held-out images flagged, published threshold",
    "membership_auc": "membership AUC",
    "prompt_auc": "AUC of prompts",
    "forgotten_probability": "probability of forgotten class",
    "forgotten_extracted_calibrated": "forgotten images extracted",
    "forgotten_brought_back_calibrated": "forgotten images that an embedding brings back",
    "holdout_brought_back_calibrated": "never-trained images that an embedding draws",
    "updates": "updates",
    "updates_per_model": "updates per network",
    "network_updates": "updates per network since its first weights",
    "images_seen": "images seen",
    "kept_samples": "samples with gradient",
    "backward_passes": "backward passes of a batch",
    "training_images": "training images",
    "passes": "passes over the training images",
    "parameters": "weights",
    "setup_seconds": "seconds of setup",
    "training_seconds": "seconds",
    "epsilon": "epsilon of DP",
}
"""Metric of the tables -> its name; forget sets and feature spaces follow it in brackets."""
_SHARES = (
    "flagged_",
    "planted_",
    "twins_",
    "forgotten_extracted",
    "forgotten_copied",
    "mq@",
    "prompts_",
    "forgotten_brought_back",
    "holdout_brought_back",
)
_FRECHET = ("FD_balanced[", "FD[", "FID[")
"""The Fréchet distances, the one to be shown first."""


def name_of(metric: str) -> str:
    """Return the name of a metric on pages; by default the metric itself."""
    stem, _, rest = metric.partition("[")
    if metric in NAMES:
        return NAMES[metric]
    return f"{NAMES[stem]} ({rest.removesuffix(']')})" if stem in NAMES else metric


def is_share(metric: str) -> bool:
    """Return whether a metric is a share, shown in percent."""
    return metric.startswith(_SHARES)


def unit_of(metric: str, difference: bool = False) -> Unit:
    """Return the unit in which a metric is shown, or the difference of two values of it."""
    if not is_share(metric):
        return ""
    return "points" if difference else "%"


def frechet_of(metrics: Iterable[str]) -> str:
    """Return the Fréchet distance among the metrics of generations: the class-balanced one where
    there is one, else that of all images (FID in Inception's space).

    Raises:
        StopIteration: if there is none.
    """
    of_generations = [metric for metric in metrics if metric.endswith("]")]
    return next(metric for name in _FRECHET for metric in of_generations if metric.startswith(name))


def alignment_of(metrics: Iterable[str]) -> str | None:
    """Return the text alignment among the metrics of generations, e.g.
    ``text_alignment[classifier]``; None where nothing was drawn from captions."""
    of_generations = (metric for metric in metrics if metric.endswith("]"))
    return next((name for name in of_generations if name.startswith("text_alignment[")), None)


def in_space(measure: str, space: str) -> str:
    """Return the metric of a measure in a feature space, e.g. ``R[pixels]``.

    The Fréchet distance (``FD``) is called FID in Inception's space.
    """
    return f"{'FID' if (measure, space) == ('FD', 'inception') else measure}[{space}]"


def space_of(measure: str, metrics: Iterable[str]) -> str:
    """Return the feature space of a measure's metric, e.g. ``pixels`` of ``R[pixels]``.

    Raises:
        StopIteration: if there is no such metric.
    """
    start = f"{measure}["
    return next(metric for metric in metrics if metric.startswith(start))[len(start) : -1]
