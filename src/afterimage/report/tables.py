"""Collect the results of all arms and replicates in the tidy tables that pages, DVC and MLflow
show.

- ``arms.csv``: the headline numbers, one row per arm and metric, with intervals; ``metrics.json``:
  the same as arm -> metric -> value;
- ``comparison.csv``: every arm against its own control, one row per arm and metric;
  ``comparison_wide.csv``: one row per arm, with the verdict (see ``comparison``);
- ``frontier.csv``: every arm against plain training at equal quality, ``paths.csv``: the states
  that are compared, with their arm's method, the generations that each drew, and what they cost
  (see ``frontier``), ``path.csv``: every number of every state; without rows in a study without
  paths;
- ``points.csv``: memorization and quality of every replicate;
- ``extraction.csv``, ``quality.csv``, ``membership.csv``, ``prompts.csv``, ``forgetting.csv``:
  every number of every replicate (of the last two, of the arms that are judged by them);
- ``copies.csv``: extraction against multiplicity, over all replicates; ``multiplicity.csv``: its
  shares at the calibrated alpha;
- ``prompts_ranked.csv``: what is extracted from the prompts of every replicate whose images agree
  best (``attacks.prompt_extraction.ranked``); without rows where no images are drawn for it;
- ``repeats.csv``: extraction by what was planted, image, caption, both or neither (or carrier, an
  image that carries a planted caption), and how often (Somepalli et al. 2023); without rows where
  images are planted with their captions only;
- ``union.csv``: images extracted from at least one replicate of an arm (the count that Carlini et
  al. 2023 report for their 16 models);
- ``loss.csv``: training loss by update, averaged over replicates; ``dedup.csv``: deduplication
  of every planting against the planted truth, by every detector and by what decides;
- ``attribution.csv``: the linear data-modelling score of every attributor, with its ceiling and
  repeatability; ``attribution_differences.csv``: every pair of attributors;
  ``attribution_counterfactual.csv``: generations without the images that made them;
  ``attribution_concepts.csv``: images with a query's words, where captions are composed of
  concepts; ``attribution_cost.csv``: cheaper features; of each explained network and of all together (see
  ``attribution``), without rows in a study without attribution.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from afterimage import artifacts
from afterimage.attacks import twins
from afterimage.attacks.table import COLUMNS
from afterimage.config import Margin
from afterimage.metrics.intervals import clustered_share, exact_limits
from afterimage.report import attribution, comparison, frontier
from afterimage.report.arms import method_of
from afterimage.report.verdicts import PRIMARY

STEP = "report/tables"

ORDER = (
    "unique_images",
    "flagged_generations",
    "flagged_holdout",
    "planted_extracted",
    "twins_flagged",
    "unique_images_calibrated",
    "flagged_generations_calibrated",
    "flagged_holdout_calibrated",
    "planted_extracted_calibrated",
    "twins_flagged_calibrated",
    "alpha_calibrated",
    "average_precision",
    "mq@0.5 (share)",
    "mq@0.5 (share) of holdout",
    "membership_auc",
)
"""Headline numbers of the attacks, in the order in which they are read; quality and budget
follow."""

FACTS = (
    "updates",
    "updates_per_model",
    "network_updates",
    "images_seen",
    "kept_samples",
    "backward_passes",
    "training_images",
    "parameters",
    "setup_seconds",
    "training_seconds",
    "epsilon",
)
"""Facts about the budget in ``run.json`` of a training, and ``network_updates``: the updates of one
of its networks including those of the arm that it started from. Setup (before the first update)
and epsilon only for methods that have them."""

FORGOTTEN = {
    ("probability", "none", "forget"): "forgotten_probability",
    ("probability", "none", "all"): "forgotten_probability",
    ("extracted_images", "calibrated", "forget"): "forgotten_extracted_calibrated",
    ("copied", "calibrated", "forget"): "forgotten_copied_calibrated",
    ("brought_back", "calibrated", "forget"): "forgotten_brought_back_calibrated",
    ("brought_back_holdout", "calibrated", "forget"): "holdout_brought_back_calibrated",
    ("roc_auc", "none", "forget"): "forgotten_auc",
}
"""Metric, alpha and subset of the attack ``forgetting`` -> headline number, to which the name of
the set is added in brackets."""

REMAINING = ("FD_balanced", "FD", "FID", "coverage")
"""Measures of the same attack of the generations that are not of the forgotten class:
``remaining_FD[classifier, <set>]``."""

Folders = dict[tuple[str, int], Path]
"""(arm, replicate) -> store."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, required=True, help="folder of the study's results")
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved config of step report/tables"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")


