"""The page of unlearning: has a model forgotten images, judged by attacks and next to retraining.

A *set* is a forget set of the study; every number is of an arm that is judged on it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from afterimage import artifacts
from afterimage.data import forget
from afterimage.images import load_images
from afterimage.report import arms as roles
from afterimage.report import comparison, figures, format
from afterimage.report.comparison import Difference, Interval
from afterimage.report.format import Table
from afterimage.report.names import alignment_of, in_space
from afterimage.report.notebook import Notebook
from afterimage.report.published import ERASEDIFF, ERASEDIFF_SECONDS, GUIDANCE

RETRAINED_COLOUR = "black"
COLOURS = [colormaps["tab20"](place) for place in (*range(0, 20, 2), *range(1, 20, 2))]
"""Colours of the other arms: ten full ones, then ten light ones."""
COLUMNS = 8
"""Pictures of a kind in a row."""
FORGOTTEN = {
    "probability of the class": ("probability", "none"),
    "images extracted": ("extracted_images", "calibrated"),
    "copies for forgotten captions": ("copied", "calibrated"),
    "images brought back": ("brought_back", "calibrated"),
    "membership AUC": ("roc_auc", "none"),
}
"""Evidence that images are not forgotten -> its metric and alpha; lower is better."""
COMPARED = {
    "P_psi": ("probability", "none"),
    "extracted": ("extracted_images", "calibrated"),
    "copied": ("copied", "calibrated"),
    "brought back": ("brought_back", "calibrated"),
    "AUC": ("roc_auc", "none"),
}
"""Numbers of the forgotten images that arms are compared in -> the same."""
WORDS = {
    comparison.BETTER: format.bold("lower"),
    comparison.WORSE: format.bold("higher"),
}
"""Verdict -> its wording for a number for which lower is better."""
Asked = tuple[str, str, str]
"""An arm, another arm, and the number in which they are compared."""
RELEARNED = {
    "probability": "mean probability of the class, new generations",
    "loss": "mean loss of the forgotten images",
}


class Unlearning:
    """The content of the page for a study.

    Args:
        book: The notebook.
        arms: Names of the arms, in the order of the study.
        replicates: Trainings of each.

    Attributes:
        sets: Names of the forget sets.
        settings: Settings of the attack.
        chosen_from: Set selected by an attack -> the arm that its images were extracted from.
        frechet: The Fréchet distance, in the space that the attack uses; the class-balanced one
            where there is one.
        aligned: Text alignment; None where nothing is drawn from captions.
    """

    def __init__(self, book: Notebook, arms: Sequence[str], replicates: int) -> None:
        self.book, self.replicates = book, replicates
        self.numbers = with_exact_intervals(book.table("forgetting"))
        quality = book.table("quality")
        self.aligned = alignment_of(quality["metric"])
        self.quality, self.real = (
            quality[quality["of"] == images].assign(count=np.nan, of=np.nan)
            for images in ("generations", "holdout")
        )
        self.arms = [arm for arm in arms if arm in set(self.numbers["arm"])]
        self.runs = {arm: book.training(arm) for arm in self.arms}
        self.own = {arm: run["config"]["settings"]["arm"] for arm, run in self.runs.items()}
        self.role = {arm: roles.role_of(settings) for arm, settings in self.own.items()}
        self.attacks = {
            arm: artifacts.read_run(book.folder("attack", arm, "forgetting")) for arm in self.arms
        }
        self.settings = self.attacks[self.arms[0]]["config"]["settings"]
        self.sets: list[str] = list(dict.fromkeys(self.numbers["set"]))
        self.definitions: dict[str, dict[str, Any]] = {}
        for record in self.attacks.values():
            self.definitions |= record["config"]["settings"]["sets"]
        origins = {name: self.definitions[name]["extracted_from"] for name in self.sets}
        self.chosen_from: dict[str, str] = {name: arm for name, arm in origins.items() if arm}
        self.space = self.settings["quality"]["features"]
        balanced = in_space("FD_balanced", self.space)
        measured = balanced in set(self.numbers["metric"])
        self.frechet = balanced if measured else in_space("FD", self.space)
        self.colour = {
            arm: RETRAINED_COLOUR if self.role[arm] == roles.RETRAINED else colour
            for arm, colour in zip(self.arms, itertools.cycle(COLOURS))
        }

    # ---- forget sets

    def judged_on(self, name: str) -> list[str]:
        """Return the arms that are judged on a set."""
        arms = set(self.numbers["arm"][self.numbers["set"] == name])
        return [arm for arm in self.arms if arm in arms]

    def retrained(self, name: str) -> str | None:
        """Return the arm that never saw the images of a set, if one was trained."""
        return next((a for a in self.judged_on(name) if self.role[a] == roles.RETRAINED), None)

    def described(self, name: str) -> str:
        """Return a description of a set."""
        definition = self.definitions[name]
        if definition["label"] is not None:
            return f"all images of class {definition['label']}"
        if definition["caption"] is not None:
            return f"all images with {definition['caption']!r} in their captions"
        if definition["ids"] is not None:
            return f"the sources of {len(definition['ids'])} training images"
        origin, alpha = definition["extracted_from"], definition["alpha"]
        return (
            f"the images that the extraction attack extracted from the first half of the "
            f"generations of {origin} ({alpha} alpha)"
        )

    def summary(self, study: str) -> str:
        """Return the forget sets and the arms judged on them, in Markdown."""
        seed = self.runs[self.arms[0]]["config"]["seed"]
        sets = "; ".join(
            f"**{name}** ({self.described(name)}; judged on it: {', '.join(self.judged_on(name))})"
            for name in self.sets
        )
        return f"Study `{study}`, {self.replicates} replicate(s), seed {seed}. Forget sets: {sets}."

    def chosen_sets(self) -> str:
        """Return the caveats about sets selected by an attack, in Markdown."""
        return "\n\n".join(
            f"**{name}** is what the attack extracted from the first half of the generations of "
            f"{origin}. What is extracted of it is counted on the second half of every arm's, "
            f"{origin}'s too: under other noise a part of it does not come back **without any "
            "remedy**, and no arm has that advantage over another."
            for name, origin in self.chosen_from.items()
        )

    # ---- numbers: one row per replicate

    def rows(
        self, name: str, arm: str, metric: str, subset: str, alpha: str = "none"
    ) -> pd.DataFrame:
        """Return the rows of one number."""
        keys = {"set": name, "arm": arm, "metric": metric, "subset": subset, "alpha": alpha}
        chosen = np.logical_and.reduce([self.numbers[key] == value for key, value in keys.items()])
        return self.numbers[chosen]

    def of_forgotten(self, name: str, arm: str, metric: str, alpha: str = "none") -> pd.DataFrame:
        """Return the rows of a number about the forgotten images.

        Of all images for arms without labels.
        """
        rows = self.rows(name, arm, metric, "forget", alpha)
        return rows if len(rows) else self.rows(name, arm, metric, "all", alpha)

    def of_rest(self, name: str, arm: str, metric: str) -> pd.DataFrame:
        """Return the rows of a quality measure of the other classes, or for the other prompts.

        They are of all generations where the set has no class or caption of its own, or the arm
        neither labels nor captions.
        """
        rows = self.rows(name, arm, metric, "remain")
        if len(rows):
            return rows
        return _of(self.quality, arm, metric)

    def unlearned(self, name: str, arm: str, of: str = "") -> pd.DataFrame:
        """Return the rows of UA, the share of generations for the class that are not taken for it,
        or (``_holdout``) of real images of it."""
        rows = self.of_forgotten(name, arm, f"classified{of}")
        missed = rows["of"] - rows["count"]
        ends = {"value": 1 - rows["value"], "low": 1 - rows["high"], "high": 1 - rows["low"]}
        return rows.assign(count=missed, **ends)

    def mean(self, rows: pd.DataFrame) -> Interval | None:
        """Return the mean over replicates with its interval; None if missing."""
        if not len(rows) or rows["value"].isna().any():
            return None
        return comparison.over_replicates(rows, self.book.confidence)[0]

    def cell(self, rows: pd.DataFrame, unit: format.Unit = "", digits: int = 3) -> str:
        """Return the mean over replicates with its interval as HTML.

        Empty if missing.
        """
        mean = self.mean(rows)
        return "" if mean is None else format.interval(*mean, unit=unit, digits=digits)

    def relearned(self, name: str, arm: str) -> str:
        """Return the number of updates that relearn the images, per replicate.

        Nothing if not measured.
        """
        limit = self.settings["relearn_updates"]
        updates = self.of_forgotten(name, arm, "relearn_updates")["value"]
        return ", ".join(f"{n:.0f}" if pd.notna(n) else f"not within {limit}" for n in updates)

    def extracted(self, name: str, arm: str) -> str:
        """Return how many forgotten images were extracted, per replicate.

        With interval if there is one.
        """
        rows = self.of_forgotten(name, arm, "extracted_images", "calibrated")
        counts = ", ".join(
            f"{count:.0f} of {of:.0f}" for count, of in zip(rows["count"], rows["of"], strict=True)
        )
        if not len(rows) or self.replicates > 1:
            return counts
        low, high = (rows[end].iloc[0] * rows["of"].iloc[0] for end in ("low", "high"))
        return format.bracketed(counts, f"{low:.1f}", f"{high:.1f}")

    # ---- the table

    def table(self, name: str) -> pd.DataFrame:
        """Return one row per arm, a set's numbers next to the published ones, and held-out
        images."""
        rows = [self._row(name, arm) for arm in self.judged_on(name)]
        control = self._held_out(name)
        frame = pd.DataFrame([*rows, *([control] if control else [])], dtype=object).fillna("")
        return frame.loc[:, (frame != "").any()]

    def _row(self, name: str, arm: str) -> dict[str, object]:
        facts = self.attacks[arm]["facts"]["sets"][name]
        row: dict[str, object] = {"arm": format.bold(arm), "as published": self.role[arm]}
        row["trained on"] = f"{facts['trained']} of {facts['sources']}"
        row |= self._measures(name, arm, "")
        row["extracted"] = self.extracted(name, arm)
        row["copied"] = self.cell(self.of_forgotten(name, arm, "copied", "calibrated"), unit="%")
        for title, metric in (
            ("brought back", "brought_back"),
            ("never-trained", "brought_back_holdout"),
        ):
            row[title] = self.cell(self.of_forgotten(name, arm, metric, "calibrated"), unit="%")
        row["AUC"] = self.cell(self.of_forgotten(name, arm, "roc_auc"))
        row["back after"] = self.relearned(name, arm)
        known = ERASEDIFF.get(self.role[arm])
        if known is not None and self.definitions[name]["label"] is not None:
            titles = ("P_psi", "FID", "precision", "recall")
            row |= {f"published {of}": value for of, value in zip(titles, known, strict=True)}
        return row

    def _held_out(self, name: str) -> dict[str, object]:
        """Return the same metrics on real held-out images; empty if missing."""
        measures = self._measures(name, self.judged_on(name)[0], "_holdout")
        known = {title: cell for title, cell in measures.items() if cell}
        return {"arm": format.italic("real held-out images"), **known} if known else {}

    def _measures(self, name: str, arm: str, of: str) -> dict[str, object]:
        """Return the metrics of generations or (``_holdout``) real images by a classifier."""
        measures: dict[str, object] = {
            "P_psi": self.cell(self.of_forgotten(name, arm, f"probability{of}")),
            "UA": self.cell(self.unlearned(name, arm, of), unit="%"),
            "entropy": self.cell(self.of_forgotten(name, arm, f"entropy{of}")),
            "accuracy, rest": self.cell(self.rows(name, arm, f"accuracy{of}", "remain"), unit="%"),
        }
        for measure, digits in (("FD", 3), ("precision", 2), ("recall", 2)):
            metric = self.frechet if measure == "FD" else in_space(measure, self.space)
            rows = (
                self.rows(name, arm, metric + of, "remain")
                if of
                else self.of_rest(name, arm, metric)
            )
            title = metric if measure == "FD" else measure
            measures[f"{title}, rest"] = self.cell(rows, digits=digits)
        if self.aligned is not None:
            rows = _of(self.real if of else self.quality, arm, self.aligned)
            measures[f"{self.aligned}, all"] = self.cell(rows)
        return measures

    def unmeasured(self, name: str) -> str:
        """Return what the classifier was not asked, as sentences; nothing if it was asked all."""
        asked = {
            "P_psi, UA and entropy": lambda arm: self.of_forgotten(name, arm, "probability"),
            "accuracy, rest": lambda arm: self.rows(name, arm, "accuracy", "remain"),
        }
        reasons = (
            "a classifier that knows classes, and a set whose images have one",
            "a classifier that knows classes, and generations that were asked for by their class or "
            "by captions of one class",
        )
        arms, sentences = self.judged_on(name), []
        for (measure, rows_of), reason in zip(asked.items(), reasons, strict=True):
            without = [arm for arm in arms if not len(rows_of(arm))]
            if without:
                of = "any arm" if without == arms else ", ".join(without)
                sentences.append(f"*{measure}*: not measured of {of}; needs {reason}.")
        return " ".join(sentences)

    # ---- run time

    def seconds(self, arm: str) -> pd.DataFrame:
        """Return the seconds of an arm's own training with its setup, one row per replicate."""
        facts = [self.book.training(arm, k)["facts"] for k in range(self.replicates)]
        spent = [own["training_seconds"] + own.get("setup_seconds", 0) for own in facts]
        ends = dict.fromkeys(("low", "high", "count", "of"), np.nan)
        return pd.DataFrame({"metric": "training_seconds", "value": spent}).assign(**ends)

    def run_times(self, name: str) -> Table:
        """Return one row per arm that starts from another: seconds, and times those of the first
        EraseDiff arm, next to the published run times."""
        arms = [arm for arm in self.judged_on(name) if self.own[arm]["base"]]
        unit = next((arm for arm in arms if self.role[arm].startswith("EraseDiff")), None)
        rows: Table = []
        for arm in arms:
            spent = self.seconds(arm)
            row: dict[str, object] = {"arm": format.bold(arm), "as published": self.role[arm]}
            row["seconds"] = self.cell(spent)
            if unit is not None:
                ratio = spent["value"].mean() / self.seconds(unit)["value"].mean()
                row[f"times {unit}'s"] = format.number(ratio)
                row["published"] = ERASEDIFF_SECONDS.get(self.role[arm], "")
            rows.append(row)
        return rows

    def guidance(self) -> str:
        """Return the guidance scales here and in the published table, as a sentence."""
        scale = self.settings["sample"]["guidance"]
        return f"The guidance scale is {scale:g} here, {GUIDANCE:g} in the published table."

    # ---- forgetting against quality

    def forgets(self, name: str) -> dict[str, dict[str, Interval]]:
        """Return the evidence that images are not forgotten, of all arms.

        Measure -> arm -> number.
        """
        return self._complete(
            name,
            {
                label: {arm: self.of_forgotten(name, arm, *keys) for arm in self.judged_on(name)}
                for label, keys in FORGOTTEN.items()
            },
        )

    def keeps(self, name: str) -> dict[str, dict[str, Interval]]:
        """Return the quality of the other classes, of all arms: measure -> arm -> number."""
        arms = self.judged_on(name)
        return self._complete(
            name,
            {
                self.frechet: {arm: self.of_rest(name, arm, self.frechet) for arm in arms},
                "accuracy": {arm: self.rows(name, arm, "accuracy", "remain") for arm in arms},
            },
        )

    def _complete(
        self, name: str, measures: dict[str, dict[str, pd.DataFrame]]
    ) -> dict[str, dict[str, Interval]]:
        """The measures that every arm has, as means."""
        complete: dict[str, dict[str, Interval]] = {}
        for label, of_arm in measures.items():
            means = {arm: self.mean(rows) for arm, rows in of_arm.items()}
            known = {arm: mean for arm, mean in means.items() if mean is not None}
            if len(known) == len(means):
                complete[label] = known
        return complete

    def _mark(self, name: str, arm: str) -> dict[str, Any]:
        """Return an arm's marker.

        A star never saw the images, the others start from an open square.
        """
        if arm == self.retrained(name):
            return {"marker": "*", "markersize": 10}
        if arm in {self.own[other]["base"] for other in self.judged_on(name)}:
            return {"marker": "s", "markersize": 8, "fillstyle": "none"}
        return {"marker": "o", "markersize": 5}

    def arm_by_arm(self, name: str) -> Figure:
        """Draw forgetting and quality arm by arm."""
        arms, never = self.judged_on(name), self.retrained(name)
        measures = {f"forgotten:\n{label}": of_arm for label, of_arm in self.forgets(name).items()}
        measures |= {f"rest:\n{label}": of_arm for label, of_arm in self.keeps(name).items()}
        figure, axes = figures.row_panels(arms, len(measures), height=0.32)
        for axis, (title, of_arm) in zip(axes, measures.items(), strict=True):
            for y, arm in enumerate(arms):
                style: figures.Style = {"color": self.colour[arm], "elinewidth": 1, "capsize": 2}
                error = figures.error(*of_arm[arm])
                axis.errorbar(
                    [of_arm[arm].value], [y], xerr=error, **style, **self._mark(name, arm)
                )
            if never is not None:
                axis.axvline(of_arm[never].value, color=RETRAINED_COLOUR, lw=0.7, ls=":")
            axis.set_title(title, fontsize=8)
        figure.tight_layout(w_pad=0.6)
        return figure

    def trade_off(self, name: str) -> Figure:
        """Draw forgetting against the Fréchet distance of the other classes."""
        forgets, distance = self.forgets(name), self.keeps(name)[self.frechet]
        figure, axes = figures.grid(len(forgets), len(forgets), 3.2, 3.1)
        for axis, (label, of_arm) in zip(axes, forgets.items(), strict=True):
            for arm, y in of_arm.items():
                self._draw_point(axis, name, arm, distance[arm], y)
            values = [interval.value for interval in distance.values()]
            axis.set(xlabel=f"{self.frechet} of the rest", ylabel=label)
            axis.set_xlim(0, 1.3 * max(values))
            if max(values) > 10 * min(values):
                axis.set_xlim(0.6 * min(values), 1.6 * max(values))
                figures.log_axis(axis, "x")
            if label == "membership AUC":
                axis.axhline(0.5, color="grey", linewidth=0.7, linestyle=":")
        figures.legend_right(axes[-1])
        figure.tight_layout()
        return figure

    def _draw_point(self, axis: Axes, name: str, arm: str, x: Interval, y: Interval) -> None:
        bars: figures.Style = {
            "xerr": figures.error(*x),
            "yerr": figures.error(*y),
            "elinewidth": 0.7,
        }
        colour = self.colour[arm]
        axis.errorbar([x.value], [y.value], fmt="none", ecolor=colour, alpha=0.4, **bars)
        style: figures.Style = {"linestyle": "", "color": colour, "label": arm, "zorder": 4}
        axis.plot([x.value], [y.value], **style, **self._mark(name, arm))

    # ---- along the steps

    def curves(self) -> dict[str, pd.DataFrame]:
        """Return the training curves of the arms that start from another, in several updates.

        One column per name, by update.
        """
        return {arm: curve for arm, curve in self._steps.items() if len(curve) > 1}

    @cached_property
    def _steps(self) -> dict[str, pd.DataFrame]:
        """The training curves of all arms that start from another."""
        curves = {}
        for arm in self.arms:
            if self.own[arm]["base"]:
                lines = pd.read_json(self.book.folder("train", arm, "metrics.jsonl"), lines=True)
                curves[arm] = lines.pivot_table(index="step", columns="name", values="value")
        return curves

    def at_once(self) -> str:
        """Return which arms have no curve, as a sentence; nothing if none."""
        arms = [arm for arm, curve in self._steps.items() if len(curve) < 2]
        return f"Changed in one step, without a curve: {', '.join(arms)}." if arms else ""

    def losses(self) -> Figure:
        """Draw the losses of each method by update."""
        curves = self.curves()
        figure, axes = figures.grid(len(curves), 3, 3, 2.2)
        entries: dict[str, Any] = {}
        for axis, (arm, curve) in zip(axes, curves.items(), strict=True):
            (entries["loss of the rest"],) = axis.plot(curve.index, curve["loss"], color="0.35")
            if "forget_loss" in curve:
                (line,) = axis.plot(curve.index, curve["forget_loss"], color="C3")
                entries["forgetting loss"] = line
            figures.log_axis(axis, "y")
            axis.set_title(arm, fontsize=9)
            axis.set(xlabel="update", ylabel="loss")
        figure.tight_layout()
        figures.legend_below(figure, entries)
        return figure

    def erasing(self) -> dict[str, pd.DataFrame]:
        """Return the curves of EraseDiff's arms."""
        curves = self.curves()
        return {
            arm: curve for arm, curve in curves.items() if self.own[arm]["method"] == "erasediff"
        }

    def gradients(self) -> Figure:
        """Draw the agreement of EraseDiff's two gradients, and the result of its rule."""
        figure, axes = figures.grid(3, 3, 3.2, 2.8)
        lines = {}
        for arm, curve in self.erasing().items():
            style: figures.Style = {"color": self.colour[arm]}
            (lines[arm],) = axes[0].plot(curve.index, curve["cosine"], **style)
            axes[1].plot(curve.index, curve["lambda"], **style)
            axes[2].plot(curve.index, curve["descent_asked"], **style)
            if "barrier" in curve:
                style |= {"linewidth": 0.9, "linestyle": ":"}
                (lines["barrier"],) = axes[2].plot(curve.index, curve["barrier"], **style)
        axes[0].axhline(0, color="grey", linewidth=0.7)
        axes[2].set_yscale("symlog", linthresh=1e-3)
        titles = ("cosine of the two gradients", "lambda", "descent of the forgetting loss")
        for axis, title in zip(axes, titles, strict=True):
            axis.set_title(title, fontsize=9)
            axis.set_xlabel("update")
        figure.tight_layout()
        figures.legend_below(figure, lines)
        return figure

    def gradient_summary(self) -> str:
        """Return the means of ``gradients``, a line per arm, in Markdown."""
        lines = []
        for arm, curve in self.erasing().items():
            settings, facts = self.own[arm], self.runs[arm]["facts"]
            negative = 100 * (curve["cosine"] < 0).mean()
            lines.append(
                f"**{arm}** (target {settings['target']}, barrier {settings['barrier']}): mean "
                f"cosine {curve['cosine'].mean():.3f}, negative in {negative:.0f} % of the points; "
                "mean "
                f"lambda {curve['lambda'].mean():.3g}; the forgotten images moved the weights in "
                f"{facts['pushed_updates']} of {facts['updates']} updates."
            )
        return "  \n".join(lines)

    # ---- pictures

    def pictures(self, name: str) -> Figure:
        """Draw generations of every arm from the same noise.

        Those of the forgotten class, and others.
        """
        drawn = {
            arm: load_images(self.book.folder("sample", arm, "images.npz"))
            for arm in self.judged_on(name)
        }
        label = self.definitions[name]["label"]
        words = self.definitions[name]["caption"]
        labelled = [arm for arm, images in drawn.items() if images.labels.max() >= 0]
        prompted = [arm for arm, images in drawn.items() if (images.captions != "").any()]
        if label is not None and labelled:
            labels = drawn[labelled[0]].labels
            blocks = {
                f"asked for class {label}": np.flatnonzero(labels == label)[:COLUMNS],
                "asked for other classes": np.flatnonzero(labels != label)[:COLUMNS],
            }
            drawn = {arm: drawn[arm] for arm in labelled}
        elif words is not None and prompted:
            asked = forget.mentions(drawn[prompted[0]].captions, words)
            blocks = {
                f"prompts with {words!r}": np.flatnonzero(asked)[:COLUMNS],
                "other prompts": np.flatnonzero(~asked)[:COLUMNS],
            }
            drawn = {arm: drawn[arm] for arm in prompted}
        else:
            blocks = {"generations": np.arange(2 * COLUMNS)}
        figure, axes = figures.grid(len(drawn), 1, 0.5 * 2 * COLUMNS + 0.3, 0.55)
        for axis, (arm, images) in zip(axes, drawn.items(), strict=True):
            strips = [figures.side_by_side(list(images.pixels[rows])) for rows in blocks.values()]
            figures.picture(axis, figures.side_by_side(strips, gap=strips[0].shape[0] // 2))
            figures.row_title(axis, arm)
        sides = ("left: ", "; right: ") if len(blocks) > 1 else ("",)
        title = "".join(side + block for side, block in zip(sides, blocks, strict=True))
        axes[0].set_title(title, fontsize=8)
        figure.subplots_adjust(hspace=0.05)
        return figure

    # ---- class by class

    def by_class(self, name: str) -> pd.DataFrame:
        """Return the share classified as the requested class: rows are arms, columns labels."""
        label = self.definitions[name]["label"]
        rows = self.numbers.query("set == @name and metric == 'accuracy_by_label'")
        if label is None or rows.empty:
            return pd.DataFrame()
        asked = rows["subset"].str.removeprefix("label=").astype(int)
        table = rows.assign(label=asked).groupby(["arm", "label"])["value"].mean().unstack()
        own = {arm: self.mean(self.of_forgotten(name, arm, "classified")) for arm in table.index}
        table[label] = pd.Series({arm: mean.value for arm, mean in own.items() if mean is not None})
        arms = [arm for arm in self.judged_on(name) if arm in table.index]
        return table.loc[arms, sorted(table.columns)]

    def classes(self, name: str) -> Figure:
        """Draw ``by_class``."""
        table, label = self.by_class(name), self.definitions[name]["label"]
        figure, (axis,) = figures.grid(
            1, 1, 0.55 * len(table.columns) + 1.6, 0.34 * len(table) + 0.8
        )
        axis.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (y, x), value in np.ndenumerate(table.to_numpy()):
            style: figures.Style = {"ha": "center", "va": "center", "fontsize": 8}
            axis.text(
                x, y, f"{100 * value:.0f}", color="white" if value > 0.6 else "black", **style
            )
        named = [f"{of}\nforgotten" if of == label else str(of) for of in table.columns]
        axis.set_xticks(range(len(named)), named, fontsize=8)
        axis.set_yticks(range(len(table)), table.index, fontsize=8)
        axis.set_xlabel("label asked for")
        axis.tick_params(length=0)
        return figure

    # ---- relearning

    def relearning_curves(self, name: str) -> dict[str, pd.DataFrame]:
        """Return, per arm, mean probability and loss by update of the relearning attack."""
        curves = {}
        for arm in self.judged_on(name):
            paths = [
                self.book.folder("attack", arm, "forgetting", "relearning.csv", replicate=k)
                for k in range(self.replicates)
            ]
            rows = pd.concat([pd.read_csv(path) for path in paths]).query("set == @name")
            curves[arm] = rows.groupby("update")[["probability", "loss"]].mean()
        return curves

    def relearning(self, name: str) -> Figure:
        """Draw ``relearning_curves``; the probability only where the set has a class."""
        curves = self.relearning_curves(name)
        classed = any(curve["probability"].notna().any() for curve in curves.values())
        panels = list(RELEARNED) if classed else ["loss"]
        figure, axes = figures.grid(len(panels), 2, 4.2, 3)
        for axis, column in zip(axes, panels, strict=True):
            for arm, curve in curves.items():
                style: figures.Style = {
                    "color": self.colour[arm],
                    "label": arm,
                    "marker": ".",
                    "linewidth": 1.2,
                }
                axis.plot(curve.index, curve[column], **style)
            axis.set_xlabel("updates on the forgotten images alone")
            axis.set_title(RELEARNED[column], fontsize=9)
        if classed:
            axes[0].axhline(self.settings["relearn_probability"], color="grey", lw=0.7, ls=":")
            axes[0].set_ylim(-0.03, 1.03)
        losses = pd.concat([curve["loss"] for curve in curves.values()])
        if losses.max() > 5 * losses.min():
            figures.log_axis(axes[-1], "y")
        figures.legend_right(axes[-1])
        figure.tight_layout()
        return figure

    def relearning_updates(self, name: str) -> str:
        """Return when the class was relearned, a line per arm, in Markdown.

        Nothing for sets without a class.
        """
        updates = {arm: self.relearned(name, arm) for arm in self.judged_on(name)}
        lines = [f"**{arm}**: {of}" for arm, of in updates.items() if of]
        if not lines:
            return ""
        head = (
            f"Updates after which the class has a mean probability of "
            f"{self.settings['relearn_probability']:g} (measured every "
            f"{self.settings['relearn_every']} updates):"
        )
        return "  \n".join([head, *lines])

    # ---- verdicts

    def measured(self, measure: str, name: str, arm: str) -> pd.DataFrame:
        """Return the rows of a number of ``compared_in``.

        Lower is better in all.
        """
        if measure in COMPARED:
            return self.of_forgotten(name, arm, *COMPARED[measure])
        return self.of_rest(name, arm, self.frechet)

    def compared_in(self) -> tuple[str, ...]:
        """Return the names of the numbers that arms are compared in."""
        return *COMPARED, f"{self.frechet} of the rest"

    def judged(self, name: str, asked: Iterable[Asked]) -> dict[Asked, tuple[Difference, str]]:
        """Return differences of arms to others, and the verdicts, adjusted for how many there are.

        Args:
            name: The forget set.
            asked: What is compared, each an arm, another arm and a number of ``compared_in``; left
                out where a number is missing.
        """
        found = {}
        for arm, other, measure in asked:
            values, others = (self.measured(measure, name, which) for which in (arm, other))
            if len(values) and len(others):
                found[arm, other, measure] = comparison.difference(
                    values, others, self.book.confidence
                )
        table = [(difference, "lower") for difference in found.values()]
        verdicts = comparison.judged(table, self.book.confidence)
        return {
            key: (difference, verdict)
            for (key, difference), verdict in zip(found.items(), verdicts, strict=True)
        }

    def against_base_and_retrained(self, name: str) -> pd.DataFrame:
        """Return one row per arm that starts from another.

        Its differences, and updates to relearn.
        """
        arms, never = self.judged_on(name), self.retrained(name)
        base_of = {arm: base for arm in arms if (base := self.own[arm]["base"]) in arms}
        found = self.judged(
            name,
            (
                (arm, other, measure)
                for arm, base in base_of.items()
                for other in filter(None, (base, never))
                for measure in self.compared_in()
            ),
        )
        rows: Table = []
        for arm in base_of:
            row: dict[str, object] = {"arm": format.bold(arm)}
            for (one, other, measure), result in found.items():
                if one == arm:
                    row[f"{measure}, to {other}"] = worded(*result)
            if back := self.relearned(name, arm):
                compared = f" ({never}: {self.relearned(name, never)})" if never else ""
                row[f"back after{compared}"] = back
            rows.append(row)
        frame = pd.DataFrame(rows, dtype=object).fillna("")
        return frame.loc[:, (frame != "").any()]

    def others(self, name: str) -> str:
        """Return a description of the arms that ``against_base_and_retrained`` compares with."""
        if self.retrained(name):
            return "its base and the arm that never saw the images"
        return "its base; no arm was retrained without the images"

    def published_order(self, name: str) -> Table:
        """Return EraseDiff's published order among the methods, and the order here.

        A row per pair and number.
        """
        arms = self.judged_on(name) if self.definitions[name]["label"] is not None else []
        erasing = [arm for arm in arms if self.role[arm].startswith("EraseDiff")]
        others = [arm for arm in arms if self.role[arm] in ERASEDIFF and arm not in erasing]
        keys = {"P_psi": "probability", f"{self.frechet} of the rest": "fid"}
        asked = [(arm, other, measure) for arm in erasing for other in others for measure in keys]
        rows: Table = []
        for (arm, other, measure), (found, verdict) in self.judged(name, asked).items():
            value, another = (
                getattr(ERASEDIFF[self.role[which]], keys[measure]) for which in (arm, other)
            )
            is_lower = value < another
            published = f"{'lower' if is_lower else 'higher'} ({value} against {another})"
            rows.append(
                {
                    "arm": arm,
                    "against": other,
                    "measure": measure,
                    "published (second-hand)": published,
                    "here": worded(found, verdict),
                    "the order": order(verdict, is_lower),
                }
            )
        return rows


def _of(quality: pd.DataFrame, arm: str, metric: str) -> pd.DataFrame:
    """Return the rows of one number of an arm."""
    return quality[(quality["arm"] == arm) & (quality["metric"] == metric)]


def with_exact_intervals(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return the table ``forgetting`` with exact intervals as ``low`` and ``high`` if known."""
    exact = numbers["exact_low"].notna()
    ends = {end: numbers[end].where(~exact, numbers[f"exact_{end}"]) for end in ("low", "high")}
    return numbers.assign(**ends)


def worded(found: Difference, verdict: str) -> str:
    """Return a difference and its verdict, as HTML."""
    words = WORDS.get(verdict, verdict)
    if found.method == comparison.WITHIN:
        words = "the same in all trainings"
    return format.Markup("{}: {}").format(words, format.interval(*found.change, sign="+"))


def order(verdict: str, lower: bool) -> str:
    """Return whether two methods are in the published order, where the first may be ``lower``."""
    if verdict not in WORDS:
        return verdict
    same = (verdict == comparison.BETTER) == lower
    return format.bold("as published" if same else "the other way round")


def counted(rows: Table) -> str:
    """Return the number of pairs in each order, as a sentence."""
    orders = pd.Series([format.Markup(row["the order"]).striptags() for row in rows])
    counts = ", ".join(f"{count} {what}" for what, count in orders.value_counts().items())
    return f"Of these {len(rows)} pairs: {counts}."
