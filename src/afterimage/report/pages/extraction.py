"""The page of the extraction attack: the training images that a model reproduces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from afterimage import artifacts
from afterimage.images import Images, load_images
from afterimage.report import figures, format, prompts
from afterimage.report.format import Table
from afterimage.report.names import frechet_of, is_share, name_of, unit_of
from afterimage.report.notebook import Notebook, by_keys
from afterimage.report.published import STABLE_DIFFUSION

OWN, CONTROL, HELD_OUT = "C0", "0.55", "black"
"""Colours of an arm, of the arm it is compared with (naming every arm would take more colours than
the eye can distinguish), and of real images that no model saw."""
FEW = 4
"""Maximum number of arms shown in full; of more, the first are."""
DISTANCES = {
    "distances": ("l2", "distance to the nearest training image (RMS of pixels in [0, 1])"),
    "ratios": ("ratio_training", "ratio to the mean distance of its neighbours"),
}
"""Figure -> column of the pairs, and the label of its axis."""
THRESHOLDS = {
    "multiplicity": ("calibrated", "calibrated on held-out images"),
    "multiplicity_published_threshold": ("fixed", "as published"),
}
"""Figure -> alpha of the table of copies, and how it is chosen."""
CALIBRATED = (
    *("flagged_generations_calibrated", "flagged_holdout_calibrated"),
    *("planted_extracted_calibrated", "twins_flagged_calibrated"),
    "unique_images_calibrated",
)


class Extraction:
    """The content of the page for a study.

    Args:
        book: The notebook.
        arms: Names of the arms, in the order of the study.
        replicates: Trainings of each.

    Attributes:
        in_full: The arms that are shown in full.
    """

    def __init__(self, book: Notebook, arms: Sequence[str], replicates: int) -> None:
        self.book, self.arms, self.replicates = book, arms, replicates
        self.headline, self.copies = book.table("arms"), book.table("copies")
        self.repeats = book.table("repeats")
        self.cell = by_keys(self.headline, "arm", "metric")
        self.control_of = book.controls()
        self.in_full = arms if len(arms) <= FEW else arms[:1]
        self.metrics = list(dict.fromkeys(self.headline["metric"]))
        self.frechet = frechet_of(self.metrics)

    def has(self, arm: str, metric: str) -> bool:
        """Return whether an arm has a headline number."""
        return (arm, metric) in self.cell

    def value(self, arm: str, metric: str) -> str:
        """Return a headline number with its interval; empty if missing."""
        if not self.has(arm, metric):
            return ""
        row = self.cell[arm, metric]
        return format.interval(row["value"], row["low"], row["high"], unit=unit_of(metric))

    def provenance(self, study: str) -> str:
        """Return the study, seed and code of the page, in Markdown."""
        record = self.book.training(self.arms[0])
        environment = record["environment"]
        changed = " (changed since that commit)" if environment["git_dirty"] else ""
        return (
            f"Study `{study}`, {self.replicates} replicate(s) of {len(self.arms)} arms, seed "
            f"{record['config']['seed']}; code `{(environment['git_commit'] or 'unknown')[:10]}`"
            f"{changed}, environment lock `{(environment['lock_sha256'] or 'unknown')[:10]}`."
        )

    # ---- the verdict of the attack

    def facts(self, arm: str, replicate: int) -> dict[str, Any]:
        """Return the facts in ``run.json`` of one attack."""
        folder = self.book.folder("attack", arm, "extraction", replicate=replicate)
        return artifacts.read_run(folder)["facts"]

    def answers(self) -> Table:
        """Return one row per training: whether and how often it copies, with bounds."""
        cells = [(arm, k) for arm in self.arms for k in range(self.replicates)]
        return [{"arm": arm, "training": k, **answer(self.facts(arm, k))} for arm, k in cells]

    def sentences(self) -> str:
        """Return the attack's own sentence about the arms shown in full, in Markdown."""
        return "\n\n".join(
            f"**{arm}**: {self.facts(arm, 0)['verdict']['sentence']}" for arm in self.in_full
        )

    def smallest_rate(self) -> str:
        """Return the smallest false-alarm rate that can be shown, as a sentence."""
        cells = [(arm, k) for arm in self.arms for k in range(self.replicates)]
        smallest = max(self.facts(*cell)["holdout_smallest_rate"] for cell in cells)
        share = f"{100 * smallest:.2g} %"
        limit = f"false-alarm rates below about {share} cannot be shown"
        return f"With this many held-out images, {limit}."

    # ---- the arms at a glance

    def at_a_glance(self) -> Table:
        """Return one row per arm: the headline numbers of the attack and the Fréchet distance."""
        shown = [*CALIBRATED, "flagged_generations", "flagged_holdout", self.frechet]
        metrics = [metric for metric in shown if metric in self.metrics]
        return [
            {"arm": format.bold(arm)} | {name_of(m): self.value(arm, m) for m in metrics}
            for arm in self.arms
        ]

    def scope(self) -> str:
        """Return a sentence about what the intervals cover and what they do not."""
        if self.replicates == 1:
            return (
                "They cover **these images and generations**; only several replicates show the "
                "variation between trainings."
            )
        if self.book.plantings == 1:
            return "They cover another training and sampling of the same arm on the same images."
        return (
            "They cover another training and sampling of the same arm, with other images of the "
            "same pool planted."
        )

    # ---- pairs

    def pairs(self, arm: str, count: int) -> pd.DataFrame:
        """Return the pairs of an arm with the smallest ratios, one per training image."""
        path = self.book.folder("attack", arm, "extraction", "pairs.parquet")
        pairs = pd.read_parquet(path).sort_values("ratio_training")
        return pairs.drop_duplicates("nearest_source").head(count)

    def pair_figures(self, count: int) -> Iterator[tuple[str, Figure]]:
        """Draw the best ``count`` pairs of each arm shown in full, and six of every arm."""
        training = load_images(self.book.planting() / "train.npz")
        for arm in self.in_full:
            figure, axes = figures.grid(count, 8, 1.45, 1.15)
            self._draw_pairs(axes, arm, count, training)
            figure.suptitle(f"{arm}: generation | nearest training image", fontsize=10)
            figure.tight_layout()
            yield f"pairs_{arm}", figure
        if len(self.in_full) < len(self.arms):
            yield "pairs", self._sheet(training)

    def _sheet(self, training: Images) -> Figure:
        columns = 6
        figure, axes = figures.grid(columns * len(self.arms), columns, 1.45, 0.95)
        for row, arm in zip(np.reshape(axes, (-1, columns)), self.arms, strict=True):
            self._draw_pairs(row, arm, columns, training)
            row[0].axis("on")
            figures.row_title(row[0], arm)
        figure.suptitle(
            "every arm: generation | nearest training image, its six smallest ratios",
            fontsize=10,
            y=1,
        )
        figure.tight_layout(h_pad=0.3)
        return figure

    def _draw_pairs(self, axes: Sequence[Axes], arm: str, count: int, training: Images) -> None:
        generations = load_images(self.book.folder("sample", arm, "images.npz"))
        generation_row, training_row = (
            {name: row for row, name in enumerate(images.ids)} for images in (generations, training)
        )
        pairs = self.pairs(arm, count)
        for axis, pair in zip(axes, pairs.to_dict("records"), strict=False):
            images = [
                generations.pixels[generation_row[pair["sample"]]],
                training.pixels[training_row[pair["nearest"]]],
            ]
            figures.picture(axis, figures.side_by_side(images))
            title = f"{pair['l2']:.3f}  ratio {pair['ratio_training']:.2f}"
            axis.set_title(title, fontsize=7, pad=2)
        for axis in axes[len(pairs) :]:
            axis.axis("off")

    def pair_tables(self, count: int) -> Iterator[tuple[str, pd.DataFrame]]:
        """Return the numbers of the best pairs of each arm shown in full, without pictures."""
        for arm in self.in_full:
            yield (
                arm,
                self.pairs(arm, count)[["sample", "nearest", "l2", "ratio_training"]].round(4),
            )

    # ---- distances

    def distances(self, name: str) -> Figure:
        """Draw distances (a key of ``DISTANCES``) of generations and of held-out images."""
        column, label = DISTANCES[name]
        figure, axes = figures.grid(len(self.arms), 4, 2.6, 2.1, sharex=True)
        both = {arm: [self._column(arm, of, column) for of in PAIRS] for arm in self.arms}
        values = np.concatenate([values for pair in both.values() for values in pair])
        bins = np.linspace(0, np.quantile(values[np.isfinite(values)], 0.995), 50)
        density: figures.Style = {"bins": bins, "density": True}
        for axis, (arm, (generated, held_out)) in zip(axes, both.items(), strict=True):
            filled = axis.hist(generated, **density, histtype="stepfilled", alpha=0.6, color=OWN)[2]
            outline = axis.hist(held_out, **density, histtype="step", color=HELD_OUT)[2]
            axis.set_yticks([])
            axis.set_title(arm, fontsize=9)
            entries = {"generations": filled[0], "real held-out images": outline[0]}
            if name == "ratios":
                entries["published threshold"] = axis.axvline(1, color=figures.FLOOR, lw=0.8)
        figure.supxlabel(label, fontsize=9)
        figure.supylabel("density", fontsize=9)
        figure.tight_layout()
        figures.legend_below(figure, entries)
        return figure

    def _column(self, arm: str, pairs: str, column: str) -> np.ndarray:
        path = self.book.folder("attack", arm, "extraction", f"{pairs}.parquet")
        return pd.read_parquet(path)[column].to_numpy(float)

    def below_one(self) -> str:
        """Return which shares have a ratio of at most 1, per arm shown in full, in Markdown."""
        lines = []
        for arm in self.in_full:
            generated, held_out = (
                format.interval(self.cell[arm, f"flagged_{of}"]["value"], unit="%")
                for of in ("generations", "holdout")
            )
            lines.append(
                f"**{arm}**: {generated} of generations and {held_out} of real held-out images "
                "have a ratio of at most 1."
            )
        return "  \n".join(lines)

    # ---- multiplicity

    def multiplicity(self, name: str) -> Figure:
        """Draw the share extracted against copies, at a threshold (a key of ``THRESHOLDS``)."""
        alpha, threshold = THRESHOLDS[name]
        figure, axes = figures.grid(len(self.arms), 4, 2.6, 2.1, sharex=True, sharey=True)
        ticks = sorted(self.copies["copies"].unique())
        for axis, arm in zip(axes, self.arms, strict=True):
            for other, colour, shift in self._with_control(arm):
                self._draw_multiplicity(axis, other, alpha, colour, shift)
            axis.set_title(arm + self._control_note(arm), fontsize=8)
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, [str(copies) for copies in ticks])
            axis.set_ylim(-0.04, 1.04)
            figures.percent_axis(axis, "y")
        figure.supxlabel(
            f"copies in the training set as planted (threshold {threshold})", fontsize=9
        )
        figure.supylabel("share of images extracted", fontsize=9)
        figure.tight_layout()
        entries = {"trained": figures.dot(OWN), "never-trained twins": figures.dot(OWN, "x")}
        figures.legend_below(figure, entries | {"control": figures.dot(CONTROL)})
        return figure

    def _with_control(self, arm: str) -> list[tuple[str, str, float]]:
        """Return an arm and its control, with their colours and a shift that keeps them apart."""
        control = [(self.control_of[arm], CONTROL, 1 / 1.06)] if arm in self.control_of else []
        return [*control, (arm, OWN, 1.06)]

    def _control_note(self, arm: str) -> str:
        return f"\n(grey: {self.control_of[arm]})" if arm in self.control_of else "\n"

    def _draw_multiplicity(
        self, axis: Axes, arm: str, alpha: str, colour: str, shift: float
    ) -> None:
        chosen = (self.copies["arm"] == arm) & (self.copies["alpha"] == alpha)
        rows = self.copies[chosen].sort_values("copies")
        lengths = [rows["share"] - rows["low"], rows["high"] - rows["share"]]
        style: figures.Style = {
            "marker": "o",
            "markersize": 3,
            "linewidth": 1,
            "capsize": 1.5,
            "color": colour,
        }
        x, error = rows["copies"] * shift, np.clip(np.stack(lengths), 0, None)
        axis.errorbar(x, rows["share"], error, **style)
        twins = rows.dropna(subset=["twins_share"])
        x = twins["copies"] * shift
        axis.plot(x, twins["twins_share"], "x", markersize=4, color=colour)

    # ---- what is planted

    def planted_apart(self) -> Table:
        """Return one row per arm, what was planted and how often: the share of images extracted,
        and that of their twins; no rows if images were planted with their captions only."""
        chosen = self.repeats[self.repeats["alpha"] == "calibrated"]
        rows = []
        for arm in self.arms:
            for row in chosen[chosen["arm"] == arm].to_dict("records"):
                extracted = format.interval(row["share"], row["low"], row["high"], unit="%")
                twins = row["twins_share"]
                rows.append(
                    {
                        "arm": format.bold(arm),
                        "what is repeated": row["repeat"],
                        "how often": row["times"],
                        "images": row["images"],
                        "extracted": extracted,
                        "twins": "" if np.isnan(twins) else format.interval(twins, unit="%"),
                    }
                )
        return rows

    # ---- prompts

    def prompts(self) -> Table:
        """Return one row per arm and detector of memorised prompts: the area under the curve of
        captions of training before held-out ones, of all and by how they were planted; no rows if
        prompts were not attacked."""
        rows: Table = []
        for arm in self.arms:
            for detector, groups in prompts.areas(self.metrics).items():
                areas = {group: self.value(arm, metric) for group, metric in groups.items()}
                if areas[prompts.ALL]:
                    rows.append({"arm": format.bold(arm), "detector": detector, **areas})
        return rows

    def prompts_extracted(self) -> Table:
        """Return one row per arm and group of captions: how many are flagged, and how many give a
        training image away; no rows if that was not measured."""
        return [
            {"arm": format.bold(found.arm), "captions": found.group, "of": found.of}
            | {
                heading: Markup("{}: {}").format(count, self.value(found.arm, metric))
                for heading, (count, metric) in found.shares.items()
            }
            for found in prompts.extracted(self.book.table("prompts"))
        ]

    @property
    def prompted(self) -> list[str]:
        """The arms whose prompts were searched for training images."""
        return [arm for arm in self.arms if self.has(arm, "prompts_extracted[all]")]

    def prompts_ranked(self) -> Figure:
        """Draw precision against the number of captions extracted (figure 4 of Carlini et al. 2023)
        of each arm, one line per training."""
        ranked = self.book.table("prompts_ranked")
        figure, axes = figures.grid(len(self.prompted), 4, 2.6, 2.1, sharex=True, sharey=True)
        style: figures.Style = {"marker": ".", "markersize": 4, "linewidth": 1, "alpha": 0.8}
        for axis, arm in zip(axes, self.prompted, strict=True):
            for _, curve in ranked[ranked["arm"] == arm].groupby("replicate"):
                for column, colour in (("false", CONTROL), ("extracted", OWN)):
                    share = curve[column] / curve["flagged"]
                    axis.plot(curve["extracted"], share, color=colour, **style)
            axis.set_title(arm, fontsize=8)
            axis.set(xlim=(0, None), ylim=(-0.04, 1.04))
            figures.percent_axis(axis, "y")
        figure.supxlabel("captions extracted, those whose images agree best first", fontsize=9)
        figure.supylabel("share of those flagged", fontsize=9)
        figure.tight_layout()
        entries = {"extracted (precision)": figures.dot(OWN, ".")}
        figures.legend_below(
            figure, entries | {"as near to a held-out image": figures.dot(CONTROL, ".")}
        )
        return figure

    def prompts_published(self) -> Table:
        """Return what is published of Stable Diffusion next to each arm's captions of training, one
        number per training."""
        ranked, numbers = self.book.table("prompts_ranked"), self.book.table("prompts")
        asked = numbers[(numbers["metric"] == "prompts_flagged") & (numbers["subset"] == "all")]
        cells: dict[str, dict[str, list[str]]] = {}
        for arm in self.prompted:
            for k in range(self.replicates):
                folder = self.book.folder("attack", arm, "prompts", replicate=k)
                settings = artifacts.read_run(folder)["config"]["settings"]
                of = asked[(asked["arm"] == arm) & (asked["replicate"] == k)]["of"].item()
                curve = ranked[(ranked["arm"] == arm) & (ranked["replicate"] == k)]
                for name, text in prompts.as_published(curve, of, settings).items():
                    cells.setdefault(name, {}).setdefault(arm, []).append(text)
        rows: Table = []
        for name, known in STABLE_DIFFUSION.items():
            row: dict[str, object] = {"quantity": name, "published": known.statement}
            row["evidence"] = known.evidence
            for arm, texts in cells.get(name, {}).items():
                row[arm] = ", ".join(texts if len(set(texts)) > 1 else texts[:1])
            rows.append(row)
        return rows

    # ---- side by side

    def side_by_side(self) -> Figure:
        """Draw all arms.

        Extraction and quality, each with the same measure of images never seen.
        """
        shown = [
            *("flagged_generations_calibrated", "planted_extracted_calibrated"),
            *("unique_images_calibrated", "flagged_generations", self.frechet),
        ]
        metrics = [metric for metric in shown if metric in self.metrics]
        figure, axes = figures.row_panels(self.arms, len(metrics), width=2.1, height=0.24)
        for axis, metric in zip(axes, metrics, strict=True):
            for y, arm in enumerate(self.arms):
                self._draw_value(axis, y, arm, metric)
            axis.set_title(name_of(metric).replace(", ", ",\n"), fontsize=8)
            if metric == self.frechet:
                figures.log_axis(axis, "x", most=4)
            else:
                axis.set_xlim(left=0)
            if is_share(metric):
                figures.percent_axis(axis, "x")
        figure.tight_layout()
        entries = {"arm": figures.dot(OWN), "never seen": figures.dot(HELD_OUT, "|")}
        figures.legend_below(figure, entries)
        return figure

    def _draw_value(self, axis: Axes, y: int, arm: str, metric: str) -> None:
        if self.has(arm, metric):
            row = self.cell[arm, metric]
            error = figures.error(row["value"], row["low"], row["high"])
            style: figures.Style = {
                "fmt": "o",
                "markersize": 4,
                "color": OWN,
                "capsize": 2,
                "linewidth": 1,
            }
            axis.errorbar([row["value"]], [y], xerr=error, **style)
        floor = floor_of(metric)
        if self.has(arm, floor):
            value = self.cell[arm, floor]["value"]
            axis.plot([value] * 2, [y - 0.3, y + 0.3], color=HELD_OUT, linewidth=1.2)

    def passes(self) -> str:
        """Return the number of passes of each arm over its training images, as a sentence."""
        passes = (f"{arm} {self.cell[arm, 'passes']['value']:.3g}" for arm in self.arms)
        return f"Passes over the training images: {', '.join(passes)}."

    # ---- precision and recall

    def precision_recall(self) -> Figure:
        """Draw how well the attack separates planted images from their never-trained twins."""
        figure, axes = figures.grid(len(self.arms), 4, 2.6, 2.1, sharex=True, sharey=True)
        for axis, arm in zip(axes, self.arms, strict=True):
            for other, colour, _ in self._with_control(arm):
                path = self.book.folder("attack", other, "extraction", "precision_recall.csv")
                curve = pd.read_csv(path).astype(float)
                axis.plot(curve["recall"], curve["precision"], color=colour, linewidth=1.2)
            axis.axhline(0.5, color="0.3", linewidth=0.7, linestyle=":")
            ranked = self.has(arm, "average_precision")
            value = self.cell[arm, "average_precision"]["value"] if ranked else np.nan
            title = f"{arm}  AP {value:.2f}" if ranked else arm
            axis.set_title(title + self._control_note(arm), fontsize=8)
            axis.set(xlim=(0, 1.02), ylim=(0, 1.04), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        figure.supxlabel("recall of planted images", fontsize=9)
        figure.supylabel("precision against their twins", fontsize=9)
        figure.tight_layout()
        return figure

    # ---- tables

    def deduplication(self) -> pd.DataFrame:
        """Return the scores of each deduplication method, means over the plantings, one column per
        method."""
        scores = self.book.table("dedup").drop(columns="planting")
        table = scores.groupby("method", sort=False).mean().T
        table = table.map(lambda value: format.interval(value, digits=4))
        return table.rename_axis(None, axis=1).reset_index(names="")

    def every_number(self) -> str:
        """Return all numbers of every arm as HTML, collapsed by arm."""
        extraction = self.book.table("extraction").query("subset == 'all'").drop(columns="subset")
        folded = []
        for arm in self.arms:
            tables = (
                format.plain_table(table[table["arm"] == arm].drop(columns="arm"))
                for table in (extraction, self.book.table("quality"))
            )
            folded.append(f"<details><summary>{arm}</summary>{''.join(tables)}</details>")
        return "".join(folded)


PAIRS = ("pairs", "holdout_pairs")


def answer(facts: dict[str, Any]) -> dict[str, object]:
    """Return the attack's answer about one training, from its facts: heading -> cell."""
    verdict = facts["verdict"]
    rate = verdict["visible_rate"]
    return {
        "answer": verdict["outcome"],
        "copies, at least": verdict["copies"],
        "generations": verdict["generations"],
        "nearer than chance": verdict["flagged"],
        "false alarms, at most": verdict["false_alarms"],
        "training images, at least": verdict["images_at_least"],
        "copying rate that would be seen": "none" if rate is None else f"{100 * rate:.2g} %",
        "held-out images": verdict["held_out"],
        "left out as duplicates": sum(facts["holdout_left_out"].values()),
        "blank or blurred": facts["low_detail_generations"],
        "without a ratio": max(facts["zero_means_generations"].values()),
        "no calibrated alpha": ", ".join(facts["calibration_impossible"]),
    }


def floor_of(metric: str) -> str:
    """Return the corresponding metric of images that the model never saw."""
    if metric == "planted_extracted_calibrated":
        return "twins_flagged_calibrated"
    return (
        metric.replace("generations", "holdout")
        if "generations" in metric
        else f"{metric} of holdout"
    )