def run(args: argparse.Namespace) -> None:
    config = artifacts.read_config(args.config, STEP)
    settings = config["settings"]
    controls: dict[str, str | None] = {arm: settings["controls"][arm] for arm in settings["arms"]}
    confidence: float = settings["confidence"]

    def folders(phase: str, arms: Iterable[str], attack: str = "") -> Folders:
        cells = [(arm, k) for arm in arms for k in range(settings["replicates"])]
        return {(arm, k): args.results / phase / arm / f"rep{k}" / attack for arm, k in cells}

    training = folders("train", controls)
    attacks = {name: folders("attack", arms, name) for name, arms in settings["attacks"].items()}
    inputs = {
        f"{name}/{arm}/rep{k}": folder / artifacts.RUN
        for name, by_cell in {**attacks, "train": training}.items()
        for (arm, k), folder in by_cell.items()
    }
    stores = args.results / "data" / "dedup"
    dedup = {
        name: [stores / name / str(number) for number in range(settings["plantings"])]
        for name in ("", *settings["deduplications"])
    }
    inputs |= {
        f"dedup/{folder.relative_to(stores)}": folder / artifacts.RUN
        for folders in dedup.values()
        for folder in folders
    }
    explained = attribution.Stores(args.results, settings["attribution"])
    inputs |= explained.inputs()
    with artifacts.step(config, args.out, inputs, (__name__,)) as step:
        nothing = pd.DataFrame(columns=["arm", "replicate", "set", "state", "share", *COLUMNS])
        results = {
            name: _concatenate(by_cell, "results.csv") if by_cell else nothing
            for name, by_cell in attacks.items()
        }
        path = results["path"]
        first = next(iter(attacks["extraction"].values()))
        anchor = artifacts.read_run(first)["config"]["settings"]["anchor"]
        runs = {cell: artifacts.read_run(folder) for cell, folder in training.items()}
        facts = {
            cell: own["facts"] | {"network_updates": network_updates(runs, *cell)}
            for cell, own in runs.items()
        }
        numbers = points(results, facts, anchor, confidence)
        arms = headline(numbers, confidence)
        compared = comparison.compare(
            numbers,
            controls,
            settings["paired"],
            confidence,
            Margin.model_validate(settings["margin"]),
        )
        extracted = extracted_images(attacks["extraction"], anchor)
        copies = against_copies(extracted, results["extraction"], anchor, confidence)
        repeats = by_repeat(extracted, results["extraction"], anchor, confidence)
        methods = {
            arm: method_of(training["config"]["settings"]["arm"])
            for (arm, _), training in runs.items()
        }
        states = frontier.paths(path, prices(runs))
        drawn = path[path["metric"] == PRIMARY].groupby("arm")["of"].max()
        states.insert(1, "method", states["arm"].map(methods))
        states.insert(2, "generations", states["arm"].map(drawn))
        tables = {
            "arms": arms,
            "paths": states,
            "frontier": frontier.compare(path, settings["frontiers"], confidence),
            "comparison": compared,
            "comparison_wide": comparison.wide(compared),
            "points": comparison.replicate_points(numbers),
            **results,
            "prompts_ranked": (
                _concatenate(attacks["prompts"], "ranked.csv")
                if attacks["prompts"]
                else nothing[["arm", "replicate"]]
            ),
            "copies": copies,
            "repeats": repeats,
            "multiplicity": copies[copies["alpha"] == "calibrated"][["arm", "copies", "share"]],
            "union": union_over_replicates(extracted),
            "loss": loss_curves(training),
            "dedup": deduplication(dedup),
            **attribution.tables(explained, confidence),
        }
        for name, table in tables.items():
            table.to_csv(step.folder / f"{name}.csv", index=False)
        artifacts.write_json(step.folder / "metrics.json", as_metrics(arms))


