"""Properties of an arm derived from its settings: its method, its networks, its role, and their
colours.

``settings`` is always the block of the arm in its ``run.json``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

Settings = Mapping[str, Any]

METHOD_COLOURS = {
    "baseline": "0.35",
    "rau_net": "C2",
    "loyal": "C9",
    "iet_agc": "C0",
    "ambient": "C8",
    "dp_sgd": "C5",
    "erasediff": "C3",
    "salun": "C1",
    "selective_amnesia": "C4",
    "gradient_ascent": "C6",
    "siss": "navy",
    "esd": "goldenrod",
    "uce": "black",
    "dcr": "olive",
    "wen": "teal",
    "amg": "crimson",
}
OTHER_METHOD = "C7"
NETWORK_COLOURS = {
    "plain": "0.35",
    "blocks": "C2",
    "split": "C7",
    "tail": "C0",
    "front": "C1",
    "both": "C4",
}
"""Colours of ``networks_of``."""
NETWORKS = {
    "plain": "one, no blocks",
    "blocks": "one with blocks, all timesteps",
    "split": "two, no blocks",
    "tail": "two, blocks in the tail (as published)",
    "front": "two, blocks in the front (mirrored)",
    "both": "two, blocks in both",
}
"""Descriptions of ``networks_of``."""
RETRAINED = "retrained"
_SHARED = ("data", "without", "fraction", "condition", "base", "rau_net", "train")


def method_of(settings: Settings) -> str:
    """Return an arm's method; ``rau_net`` for plain training of a network with blocks."""
    blocks = settings["method"] == "baseline" and settings["rau_net"]
    return "rau_net" if blocks else settings["method"]


def method_colour(method: str) -> str:
    """Return the colour of a method, shared by all its arms."""
    return METHOD_COLOURS.get(method, OTHER_METHOD)


def networks_of(settings: Settings) -> str | None:
    """Return the kind of an arm's networks, a key of ``NETWORKS``; None for methods without."""
    rau_net = settings["rau_net"]
    blocks = rau_net is not None and rau_net["variant"] != "none" and bool(rau_net["groups"])
    if settings["method"] == "loyal":
        return settings["blocks_in"] if blocks else "split"
    return ("blocks" if blocks else "plain") if settings["method"] == "baseline" else None


def role_of(settings: Settings) -> str:
    """Return the role of an arm in tables of unlearning, the published ones' where they have it."""
    if settings["method"] == "baseline":
        if settings["base"]:
            return "fine-tune"
        return RETRAINED if settings["without"] else "unscrubbed"
    if settings["method"] == "erasediff":
        return "EraseDiff noise" if "uniform" in settings["target"] else "EraseDiff rl"
    names = {
        "gradient_ascent": "NegGrad",
        "selective_amnesia": "SA",
        "salun": "SalUn",
        "siss": "SISS",
        "esd": "ESD",
        "uce": "UCE",
        "dcr": "DCR",
        "wen": "Wen",
        "amg": "AMG",
    }
    return names.get(settings["method"]) or settings["method"]


def alike(settings: Settings, other: Settings, but: Collection[str] = ()) -> bool:
    """Return whether two arms differ only in methods, budgets and random numbers.

    Args:
        but: Keys in which they may differ, too, e.g. ``train``.
    """
    own = all(settings.get(key) == other.get(key) for key in ("captions", "dedup"))
    return own and all(settings[key] == other[key] for key in _SHARED if key not in but)
