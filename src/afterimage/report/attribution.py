"""The tables of attribution: what was found for each explained network, and for all together.

Each has a column ``replicate``: the number of the replicate whose network is explained; and, where
there are several, ``mean``, the mean over these networks with its interval (``networks``), with the
number of those that have the numbers in question in ``networks``: the attack may have extracted
nothing from one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from afterimage import artifacts
from afterimage.metrics.replicates import holm
from afterimage.report import networks

MEAN = "mean"
"""Replicate that stands for the mean over all."""
BASELINE = "pixel_l2"
"""The choice that others are compared with: the images with the nearest pixels."""
AGAIN, RANDOM = "again", "random"
"""The choice that takes nothing out, and the one by chance."""
COMBINATIONS = ("trained", "related", "held out")
"""Kinds of a query's combination of concepts (``judges.concepts``), in the order shown."""
CHANGES = ("l2", "distance", "rise")
"""Measures of a counterfactual picture: distance of the pixels, of a classifier's features (1 -
cosine), and the loss of the query less that of ``again``."""
SCORES = (
    *("replicate", "networks", "attributor", "queries", "target", "lds", "low", "high"),
    *("ceiling", "ceiling_low", "ceiling_high"),
    *("of_ceiling", "of_ceiling_low", "of_ceiling_high", "repeatability"),
)
"""Columns of ``scores``; a ceiling needs several seeds."""
DIFFERENCES = (
    *("replicate", "networks", "attributor", "other", "queries", "target"),
    *("difference", "low", "high", "p", "p_adjusted"),
)
"""Columns of ``differences``."""
COUNTERFACTUAL = (
    *("replicate", "networks", "choice", "measure", "generations", "value", "low", "high"),
    *("difference", "difference_low", "difference_high", "p", "p_adjusted"),
    *("ratio", "ratio_low", "ratio_high"),
)
"""Columns of ``counterfactual``."""
CONCEPTS = (
    *("replicate", "networks", "attributor", "queries", "concept", "combination"),
    *("images", "area", "low", "high"),
)
"""Columns of ``concepts``."""
COST = (
    *("replicate", "networks", "variant", "attributor", "queries", "seconds"),
    *("lds", "low", "high", "agreement", "first"),
)
"""Columns of ``cost``."""


class Stores:
    """The stores that the tables are made of.

    Args:
        results: Folder of the study's results.
        settings: ``attribution`` of the settings of step report/tables; None without attribution.

    Attributes:
        phases: The results of attribution of each explained replicate.
        scores: Of each explained replicate, the main scores.
        acceleration: Of each, the comparison of variants; none without variants.
        counterfactual: Of each, the networks that were trained without some images.
    """

    def __init__(self, results: Path, settings: dict[str, Any] | None) -> None:
        self._results, count = results, settings["replicates"] if settings else 0
        self.phases = [results / "attribution" / f"rep{k}" for k in range(count)]
        jobs = settings["counterfactual"] if settings else []
        self.scores = [folder / "scores" / "main" for folder in self.phases]
        compared = settings is not None and settings["variants"]
        self.acceleration = [folder / "acceleration" for folder in self.phases if compared]
        self.counterfactual = [
            [folder / "counterfactual" / job for job in jobs] for folder in self.phases if jobs
        ]

    def inputs(self) -> dict[str, Path]:
        """Return name -> record of every store."""
        stores = [*self.scores, *self.acceleration, *chain(*self.counterfactual)]
        return {
            store.relative_to(self._results).as_posix(): store / artifacts.RUN for store in stores
        }