def _read(path: Path) -> pd.DataFrame:
    artifacts.check_file(path)
    return pd.read_csv(path)


def deduplication(folders: Mapping[str, Iterable[Path]]) -> pd.DataFrame:
    """Return the scores of deduplication, one row per planting and method, with column
    ``planting`` in front.

    Args:
        folders: Stores of the study's own deduplication, by planting, under the empty name: the
            methods are all its detectors, and ``combined``, which decides. Those of arms with their
            own under their names: what decides there is ``combined, <arm>``.
    """
    tables = []
    for name, stores in folders.items():
        for number, store in enumerate(stores):
            table = _read(store / "table.csv")
            if name:
                table = table[table["method"] == "combined"].assign(method=f"combined, {name}")
            table.insert(0, "planting", number)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _concatenate(folders: Folders, name: str) -> pd.DataFrame:
    """Return one file of every cell below each other, with columns ``arm`` and ``replicate`` in
    front."""
    tables = [
        _read(folder / name).assign(arm=arm, replicate=k) for (arm, k), folder in folders.items()
    ]
    joined = pd.concat(tables, ignore_index=True)
    return joined[
        ["arm", "replicate", *[column for column in joined if column not in ("arm", "replicate")]]
    ]


def network_updates(runs: dict[tuple[str, int], dict[str, Any]], arm: str, replicate: int) -> int:
    """Return the number of updates of a network of an arm, including those of the arm that it
    started from.

    Args:
        runs: (arm, replicate) -> ``run.json`` of its training.
    """
    own = runs[arm, replicate]
    base = own["config"]["settings"]["arm"]["base"]
    return own["facts"]["updates_per_model"] + (
        network_updates(runs, base, replicate) if base else 0
    )


def prices(runs: dict[tuple[str, int], dict[str, Any]]) -> frontier.Prices:
    """Return what the arms that every training started from cost, and what it cost itself.

    Args:
        runs: (arm, replicate) -> ``run.json`` of its training.
    """

    def own(arm: str, replicate: int) -> dict[str, float]:
        facts = runs[arm, replicate]["facts"]
        named = facts | {"network_updates": facts["updates_per_model"]}
        return {name: float(named[name]) for name in frontier.PRICES}

    def spent_before(arm: str, replicate: int) -> dict[str, float]:
        base = runs[arm, replicate]["config"]["settings"]["arm"]["base"]
        if base is None:
            return dict.fromkeys(frontier.PRICES, 0.0)
        earlier, last = spent_before(base, replicate), own(base, replicate)
        return {name: earlier[name] + last[name] for name in frontier.PRICES}

    return {
        cell: {name: (spent_before(*cell)[name], cost) for name, cost in own(*cell).items()}
        for cell in runs
    }


