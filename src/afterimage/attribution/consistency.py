"""Stores of several jobs of one step, which are put together again only if they belong together."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from afterimage import artifacts
from afterimage.artifacts import ArtifactError


def check_alike(stores: list[Path], inputs: Collection[str], free: Collection[str] = ()) -> None:
    """Check that stores were made with the same settings, seed and code, of the same inputs.

    Args:
        stores: Results of one step.
        inputs: Names of the inputs that must agree.
        free: Keys of the settings that may differ.

    Raises:
        ArtifactError: naming the first store that differs from the first of all, and in what.
    """
    first: dict[str, Any] = {}
    for store in stores:
        run = artifacts.read_run(store)
        settings = {
            key: value for key, value in run["config"]["settings"].items() if key not in free
        }
        same = settings | {name: run["inputs"][name]["sha256"] for name in inputs}
        same |= {"code": run["code_sha256"], "seed": run["config"]["seed"]}
        first = first or same
        if same != first:
            raise ArtifactError(
                f"{store} does not go with {stores[0]}: {artifacts.difference(first, same)}"
            )
