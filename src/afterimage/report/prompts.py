"""What the attack on prompts (``attacks.prompt_detection``) says, by what was planted: the areas of
its detectors, and the training images that prompts give away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd

ALL = "all"
"""The group of all captions."""
NOTE = (
    "Area under the curve of captions that were trained on before captions of held-out images, of "
    "all and by how often image and caption were planted; 0.5 is chance, and what captions of "
    "twins, which no arm was trained on, should have. `noise_difference`: Wen et al. 2024; "
    "`one_step`: Webster 2023; `anisotropy`: Asthana and Belagiannis 2026, all at the first step "
    "of the sampler; `cliques`: Carlini et al. 2023, section 4.2."
)
"""What the areas mean."""
SHARES = {
    "prompts_flagged": "flagged",
    "prompts_extracted": "extracted",
    "prompts_own": "extracted, with this caption",
    "prompts_false": "false: near a held-out image",
}
"""Share of prompts (``attacks.prompt_extraction.SHARES``) -> its heading."""
EXTRACTED = (
    "A caption is *flagged* if enough images drawn from it agree; it is *extracted* if, moreover, "
    "the image that stands for them lies within `extraction.delta` of a training image in "
    "normalised l2 (Carlini et al. 2023, section 4.2). *Extracted, with this caption*: the nearest "
    "training image has the caption. *False*: the image lies as near to a held-out image, which no "
    "arm was trained on; where as many are false as are extracted, the radius tells nothing about "
    "memory. Captions of twins and of held-out images were not trained on. Counts are of all "
    "trainings."
)
"""What the shares mean."""
NOT_EXTRACTED = (
    "Whether prompts give training images away was not measured: no images were drawn for it "
    "(`images` under `prompts` in the study), or the tables are older than this measure."
)
"""What is said where there are areas and no shares."""


def areas(metrics: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return detector -> name of a group of captions -> the metric with its area.

    Where captions and images were planted apart, groups by copies alone are left out: the same
    captions are in a group by what was planted.
    """
    found: dict[str, dict[str, str]] = {}
    for metric in metrics:
        if metric.startswith("prompt_auc["):
            inside = metric.removeprefix("prompt_auc[").removesuffix("]")
            detector, _, group = inside.partition(", ")
            found.setdefault(detector, {})[group or ALL] = metric
    return {detector: _named(groups) for detector, groups in found.items()}


class Extracted(NamedTuple):
    """What is extracted by the captions of a group.

    Attributes:
        arm: The arm.
        group: Name of the group.
        of: Captions, of all trainings together, as are the counts.
        shares: Heading (``SHARES``) -> how many captions, and the metric with their share.
    """

    arm: str
    group: str
    of: int
    shares: dict[str, tuple[int, str]]


def extracted(numbers: pd.DataFrame) -> list[Extracted]:
    """Return what is extracted from each arm by captions of the groups of ``areas``, and by held-out
    captions; nothing of arms for which it was not measured.

    Args:
        numbers: The table ``prompts.csv``.
    """
    rows = []
    for arm, some in numbers[numbers["metric"].isin(SHARES)].groupby("arm", sort=False):
        groups = {str(subset): str(subset) for subset in some["subset"]}
        for name, subset in _named(groups).items():
            of_group = some[some["subset"] == subset]
            sums = of_group.groupby("metric")[["count", "of"]].sum().astype(int)
            shares = {
                heading: (int(sums["count"][metric]), f"{metric}[{subset}]")
                for metric, heading in SHARES.items()
                if metric in sums.index
            }
            rows.append(Extracted(str(arm), name, int(sums["of"].iloc[0]), shares))
    return rows


def as_published(ranked: pd.DataFrame, asked: int, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the quantities of ``published.STABLE_DIFFUSION`` of one training, as text.

    Args:
        ranked: Its rows of ``prompts_ranked.csv``.
        asked: Its captions of training.
        settings: Of its attack.
    """
    quantities = {
        "captions asked for": f"{asked:,}",
        "images of each": f"{settings['images']:,}",
        "images that have to agree": str(settings["clique"]),
    }
    if ranked.empty:
        return quantities | {"captions flagged": "0", "training images extracted": "0"}
    last = ranked.iloc[-1]
    certain = ranked.loc[ranked["precision"] == 1, "extracted"].max()
    complete = ranked.loc[ranked["extracted"] == last["extracted"], "precision"].iloc[0]
    return quantities | {
        "captions flagged": f"{last['flagged']:,.0f}",
        "training images extracted": f"{last['images']:,.0f} within {settings['delta']:g}",
        "extracted before the first that is not": "0" if pd.isna(certain) else f"{certain:,.0f}",
        "precision when all are found": f"{100 * complete:.1f} %" if complete else "none found",
    }


def _named(groups: dict[str, str]) -> dict[str, str]:
    """Return name of a group -> its metric, without groups by copies where there are groups by what
    was planted."""
    apart = any(group.startswith("repeat=") for group in groups)
    return {
        group_name(group): metric
        for group, metric in groups.items()
        if not (apart and group.startswith("copies="))
    }


def group_name(group: str) -> str:
    """Return the name of a group of captions, ``copies=<n>`` or ``repeat=<what> times=<n>``."""
    if group == "holdout":
        return "held-out"
    what, _, times = group.removeprefix("repeat=").partition(" times=")
    if times:
        return what if what == "neither" else f"{what}, {times} times"
    if group.startswith("copies="):
        number = group.removeprefix("copies=")
        return f"{number} copy" if number == "1" else f"{number} copies"
    return group