def points(
    results: dict[str, pd.DataFrame],
    facts: dict[tuple[str, int], dict[str, Any]],
    anchor: str,
    confidence: float,
) -> pd.DataFrame:
    """Return the headline numbers of every replicate.

    Args:
        results: Attack -> its numbers with columns arm and replicate: ``extraction``, ``quality``,
            ``membership``, ``prompts``, ``forgetting``.
        facts: (arm, replicate) -> facts about the budget in its training's ``run.json``.
        anchor: Whose neighbours normalise the headline's distances.
        confidence: Confidence of the intervals.

    Returns:
        Columns arm, replicate, metric, value, low, high (exact for shares and counts, bootstrap for
        others), and for shares count and of: how many of how many.
    """
    rows: list[dict[str, Any]] = []
    extraction = results["extraction"]
    extraction = extraction[extraction["anchor"].isin([anchor, "none"])]
    for row in extraction[extraction["subset"] == "all"].to_dict("records"):
        suffix = "_calibrated" if row["alpha"] == "calibrated" else ""
        if row["metric"] in ("mq@0.5", "mq_holdout@0.5"):
            rows.append(
                _point(
                    row,
                    "mq@0.5 (share)"
                    + (" of holdout" if row["metric"].startswith("mq_holdout") else ""),
                )
            )
        elif row["metric"] == "extracted_images":
            one = _point(row, f"unique_images{suffix}")
            counted = {
                "value": row["count"],
                "low": one["low"] * row["of"],
                "high": one["high"] * row["of"],
            }
            rows.append(one | counted | {"count": math.nan, "of": math.nan})
            if suffix:
                rows.append(_point(row, "alpha_calibrated", row["alpha_value"]))
        elif row["metric"] in (
            "flagged_generations",
            "flagged_holdout",
            "twins_flagged",
            "average_precision",
        ):
            rows.append(_point(row, row["metric"] + suffix))
    rows += _planted(extraction, confidence)
    membership = results["membership"]
    for row in membership[membership["metric"] == "roc_auc"].to_dict("records"):
        rows.append(_point(row, "membership_auc"))
    for row in results["prompts"].to_dict("records"):
        detector, auc, kind = row["metric"].partition("_auc")
        if auc:
            group = "twins" if kind == "_twins" else row["subset"]
            name = detector if group == "all" else f"{detector}, {group}"
            rows.append(_point(row, f"prompt_auc[{name}]"))
        elif row["metric"].startswith("prompts_"):
            rows.append(_point(row, f"{row['metric']}[{row['subset']}]"))
    for row in results["forgetting"].to_dict("records"):
        if name := FORGOTTEN.get((row["metric"], row["alpha"], row["subset"])):
            rows.append(_point(row, f"{name}[{row['set']}]"))
        measure, _, space = row["metric"].partition("[")
        if row["subset"] == "remain" and measure in REMAINING and space.endswith("]"):
            rows.append(
                _point(row, f"remaining_{measure}[{space.removesuffix(']')}, {row['set']}]")
            )
    for row in results["quality"].to_dict("records"):
        rows.append(
            _point(
                row,
                row["metric"] if row["of"] == "generations" else f"{row['metric']} of {row['of']}",
            )
        )
    for (arm, k), fact in facts.items():
        budget = {name: fact[name] for name in FACTS if fact.get(name) is not None}
        budget["passes"] = fact["images_seen"] / fact["training_images"]
        rows += [
            _point({"arm": arm, "replicate": k}, name, value) for name, value in budget.items()
        ]
    return pd.DataFrame(
        rows, columns=["arm", "replicate", "metric", "value", "low", "high", "count", "of"]
    )


def _point(row: dict[Any, Any], metric: str, value: float | None = None) -> dict[str, Any]:
    """Return one number of one replicate; without interval if its ``value`` is not the row's
    own."""
    point = {
        "arm": row["arm"],
        "replicate": row["replicate"],
        "metric": metric,
        "value": row["value"] if value is None else value,
    }
    if value is not None:
        return point
    if math.isnan(row.get("exact_low", math.nan)):
        return point | {"low": row["low"], "high": row["high"]}
    return point | {
        "low": row["exact_low"],
        "high": row["exact_high"],
        "count": row["count"],
        "of": row["of"],
    }


