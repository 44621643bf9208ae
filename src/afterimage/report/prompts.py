"""The areas of detectors of memorised prompts (``attacks.prompt_detection``), by what was planted."""

from __future__ import annotations

from collections.abc import Iterable

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
    apart = any(group.startswith("repeat=") for groups in found.values() for group in groups)
    return {
        detector: {
            group_name(group): metric
            for group, metric in groups.items()
            if not (apart and group.startswith("copies="))
        }
        for detector, groups in found.items()
    }


def group_name(group: str) -> str:
    """Return the name of a group of captions, ``copies=<n>`` or ``repeat=<what> times=<n>``."""
    what, _, times = group.removeprefix("repeat=").partition(" times=")
    if times:
        return what if what == "neither" else f"{what}, {times} times"
    if group.startswith("copies="):
        number = group.removeprefix("copies=")
        return f"{number} copy" if number == "1" else f"{number} copies"
    return group
