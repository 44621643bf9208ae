"""Read the stores of several jobs of one step, after checking that they are consistent."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from afterimage import artifacts, scratch
from afterimage.artifacts import ArtifactError
from afterimage.attribution.queries import SETS


def check_consistent(
    stores: list[Path], inputs: Collection[str], ignored: Collection[str] = ()
) -> None:
    """Check that stores were made with the same settings, seed and code, from the same inputs.

    Args:
        stores: Results of one step.
        inputs: Names of the inputs that must agree.
        ignored: Keys of the settings that may differ.

    Raises:
        ArtifactError: naming the first store that differs from the first of all, and the
            difference.
    """
    expected: dict[str, Any] = {}
    for store in stores:
        run = artifacts.read_run(store)
        settings = {
            key: value for key, value in run["config"]["settings"].items() if key not in ignored
        }
        origin = settings | {name: run["inputs"][name]["sha256"] for name in inputs}
        origin |= {"code": run["code_sha256"], "seed": run["config"]["seed"]}
        expected = expected or origin
        if origin != expected:
            raise ArtifactError(
                f"{store} does not match {stores[0]}: {artifacts.difference(expected, origin)}"
            )


def read_features(stores: list[Path]) -> dict[str, np.ndarray]:
    """Return the features of one variant and network, with the training blocks concatenated.

    Args:
        stores: Results of ``attribution/features``, the training blocks in order.

    Returns:
        ``<set>/<feature>`` -> array, as stored; memory-mapped where it is large.

    Raises:
        ArtifactError: if a file was changed, the stores differ in settings, network or code, or a
            block is missing or out of order.
    """
    check_consistent(stores, ["model", "train", "members"], ignored=("block", "journey"))
    blocks = [artifacts.read_run(store)["config"]["settings"]["block"] for store in stores]
    if blocks != list(range(len(blocks))):
        raise ArtifactError(
            f"{stores[0].parent}: blocks must come in order from 0, each once, "
            f"not {', '.join(map(str, blocks))}"
        )
    # Which stores have an array, and how large it is in all of them together.
    with ExitStack() as stack:
        found: dict[str, list[Any]] = {}
        for store in stores:
            path = store / "features.safetensors"
            artifacts.check_file(path)
            file = stack.enter_context(safe_open(path, framework="numpy"))
            for name in file.keys():  # noqa: SIM118 (the file cannot be iterated over)
                found.setdefault(name, []).append(file)
        return {name: _concatenated(files, name) for name, files in found.items()}


def _concatenated(files: list[Any], name: str) -> np.ndarray:
    """Return the arrays of one name in open safetensors files, one after the other, float32."""
    shapes = [file.get_slice(name).get_shape() for file in files]
    combined = scratch.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]), np.float32)
    ends = np.cumsum([shape[0] for shape in shapes])
    for file, shape, end in zip(files, shapes, ends, strict=True):
        rows = file.get_slice(name)
        for some in scratch.blocks(shape[0], math.prod(shape[1:])):
            start = end - shape[0] + some.start
            combined[start : start + some.stop - some.start] = rows[some]
    return combined


def read_retraining_effects(
    stores: list[Path], subsets: int, repeats: int
) -> dict[str, np.ndarray]:
    """Return the measurements of all retrained networks, ordered by seed and subset.

    Args:
        stores: Results of all jobs of ``attribution/retrain``, in any order.
        subsets: M, subsets.
        repeats: S, trainings of each subset.

    Returns:
        ``<set>/<target>`` -> float64 (S, M, Q), for each set of queries and target of retraining.

    Raises:
        ArtifactError: if a network is missing or appears twice, was trained with other settings or
            measured on other queries, or a file was changed.
    """
    check_consistent(stores, ["model", "train", "members", *SETS])
    tables = []
    for store in stores:
        path = store / "losses.npz"
        artifacts.check_file(path)
        with np.load(path, allow_pickle=False) as arrays:
            tables.append(dict(arrays))
    combined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    seed, subset = combined.pop("seed"), combined.pop("subset")
    order = np.lexsort((subset, seed))
    networks = list(zip(seed[order].tolist(), subset[order].tolist(), strict=True))
    if networks != [(s, m) for s in range(repeats) for m in range(subsets)]:
        raise ArtifactError(
            f"the retrained networks in {stores[0].parent} are not {subsets} subsets x "
            f"{repeats} seeds, each once"
        )
    return {name: values[order].reshape(repeats, subsets, -1) for name, values in combined.items()}
