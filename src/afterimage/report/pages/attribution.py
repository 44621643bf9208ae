"""The page of attribution: which training images made an image, and how far that can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp

from afterimage import artifacts
from afterimage.images import load_images
from afterimage.report import figures, format
from afterimage.report.format import Table
from afterimage.report.notebook import Notebook, by_keys
from afterimage.report.published import DTRAK

SETS = {
    "holdout": "held-out images",
    "generated": "generations",
    "extracted": "extracted generations",
}
"""Set of queries -> its name."""
COLOURS = {"holdout": "C0", "generated": "C1", "extracted": "C2"}
TARGETS = {"loss": "LDS", "shift": "LDS of the shift"}
"""What retraining is measured by -> title of the score."""
PICTURED = ("das", "das_revised", "dtrak", "trak", "ggn_influence", "pixel_l2")
"""Attributors whose first choices are shown."""
ACCELERATED = ("das_revised", "dtrak", "trak", "das", "ggn_influence")
"""Attributors whose cost is shown."""
COLUMNS = 8
"""First choices in a row."""
CHANGES = {
    "l2": "pixels (normalised l2)",
    "distance": "classifier features (1 - cosine)",
    "rise": "loss of the query, less that of `again`",
}
"""Measure of a counterfactual picture -> label of its axis."""
DIALS = {
    "timesteps": "timesteps T",
    "dimension": "dimension k of the projection",
    "probes": "probes R per timestep",
}
"""Setting of the features -> label of its axis."""
BASELINE = "pixel_l2"
"""The choice that others are compared with: the images with the nearest pixels."""
GENERATED = "generated"
"""The set of queries for which costs are compared."""


class Attribution:
    """What the page shows of a study.

    Args:
        book: The notebook.

    Attributes:
        lds: ``lds.csv`` of the main scores, by target.
        order: Attributors, the highest mean score first.
        differences: ``differences.csv`` of the main scores.
        sets: Sets of queries that there are.
        facts: Of the main scores.
    """

    def __init__(self, book: Notebook) -> None:
        self.book, self.phase = book, book.results / "attribution"
        self.scores = self.phase / "scores" / "main"
        record = artifacts.read_run(self.scores)
        self.facts, self.settings = record["facts"], record["config"]["settings"]
        every = pd.read_csv(self.scores / "lds.csv")
        self.lds = {target: every[every["target"] == target] for target in TARGETS}
        self.differences = pd.read_csv(self.scores / "differences.csv")
        self.sets = [name for name in SETS if name in set(self.lds["loss"]["queries"])]
        self.order = by_mean(self.lds["loss"])

    def explained(self) -> str:
        """Return the arm whose images are explained."""
        record = artifacts.read_run(next((self.phase / "retrain").iterdir()))
        return record["config"]["settings"]["attribution"]["arm"]

    def summary(self, study: str) -> str:
        """Return what was explained, and how it was judged, in Markdown."""
        queries = ", ".join(f"{self.facts['queries'][name]} {SETS[name]}" for name in self.sets)
        return (
            f"Study `{study}`, arm **{self.explained()}**: {self.facts['training_images']} "
            f"training images; queries: {queries}. Retrained on {self.settings['subsets']} "
            f"subsets of {100 * self.settings['share']:g} % of the images, "
            f"{self.settings['seeds']} time(s) each. Regularisers, and what is learned from "
            "retraining, come from the first half of the subsets; what is shown is measured on "
            f"the {self.facts['reported_subsets']} others."
        )

    # ---- how well retraining is predicted

    def table(self, target: str) -> tuple[Table, list[int]]:
        """Return one row per attributor.

        Its scores for a target; and the position of the control.
        """
        names = by_mean(self.lds[target])
        cell = by_keys(self.lds[target], "attributor", "queries")
        rows: Table = []
        for name in names:
            row: dict[str, object] = {"attributor": format.bold(name)}
            for queries in self.sets:
                row |= self._scores(cell[name, queries], target, queries)
            rows.append(row)
        return rows, [row for row, name in enumerate(names) if name == "shuffled"]

    @staticmethod
    def _scores(score: Mapping[str, Any], target: str, queries: str) -> dict[str, object]:
        shown = format.interval(score["lds"], score["low"], score["high"])
        if score["undefined"]:
            without = format.Markup(f" <small>({score['undefined']:.0f} queries without)</small>")
            shown += without
        cells: dict[str, object] = {
            f"{TARGETS[target]}, {SETS[queries]}": shown,
            f"oracle λ, {queries}": format.interval(score["oracle"]),
        }
        if pd.notna(score.get("of_ceiling")):
            cells[f"of ceiling, {queries}"] = format.interval(score["of_ceiling"], unit="%")
        if pd.notna(score.get("repeatability")):
            cells[f"repeatability, {queries}"] = format.interval(score["repeatability"])
        return cells

    def leader(self, target: str, queries: str) -> str:
        """Return the attributor with the highest score for a target and a set of queries."""
        table = self.lds[target]
        scores = table[table["queries"] == queries].set_index("attributor")["lds"]
        return str(scores.idxmax())

    def behind(self, target: str) -> Table:
        """Return one row per attributor: its score minus that of the leader of each set.

        In bold where they differ after the adjustment for the number of pairs.
        """
        table = self.differences[self.differences["target"] == target]
        turned = table.assign(
            attributor=table["other"],
            other=table["attributor"],
            difference=-table["difference"],
            low=-table["high"],
            high=-table["low"],
        )
        cell = by_keys(pd.concat([table, turned]), "queries", "other", "attributor")
        rows: Table = []
        for name in by_mean(self.lds[target]):
            row: dict[str, object] = {"attributor": format.bold(name)}
            for queries in self.sets:
                leader = self.leader(target, queries)
                shown: object = "leads"
                if name != leader:
                    pair = cell[queries, leader, name]
                    shown = format.interval(pair["difference"], pair["low"], pair["high"], sign="+")
                    if pair["p_adjusted"] < 1 - self.book.confidence:
                        shown = format.bold(shown)
                row[f"minus {leader}, {SETS[queries]}"] = shown
            rows.append(row)
        return rows

    def told_apart(self, target: str) -> str:
        """Return how many pairs of attributors differ, as a sentence."""
        table = self.differences[self.differences["target"] == target]
        counts = []
        for queries in self.sets:
            some = table[table["queries"] == queries]
            differ = int((some["p_adjusted"] < 1 - self.book.confidence).sum())
            counts.append(f"{differ} of {len(some)} pairs for {SETS[queries]}")
        return f"Attributors that differ: {', '.join(counts)}."

    def repeated(self) -> str:
        """Return of how many images repeatability is, as a sentence; nothing if not measured."""
        folder = self.phase / "features" / "main" / "repeat"
        if not folder.is_dir():
            return ""
        images, queries = (
            artifacts.read_run(folder / block)["facts"]["images"] for block in ("train0", "queries")
        )
        count = max(queries.values())
        seconds = sum(
            artifacts.read_run(run.parent)["seconds"] for run in folder.glob("*/run.json")
        )
        return (
            f"*Repeatability* is of {images['train']} training images and up to {count} queries of "
            f"each kind, and took {seconds:.0f} s more."
        )

    def lds_figure(self) -> Figure:
        """Draw the scores of every attributor for both targets, with ceilings."""
        figure, axes = figures.row_panels(self.order, 2, width=4.2, height=0.27)
        entries: dict[str, Any] = {}
        for axis, (target, rows) in zip(axes, self.lds.items(), strict=True):
            ceiling = rows.drop_duplicates("queries").set_index("queries").get("ceiling")
            for shift, queries in zip(
                np.linspace(-0.22, 0.22, len(self.sets)), self.sets, strict=True
            ):
                some = rows[rows["queries"] == queries].set_index("attributor").loc[self.order]
                at, colour = np.arange(len(some)) + shift, COLOURS[queries]
                axis.hlines(at, some["low"], some["high"], color=colour, linewidth=1)
                (dots,) = axis.plot(some["lds"], at, "o", color=colour, markersize=4)
                entries[SETS[queries]] = dots
                if ceiling is not None and pd.notna(ceiling[queries]):
                    style: figures.Style = {"color": colour, "linewidth": 0.9, "linestyle": "--"}
                    entries["ceiling"] = axis.axvline(ceiling[queries], **style)
            axis.axvline(0, color="0.7", linewidth=0.8)
            axis.set_xlabel(f"LDS of the {target}, {self.book.level} intervals")
        figures.legend_below(figure, entries)
        figure.tight_layout()
        return figure

    # ---- regularisers

    def regularisers(self) -> Figure:
        """Draw the scores by regulariser on the reported subsets, with the one that was chosen."""
        table = pd.read_csv(self.scores / "regularisers.csv")
        table = table[(table["target"] == "loss") & (table["half"] == "second")]
        counts = table.groupby("attributor")["regulariser"].nunique()
        chosen = by_keys(self.lds["loss"], "attributor", "queries")
        count = len(self.sets)
        figure, axes = figures.grid(count, count, 3.6, 3.3, sharey=True)
        for axis, queries in zip(axes, self.sets, strict=True):
            for name in (name for name in self.order if counts.get(name, 0) > 1):
                some = table[(table["attributor"] == name) & (table["queries"] == queries)]
                (line,) = axis.plot(some["regulariser"], some["lds"], linewidth=1.2, label=name)
                best = chosen[name, queries]
                colour = line.get_color()
                axis.plot(best["regulariser"], best["lds"], "o", color=colour, markersize=4)
            axis.set(xscale="log", xlabel="λ / mean eigenvalue", title=SETS[queries])
            axis.axhline(0, color="0.7", linewidth=0.8)
        axes[0].set_ylabel("LDS on the reported subsets")
        figures.legend_right(axes[-1])
        return figure

    # ---- copies

    def copies(self) -> pd.DataFrame:
        """Return ``copies.csv``: one row per attributor and extracted generation."""
        return pd.read_csv(self.scores / "copies.csv")

    def copies_figure(self) -> Figure:
        """Draw which share of the copies an attributor ranks first, next to chance."""
        mean = self.copies().groupby("attributor")[["recall", "chance"]].mean()
        mean = mean.loc[[name for name in self.order if name in mean.index]]
        figure, (axis,) = figures.row_panels(list(mean.index), 1, width=6.5, height=0.25)
        bars = axis.barh(range(len(mean)), mean["recall"], color="0.6")
        style: figures.Style = {"color": figures.FLOOR, "markersize": 9}
        (chance,) = axis.plot(mean["chance"], range(len(mean)), "|", **style)
        axis.set(xlabel="share of the m copies among the first m images", xlim=(0, 1.02))
        figure.tight_layout()
        figures.legend_below(figure, {"attributor": bars, "chance": chance})
        return figure

    def copies_caption(self) -> str:
        """Return how many generations the figure is of, as a sentence."""
        copies = self.copies()
        several = copies[copies["copies"] > 1]
        return (
            f"{copies['query'].nunique()} extracted generations, {several['query'].nunique()} of "
            "images that occur several times in the training set."
        )

    def leverage(self) -> str:
        """Return how well leverage tells images with copies from others, as a sentence.

        Nothing without any.
        """
        table = pd.read_csv(self.scores / "leverage.csv")
        if table.empty:
            return ""
        best = table.iloc[int((table["auc"] - 0.5).abs().to_numpy().argmax())]
        return (
            "Leverage: an image with copies has a smaller one than an image without in "
            f"{100 * best['auc']:.0f} % of pairs at the regulariser where this share is farthest "
            f"from one half (λ = {best['regulariser']:g}); over all regularisers from "
            f"{100 * table['auc'].min():.0f} to {100 * table['auc'].max():.0f} %."
        )

    # ---- first choices

    def pictured_set(self) -> str:
        """Return the set of queries whose first choices are shown."""
        return "extracted" if "extracted" in self.sets else GENERATED

    def first_choices(self, most: int = 3) -> list[Figure]:
        """Draw some queries, each with the first training images of each attributor."""
        count = len(load_images(self.phase / "queries" / f"{self.pictured_set()}.npz"))
        return [self._first_choices(query) for query in range(min(most, count))]

    def _first_choices(self, query: int) -> Figure:
        train = load_images(self.book.planting() / "train.npz")
        asked = load_images(self.phase / "queries" / f"{self.pictured_set()}.npz")
        row_of = pd.Series(range(len(train)), train.ids)
        first = pd.read_parquet(self.scores / "first.parquet")
        first = first[(first["queries"] == self.pictured_set()) & (first["query"] == query)]
        names = [name for name in PICTURED if name in self.order]
        figure, axes = figures.grid(len(names) * (COLUMNS + 1), COLUMNS + 1, 0.75, 0.62)
        for line, name in zip(np.reshape(axes, (len(names), -1)), names, strict=True):
            chosen = first[first["attributor"] == name].sort_values("rank")["id"][:COLUMNS]
            rows = row_of.loc[chosen]
            figures.picture(line[0], asked.pixels[query])
            figures.row_title(line[0], name)
            for axis, row in zip(line[1:], rows, strict=False):
                figures.picture(axis, train.pixels[row])
                if (
                    self.pictured_set() == "extracted"
                    and train.sources[row] == asked.sources[query]
                ):
                    axis.spines[:].set(visible=True, color="C2", linewidth=2)
            for axis in line[1 + len(rows) :]:
                axis.axis("off")
        return figure

    # ---- without the images that made it

    def changes(self) -> pd.DataFrame:
        """Return how far pictures change without some images, per choice and query.

        Empty if not done.
        """
        paths = sorted((self.phase / "counterfactual").glob("*/**/changes.csv"))
        if not paths:
            return pd.DataFrame()
        changes = pd.concat([pd.read_csv(path) for path in paths])
        again = changes[changes["choice"] == "again"].set_index("query")["loss"]
        changes["rise"] = changes["loss"] - changes["query"].map(again)
        return changes.assign(distance=1 - changes["cosine"])

    def choices(self) -> list[str]:
        """Return whose images are taken out, ``again`` (none) and ``random`` first."""
        names = dict.fromkeys(self.changes()["choice"])
        return list(dict.fromkeys(["again", "random", *names]))

    def counterfactual(self) -> Figure:
        """Draw ``changes``: one panel per measure, one row per choice."""
        changes, choices = self.changes(), self.choices()
        figure, axes = figures.row_panels(choices, len(CHANGES), width=3)
        for axis, (column, label) in zip(axes, CHANGES.items(), strict=True):
            for y, choice in enumerate(choices):
                values = changes.loc[changes["choice"] == choice, column]
                style: figures.Style = {"color": "C0", "alpha": 0.35, "markersize": 4}
                (dots,) = axis.plot(values, np.full(len(values), y), "o", **style)
                style = {"color": "black", "markersize": 11, "markeredgewidth": 2}
                (bar,) = axis.plot(values.median(), y, "|", **style)
            axis.set_xlabel(label)
            axis.locator_params(axis="x", nbins=4)
        figures.legend_below(figure, {"generation": dots, "median": bar})
        figure.tight_layout()
        return figure

    def counterfactual_table(self) -> Table:
        """Return one row per choice: mean of each change, and the same minus ``BASELINE``'s.

        Intervals are Student's, over queries, differences paired by query.
        """
        changes, rows = self.changes(), []
        for choice in self.choices():
            row: dict[str, object] = {"taken out by": format.bold(choice)}
            for column, label in CHANGES.items():
                by_query = changes.pivot(index="query", columns="choice", values=column)
                row[label] = format.interval(*self._mean(by_query[choice]))
                if choice != BASELINE and BASELINE in by_query:
                    difference = by_query[choice] - by_query[BASELINE]
                    row[f"minus {BASELINE}: {label}"] = format.interval(
                        *self._mean(difference), sign="+"
                    )
            rows.append(row)
        return rows

    def _mean(self, values: pd.Series) -> tuple[float, float, float]:
        """Return the mean of the values that there are, with its interval by Student's t."""
        exist = values.dropna()
        if len(exist) < 2 or exist.std() == 0:
            return float(exist.mean()), float("nan"), float("nan")
        low, high = ttest_1samp(exist, 0).confidence_interval(self.book.confidence)
        return float(exist.mean()), float(low), float(high)

    def counterfactual_caption(self) -> str:
        """Return how many images were taken out, as a sentence."""
        changes = self.changes()
        count = (changes["choice"] == "again").sum()
        removed = changes.loc[changes["choice"] != "again", "removed"].max()
        images = f"{removed} of {self.facts['training_images']} training images"
        return f"{count} generations, {images} taken out."

    def regenerated(self) -> Figure:
        """Draw the queries, and below them what comes of their noise without some images."""
        changes, choices = self.changes(), self.choices()
        queries = list(changes["query"][changes["choice"] == "again"])
        asked = load_images(self.phase / "queries" / f"{GENERATED}.npz")
        lines = ["the generation", *choices]
        figure, axes = figures.grid(len(lines) * len(queries), len(queries), 0.9, 0.8)
        axes = np.reshape(axes, (len(lines), -1))
        for column, query in enumerate(queries):
            figures.picture(axes[0, column], asked.pixels[query])
            for line, choice in zip(axes[1:], choices, strict=True):
                figures.picture(line[column], self._regenerated(choice, query, column))
        for line, label in zip(axes, lines, strict=True):
            figures.row_title(line[0], label)
        return figure

    def _regenerated(self, choice: str, query: int, column: int) -> np.ndarray:
        """``again`` has all queries in one store; other choices one each."""
        folder = self.phase / "counterfactual" / choice
        if choice == "again":
            return load_images(folder / "regenerated.npz").pixels[column]
        return load_images(folder / str(query) / "regenerated.npz").pixels[0]

    # ---- forgotten images

    def influence_stores(self) -> list[Path]:
        """Return the folders of the results on forgotten images; none if not done."""
        return [path.parent for path in sorted((self.phase / "remedied").glob("*/influence.csv"))]

    def influence(self, arms: Sequence[str]) -> Figure:
        """Draw the chance that a forgotten image is scored higher, before and after a remedy."""
        influence = pd.concat(
            [
                pd.read_csv(path / "influence.csv").assign(arm=path.name)
                for path in self.influence_stores()
            ]
        )
        of = {"forgotten": "forgotten images", "others": "other images"}
        groups = [name for name in of if name in set(influence["queries"])]
        attributors = list(dict.fromkeys(influence["attributor"]))
        remedied = [arm for arm in arms if arm in set(influence["arm"])]
        rows = [(arm, name) for arm in remedied for name in attributors]
        labels = [f"{arm}: {name}" for arm, name in rows]
        figure, axes = figures.row_panels(labels, len(groups), width=4.2, height=0.24)
        for axis, group in zip(axes, groups, strict=True):
            some = influence[influence["queries"] == group]
            auc = some.set_index(["arm", "attributor", "network"])["auc"]
            for y, row in enumerate(rows):
                before, after = auc[(*row, "before")], auc[(*row, "after")]
                axis.plot([before, after], [y, y], color="0.7", linewidth=1)
                axis.plot(before, y, "o", color="0.55", markersize=4)
                axis.plot(after, y, "o", color="C3", markersize=4)
            axis.axvline(0.5, color="0.7", linewidth=0.8)
            count = some["count"].iloc[0]
            axis.set_title(f"{count} generations that show {of[group]}", fontsize=9)
            axis.set_xlabel("chance that a forgotten image is scored higher")
        entries = {"before": figures.dot("0.55"), "after": figures.dot("C3")}
        figures.legend_below(figure, entries)
        figure.tight_layout()
        return figure

    def before(self) -> str:
        """Return the arm before the remedy."""
        return artifacts.read_run(self.influence_stores()[0])["config"]["settings"]["before"]

    # ---- cost

    def has_variants(self) -> bool:
        """Return whether the study has variants of its features."""
        return (self.phase / "acceleration" / "acceleration.csv").is_file()

    def costs(self) -> pd.DataFrame:
        """Return time and score of every variant for the generations, by attributor and time."""
        table = pd.read_csv(self.phase / "acceleration" / "acceleration.csv")
        table = table[table["queries"] == GENERATED]
        shown = [table[table["attributor"] == name].sort_values("seconds") for name in ACCELERATED]
        return pd.concat(shown, ignore_index=True)

    def cost_table(self) -> tuple[Table, list[int]]:
        """Return ``costs`` to be shown, and the positions of the reference."""
        costs = self.costs()
        rows: Table = [
            {
                "attributor": format.bold(row["attributor"]),
                "features": row["variant"],
                "seconds": f"{row['seconds']:.1f}",
                "LDS": format.interval(row["lds"], row["low"], row["high"]),
                "agreement": format.interval(row["agreement"]),
                "first": format.interval(row["first"], unit="%"),
            }
            for row in costs.to_dict("records")
        ]
        record = artifacts.read_run(self.phase / "acceleration")
        reference = record["config"]["settings"]["reference"]
        return rows, [row for row, name in enumerate(costs["variant"]) if name == reference]

    def shortlist(self) -> str:
        """Return how many images two stages look at again, as a sentence."""
        count = artifacts.read_run(self.phase / "acceleration")["facts"]["shortlist"]
        return f"Two stages look at {count} of {self.facts['training_images']} images again."

    def cost_figure(self) -> Figure:
        """Draw scores against the time of the features, one panel per attributor."""
        costs = self.costs()
        names = list(dict.fromkeys(costs["attributor"]))
        palette = colormaps["tab20"].colors  # type: ignore[attr-defined]
        variants = costs.sort_values("seconds")["variant"].unique()
        colours = dict(zip(variants, [*palette[::2], *palette[1::2]], strict=False))
        figure, axes = figures.grid(len(names), len(names), 2.6, 3, sharey=True)
        entries: dict[str, Any] = {}
        for axis, name in zip(axes, names, strict=True):
            for row in costs[costs["attributor"] == name].to_dict("records"):
                colour = colours[row["variant"]]
                axis.vlines(row["seconds"], row["low"], row["high"], color=colour, linewidth=0.8)
                (dots,) = axis.plot(row["seconds"], row["lds"], "o", color=colour, markersize=5)
                entries[row["variant"]] = dots
            axis.set(xlabel="time of the features (s)", title=name)
            figures.log_axis(axis, "x", most=4)
            axis.grid(axis="y", color="0.93")
        axes[0].set_ylabel(f"LDS, {SETS[GENERATED]}")
        figure.tight_layout()
        figures.legend_below(figure, entries)
        return figure

    def dials(self) -> dict[str, list[tuple[int, str]]]:
        """Return, per setting of the features, its values with the variants that vary it alone."""
        paths = (self.phase / "features").glob("*/final/queries/run.json")
        features = {
            path.parts[-4]: artifacts.read_run(path.parent)["config"]["settings"]["features"]
            for path in paths
        }
        main = features.get("main", {})
        return {
            dial: sorted(
                (settings[dial], name)
                for name, settings in features.items()
                if all(settings[key] == main[key] for key in settings if key not in (dial, "rows"))
            )
            for dial in DIALS
        }

    def dials_figure(self) -> Figure:
        """Draw scores by timesteps and by dimension."""
        score = self.costs().set_index(["variant", "attributor"])["lds"]
        names = list(dict.fromkeys(score.index.get_level_values("attributor")))
        dials = self.dials()
        figure, axes = figures.grid(len(dials), len(dials), 3.7, 3, sharey=True)
        for axis, (dial, points) in zip(axes, dials.items(), strict=True):
            for name in names:
                known = [(n, score[v, name]) for n, v in points if (v, name) in score.index]
                axis.plot(*zip(*known, strict=True), "o-", markersize=4, linewidth=1, label=name)
            axis.set(xscale="log", xlabel=DIALS[dial])
            axis.set_xticks([n for n, _ in points], labels=[str(n) for n, _ in points])
            axis.minorticks_off()
            axis.grid(color="0.93")
        axes[0].set_ylabel(f"LDS, {SETS[GENERATED]}")
        figures.legend_right(axes[-1])
        return figure

    # ---- published

    def published(self) -> Table:
        """Return the published scores next to those of this study."""
        cell = by_keys(self.lds["loss"], "attributor", "queries")
        rows: Table = []
        for name, (held_out, generated) in DTRAK.items():
            if name in self.order:
                row = {"CIFAR-2, held out": held_out, "CIFAR-2, generated": generated}
                own = {
                    f"here, {SETS[queries]}": format.interval(cell[name, queries]["lds"], unit="%")
                    for queries in ("holdout", GENERATED)
                }
                rows.append({"attributor": name, **row, **own})
        return rows


def by_mean(lds: pd.DataFrame) -> list[str]:
    """Return the attributors by their mean score over the sets of queries, the highest first."""
    return lds.groupby("attributor")["lds"].mean().sort_values(ascending=False).index.tolist()