def _planted(extraction: pd.DataFrame, confidence: float) -> list[dict[str, Any]]:
    """Return the share of images planted with their captions that were extracted, per
    threshold."""
    copies = extraction["subset"].str.extract(r"^copies=(\d+)$", expand=False).astype(float)
    several = extraction[(extraction["metric"] == "extracted_by_copies") & (copies > 1)]
    rows = []
    for (arm, k, alpha), some in several.groupby(["arm", "replicate", "alpha"], sort=False):
        count, of = int(some["count"].sum()), int(some["of"].sum())
        low, high = exact_limits(count, of, confidence)
        row = {"arm": arm, "replicate": k, "value": count / of, "count": count, "of": of}
        row |= {"exact_low": float(low), "exact_high": float(high)}
        rows.append(
            _point(row, "planted_extracted" + ("_calibrated" if alpha == "calibrated" else ""))
        )
    return rows


def headline(numbers: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Return the headline numbers, one row per arm and metric: arm, metric, value, low, high,
    replicates and interval.

    With one replicate, or several that are all equal, the interval is that within the replicate;
    else that between them (``comparison.over_replicates``).

    Args:
        numbers: The table of ``points``.
        confidence: Of the intervals between replicates.
    """
    metrics = dict.fromkeys(
        [*(metric for metric in ORDER if metric in set(numbers["metric"])), *numbers["metric"]]
    )
    cells = dict(list(numbers.groupby(["arm", "metric"])))
    rows = []
    for metric in metrics:
        for arm in dict.fromkeys(numbers["arm"]):
            if (arm, metric) in cells:
                some = cells[arm, metric]
                interval, kind = comparison.over_replicates(some, confidence)
                rows.append(
                    {
                        "arm": arm,
                        "metric": metric,
                        **interval._asdict(),
                        "replicates": len(some),
                        "interval": kind,
                    }
                )
    return pd.DataFrame(rows)


def extracted_images(folders: Folders, anchor: str) -> pd.DataFrame:
    """Return which images came back in which replicate.

    Args:
        folders: Stores of the attack ``extraction``.
        anchor: Whose neighbours normalise the distances.

    Returns:
        Columns arm, replicate, alpha, source, copies, repeat, times (as planted) and extracted,
        bool.
    """
    tables = []
    for (arm, replicate), folder in folders.items():
        artifacts.check_file(folder / "images.parquet")
        images = pd.read_parquet(folder / "images.parquet")
        for alpha in ("fixed", "calibrated"):
            cell = images[["source", "copies", "repeat", "times"]]
            cell = cell.assign(arm=arm, replicate=replicate, alpha=alpha)
            tables.append(cell.assign(extracted=images[f"extracted_{anchor}_{alpha}"]))
    return pd.concat(tables, ignore_index=True)


def against_copies(
    extracted: pd.DataFrame, numbers: pd.DataFrame, anchor: str, confidence: float
) -> pd.DataFrame:
    """Return the share of images extracted by number of planted copies, over all replicates: of
    images that were planted with their captions, or not at all.

    The unit is the image: what one image did in several trainings stays together
    (``intervals.clustered_share``), since one that came back once is likelier to come back again.
    What all images of one training have in common is not in the intervals.

    Args:
        extracted: The table of ``extracted_images``.
        numbers: Those of the attack ``extraction``, with columns arm and replicate.
        anchor: Whose neighbours normalise the distances.
        confidence: Of the intervals.

    Returns:
        Columns arm, alpha, copies, images (how many different ones), count, of (of images times
        trainings), share, low, high; and twins_count, twins_of, twins_share: the same of images
        drawn together with the planted ones but never trained on.
    """
    alike = extracted[extracted["repeat"].isin(twins.WITH_CAPTIONS)]
    subset = "copies=" + alike["copies"].astype(str)
    flagged = numbers[numbers["metric"] == "twins_flagged_by_copies"]
    return _extracted_shares(alike.assign(subset=subset), ["copies"], flagged, anchor, confidence)


def by_repeat(
    extracted: pd.DataFrame, numbers: pd.DataFrame, anchor: str, confidence: float
) -> pd.DataFrame:
    """Return the same by what was planted and how often; without rows if all images are planted
    with their captions, or not at all.

    Args:
        extracted: As for ``against_copies``, and so are the others.

    Returns:
        The columns of ``against_copies`` with repeat and times in the place of copies.
    """
    several = not extracted["repeat"].isin(twins.WITH_CAPTIONS).all()
    chosen = extracted if several else extracted.iloc[:0]
    keys = zip(chosen["repeat"], chosen["times"], strict=True)
    subset = [twins.subset(repeat, times) for repeat, times in keys]
    flagged = numbers[numbers["metric"] == "twins_flagged_by_repeat"]
    columns = ["repeat", "times"]
    return _extracted_shares(chosen.assign(subset=subset), columns, flagged, anchor, confidence)


def _extracted_shares(
    extracted: pd.DataFrame, by: list[str], twins: pd.DataFrame, anchor: str, confidence: float
) -> pd.DataFrame:
    """Return the share of images extracted by some columns, each group a ``subset``, with that of
    its twins."""
    keys = ["arm", "alpha", "subset"]
    counts = twins[twins["anchor"] == anchor].groupby(keys)[["count", "of"]].sum()
    columns = ["arm", "alpha", *by, "images", "count", "of", "share", "low", "high", "subset"]
    rows = []
    for (arm, alpha, subset), some in extracted.groupby(keys, sort=False):
        by_image = some.groupby("source")["extracted"].agg(["sum", "count"]).to_numpy()
        interval = clustered_share(by_image[:, 0], by_image[:, 1], confidence)
        row: dict[str, Any] = {"arm": arm, "alpha": alpha, "subset": subset}
        row |= {column: some[column].iloc[0] for column in by} | {"images": len(by_image)}
        row |= {"count": by_image[:, 0].sum(), "of": len(some)}
        rows.append(row | dict(zip(("share", "low", "high"), interval, strict=True)))
    table = pd.DataFrame(rows, columns=columns).sort_values(["arm", "alpha", *by])
    joined = table.join(counts.add_prefix("twins_"), on=keys).reset_index(drop=True)
    joined["twins_share"] = joined["twins_count"] / joined["twins_of"]
    return joined.drop(columns="subset")


def union_over_replicates(extracted: pd.DataFrame) -> pd.DataFrame:
    """Return how many different training images at least one replicate of each arm gave back.

    Args:
        extracted: The table of ``extracted_images``.
    """
    rows = []
    for (arm, alpha), some in extracted.groupby(["arm", "alpha"], sort=False):
        row = {"arm": arm, "alpha": alpha, "replicates": some["replicate"].nunique()}
        rows.append(row | {"unique_images": some["source"][some["extracted"]].nunique()})
    return pd.DataFrame(rows)


def loss_curves(folders: Folders) -> pd.DataFrame:
    """Return the training loss of every arm by update, averaged over replicates: arm, update,
    loss."""
    curves = []
    for (arm, _), folder in folders.items():
        artifacts.check_file(folder / "metrics.jsonl")
        if (folder / "metrics.jsonl").stat().st_size:  # a remedy at inference trains nothing
            lines = pd.read_json(folder / "metrics.jsonl", lines=True)
            curves.append(lines[lines["name"] == "loss"].assign(arm=arm))
    long = pd.concat(curves).rename(columns={"step": "update", "value": "loss"})
    return long.groupby(["arm", "update"], sort=False)["loss"].mean().reset_index()


def as_metrics(arms: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the headline numbers as arm -> metric -> value, numbers that do not exist left out."""
    metrics: dict[str, dict[str, float]] = {}
    for arm, metric, value in zip(arms["arm"], arms["metric"], arms["value"], strict=True):
        if math.isfinite(value):
            metrics.setdefault(arm, {})[metric] = float(value)
    return metrics
