"""The page of attribution: which training images made an image, and how far that can be trusted.

Numbers are those of the tables (``report.attribution``): where several networks are explained,
their means. What has no table is shown for each network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from afterimage import artifacts
from afterimage.images import Images, load_images
from afterimage.report import figures, format
from afterimage.report.attribution import (
    AGAIN,
    BASELINE,
    COMBINATIONS,
    MEAN,
    RANDOM,
    Stores,
    changes_of,
    shown,
)
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
MARKERS: dict[str, figures.Style] = {
    "trained": {},
    "related": {"fillstyle": "left", "markerfacecoloralt": "white"},
    "held out": {"markerfacecolor": "white"},
}
"""Kind of a query's combination of concepts -> its marker."""
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
GENERATED = "generated"
"""The set of queries for which costs are compared."""


class Attribution:
    """What the page shows of a study.

    Args:
        book: The notebook.

    Attributes:
        phases: The results of attribution of each explained network.
        lds: ``attribution.csv``, of all networks together, by target.
        each: The same of each network.
        order: Attributors, the highest mean score first.
        differences: ``attribution_differences.csv``, of all networks together.
        sets: Sets of queries that there are.
        facts: Of the main scores of each network.
    """

    def __init__(self, book: Notebook) -> None:
        self.book = book
        table = book.table("attribution")
        together = shown(table)
        self.lds = {target: together[together["target"] == target] for target in TARGETS}
        single = table[table["replicate"].astype(str) != MEAN]
        self.each = single.astype({"replicate": int})
        tables = artifacts.read_run(book.results / "report" / "tables")
        self.stores = Stores(book.results, tables["config"]["settings"]["attribution"])
        self.phases = self.stores.phases
        records = [artifacts.read_run(store) for store in self.stores.scores]
        self.facts = [record["facts"] for record in records]
        self.settings = records[0]["config"]["settings"]
        self.differences = shown(book.table("attribution_differences"))
        self.sets = [name for name in SETS if name in set(together["queries"])]
        self.order = by_mean(self.lds["loss"])

    @property
    def several(self) -> bool:
        """Whether several networks are explained."""
        return len(self.phases) > 1

    def _all(self, name: str) -> pd.DataFrame:
        """Return a table of the main scores of every network, with column ``replicate``."""
        parts = [pd.read_csv(store / name) for store in self.stores.scores]
        return pd.concat([part.assign(replicate=k) for k, part in enumerate(parts)])

    def _facts(self, name: str) -> str:
        """Return the number of queries of a set, of each network where they differ."""
        counts = [facts["queries"].get(name, 0) for facts in self.facts]
        return " / ".join(map(str, counts if len(set(counts)) > 1 else counts[:1]))

    def training_images(self) -> str:
        """Return the number of training images, of each network where they differ."""
        counts = [facts["training_images"] for facts in self.facts]
        return " / ".join(map(str, dict.fromkeys(counts)))

    def explained(self) -> str:
        """Return the arm whose images are explained."""
        record = artifacts.read_run(next((self.phases[0] / "retrain").iterdir()))
        return record["config"]["settings"]["attribution"]["arm"]

    def summary(self, study: str) -> str:
        """Return what was explained, and how it was judged, in Markdown."""
        queries = ", ".join(f"{self._facts(name)} {SETS[name]}" for name in self.sets)
        networks = ""
        if self.several:
            networks = (
                f" {len(self.phases)} networks (its first replicates), each explained for itself:"
            )
        return (
            f"Study `{study}`, arm **{self.explained()}**:{networks} {self.training_images()} "
            f"training images; queries: {queries}. Retrained on {self.settings['subsets']} "
            f"subsets of {100 * self.settings['share']:g} % of the images, "
            f"{self.settings['seeds']} time(s) each. Regularisers, and what is learned from "
            "retraining, come from the first half of the subsets; what is shown is measured on "
            f"the {self.facts[0]['reported_subsets']} others."
        )

    def networks(self) -> str:
        """Return what the numbers are of, as a sentence."""
        if not self.several:
            return (
                "All of it is of **one trained network**: how much another would differ is not "
                "known."
            )
        return (
            f"Numbers are means over **these {len(self.phases)} networks**, whose trainings, "
            "queries, noise and subsets are independent; intervals combine their errors. "
            "Nothing is claimed about other networks: how much they differ, so few do not say."
        )

    # ---- how well retraining is predicted

    def table(self, target: str) -> tuple[Table, list[int]]:
        """Return one row per attributor.

        Its scores for a target; and the position of the control.
        """
        names = by_mean(self.lds[target])
        cell = by_keys(self.lds[target], "attributor", "queries")
        own = self._all("lds.csv")
        groups = own[own["target"] == target].groupby(["attributor", "queries"])
        oracle, undefined = groups["oracle"].mean().to_dict(), groups["undefined"].sum().to_dict()
        rows: Table = []
        for name in names:
            row: dict[str, object] = {"attributor": format.bold(name)}
            for queries in self.sets:
                key = name, queries
                row |= self._scores(cell[key], target, queries, undefined[key])
                row[f"oracle λ, {queries}"] = format.interval(oracle[key])
            rows.append(row)
        return rows, [row for row, name in enumerate(names) if name == "shuffled"]

    def _scores(
        self, score: Mapping[str, Any], target: str, queries: str, undefined: float
    ) -> dict[str, object]:
        said = format.interval(score["lds"], score["low"], score["high"])
        if undefined:
            said += format.Markup(f" <small>({undefined:.0f} queries without)</small>")
        if score["networks"] < len(self.phases) and self.several:
            said += format.Markup(f" <small>({score['networks']} network)</small>")
        cells: dict[str, object] = {f"{TARGETS[target]}, {SETS[queries]}": said}
        if pd.notna(score["repeatability"]):
            cells[f"repeatability, {queries}"] = format.interval(score["repeatability"])
        if pd.notna(score["of_ceiling"]):
            cells[f"of ceiling, {queries}"] = format.interval(
                score["of_ceiling"], score["of_ceiling_low"], score["of_ceiling_high"], unit="%"
            )
        return cells

    def by_network(self, target: str) -> Table:
        """Return one row per attributor: its score for each network, with its repeatability."""
        some = self.each[self.each["target"] == target]
        cell = by_keys(some, "attributor", "queries", "replicate")
        rows: Table = []
        for name in by_mean(self.lds[target]):
            row: dict[str, object] = {"attributor": format.bold(name)}
            for queries in self.sets:
                for k in range(len(self.phases)):
                    score = cell.get((name, queries, k))
                    said = format.Markup("")
                    if score:
                        said = format.interval(score["lds"], score["low"], score["high"])
                    if score and pd.notna(score["repeatability"]):
                        again = format.number(score["repeatability"], digits=2)
                        said += format.Markup(f" <small>repeats {again}</small>")
                    row[f"{SETS[queries]}, network {k}"] = said
            rows.append(row)
        return rows

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
        folders = [phase / "features" / "main" / "repeat" for phase in self.phases]
        if not folders[0].is_dir():
            return ""
        images = artifacts.read_run(folders[0] / "0")["facts"]["images"]
        count = max(images[name] for name in SETS)
        each = " for each network" if self.several else ""
        seconds = sum(
            artifacts.read_run(run.parent)["seconds"]
            for folder in folders
            for run in folder.glob("*/run.json")
        )
        return (
            f"*Repeatability* is of {images['train']} training images and up to {count} queries of "
            f"each kind{each}, and took {seconds:.0f} s more."
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
                if self.several:
                    entries["one network"] = self._single(axis, target, queries, at)
                if ceiling is not None and pd.notna(ceiling[queries]):
                    style: figures.Style = {"color": colour, "linewidth": 0.9, "linestyle": "--"}
                    entries["ceiling"] = axis.axvline(ceiling[queries], **style)
            axis.axvline(0, color="0.7", linewidth=0.8)
            axis.set_xlabel(f"LDS of the {target}, {self.book.level} intervals")
        figures.legend_below(figure, entries)
        figure.tight_layout()
        return figure

    def _single(self, axis: Any, target: str, queries: str, at: np.ndarray) -> Any:
        """Draw the scores of each network on their lines; return the mark for the legend."""
        some = self.each[(self.each["target"] == target) & (self.each["queries"] == queries)]
        for _, part in some.groupby("replicate"):
            values = part.set_index("attributor")["lds"].reindex(self.order)
            style: figures.Style = {"color": COLOURS[queries], "markersize": 5, "alpha": 0.6}
            axis.plot(values, at, "|", **style)
        return figures.dot("0.5", "|")

    # ---- regularisers

    def regularisers(self) -> Figure:
        """Draw the scores by regulariser on the reported subsets, with the one that was chosen.

        One line of panels per network.
        """
        table = self._all("regularisers.csv")
        table = table[(table["target"] == "loss") & (table["half"] == "second")]
        counts = table.groupby("attributor")["regulariser"].nunique()
        own = self._all("lds.csv")
        chosen = by_keys(own[own["target"] == "loss"], "replicate", "attributor", "queries")
        count = len(self.sets)
        figure, axes = figures.grid(count * len(self.phases), count, 3.6, 3.3, sharey=True)
        cells = [(k, queries) for k in range(len(self.phases)) for queries in self.sets]
        for axis, (k, queries) in zip(axes, cells, strict=True):
            for number, name in enumerate(n for n in self.order if counts.get(n, 0) > 1):
                if (k, name, queries) not in chosen:
                    continue
                some = table[
                    (table["replicate"] == k)
                    & (table["attributor"] == name)
                    & (table["queries"] == queries)
                ]
                colour = f"C{number}"
                style: figures.Style = {"color": colour, "linewidth": 1.2, "label": name}
                axis.plot(some["regulariser"], some["lds"], **style)
                best = chosen[k, name, queries]
                axis.plot(best["regulariser"], best["lds"], "o", color=colour, markersize=4)
            title = f"{SETS[queries]}, network {k}" if self.several else SETS[queries]
            axis.set(xscale="log", xlabel="λ / mean eigenvalue", title=title)
            axis.axhline(0, color="0.7", linewidth=0.8)
        axes[0].set_ylabel("LDS on the reported subsets")
        figure.tight_layout()
        figures.legend_right(axes[count - 1])
        return figure

    # ---- copies

    def copies(self) -> pd.DataFrame:
        """Return ``copies.csv``: one row per attributor and extracted generation."""
        return self._all("copies.csv")

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
        images = self.copies().drop_duplicates(["replicate", "query"])
        several = (images["copies"] > 1).sum()
        networks = f" of {len(self.phases)} networks" if self.several else ""
        return (
            f"{len(images)} extracted generations{networks}, {several} of images that occur "
            "several times in the training set."
        )

    def leverage(self) -> str:
        """Return how well leverage tells images with copies from others, in sentences.

        Nothing without any.
        """
        table, said = self._all("leverage.csv"), []
        for k, some in table.groupby("replicate"):
            best = some.iloc[int((some["auc"] - 0.5).abs().to_numpy().argmax())]
            of = f" in network {k}" if self.several else ""
            said.append(
                f"Leverage{of}: an image with copies has a smaller one than an image without in "
                f"{100 * best['auc']:.0f} % of pairs at the regulariser where this share is "
                f"farthest from one half (λ = {best['regulariser']:g}); over all regularisers "
                f"from {100 * some['auc'].min():.0f} to {100 * some['auc'].max():.0f} %."
            )
        return "\n\n".join(said)

    # ---- concepts

    def concepts(self) -> pd.DataFrame:
        """Return ``attribution_concepts.csv``, of all networks together."""
        return shown(self.book.table("attribution_concepts"))

    def concepts_figure(self) -> Figure:
        """Draw how well each attributor tells images with a query's word, by concept.

        Queries whose combination of words is in no training image are drawn hollow, those that
        share the concept's word with them half so.
        """
        table = self.concepts()
        names = list(dict.fromkeys(table["concept"]))
        figure, axes = figures.row_panels(self.order, len(names), width=4.2, height=0.27)
        cells = [(q, c) for q in self.sets for c in COMBINATIONS]
        cells = [
            cell
            for cell in cells
            if ((table["queries"] == cell[0]) & (table["combination"] == cell[1])).any()
        ]
        entries: dict[str, Any] = {}
        for axis, concept in zip(axes, names, strict=True):
            by_cell = table[table["concept"] == concept].set_index(["queries", "combination"])
            for shift, cell in zip(np.linspace(-0.27, 0.27, len(cells)), cells, strict=True):
                queries, combination = cell
                some = by_cell.loc[[cell]].set_index("attributor").reindex(self.order)
                at, colour = np.arange(len(some)) + shift, COLOURS[queries]
                axis.hlines(at, some["low"], some["high"], color=colour, linewidth=1)
                style: figures.Style = {"color": colour, "markersize": 4}
                style |= MARKERS[combination]
                (dots,) = axis.plot(some["area"], at, "o", **style)
                entries[f"{SETS[queries]}, {combination} combinations"] = dots
            axis.axvline(0.5, color="0.7", linewidth=0.8)
            axis.set(xlabel=f"area for the {concept}, {self.book.level} intervals", xlim=(0, 1.02))
        figures.legend_below(figure, entries)
        figure.tight_layout()
        return figure

    # ---- first choices

    def pictured_set(self) -> str:
        """Return the set of queries whose first choices are shown."""
        return "extracted" if "extracted" in self.sets else GENERATED

    def first_choices(self, replicate: int = 0, most: int = 3) -> list[Figure]:
        """Draw some queries, each with the first training images of each attributor."""
        asked = self._asked(replicate, self.pictured_set())
        return [self._first_choices(replicate, query) for query in range(min(most, len(asked)))]

    def _asked(self, replicate: int, queries: str) -> Images:
        return load_images(self.phases[replicate] / "queries" / f"{queries}.npz")

    def _first_choices(self, replicate: int, query: int) -> Figure:
        train = load_images(self.book.planting(replicate) / "train.npz")
        asked = self._asked(replicate, self.pictured_set())
        row_of = pd.Series(range(len(train)), train.ids)
        first = pd.read_parquet(self.stores.scores[replicate] / "first.parquet")
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

    def counterfactuals(self) -> pd.DataFrame:
        """Return ``attribution_counterfactual.csv``; empty if not done."""
        return self.book.table("attribution_counterfactual")

    def choices(self) -> list[str]:
        """Return whose images are taken out, ``again`` (none) and ``random`` first."""
        names = dict.fromkeys(self.counterfactuals()["choice"])
        return list(dict.fromkeys([AGAIN, RANDOM, *names]))

    def changes(self) -> pd.DataFrame:
        """Return how far pictures change, per replicate, choice and query."""
        parts = [changes_of(stores) for stores in self.stores.counterfactual]
        return pd.concat([part.assign(replicate=k) for k, part in enumerate(parts)])

    def counterfactual(self) -> Figure:
        """Draw ``changes``: one panel per measure, one row per choice, one colour per network."""
        changes, choices = self.changes(), self.choices()
        figure, axes = figures.row_panels(choices, len(CHANGES), width=3)
        entries: dict[str, Any] = {}
        for axis, (column, label) in zip(axes, CHANGES.items(), strict=True):
            for y, choice in enumerate(choices):
                some = changes[changes["choice"] == choice]
                for k, part in some.groupby("replicate"):
                    style: figures.Style = {"color": f"C{k}", "alpha": 0.35, "markersize": 4}
                    name = f"generation of network {k}" if self.several else "generation"
                    (entries[name],) = axis.plot(part[column], np.full(len(part), y), "o", **style)
                style = {"color": "black", "markersize": 11, "markeredgewidth": 2}
                (entries["median"],) = axis.plot(some[column].median(), y, "|", **style)
            axis.set_xlabel(label)
            axis.locator_params(axis="x", nbins=4)
        figures.legend_below(figure, entries)
        figure.tight_layout()
        return figure

    def counterfactual_table(self) -> Table:
        """Return one row per choice: mean of each change, the same minus ``BASELINE``'s, and how
        many times ``BASELINE``'s rise of the loss its own is.

        In bold where they differ after the adjustment for the number of choices.
        """
        cell = by_keys(shown(self.counterfactuals()), "choice", "measure")
        rows: Table = []
        for choice in self.choices():
            row: dict[str, object] = {"taken out by": format.bold(choice)}
            for measure, label in CHANGES.items():
                numbers = cell[choice, measure]
                ends = (numbers["low"], numbers["high"])
                row[label] = format.interval(numbers["value"], *ends)
                if choice != BASELINE:
                    ends = (numbers["difference_low"], numbers["difference_high"])
                    said = format.interval(numbers["difference"], *ends, sign="+")
                    if numbers["p_adjusted"] < 1 - self.book.confidence:
                        said = format.bold(said)
                    row[f"minus {BASELINE}: {label}"] = said
            row[f"rise, times that of {BASELINE}"] = self._ratio(cell[choice, "rise"])
            rows.append(row)
        return rows

    @staticmethod
    def _ratio(numbers: Mapping[str, Any]) -> object:
        if numbers["choice"] in (AGAIN, BASELINE):
            return ""
        return format.interval(numbers["ratio"], numbers["ratio_low"], numbers["ratio_high"])

    def counterfactual_by_network(self) -> Table:
        """Return one row per choice: the rise of the loss, and the ratio, of each network."""
        table = self.counterfactuals()
        table = table[(table["replicate"].astype(str) != MEAN) & (table["measure"] == "rise")]
        cell = by_keys(table.astype({"replicate": int}), "choice", "replicate")
        rows: Table = []
        for choice in self.choices():
            row: dict[str, object] = {"taken out by": format.bold(choice)}
            for k in range(len(self.phases)):
                numbers = cell[choice, k]
                ends = (numbers["low"], numbers["high"])
                row[f"rise, network {k}"] = format.interval(numbers["value"], *ends)
                row[f"times that of {BASELINE}, network {k}"] = self._ratio(numbers)
            rows.append(row)
        return rows

    def counterfactual_caption(self) -> str:
        """Return how many images were taken out, as a sentence."""
        changes = self.changes()
        count = (changes["choice"] == AGAIN).sum()
        removed = changes.loc[changes["choice"] != AGAIN, "removed"].max()
        images = f"{removed} of {self.training_images()} training images"
        networks = f" of {len(self.phases)} networks" if self.several else ""
        return f"{count} generations{networks}, {images} taken out."

    def regenerated(self, replicate: int = 0) -> Figure:
        """Draw the queries, and below them what comes of their noise without some images."""
        changes, choices = self.changes(), self.choices()
        own = (changes["choice"] == AGAIN) & (changes["replicate"] == replicate)
        queries = list(changes["query"][own])
        asked = self._asked(replicate, GENERATED)
        lines = ["the generation", *choices]
        figure, axes = figures.grid(len(lines) * len(queries), len(queries), 0.9, 0.8)
        axes = np.reshape(axes, (len(lines), -1))
        for column, query in enumerate(queries):
            figures.picture(axes[0, column], asked.pixels[query])
            for line, choice in zip(axes[1:], choices, strict=True):
                figures.picture(line[column], self._regenerated(replicate, choice, query, column))
        for line, label in zip(axes, lines, strict=True):
            figures.row_title(line[0], label)
        return figure

    def _regenerated(self, replicate: int, choice: str, query: int, column: int) -> np.ndarray:
        """``again`` has all queries in one store; other choices one each."""
        folder = self.phases[replicate] / "counterfactual" / choice
        if choice == AGAIN:
            return load_images(folder / "regenerated.npz").pixels[column]
        return load_images(folder / str(query) / "regenerated.npz").pixels[0]

    # ---- forgotten images

    def influence_stores(self) -> list[Path]:
        """Return the folders of the results on forgotten images; none if not done."""
        return [
            path.parent
            for phase in self.phases
            for path in sorted((phase / "remedied").glob("*/influence.csv"))
        ]

    def influence(self, arms: Sequence[str]) -> Figure:
        """Draw the chance that a forgotten image is scored higher, before and after a remedy.

        One line for each network.
        """
        influence = pd.concat(
            [
                pd.read_csv(path / "influence.csv").assign(arm=path.name, replicate=path.parts[-3])
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
            auc = some.pivot(
                index=["arm", "attributor"], columns=["network", "replicate"], values="auc"
            )
            for y, row in enumerate(rows):
                before, after = auc.loc[row, "before"], auc.loc[row, "after"]
                shifts = np.linspace(-0.2, 0.2, len(before)) if len(before) > 1 else [0.0]
                for each, other, shift in zip(before, after, shifts, strict=True):
                    axis.plot([each, other], [y + shift, y + shift], color="0.7", linewidth=1)
                    axis.plot(each, y + shift, "o", color="0.55", markersize=4)
                    axis.plot(other, y + shift, "o", color="C3", markersize=4)
            axis.axvline(0.5, color="0.7", linewidth=0.8)
            first = some[(some["arm"] == rows[0][0]) & (some["attributor"] == rows[0][1])]
            count = first.loc[first["network"] == "before", "count"].sum()
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
        return not self.book.table("attribution_cost").empty

    def costs(self) -> pd.DataFrame:
        """Return time and score of every variant for the generations, by attributor and time."""
        table = shown(self.book.table("attribution_cost"))
        table = table[table["queries"] == GENERATED]
        chosen = [table[table["attributor"] == name].sort_values("seconds") for name in ACCELERATED]
        return pd.concat(chosen, ignore_index=True)

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
        record = artifacts.read_run(self.phases[0] / "acceleration")
        reference = record["config"]["settings"]["reference"]
        return rows, [row for row, name in enumerate(costs["variant"]) if name == reference]

    def shortlist(self) -> str:
        """Return how many images two stages look at again, as a sentence."""
        count = artifacts.read_run(self.phases[0] / "acceleration")["facts"]["shortlist"]
        return f"Two stages look at {count} of {self.training_images()} images again."

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
        paths = (self.phases[0] / "features").glob("*/final/0/run.json")
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
