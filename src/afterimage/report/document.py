"""``afterimage report document``: a study's tables as a Markdown document, with a figure of paths.

Everything is read from the CSV tables and the ``run.json`` of one folder (``report.tables``), and
the same tables give the same text: a test compares the documents that are kept in git with the
tables next to them. ``--readme`` writes three rows and the figure between two marks of a file.
A section is left out where a study has nothing to say in it.
"""

from __future__ import annotations

import argparse
import math
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from afterimage import artifacts
from afterimage.report import (
    attribution,
    comparison,
    figures,
    format,
    frontier,
    prompts,
    verdicts,
)
from afterimage.report.names import frechet_of, name_of, unit_of
from afterimage.report.path_figures import PathFigures

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
"""Marks of the generated part of a README."""
SOURCES = ("paths.csv", "frontier.csv")
"""Tables that the figure is drawn from."""
ROWS = 3
"""Arms in a README."""
SETS = {"holdout": "held-out images", "generated": "generations"}
"""Set of queries of attribution that is shown -> its name."""
TARGETS = {"loss": "LDS of the loss", "shift": "LDS of the prediction"}
"""What retraining changes -> name of the score."""
FORGETTING = {
    "forgotten_probability": "probability of the forgotten class",
    "forgotten_extracted_calibrated": "forgotten images extracted",
    "forgotten_copied_calibrated": "copies when asked for forgotten captions",
    "forgotten_brought_back_calibrated": "forgotten images that some embedding brings back",
    "holdout_brought_back_calibrated": "never-trained images that some embedding draws",
    "forgotten_auc": "membership AUC of forgotten images",
    "remaining_FD_balanced": "FD_balanced, other images",
    "remaining_FD": "FD, other images",
    "remaining_FID": "FID, other images",
    "remaining_coverage": "coverage, other images",
}
"""Number of an arm that is judged on a forget set -> its name."""
UNBALANCED = ("FD, other images", "FID, other images")
WORDS = {
    verdicts.BETTER: "copies less",
    verdicts.WORSE: "copies more",
}
"""Verdict at equal quality -> what is said of it, if not the same."""
WIDTH = 100
"""Columns of the text; rows of tables may be longer."""