def tables(stores: Stores, confidence: float) -> dict[str, pd.DataFrame]:
    """Return the tables of the report, all without rows in a study without attribution.

    Args:
        stores: What they are made of.
        confidence: Coverage of the intervals.
    """
    return {
        "attribution": scores(stores.scores, confidence),
        "attribution_differences": differences(stores.scores, confidence),
        "attribution_counterfactual": counterfactual(stores.counterfactual, confidence),
        "attribution_concepts": concepts(stores.scores, confidence),
        "attribution_cost": cost(stores.acceleration, confidence),
    }


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table for all networks together: of their mean, or of the only one."""
    names = table["replicate"].astype(str)
    return table[names == (MEAN if (names == MEAN).any() else "0")].reset_index(drop=True)


def scores(stores: Sequence[Path], confidence: float) -> pd.DataFrame:
    """Return ``attribution.csv``, columns ``SCORES``: the main scores of every attributor.

    ``of_ceiling`` is the score as a share of the ceiling, with Fieller's interval. Intervals are
    without the bias of few subsets, values are not, as in ``lds.csv``.

    Args:
        stores: Of each replicate, the main scores.
        confidence: Coverage of the intervals.
    """
    keys, means = ["attributor", "queries", "target"], ["lds", "ceiling", "repeatability"]
    own = _concatenated(stores, "lds.csv", SCORES)
    units = _by_keys(_concatenated(stores, "units.parquet", keys), ["replicate", *keys])
    rows: list[dict[Any, Any]] = []
    for single in own.to_dict("records"):
        part = units[single["replicate"], *(single[key] for key in keys)]
        rows.append(single | _of_ceiling([part], single, confidence))
    for key, some in _groups(own, keys, len(stores)):
        parts = [units[k, *key] for k in some["replicate"]]
        row: dict[Any, Any] = dict(zip(keys, key, strict=True))
        row |= some[means].mean(skipna=False).to_dict()
        row |= {"replicate": MEAN, "networks": len(parts)}
        row |= _ends(parts, "lds", -1, confidence)
        row |= {
            f"ceiling_{name}": end for name, end in _ends(parts, "ceiling", 0, confidence).items()
        }
        rows.append(row | _of_ceiling(parts, row, confidence))
    return pd.DataFrame(rows, columns=list(SCORES))


def _ends(
    parts: Sequence[pd.DataFrame], column: str, lowest: float, confidence: float
) -> dict[str, float]:
    """Return the ends of the interval of a mean that lies between ``lowest`` and 1."""
    _, low, high, _ = networks.mean([part[column].to_numpy() for part in parts], confidence)
    return {"low": float(np.clip(low, lowest, 1)), "high": float(np.clip(high, lowest, 1))}


def _of_ceiling(
    parts: Sequence[pd.DataFrame], row: dict[Any, Any], confidence: float
) -> dict[str, float]:
    """Return the score of a row as a share of its ceiling, with the interval that units give."""
    lds, ceilings = ([part[name].to_numpy() for part in parts] for name in ("lds", "ceiling"))
    _, low, high, _ = networks.ratio(lds, ceilings, confidence)
    value = row["lds"] / row["ceiling"] if row["ceiling"] > 0 else np.nan
    return {"of_ceiling": value, "of_ceiling_low": low, "of_ceiling_high": high}


def differences(stores: Sequence[Path], confidence: float) -> pd.DataFrame:
    """Return ``attribution_differences.csv``, columns ``DIFFERENCES``: every pair of attributors.

    ``p_adjusted`` is adjusted for the number of pairs of a set of queries and a target.

    Args:
        stores: Of each replicate, the main scores.
        confidence: Coverage of the intervals.
    """
    keys = ["attributor", "other", "queries", "target"]
    own = _concatenated(stores, "differences.csv", DIFFERENCES)
    units = _by_keys(_concatenated(stores, "paired.parquet", keys), ["replicate", *keys])
    rows = []
    for key, some in _groups(own, keys, len(stores)):
        values = [units[k, *key]["difference"].to_numpy() for k in some["replicate"]]
        row = dict(zip(keys, key, strict=True)) | networks.mean(values, confidence)._asdict()
        row |= {"replicate": MEAN, "networks": len(values)}
        rows.append(row | {"difference": some["difference"].mean(skipna=False)})
    together = pd.DataFrame(rows, columns=list(DIFFERENCES))
    return _stacked(own, _adjusted(together, ["queries", "target"]))


def counterfactual(stores: Sequence[Sequence[Path]], confidence: float) -> pd.DataFrame:
    """Return ``attribution_counterfactual.csv``, columns ``COUNTERFACTUAL``.

    How far generations change (``CHANGES``) without the images that a choice took out: the mean
    over generations; ``difference`` to ``BASELINE``, paired by generation, with ``p_adjusted`` for
    the number of choices of a measure; and for ``rise`` the ``ratio`` to that of ``BASELINE``, with
    Fieller's interval. The network of ``AGAIN`` is one for all generations of a replicate: rises
    and their ratios share its error, which no interval has.

    Args:
        stores: Of each replicate, all networks that were trained without some images.
        confidence: Coverage of the intervals.
    """
    changes = [changes_of(some) for some in stores]
    groups = [(k, [table]) for k, table in enumerate(changes)]
    together = [(MEAN, changes)] if len(changes) > 1 else []
    rows = []
    for replicate, tables in [*groups, *together]:
        for measure in CHANGES:
            cells = [
                table.pivot(index="query", columns="choice", values=measure) for table in tables
            ]
            for choice in dict.fromkeys(tables[0]["choice"]):
                row = {"replicate": replicate, "networks": len(cells)}
                row |= {"choice": choice, "measure": measure}
                rows.append(row | _change(cells, choice, measure, confidence))
    table = pd.DataFrame(rows, columns=list(COUNTERFACTUAL))
    tested = ~table["choice"].isin([AGAIN, BASELINE])
    adjusted = _adjusted(table[tested], ["replicate", "measure"])["p_adjusted"]
    return table.assign(p_adjusted=adjusted.reindex(table.index))


def concepts(stores: Sequence[Path], confidence: float) -> pd.DataFrame:
    """Return ``attribution_concepts.csv``, columns ``CONCEPTS``: how well scores tell the images
    that share a concept with a query from others.

    The mean over queries, with an interval for other queries and other training images, given the
    network: Student's, with the errors over both.

    Args:
        stores: Of each replicate, the main scores.
        confidence: Coverage of the intervals.
    """
    keys = ["attributor", "queries", "concept", "combination"]
    parts = [_read(store / "concepts.csv").assign(replicate=k) for k, store in enumerate(stores)]
    groups = [(k, [part]) for k, part in enumerate(parts)]
    rows = []
    for replicate, some in [*groups, *([(MEAN, parts)] if len(parts) > 1 else [])]:
        by_key = [_by_keys(part.dropna(subset=["combination", "area"]), keys) for part in some]
        for key in dict.fromkeys(chain(*by_key)):
            cells = [each[key] for each in by_key if key in each]
            areas = [cell["area"].to_numpy() for cell in cells]
            shared = [float(cell["images_error"].iloc[0]) for cell in cells]
            value, low, high, _ = networks.mean(areas, confidence, shared)
            row = {"replicate": replicate, "networks": len(areas)} | dict(
                zip(keys, key, strict=True)
            )
            row |= {"images": sum(map(len, areas)), "area": value}
            low, high = np.clip([low, high], 0, 1)
            rows.append(row | {"low": low, "high": high})
    return pd.DataFrame(rows, columns=list(CONCEPTS))


def changes_of(stores: Sequence[Path]) -> pd.DataFrame:
    """Return the changes of one replicate's generations: choice, query, removed and ``CHANGES``.

    Args:
        stores: Networks that were trained without some images, ``AGAIN`` among them.
    """
    changes = pd.concat([_read(store / "changes.csv") for store in stores], ignore_index=True)
    again = changes[changes["choice"] == AGAIN].set_index("query")["loss"]
    changes["rise"] = changes["loss"] - changes["query"].map(again)
    return changes.assign(distance=1 - changes["cosine"])


def _change(
    cells: Sequence[pd.DataFrame], choice: str, measure: str, confidence: float
) -> dict[str, float]:
    """Return the numbers of one choice and measure.

    Args:
        cells: Of each replicate, the measure by query and choice.
        choice: The choice.
        measure: The measure.
        confidence: Coverage of the intervals.
    """
    own = [cell[choice].dropna().to_numpy() for cell in cells]
    value, low, high, _ = networks.mean(own, confidence)
    row = {"generations": sum(map(len, own)), "value": value, "low": low, "high": high}
    if choice == BASELINE:
        return row
    both = [cell[[choice, BASELINE]].dropna().to_numpy().T for cell in cells]
    value, low, high, p = networks.mean([a - b for a, b in both], confidence)
    row |= {"difference": value, "difference_low": low, "difference_high": high}
    if choice == AGAIN:
        return row
    row["p"] = p
    if measure == "rise":
        value, low, high, _ = networks.ratio([a for a, _ in both], [b for _, b in both], confidence)
        row |= {"ratio": value, "ratio_low": low, "ratio_high": high}
    return row


def cost(stores: Sequence[Path], confidence: float) -> pd.DataFrame:
    """Return ``attribution_cost.csv``, columns ``COST``: variants of the features.

    Args:
        stores: Of each replicate, the comparison of variants.
        confidence: Coverage of the intervals.
    """
    keys, means = ["variant", "attributor", "queries"], ["seconds", "lds", "agreement", "first"]
    own = _concatenated(stores, "acceleration.csv", COST)
    units = _by_keys(_concatenated(stores, "units.parquet", keys), ["replicate", *keys])
    rows = []
    for key, some in _groups(own, keys, len(stores)):
        parts = [units[k, *key] for k in some["replicate"]]
        row = dict(zip(keys, key, strict=True)) | some[means].mean(skipna=False).to_dict()
        row |= {"replicate": MEAN, "networks": len(parts)}
        rows.append(row | _ends(parts, "lds", -1, confidence))
    return _stacked(own, pd.DataFrame(rows, columns=list(COST)))


def _read(path: Path) -> pd.DataFrame:
    artifacts.check_file(path)
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


def _concatenated(stores: Sequence[Path], name: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return one file of all replicates below each other, with ``replicate`` and ``networks``.

    Args:
        stores: Of each replicate.
        name: The file.
        columns: Columns that there have to be; all others are kept only if the file is .parquet.
    """
    parts = [_read(store / name).assign(replicate=k, networks=1) for k, store in enumerate(stores)]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(columns))
    return table.reindex(columns=list(columns)) if name.endswith(".csv") else table


def _by_keys(table: pd.DataFrame, keys: list[str]) -> dict[tuple[Any, ...], pd.DataFrame]:
    if table.empty:
        return {}
    return dict(list(table.groupby(keys, sort=False)))


def _groups(
    table: pd.DataFrame, keys: list[str], count: int
) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Return the rows of several networks for the same thing; nothing with one network."""
    return list(table.groupby(keys, sort=False)) if count > 1 else []


def _stacked(own: pd.DataFrame, together: pd.DataFrame) -> pd.DataFrame:
    """Return two tables of the same columns below each other."""
    return pd.DataFrame(
        [*own.to_dict("records"), *together.to_dict("records")], columns=own.columns
    )


def _adjusted(table: pd.DataFrame, family: list[str]) -> pd.DataFrame:
    """Add ``p_adjusted``, for the number of rows of each family."""
    if table.empty:
        return table
    adjusted = table.groupby(family)["p"].transform(lambda p: holm(p.to_numpy(np.float64)))
    return table.assign(p_adjusted=adjusted)