Row = dict[str, str]
"""Heading -> cell, in Markdown."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tables", type=Path, required=True, help="folder of the study's tables")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="document to write, named after the study (STUDY.md); the figure of its paths is "
        "STUDY-paths.svg next to it",
    )
    parser.add_argument(
        "--readme",
        type=Path,
        help=f"file whose lines between {BEGIN} and {END} are written too",
    )


def run(args: argparse.Namespace) -> None:
    document = Document(args.tables, args.out.stem)
    readme = None
    if args.readme is not None:
        folder = Path(os.path.relpath(args.out.parent, args.readme.parent))
        readme = spliced(args.readme, document.summary(folder.as_posix()))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_atomically(args.out, document.text().encode())
    if document.has_paths:
        document.draw(args.out.parent / document.figure_name)
    if readme is not None:
        artifacts.write_atomically(args.readme, readme.encode())


def between_marks(text: str) -> tuple[str, str, str] | None:
    """Return what stands before, between and after the marks; None unless each is there once, in
    order."""
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    once = begin and end and BEGIN not in rest and END not in before + after
    return (before, inside, after) if once else None


def spliced(path: Path, summary: str) -> str:
    """Return a file's text with ``summary`` between its marks.

    Raises:
        ArtifactError: if the file is missing or has not each mark once.
    """
    try:
        parts = between_marks(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise artifacts.ArtifactError(f"--readme {path} cannot be read: {error}") from error
    if parts is None:
        raise artifacts.ArtifactError(
            f"--readme {path} must have the lines {BEGIN} and {END} once each, in this order"
        )
    return f"{parts[0]}{BEGIN}\n{summary}{END}{parts[2]}"


class Document:
    """What is said of a study.

    Args:
        folder: The tables, complete as ``run.json`` lists them.
        study: Name of the study.

    Attributes:
        has_paths: Whether trainings were attacked on the way.

    Raises:
        ArtifactError: if a table is missing, was changed, or is of an earlier version.
    """

    def __init__(self, folder: Path, study: str) -> None:
        self.folder, self.study = folder, study
        self.record = artifacts.check_store(folder)
        self.settings = self.record["config"]["settings"]
        self.replicates: int = self.settings["replicates"]
        self.level = format.level(self.settings["confidence"])
        self.arms, self.compared = self._table("arms"), self._table("comparison")
        self.cells = {(row["arm"], row["metric"]): row for row in _records(self.arms)}
        self.differences = {(row["arm"], row["metric"]): row for row in _records(self.compared)}
        self.judged = self._table("comparison_wide").set_index("arm")
        self.paths, self.beside = self._table("paths"), self._table("frontier")
        self.deciding = self.beside[self.beside["decides"].astype(bool)]
        self.has_paths = not self.paths.empty
        self.drawings = PathFigures(self.paths, self.beside)
        self.figure_name = f"{study}-paths.svg"
        decides = self.compared["decides"] == "quality"
        deciding = list(dict.fromkeys(self.compared.loc[decides, "metric"]))
        self.frechet = frechet_of(deciding)
        self.quality = [
            self.frechet,
            *(name for name in deciding if name.startswith(("coverage[", "text_alignment["))),
        ]

    def _table(self, name: str) -> pd.DataFrame:
        file = f"{name}.csv"
        if file not in self.record["outputs"]:
            raise artifacts.ArtifactError(
                f"{self.folder} has no {file}: the tables were made by an earlier version; make "
                "them again with `snakemake report`"
            )
        return pd.read_csv(self.folder / file)

    # ---- the document

    def text(self) -> str:
        """Return the document."""
        sections = {
            "Copying at equal quality": self._at_equal_quality(),
            "Arms": self._arms(),
            **self._forgetting(),
            "Prompts": self._prompts(),
            "Attribution": self._attribution(),
            "Deduplication": self._deduplication(),
            "What was spent": self._spent(),
        }
        parts = [f"# Results of the study `{self.study}`", self._origin()]
        for title, section in sections.items():
            parts += [f"## {title}", section] if section else []
        return wrapped("\n\n".join(parts))

    def _origin(self) -> str:
        environment = self.record["environment"]
        commit = environment["git_commit"]
        at = f"at commit `{commit[:12]}`" if commit else "without git"
        changed = ", with changes that were not committed" if environment["git_dirty"] else ""
        return (
            f"Written by `afterimage report document` from `results/{self.study}/report/tables`, "
            f"which were made on {self.record['finished'][:10]} {at}{changed}; seed "
            f"{self.record['config']['seed']}. Edit neither by hand. "
            f"[`metrics.md`](../metrics.md) says what the numbers mean.\n\n{self._trainings()}"
        )

    def _trainings(self) -> str:
        if self.replicates == 1:
            return (
                f"**One training of each arm.** The {self.level} intervals are within that "
                "training: how much another would differ is not known, and there are no verdicts."
            )
        return (
            f"{self.replicates} trainings of each arm. In brackets: {self.level} intervals "
            f"{format.spread_in_full(self.replicates)}."
        )

    def _at_equal_quality(self) -> str:
        if not self.has_paths:
            return ""
        parts = [self._figure(""), self._caption()]
        if not self.beside.empty:
            parts += [markdown(self._frontier_rows()), self._frontier_caveats()]
        return "\n\n".join(parts)

    def _figure(self, folder: str) -> str:
        return f"![Copying against quality, along every path]({folder}{self.figure_name})"

    def _caption(self) -> str:
        plain = ", ".join(f"`{arm}`" for arm in self.drawings.plain)
        black = f" Plain training ({plain}), stopped early, is black." if plain else ""
        return (
            f"Points are the states of each training ({self.drawings.spent()} of its budget), "
            f"{self._means()}; states without a copy are drawn "
            f"at {100 * self.drawings.least_share:.2g} %.{black} Drawn from {self._sources()}."
        )

    def _sources(self) -> str:
        """Return the tables that the figure is drawn from, with their hashes."""
        return " and ".join(
            f"`{name}` (SHA-256 `{artifacts.sha256(self.folder / name)}`)" for name in SOURCES
        )

    def _means(self) -> str:
        if self.replicates == 1:
            return "one training of each arm"
        return f"geometric means over {self.replicates} trainings"

    def _frontier_rows(self) -> list[Row]:
        rows = []
        for row in _records(self.deciding):
            cells = {
                "arm": f"`{row['arm']}`",
                "beside": f"`{row['frontier']}`",
                "odds of a copy, times those of plain training": factor(row),
                f"compared at {row['axis']}": frontier.compared_at(row),
            }
            if self.replicates > 1:
                cells["adjusted p"] = format.p_value(row["p_adjusted"])
                cells["smallest factor detectable"] = frontier.smallest_factor(row)
            rows.append(cells | {"verdict": WORDS.get(row["verdict"], row["verdict"])})
        return rows

    def _frontier_caveats(self) -> str:
        if self.replicates == 1:
            return "One training of each arm: no verdict."
        sentences = [
            "The share of generations flagged decides, by p-values adjusted for the rows of this "
            "table (Holm). The smallest factors detectable "
            "are those seen with a chance of 80 %, the spread of these trainings taken as the "
            "true one."
        ]
        meaning = {
            verdicts.UNSEEN: "does not say that there is none",
            verdicts.NOT_TESTABLE: (
                "means that plain training, at the best quality that both reach, copies no more "
                "than false alarms"
            ),
            frontier.NO_OVERLAP: "leaves it open what the arm does to copying",
            verdicts.UNMEASURED: "means that the trainings show no spread",
        }
        for word, text in meaning.items():
            if (self.deciding["verdict"] == word).any():
                sentences.append(f"*{word[0].upper()}{word[1:]}* {text}.")
        return " ".join(sentences)

    def _arms(self) -> str:
        rows = [self._arm(arm) for arm in self.settings["arms"]]
        return "\n\n".join([markdown(rows), self._arm_caveats()])

    def _arm(self, arm: str) -> Row:
        row = {"arm": f"`{arm}`"}
        for metric in (*comparison.MEMORIZATION, *self.quality):
            row[name_of(metric)] = self._value(arm, metric)
        control = self.settings["controls"][arm]
        row["control"] = f"`{control}`" if control else ""
        change = self.differences.get((arm, verdicts.PRIMARY), {})
        row["flagged, difference in points"] = _difference(change) if control else ""
        if self.replicates > 1:
            row["adjusted p"] = format.p_value(change.get("p_adjusted"))
            row["beats its control"] = str(self.judged["beats_control"][arm]) if control else ""
        verdict = self.judged["verdict"].get(arm)
        row["verdict"] = "" if pd.isna(verdict) else str(verdict)
        return row

    def _arm_caveats(self) -> str:
        alarms = 100 * self.arms[self.arms["metric"] == frontier.ALARMS]["value"]
        ends = dict.fromkeys(f"{end:.2g}" for end in (alarms.min(), alarms.max()))
        sentences = [
            "Generations are flagged at the threshold calibrated on held-out images, of which "
            f"{' to '.join(ends)} % are flagged. Distances and coverage are measured against "
            "images that no arm saw."
        ]
        if not self.judged["control"].notna().any():
            return sentences[0]
        if self.replicates == 1:
            sentences.append("One training of each arm: differences have no verdict.")
        else:
            margin = self.settings["margin"]
            aligned = (
                f" (text alignment: {margin['text_alignment']:g})"
                if any(name.startswith("text_alignment[") for name in self.quality)
                else ""
            )
            sentences.append(
                "*No difference seen* and *not shown* do not say that there is no difference. "
                "*Not testable*: the control's copies do not exceed false alarms. Quality is *no "
                f"worse* where a loss of {100 * margin['relative_fd']:g} % of the control's "
                f"distance and one of {margin['coverage']:g} in coverage{aligned} are ruled out. "
                "p-values "
                "are adjusted over all arms with a control (Holm)."
            )
        return " ".join(sentences)

    def _forgetting(self) -> dict[str, str]:
        """Return one section for each forget set."""
        numbers = self._table("forgetting")
        return {
            f"Forgetting `{name}`": self._forgotten(str(name), some)
            for name, some in numbers.groupby("set", sort=False)
        }

    def _forgotten(self, name: str, numbers: pd.DataFrame) -> str:
        measured = dict.fromkeys(self.arms["metric"])
        columns = {
            metric: label
            for stem, label in FORGETTING.items()
            for metric in measured
            if metric.startswith(f"{stem}[") and metric.endswith((f"[{name}]", f", {name}]"))
        }
        if "FD_balanced, other images" in columns.values():  # which decides in its place
            columns = {m: label for m, label in columns.items() if label not in UNBALANCED}
        rows = []
        for arm in dict.fromkeys(numbers["arm"]):
            row = {"arm": f"`{arm}`"}
            for metric, label in columns.items():
                row[label] = self._value(arm, metric)
            again = numbers[(numbers["arm"] == arm) & (numbers["metric"] == "relearn_updates")]
            row["updates to relearn"] = ", ".join(
                "not reached" if pd.isna(updates) else f"{updates:g}" for updates in again["value"]
            )
            rows.append(row)
        never = (
            "Compare with the arm that never saw the images, if there is one: forgetting means "
            "to be like it."
        )
        if (numbers["metric"] == "relearn_updates").any():  # of sets of one label
            never += (
                " *Updates to relearn* are those of plain training on the images until the model "
                "shows them again, one number for each training."
            )
        return "\n\n".join([markdown(rows), never])

    def _prompts(self) -> str:
        rows, metrics = [], dict.fromkeys(self.arms["metric"])
        for arm in dict.fromkeys(self.arms["arm"]):
            for detector, groups in prompts.areas(metrics).items():
                areas = {group: self._value(arm, metric) for group, metric in groups.items()}
                if areas[prompts.ALL]:
                    rows.append({"arm": f"`{arm}`", "detector": f"`{detector}`", **areas})
        if not rows:
            return ""
        extracted = [
            {"arm": f"`{found.arm}`", "captions": found.group, "of": str(found.of)}
            | {
                heading: f"{count}: {self._value(found.arm, metric)}"
                for heading, (count, metric) in found.shares.items()
            }
            for found in prompts.extracted(self._table("prompts"))
        ]
        said = [markdown(extracted), prompts.EXTRACTED] if extracted else [prompts.NOT_EXTRACTED]
        return "\n\n".join([markdown(rows), prompts.NOTE, *said])

    def _attribution(self) -> str:
        whole, pairs = self._table("attribution"), self._table("attribution_differences")
        if whole.empty:
            return ""
        count = whole.loc[whole["replicate"].astype(str) != attribution.MEAN, "replicate"].nunique()
        scores = attribution.shown(whole)
        scores = scores[scores["target"].isin(TARGETS)]
        sets = [name for name in SETS if name in set(scores["queries"])]
        shown = [(target, name) for target in TARGETS for name in sets]
        cells = {(r["attributor"], r["target"], r["queries"]): r for r in _records(scores)}
        rows = []
        for attributor in dict.fromkeys(scores["attributor"]):
            row = {"attributor": f"`{attributor}`"}
            for target, name in shown:
                cell = cells.get((attributor, target, name), {})
                row[f"{TARGETS[target]}, {SETS[name]}"] = estimate(cell, "lds", "low", "high")
            again = [cells.get((attributor, "loss", name), {}) for name in sets]
            agreements = pd.Series([cell.get("repeatability") for cell in again], dtype=float)
            if agreements.notna().any():
                row["repeatability"] = " / ".join(
                    "n/a" if pd.isna(value) else f"{value:z.2f}" for value in agreements
                )
            cell = cells.get((attributor, "loss", "generated"), {})
            row["share of the ceiling (loss, generations)"] = estimate(
                cell, "of_ceiling", "of_ceiling_low", "of_ceiling_high"
            )
            rows.append(row)
        ceilings = {"attributor": "ceiling"}
        for target, name in shown:
            first = scores[(scores["target"] == target) & (scores["queries"] == name)]
            cell = next(iter(_records(first)), {})
            ceilings[f"{TARGETS[target]}, {SETS[name]}"] = estimate(
                cell, "ceiling", "ceiling_low", "ceiling_high"
            )
        rows += [ceilings] if scores["ceiling"].notna().any() else []
        text = (
            "LDS is the linear data-modelling score: the rank correlation of what a score predicts "
            f"and what retraining on random subsets does. {_of_networks(count)} "
            f"{self._told_apart(pairs)} Scores for extracted generations are in `attribution.csv`."
        )
        if scores["repeatability"].notna().any():
            named = " / ".join(SETS[name] for name in sets)
            text += (
                f" Repeatability ({named}) is the correlation of a score with itself under other "
                "noise: an attributor that does not agree with itself predicts nothing."
            )
        if scores["of_ceiling"].notna().any():
            text += " A share has no bounds where the subsets do not exclude a ceiling of 0."
        parts = [*self._concepts(), *self._variants(), *self._counterfactual()]
        return "\n\n".join([markdown(rows), text, *parts])

    def _told_apart(self, pairs: pd.DataFrame) -> str:
        """Return how many pairs of attributors differ, as a sentence."""
        table = attribution.shown(pairs)
        table = table[(table["target"] == "loss") & (table["queries"] == "generated")]
        differ = (table["p_adjusted"] < 1 - self.settings["confidence"]).sum()
        return (
            f"Of {len(table)} pairs of attributors {differ} differ for generations, paired by "
            "subset and adjusted for their number (`attribution_differences.csv`); overlapping "
            "intervals do not tell."
        )

    def _concepts(self) -> list[str]:
        """Return how well scores tell images that share a concept with a query; nothing if the
        study names none."""
        if "attribution_concepts.csv" not in self.record["outputs"]:
            return []  # tables of a version that knew no concepts
        table = self._table("attribution_concepts")
        table = attribution.shown(table[table["queries"].isin(SETS)])
        if table.empty:
            return []
        keys = ["attributor", "queries", "concept", "combination"]
        cells = {tuple(area[key] for key in keys): area for area in _records(table)}
        shown = [
            (concept, combination)
            for concept in dict.fromkeys(table["concept"])
            for combination in attribution.COMBINATIONS
            if ((table["concept"] == concept) & (table["combination"] == combination)).any()
        ]
        rows: list[Row] = [
            {"attributor": f"`{attributor}`", "queries": SETS[queries]}
            | {
                ", ".join(cell): estimate(
                    cells.get((attributor, queries, *cell), {}), "area", "low", "high"
                )
                for cell in shown
            }
            for attributor, queries in dict.fromkeys(key[:2] for key in cells)
        ]
        text = (
            "For captions that are composed of concepts: the probability that a training image "
            "that shares this word alone with the query scores above one that shares none of its "
            "words (0.5 is chance). No training image shows a *held out* combination; *related* "
            "ones were trained and share the word with it, its control: scores may favour the "
            "images with a word for every query. Intervals are for other queries and other "
            "training images, of each number by itself and not adjusted: of scores without meaning "
            "one in twenty would leave out 0.5, and nothing is claimed about differences."
        )
        return [markdown(rows), text]

    def _variants(self) -> list[str]:
        """Return the scores from other features; nothing if the study has no variants."""
        table = self._table("attribution_cost")
        if table.empty:
            return []
        scores = attribution.shown(table[table["queries"] == "generated"])
        cells = {(row["attributor"], row["variant"]): row for row in _records(scores)}
        variants = list(dict.fromkeys(scores["variant"]))
        rows = [
            {"attributor": f"`{attributor}`"}
            | {
                f"`{variant}`": estimate(cells.get((attributor, variant), {}), "lds", "low", "high")
                for variant in variants
            }
            for attributor in dict.fromkeys(scores["attributor"])
        ]
        text = (
            "LDS of the loss for generations, from the study's variants of the features: `main` is "
            "none of them, and `two_stage` ranks the first of `main` anew by the study's "
            "`reference`. Scores that stay the same do not depend on what differs. Intervals are "
            "of each score by itself: nothing is claimed about differences between columns."
        )
        return [markdown(rows), text]

    def _counterfactual(self) -> list[str]:
        """Return the generations without the images that made them; nothing if not done."""
        table = self._table("attribution_counterfactual")
        if table.empty:
            return []
        base = attribution.BASELINE
        rise = attribution.shown(table[table["measure"] == "rise"])
        rows = [
            {
                "taken out by": f"`{row['choice']}`",
                "rise of the loss": with_interval(row["value"], row["low"], row["high"]),
                f"minus that of `{base}`": ""
                if row["choice"] == base
                else with_interval(
                    row["difference"], row["difference_low"], row["difference_high"]
                ),
                "adjusted p": format.p_value(row["p_adjusted"]),
                f"times that of `{base}`": estimate(row, "ratio", "ratio_low", "ratio_high"),
            }
            for row in _records(rise)
            if row["choice"] != attribution.AGAIN
        ]
        text = (
            "Retrained without the first images of a ranking: how much the loss of the generation "
            f"rises, over {rise['generations'].max():.0f} generations, paired. The rise is measured "
            "from one retraining with all images, whose error all rows share and no interval has."
        )
        return [markdown(rows), text]

    def _deduplication(self) -> str:
        table = self._table("dedup")
        kinds = [name for name in map(str, table.columns) if name.startswith("recall_")]
        columns = {
            "pair_precision": "precision of pairs",
            "pair_recall": "recall of pairs",
            "perturbed_pair_recall": "recall, perturbed copies",
            **{kind: f"recall, {kind.removeprefix('recall_')}" for kind in kinds},
            "surplus_recall": "surplus copies removed",
            "unplanted_removed": "unplanted images removed",
        }
        present = {column: label for column, label in columns.items() if column in table}
        rows = []
        for found in _records(table):
            row = {"method": f"`{found['method']}`"}
            if len(set(table["planting"])) > 1:
                row = {"planting": str(found["planting"])} | row
            for column, label in present.items():
                unit: format.Unit = "" if column == "unplanted_removed" else "%"
                row[label] = str(format.interval(found[column], unit=unit))
            rows.append(row)
        text = (
            "`combined` is what images are removed by, in the study or, with its name, in an arm. "
            "Planted copies are the truth; an unplanted image that is removed may be a duplicate "
            "that nobody planted. An *n/a* precision means that no pair was found, an *n/a* recall "
            "that none was planted."
        )
        return "\n\n".join([markdown(rows), text])

    def _spent(self) -> str:
        rows = [
            {
                "arm": f"`{arm}`",
                **{label: self._mean(arm, metric) for metric, label in frontier.PRICES.items()},
            }
            for arm in self.settings["arms"]
        ]
        text = (
            "Means over the trainings. Updates include those of the arm that a training starts "
            "from, the other columns do not. Seconds are of the machine that ran the study."
        )
        return "\n\n".join([markdown(rows), text])

    # ---- the part of a README

    def summary(self, folder: str) -> str:
        """Return three arms, the first plain one and the first ones of the study that are compared
        with plain training at equal quality, tested ones first, else with a control, and the
        figure, in Markdown.

        Args:
            folder: Of the document, as README says it.
        """
        deciding = {row["arm"]: row for row in _records(self.deciding)}
        along = [arm for arm in self.settings["arms"] if arm in deciding]
        along.sort(key=lambda arm: bool(pd.isna(deciding[arm]["p"])))
        controlled = [arm for arm in self.settings["arms"] if self.settings["controls"].get(arm)]
        plain = self.drawings.plain or list(self.settings["arms"])
        chosen = list(dict.fromkeys([plain[0], *along, *controlled]))[:ROWS]
        rows = []
        for arm in chosen:
            row = {"arm": f"`{arm}`"}
            for metric in (*comparison.MEMORIZATION, self.frechet):
                row[name_of(metric)] = self._value(arm, metric)
            if self.has_paths:
                row["odds of a copy"] = factor(deciding.get(arm, {}))
                if self.replicates > 1:
                    row["at equal quality"] = str(deciding.get(arm, {}).get("verdict", ""))
            rows.append(row)
        figure = [self._figure(f"{folder}/")] if self.has_paths else []
        trainings = (
            "one training of each arm, so no verdict"
            if self.replicates == 1
            else f"{self.replicates} trainings of each arm"
        )
        odds = "Odds of a copy: at equal quality, times those of plain training. "
        if self.replicates > 1:
            odds += "Differences are judged by p-values that are adjusted for the number of arms "
            odds += "(Holm). "
        text = (
            f"Study `{self.study}`, {trainings}; {self.level} intervals in brackets. "
            f"{odds if self.has_paths else ''}All arms, and what is not known: "
            f"[`{self.study}.md`]({folder}/{self.study}.md)."
        )
        return wrapped("\n\n".join([*figure, markdown(rows), text]))

    # ---- the figure

    def draw(self, path: Path) -> None:
        """Write the figure of the paths as SVG."""
        with plt.rc_context({**figures.RC, "svg.hashsalt": self.study}):
            figure = self.drawings.copies()
            named = {"Date": None, "Description": f"Drawn from {self._sources()}."}
            figure.savefig(path, format="svg", bbox_inches="tight", metadata=named)
            plt.close(figure)

    # ---- cells

    def _value(self, arm: str, metric: str) -> str:
        row = self.cells.get((arm, metric))
        if row is None:
            return ""
        unit = unit_of(metric)
        return with_interval(row["value"], row["low"], row["high"], unit)

    def _mean(self, arm: str, metric: str) -> str:
        row = self.cells.get((arm, metric))
        return "" if row is None else format.number(row["value"])


def wrapped(text: str) -> str:
    """Return Markdown with its paragraphs in lines of at most ``WIDTH`` columns, tables and figures
    as they are."""
    paragraph = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    lines = []
    for line in text.splitlines():
        is_text = line and not line.startswith(("|", "!", "#"))
        lines += paragraph.wrap(line) if is_text else [line]
    return "\n".join(lines) + "\n"


def markdown(rows: list[Row]) -> str:
    """Return rows as a table in Markdown; a heading that no row fills is left out."""
    headings = [
        heading
        for heading in dict.fromkeys(heading for row in rows for heading in row)
        if any(row.get(heading) for row in rows)
    ]
    lines = [headings, ["---"] * len(headings)]
    lines += [[row.get(heading, "") for heading in headings] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_interval(
    value: float, low: float, high: float, unit: format.Unit = "", digits: int = 3
) -> str:
    """Return a number and its interval as text, ``n/a`` for NaN."""
    if pd.isna(value):
        return "n/a"
    text = format.number(value, unit, digits=digits) + (" %" if unit == "%" else "")
    if pd.isna(low) or low == high:
        return text
    ends = " to ".join(format.number(end, unit, digits=digits) for end in (low, high))
    return f"{text} ({ends})"


def estimate(row: Mapping[str, Any], value: str, low: str, high: str) -> str:
    """Return a score of a row with its interval, in hundredths; nothing without a row."""
    if not row or pd.isna(row[value]):
        return ""
    number, *ends = (f"{row[name]:z.2f}" for name in (value, low, high))
    if math.isinf(row[low]) and math.isinf(row[high]):
        return f"{number} (no bounds)"
    return number if pd.isna(row[low]) else f"{number} ({ends[0]} to {ends[1]})"


def _of_networks(count: int) -> str:
    """Return how many networks attribution is about, as a sentence."""
    if count == 1:
        return "All of it is from one training, so how much another would differ is not known."
    return (
        f"Numbers are means over these {count} networks, with independent trainings, queries and "
        "subsets; nothing is claimed about other networks."
    )


def factor(row: Mapping[str, Any]) -> str:
    """Return a difference in log-odds as a factor of the odds, with its interval; nothing without
    a row."""
    if not row:
        return ""
    ends = (row["difference"], row["difference_low"], row["difference_high"])
    value, low, high = (float(np.exp(end)) for end in ends)
    return with_interval(value, low, high, digits=2)


def _difference(row: Mapping[str, Any]) -> str:
    if not row or pd.isna(row["difference"]):
        return ""
    numbers = [
        format.number(row[name], "points", "+")
        for name in ("difference", "difference_low", "difference_high")
        if not pd.isna(row[name])
    ]
    return numbers[0] + (f" ({numbers[1]} to {numbers[2]})" if len(numbers) == 3 else "")


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): cell for key, cell in row.items()} for row in table.to_dict("records")]
