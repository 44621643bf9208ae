"""The page of IET-AGC: averaged shards and skipped samples, next to controls of equal budget."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from afterimage import artifacts
from afterimage.attacks.twins import WITH_CAPTIONS
from afterimage.metrics import replicates as over
from afterimage.metrics.ranking import roc_auc
from afterimage.report import arms as roles
from afterimage.report import comparison, figures, format
from afterimage.report.comparison import Difference, Interval, over_replicates, student
from afterimage.report.format import Table
from afterimage.report.names import alignment_of, frechet_of, space_of
from afterimage.report.notebook import Notebook
from afterimage.report.published import IET_AGC, IET_AGC_TAUS, Claim

BUDGETS = {
    "updates": "updates in all",
    "updates_per_model": "updates per network",
    "kept_samples": "samples with gradient",
}
"""Fact of a training -> its name on the page."""
NO_EFFECT = ("checkpoint_every", "log_every")
"""Settings of a training that change no weight."""
HELD_OUT = "real held-out images"
MEMORISED = {False: ("0.65", "others"), True: ("C3", "memorised by plain training")}
"""Whether images are memorised -> colour and label."""
WORDS = {
    comparison.BETTER: "holds here",
    comparison.WORSE: "the opposite holds here",
    comparison.UNSEEN: "undecided here: no difference is shown",
    comparison.UNMEASURED: "not measured here",
    comparison.ONE_TRAINING: comparison.ONE_TRAINING,
    comparison.NOT_TESTABLE: comparison.NOT_TESTABLE,
    comparison.TRAINED_LESS: (
        "lower here, but so may any network be that was trained for as few updates: the other "
        "was trained longer"
    ),
}
"""Verdict -> its wording for a claim."""
QUALITY_WORDS = WORDS | {
    comparison.WORSE: "does not hold here: higher",
    comparison.UNSEEN: "no increase seen here, which does not rule one out",
    comparison.BETTER: "lower here, class shares included",
}
"""The same for the claim that quality is no worse."""


class Change(NamedTuple):
    """An arm's difference to another in one number.

    Attributes:
        kind: ``default`` (plain training) or ``control`` (of equal budget).
        tau: Threshold of MQ; None for the Fréchet distance.
        found: arm - other.
        relative: Change relative to the other arm; NaN if its number is 0.
    """

    arm: str
    kind: str
    other: str
    number: str
    tau: float | None
    found: Difference
    relative: float
    verdict: str = ""

    @property
    def unit(self) -> format.Unit:
        """MQ is a share of the generations."""
        return "" if self.tau is None else "points"


class Skipping(NamedTuple):
    """How often an arm skips images planted several times, and others: shares of visits."""

    arm: str
    planted: float
    other: float
    found: Difference
    verdict: str = ""


class Losses(NamedTuple):
    """Losses of memorised images and of others under an arm.

    Attributes:
        memorised, others: Median losses.
        found: Difference of the mean logarithms of the losses.
        auc: How well the loss separates them.
    """

    arm: str
    memorised: float
    others: float
    found: Difference
    auc: float
    verdict: str = ""

    @property
    def ratio(self) -> Interval:
        """Ratio of the geometric means."""
        return Interval(*np.exp(self.found.change))


class IetAgc:
    """The content of the page for a study.

    Args:
        book: The notebook.
        arms: Names of the arms, in the order of the study.
        replicates: Trainings of each.

    Attributes:
        iet: Arms of the method.
        skipping: Arms that skip samples.
        default_of: Arm of the method -> the corresponding plain training, or None.
        shown: The arms that those of the method are compared with, then these.
        generations: Per replicate.
        frechet: The Fréchet distance.
        space: Feature space of the similarities.
        aligned: Text alignment; None where nothing is drawn from captions.
        changes: Differences of the arms of the method to plain training and to their controls.
        losses: Per arm, how the losses of memorised images differ; without those where one side is
            empty.
        planted: Per arm, how often it skips images planted several times; none where nothing is
            planted.
    """

    def __init__(self, book: Notebook, arms: Sequence[str], replicates: int) -> None:
        self.book, self.replicates = book, replicates
        self.runs = {arm: [book.training(arm, k) for k in range(replicates)] for arm in arms}
        self.own = {arm: runs[0]["config"]["settings"]["arm"] for arm, runs in self.runs.items()}
        self.control_of = book.controls()
        self.iet = [arm for arm in arms if self.own[arm]["method"] == "iet_agc"]
        self.skipping = [arm for arm in self.iet if self.own[arm]["agc_threshold"] > 0]
        baselines = [arm for arm in arms if self.own[arm]["method"] == "baseline"]
        self.default_of = {arm: self._default(arm, baselines) for arm in self.iet}
        self.plain = [
            arm
            for arm in baselines
            if arm in self.default_of.values()
            or any(roles.alike(self.own[arm], self.own[other]) for other in self.iet)
        ]
        compared = {*self.plain, *(self.control_of.get(arm) for arm in self.iet)}
        compared |= {self.own[arm]["base"] for arm in self.iet}
        self.shown = [arm for arm in arms if arm in compared and arm not in self.iet] + self.iet
        self._read_mq()
        quality = book.table("quality").rename(columns={"of": "images"})
        self.quality = quality.assign(count=np.nan, of=np.nan)
        self.frechet = frechet_of(quality["metric"])
        self.space = space_of("R", quality["metric"])
        self.aligned = alignment_of(quality["metric"])
        self.changes = list(self._changes())
        self.losses = [losses for arm in self.shown if (losses := self._losses(arm)) is not None]
        self.planted = list(self._skipping_of_planted())
        self._judge()

    def _default(self, arm: str, baselines: Sequence[str]) -> str | None:
        """Return the plain training with the full budget that otherwise equals an arm, or but for
        the settings of its training where there is none such."""
        full = [other for other in baselines if not self.own[other]["matched_to"]]
        equal, other_training = (
            [other for other in full if roles.alike(self.own[arm], self.own[other], but)]
            for but in ((), ("train",))
        )
        return next(iter([*equal, *other_training]), None)

    def _read_mq(self) -> None:
        """MQ of generations and of held-out images at every threshold, with exact intervals."""
        table = self.book.table("extraction").query("subset == 'all'")
        table = table.assign(low=table["exact_low"], high=table["exact_high"])
        name, _, tau = (table["metric"].str.partition("@")[place] for place in range(3))
        self.mq, self.held_out = (
            table[name == of].assign(tau=tau[name == of].astype(float))
            for of in ("mq", "mq_holdout")
        )
        self.taus = sorted(self.mq["tau"].unique())
        self.paper_taus = [tau for tau in IET_AGC_TAUS if tau in self.taus]
        self.generations = int(self.mq["of"].iloc[0])

    # ---- arms

    def colours(self) -> dict[str, Any]:
        """Return the colours of the arms.

        Of their own for the method's, black to grey for others.
        """
        others = [arm for arm in self.shown if arm not in self.iet]
        shades = np.linspace(0, 0.72, max(2, len(others)))
        greys = {arm: str(shade) for arm, shade in zip(others, shades, strict=False)}
        return greys | {arm: f"C{place}" for place, arm in enumerate(self.iet)}

    def name(self, arm: str) -> str:
        """Return an arm's name, in bold if it is of the method."""
        return format.bold(arm) if arm in self.iet else arm

    def own_rows(self) -> list[int]:
        """Return the positions of the method's arms in tables of all arms."""
        return [row for row, arm in enumerate(self.shown) if arm in self.iet]

    def mean_fact(self, arm: str, fact: str) -> float:
        """Return a fact of an arm's training, mean over replicates."""
        return float(np.mean([run["facts"][fact] for run in self.runs[arm]]))

    def summary(self, study: str) -> str:
        """Return the arms on the page, in Markdown."""
        seed = self.runs[self.shown[0]][0]["config"]["seed"]
        methods = ", ".join(f"**{arm}**" for arm in self.iet)
        others = ", ".join(arm for arm in self.shown if arm not in self.iet) or "none"
        return (
            f"Study `{study}`, {self.replicates} replicate(s), seed {seed}. Arms of the method: "
            f"{methods}. Compared with them: {others}."
        )

    def trained(self) -> Table:
        """Return one row per arm: its shards, rounds, budgets and control."""
        return [self._trained(arm) for arm in self.shown]

    def _trained(self, arm: str) -> dict[str, object]:
        settings, fact = self.own[arm], {name: self.mean_fact(arm, name) for name in BUDGETS}
        seen = self.mean_fact(arm, "images_seen")
        row: dict[str, object] = {"arm": self.name(arm), "control": self.control_of.get(arm, "")}
        names = ("shards", "rounds", "lambda", "local steps per round")
        steps = self.runs[arm][0]["facts"].get("steps_per_round", "")
        values = (
            (settings["shards"], settings["rounds"], f"{settings['agc_threshold']:g}", steps)
            if arm in self.iet
            else ("",) * len(names)
        )
        row |= dict(zip(names, values, strict=True))
        kept = f"{fact['kept_samples']:,.0f} ({100 * fact['kept_samples'] / seen:.1f} %)"
        return row | {
            "starts from": settings["base"] or "",
            "updates": f"{fact['updates']:,.0f}",
            "updates per network": f"{fact['updates_per_model']:,.0f}",
            "samples with gradient": kept,
            "passes over the data": f"{seen / self.mean_fact(arm, 'training_images'):.1f}",
        }

    # ---- MQ

    def mq_at(self, arm: str, tau: float) -> pd.DataFrame:
        """Return MQ of an arm at a threshold, one row per replicate."""
        return self.mq[(self.mq["arm"] == arm) & (self.mq["tau"] == tau)]

    def copies(self, arm: str, tau: float) -> bool | None:
        """Return whether the MQ of an arm exceeds that of real held-out images."""
        alarms = self.held_out[(self.held_out["arm"] == arm) & (self.held_out["tau"] == tau)]
        return comparison.copies(self.mq_at(arm, tau), alarms)

    def real(self) -> pd.Series:
        """Return MQ of held-out images, a share, by threshold.

        Against the first arm's training images.
        """
        rows = self.held_out[self.held_out["arm"] == self.shown[0]]
        return rows.groupby("tau")["value"].mean()

    def mq_figure(self) -> Figure:
        """Draw MQ at every threshold; values of 0 lie at the bottom, named ``none``."""
        figure, (axis,) = figures.grid(1, 1, 6.4, 3.8)
        floor = 0.5 / (self.generations * self.replicates)
        for place, arm in enumerate(self.shown):
            self._draw_mq(axis, arm, 0.004 * (place - (len(self.shown) - 1) / 2), floor)
        real = self.real()
        style: figures.Style = {"color": figures.FLOOR, "linewidth": 1.4, "label": HELD_OUT}
        axis.plot(real.index, np.maximum(real, floor), ":", **style)
        axis.set_yscale("log")
        ticks = [tick for tick in (1, 0.1, 0.01, 0.001, 0.0001) if tick > 2 * floor]
        axis.set_yticks([*ticks, floor], [*(f"{100 * tick:g} %" for tick in ticks), "none"])
        axis.set_yticks([], minor=True)
        axis.set_ylim(0.7 * floor, 1.3)
        axis.set_xticks(self.taus, [f"{tau:g}" for tau in self.taus])
        axis.set(xlabel="tau", ylabel="share of generations counted")
        figures.legend_right(axis)
        return figure

    def _draw_mq(self, axis: Axes, arm: str, shift: float, floor: float) -> None:
        points = [
            over_replicates(self.mq_at(arm, tau), self.book.confidence)[0] for tau in self.taus
        ]
        mean, low, high = np.array(points).T
        bars = np.stack([mean - np.maximum(low, floor), np.minimum(high, 1) - mean])
        bars = np.where(mean > 0, np.clip(np.nan_to_num(bars), 0, None), 0)
        full = arm in self.iet or arm in self.default_of.values()
        style: figures.Style = {
            "color": self.colours()[arm],
            "linestyle": "-" if full else "--",
            "label": arm,
        }
        style |= {"marker": "o", "markersize": 3.5, "capsize": 2, "linewidth": 1.2}
        axis.errorbar(np.array(self.taus) + shift, np.maximum(mean, floor), bars, **style)

    def mq_caption(self) -> str:
        """Return a sentence that explains the figure of MQ."""
        kind = format.spread(self.replicates) if self.replicates > 1 else "(exact)"
        intervals = f"{self.book.level} intervals {kind}"
        return f"Shares of {self.generations:,} generations per replicate with {intervals}."

    def paper_table(self) -> Table:
        """Return MQ, as numbers of generations, and Fréchet distance of every arm."""
        title = {tau: f"MQ at {tau:g}, of {self.generations:,}" for tau in self.paper_taus}
        rows: Table = []
        for arm in self.shown:
            row: dict[str, object] = {"arm": self.name(arm)}
            for tau in self.paper_taus:
                share, _ = over_replicates(self.mq_at(arm, tau), self.book.confidence)
                counts = (self.generations * number for number in share)
                row[title[tau]] = format.interval(*counts, digits=4)
            distance, _ = over_replicates(self.distance(arm), self.book.confidence)
            rows.append(row | {self.frechet: format.interval(*distance)})
        real = self.real()
        control = {
            title[tau]: format.number(self.generations * real[tau], digits=4)
            for tau in self.paper_taus
        }
        return [*rows, {"arm": f"{HELD_OUT}, rescaled", **control, self.frechet: ""}]

    def distance(self, arm: str) -> pd.DataFrame:
        """Return the Fréchet distance of an arm, one row per replicate."""
        return self.of_quality(arm, self.frechet)

    def of_quality(self, arm: str, metric: str, images: str = "generations") -> pd.DataFrame:
        """Return a number of an arm's generations, or of ``holdout``, one row per replicate."""
        rows = self.quality[self.quality["arm"] == arm]
        return rows[(rows["metric"] == metric) & (rows["images"] == images)]

    def text_table(self) -> Table:
        """Return one row per arm of the paper's table for captioned images: similarities, Fréchet
        distance and text alignment, and how R changes against plain training and the control; then
        what is published, and held-out images. Nothing where no arm has captions.
        """
        if self.aligned is None:
            return []
        others: dict[str, Mapping[str, str | None]] = {
            "plain training": self.default_of,
            "its control": self.control_of,
        }
        rows: Table = []
        for arm in self.shown:
            row: dict[str, object] = {"arm": self.name(arm)}
            row |= self._columns(arm, "generations")
            if arm in self.iet:
                row |= {
                    f"R, change to {of}": self._change_of_r(arm, other)
                    for of, other_of in others.items()
                    if (other := other_of.get(arm)) is not None
                }
            rows.append(row)
        known = IET_AGC["texts"]
        published = format.italic(f"published ({known.evidence})")
        rows.append({"arm": published, "R, change to plain training": known.statement})
        return [*rows, {"arm": HELD_OUT, **self._columns(self.shown[0], "holdout")}]

    def _columns(self, arm: str, images: str) -> dict[str, object]:
        """Return the numbers of ``text_table``; text alignment of arms with captions alone."""
        metrics = {
            "mean similarity": f"similarity[{self.space}]",
            f"R[{self.space}]": f"R[{self.space}]",
            "share above 0.5": f"similar[{self.space}]",
            self.frechet: self.frechet,
            str(self.aligned): str(self.aligned),
        }
        numbers: dict[str, object] = {}
        for title, metric in metrics.items():
            rows = self.of_quality(arm, metric, images)
            if metric != self.aligned or len(rows):
                number, _ = over_replicates(rows, self.book.confidence)
                unit: format.Unit = "%" if title.startswith("share") else ""
                numbers[title] = format.interval(*number, unit=unit)
        return numbers

    def _change_of_r(self, arm: str, other: str) -> str:
        """Return the difference in R to another arm, and the change relative to it."""
        own, before = (self.of_quality(which, f"R[{self.space}]") for which in (arm, other))
        found = comparison.difference(own, before, self.book.confidence)
        relative = own["value"].mean() / before["value"].mean() - 1
        return format.Markup("{} ({:+.1f} %; to {})").format(
            format.interval(*found.change, sign="+"), 100 * relative, other
        )

    # ---- against plain training, and against the control

    def trained_less(self, arm: str, other: str) -> bool:
        """Return whether an arm's networks had fewer updates than another's of the same base."""
        own, others = (self.mean_fact(name, "updates_per_model") for name in (arm, other))
        return self.own[arm]["base"] == self.own[other]["base"] and own < 0.99 * others

    def equal(self, arm: str, other: str) -> str:
        """Return the names of the budgets of two arms that are equal within 1 %."""
        pairs = {
            name: [self.mean_fact(which, fact) for which in (arm, other)]
            for fact, name in BUDGETS.items()
        }
        same = [name for name, pair in pairs.items() if max(pair) - min(pair) <= 0.01 * max(pair)]
        return ", ".join(same) or "no budget"

    def other_training(self, change: Change) -> str:
        """Return in which settings of training an arm and plain training differ, as a clause."""
        own, other = (self.own[arm]["train"] for arm in (change.arm, change.other))
        keys = [key for key in own if key not in NO_EFFECT and own[key] != other[key]]
        return f"; other training: {', '.join(keys)}" if change.kind == "default" and keys else ""

    def _changes(self) -> Iterator[Change]:
        for arm in self.iet:
            default = self.default_of[arm]
            for kind, other in (("default", default), ("control", self.control_of.get(arm))):
                if other in self.shown and (kind == "default" or other != default):
                    for tau in self.paper_taus:
                        yield self._change(arm, kind, other, tau)
                    yield self._change(arm, kind, other, None)

    def _change(self, arm: str, kind: str, other: str, tau: float | None) -> Change:
        if tau is None:
            values, others = self.distance(arm), self.distance(other)
        else:
            values, others = self.mq_at(arm, tau), self.mq_at(other, tau)
        found = comparison.difference(values, others, self.book.confidence)
        before = others["value"].mean()
        relative = values["value"].mean() / before - 1 if before else np.nan
        number = self.frechet if tau is None else f"MQ at {tau:g}"
        return Change(arm, kind, other, number, tau, found, relative)

    # ---- verdicts

    def _judge(self) -> None:
        """Give every difference its verdict, adjusted for all of them together."""
        table = [(change.found, "lower") for change in self.changes]
        table += [(losses.found, "lower") for losses in self.losses]
        table += [(skipping.found, "higher") for skipping in self.planted]
        verdicts = iter(comparison.judged(table, self.book.confidence))
        self.changes = [
            change._replace(verdict=self._of_change(change, next(verdicts)))
            for change in self.changes
        ]
        self.losses = [losses._replace(verdict=next(verdicts)) for losses in self.losses]
        self.planted = [skipping._replace(verdict=next(verdicts)) for skipping in self.planted]

    def _of_change(self, change: Change, verdict: str) -> str:
        """Return the verdict on a change, given what its difference says."""
        if change.tau is None:
            return verdict
        exceeding = (self.copies(arm, change.tau) for arm in (change.arm, change.other))
        verdict = comparison.above_false_alarms(verdict, *exceeding)
        if verdict == comparison.BETTER and self.trained_less(change.arm, change.other):
            return comparison.TRAINED_LESS
        return verdict

    def changes_figure(self) -> Figure:
        """Draw the differences of each arm of the method to plain training, and to its control."""
        pairs = list(dict.fromkeys((c.arm, c.kind, c.other) for c in self.changes))
        pairs.sort(key=lambda pair: (pair[1] != "default", self.iet.index(pair[0])))
        rows = np.arange(len(pairs)) + 0.8 * np.array([kind != "default" for _, kind, _ in pairs])
        labels = [
            f"{arm}  –  {other}"
            + (f" (equal: {self.equal(arm, other)})" if kind == "control" else "")
            for arm, kind, other in pairs
        ]
        numbers = list(dict.fromkeys(change.number for change in self.changes))
        figure, axes = figures.row_panels(labels, len(numbers), width=2.1, at=list(rows))
        place = dict(zip(pairs, rows, strict=True))
        for axis, number in zip(axes, numbers, strict=True):
            for change in (change for change in self.changes if change.number == number):
                scale, y = 100 if change.unit else 1, place[change.arm, change.kind, change.other]
                value, low, high = (scale * end for end in change.found.change)
                colour = figures.verdict_colour(change.verdict)
                axis.plot([low, high], [y, y], color=colour, linewidth=1.3)
                axis.plot(value, y, "o", color=colour, markersize=4)
            axis.axvline(0, color="black", linewidth=0.7)
            unit = "\n" if number == self.frechet else "\n(percentage points)"
            axis.set_title(number + unit, fontsize=8)
        figure.tight_layout(w_pad=1.5)
        entries = {
            "lower": figures.dot(figures.VERDICTS[comparison.BETTER][0]),
            "higher": figures.dot(figures.VERDICTS[comparison.WORSE][0]),
            figures.UNDECIDED[1]: figures.dot(figures.UNDECIDED[0]),
        }
        figures.legend_below(figure, entries)
        return figure

    def changes_caption(self) -> str:
        """Return a sentence that explains the intervals of the differences."""
        paired = f"paired over {self.replicates} replicates"
        kind = paired if self.replicates > 1 else format.spread(1)
        return (
            f"Arm minus the arm that it is compared with, {self.book.level} intervals ({kind}), "
            "not adjusted; the colours follow p-values that are (below)."
        )

    def chain(self) -> str:
        """Return MQ under plain training, the method and its control, in Markdown."""
        tau = self.paper_taus[len(self.paper_taus) // 2]
        lines = [f"MQ at {tau:g}, mean over replicates:"]
        for arm in self.iet:
            default, control = self.default_of[arm], self.control_of.get(arm)
            if default and control in self.plain and control != default:
                before, count, matched = (
                    f"{self.generations * self.mq_at(name, tau)['value'].mean():.4g}"
                    for name in (default, arm, control)
                )
                lines.append(
                    f"**{arm}**: {before} generations under {default}, {count} under {arm}, "
                    f"{matched} under its control {control}, which is plain training too (equal: "
                    f"{self.equal(arm, control)})."
                )
        return "  \n".join(lines)

    # ---- skipping

    def skips(self) -> Figure:
        """Draw the share of samples skipped by timestep, and along the training."""
        figure, axes = figures.grid(2, 2, 4.5, 3.2)
        for arm in self.skipping:
            edges, share = self.skipped_by_timestep(arm)
            style: figures.Style = {"color": self.colours()[arm]}
            axes[0].step(edges, 100 * np.append(share, share[-1]), where="post", **style)
            curve = 100 * self.skipped_by_update(arm)
            done = curve.index / curve.index.max()
            axes[1].plot(done, curve, linewidth=0.5, alpha=0.5, **style)
            window = max(1, len(curve) // 12)
            mean = curve.rolling(window, min_periods=1, center=True).mean()
            axes[1].plot(done, mean, linewidth=1.6, label=arm, **style)
        axes[0].set(xlabel="timestep (0: almost no noise)", ylabel="share of samples skipped (%)")
        axes[1].set(xlabel="share of the training done")
        for axis in axes:
            axis.set_ylim(0, None)
        figures.legend_right(axes[1])
        figure.tight_layout()
        return figure

    def skipped_by_timestep(self, arm: str) -> tuple[np.ndarray, np.ndarray]:
        """Return edges of timesteps, (B + 1,), and the share skipped between them, (B,).

        B <= 40.
        """
        paths = [
            self.book.folder("train", arm, "tables", "skips_by_timestep.parquet", replicate=k)
            for k in range(self.replicates)
        ]
        counts = pd.concat([pd.read_parquet(path) for path in paths]).groupby("timestep").sum()
        edges = np.linspace(0, len(counts), min(40, len(counts)) + 1).astype(int)
        bins = np.searchsorted(edges, counts.index, side="right")
        binned = counts.groupby(bins).sum()
        return edges, (binned["skipped"] / binned["seen"]).to_numpy()

    def skipped_by_update(self, arm: str) -> pd.Series:
        """Return the share skipped by update, mean over replicates."""
        curves = []
        for k in range(self.replicates):
            text = self.book.folder("train", arm, "metrics.jsonl", replicate=k).read_text()
            lines = [json.loads(line) for line in text.splitlines()]
            skipped = {row["step"]: row["value"] for row in lines if row["name"] == "skipped"}
            curves.append(pd.Series(skipped))
        return pd.concat(curves, axis=1).mean(axis=1)

    def skips_of_sources(self, arm: str) -> pd.DataFrame:
        """Return one row per replicate and image: copies, and the share of visits skipped.

        All copies of an image are counted together. Images that were planted without their
        captions, or whose captions were planted without them, are left out.
        """
        rows = []
        for k in range(self.replicates):
            index = pd.read_parquet(self.book.planting(k) / "index.parquet")
            alike = index["repeat"].isin(WITH_CAPTIONS) & (index["part"] == "train")
            planted = index[alike].set_index("id")["copies"]
            members = pd.read_parquet(
                self.book.folder("train", arm, "members.parquet", replicate=k)
            )
            trained = members[members["trained"]].reset_index(drop=True)
            path = self.book.folder("train", arm, "tables", "skips_by_image.parquet", replicate=k)
            counts = pd.read_parquet(path)[["seen", "skipped"]]
            copies = planted.reindex(trained["id"]).to_numpy()
            table = trained.join(counts).assign(copies=copies, replicate=k)
            rows.append(table.dropna(subset=["copies"]).astype({"copies": np.int64}))
        keys = ["replicate", "source", "copies"]
        sources = pd.concat(rows).groupby(keys, as_index=False)[["seen", "skipped"]].sum()
        return sources.assign(share=sources["skipped"] / sources["seen"])

    def skips_by_copies(self) -> Figure:
        """Draw the share of visits skipped by how often an image is planted."""
        count = len(self.skipping)
        figure, axes = figures.grid(count, count, 3.4, 3.2, sharey=True)
        for axis, arm in zip(axes, self.skipping, strict=True):
            sources = self.skips_of_sources(arm)
            order = sorted(sources["copies"].unique())
            jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(sources))
            at = sources["copies"].map(order.index) + jitter
            style: figures.Style = {"color": self.colours()[arm], "alpha": 0.3, "linewidth": 0}
            axis.scatter(at, 100 * sources["share"], s=5, **style)
            by_copies = sources.groupby("copies")["share"]
            bar: figures.Style = {"color": "black", "markersize": 22, "markeredgewidth": 1.6}
            axis.plot(range(len(order)), 100 * by_copies.mean()[order], "_", **bar)
            images = by_copies.size() // self.replicates
            axis.set_xticks(
                range(len(order)), [f"{copies}\n({images[copies]})" for copies in order]
            )
            axis.set_title(arm, fontsize=9)
            axis.set_xlabel("copies planted (images)")
        axes[0].set_ylabel("share of visits skipped (%)")
        axes[0].set_ylim(0, None)
        figure.tight_layout()
        return figure

    def _skipping_of_planted(self) -> Iterator[Skipping]:
        for arm in self.skipping:
            sources = self.skips_of_sources(arm)
            planted = sources["copies"] > 1
            if planted.any() and not planted.all():
                means = sources.groupby(["replicate", planted])["share"].mean().unstack()
                found = self._gap(
                    (means[True] - means[False]).to_numpy(),
                    sources["share"][planted],
                    sources["share"][~planted],
                )
                yield Skipping(arm, means[True].mean(), means[False].mean(), found)

    def _gap(self, gaps: np.ndarray, own: Any, others: Any) -> Difference:
        """A difference of means: Student's interval between replicates, Welch's within the one."""
        if len(gaps) > 1:
            interval = student(gaps, self.book.confidence)
            return Difference(interval, comparison.PAIRED, float(over.mean(gaps).p_value()))
        from scipy.stats import ttest_ind

        test = ttest_ind(own, others, equal_var=False)
        ends = test.confidence_interval(self.book.confidence)
        interval = Interval(float(gaps[0]), float(ends.low), float(ends.high))
        return Difference(interval, "within one training")

    def skipping_sentences(self) -> str:
        """Return ``planted``, a line per arm, in Markdown."""
        lines = [
            f"**{arm}**: images planted more than once were skipped in {100 * planted:.1f} % of "
            f"their visits, others in {100 * other:.1f} %; difference in points, with its "
            f"{self.book.level} interval: "
            f"{format.interval(*found.change, unit='points', sign='+')}."
            for arm, planted, other, found, _ in self.planted
        ]
        return "  \n".join(lines) or "Nothing is planted in this study."

    # ---- losses

    def reference(self) -> str:
        """Return the arm of plain training whose extracted images are called memorised."""
        return next((arm for arm in self.default_of.values() if arm), self.shown[0])

    def losses_of(self, arm: str) -> pd.DataFrame:
        """Return one row per trained image and replicate.

        Source, loss, memorised (by plain training).
        """
        folder = self.book.folder("attack", self.shown[0], "extraction")
        anchor = artifacts.read_run(folder)["config"]["settings"]["anchor"]
        parts = []
        for k in range(self.replicates):
            path = self.book.folder(
                "attack", self.reference(), "extraction", "images.parquet", replicate=k
            )
            extracted = pd.read_parquet(path).set_index("source")[f"extracted_{anchor}_calibrated"]
            path = self.book.folder("attack", arm, "membership", "losses.parquet", replicate=k)
            losses = pd.read_parquet(path)
            losses = losses[(losses["set"] == "train") & losses["trained"]]
            memorised = extracted.reindex(losses["source"], fill_value=False).to_numpy(bool)
            parts.append(losses[["source", "loss"]].assign(memorised=memorised, replicate=k))
        return pd.concat(parts)

    def losses_figure(self) -> Figure:
        """Draw, per arm, the losses of memorised images and of others."""
        count = len(self.shown)
        columns = 4 if count in (4, 7, 8) or count > 9 else 3
        figure, axes = figures.grid(count, columns, 2.7, 2.1, sharex=True)
        losses = {arm: self.losses_of(arm) for arm in self.shown}
        logarithms = np.log10(pd.concat(losses.values())["loss"])
        bins = np.logspace(logarithms.min(), logarithms.max(), 40)
        entries: dict[str, Any] = {}
        for axis, (arm, rows) in zip(axes, losses.items(), strict=True):
            for memorised, (colour, label) in MEMORISED.items():
                group = rows["loss"][rows["memorised"] == memorised]
                if len(group):
                    style: figures.Style = {"color": colour, "alpha": 0.65, "label": label}
                    weights = np.full(len(group), 1 / len(group))
                    entries[label] = axis.hist(group, bins, weights=weights, **style)[2]
            axis.set_xlim(bins[0], bins[-1])
            figures.log_axis(axis, "x", most=5)
            axis.set_yticks([])
            axis.set_title(arm, fontsize=9)
        figure.supxlabel("loss (mean squared error)", fontsize=9)
        figure.supylabel("share of images", fontsize=9)
        figure.tight_layout()
        figures.legend_below(figure, entries)
        return figure

    def _losses(self, arm: str) -> Losses | None:
        rows = self.losses_of(arm)
        pairs = []
        for _, some in rows.groupby("replicate"):
            logarithms, memorised = np.log(some["loss"].to_numpy()), some["memorised"].to_numpy()
            pair = logarithms[memorised], logarithms[~memorised]
            if min(map(len, pair)) > 1:
                pairs.append(pair)
        if not pairs:
            return None
        gaps = np.array([memorised.mean() - others.mean() for memorised, others in pairs])
        found = self._gap(gaps, *pairs[0])
        medians = rows.groupby("memorised")["loss"].median()
        auc = float(np.mean([roc_auc(*pair) for pair in pairs]))
        return Losses(arm, medians[True], medians[False], found, auc)

    def losses_table(self) -> Table:
        """Return ``losses``, one row per arm."""
        return [
            {
                "arm": self.name(losses.arm),
                "median loss, memorised": format.number(losses.memorised),
                "median loss, others": format.number(losses.others),
                "ratio of mean losses (geometric)": format.interval(*losses.ratio),
                "AUC of the loss": f"{losses.auc:.3f}",
            }
            for losses in self.losses
        ]

    # ---- claims

    def claims(self) -> Table:
        """Return the paper's claims, and the result of this study for each."""
        rows = [
            self._claim_of_change(change) for change in self.changes if change.tau in (None, 0.5)
        ]
        for losses in self.losses:
            if losses.arm == self.reference():
                statement = "images that plain training memorises have a lower loss"
                ratio = format.Markup("ratio {}").format(format.interval(*losses.ratio))
                known = IET_AGC["losses"]
                rows.append(self._claim(losses.arm, statement, known, ratio, WORDS[losses.verdict]))
        for skipping in self.planted:
            statement = "images planted more than once are skipped more often"
            gap = format.interval(*skipping.found.change, unit="points", sign="+")
            number = format.Markup("{} points").format(gap)
            known = Claim("not reported", "")
            rows.append(
                self._claim(skipping.arm, statement, known, number, WORDS[skipping.verdict])
            )
        return rows

    def decided(self) -> str:
        """Return the number of differences that were judged, and their basis, as a sentence."""
        count = len(self.changes) + len(self.losses) + len(self.planted)
        return (
            f"{count} differences are judged on this page, of {self.generations:,} generations and "
            f"{self.replicates} replicate(s)."
        )

    def _claim(
        self, arm: str, statement: str, known: Claim, number: str, verdict: str
    ) -> dict[str, object]:
        return {
            "arm": arm,
            "statement": statement,
            "published": known.statement,
            "evidence for the published": known.evidence,
            f"here, {self.book.level} interval": number,
            "verdict": verdict,
        }

    def _claim_of_change(self, change: Change) -> dict[str, object]:
        settings = self.own[change.arm]
        known = IET_AGC["quality" if change.tau is None else "MQ"]
        if change.kind == "control":
            known = Claim("no such control", "")
        elif not (settings["shards"] > 1 and settings["agc_threshold"] > 0):
            known = Claim("one part alone: not read", "")
        other = "plain training" if change.kind == "default" else "its control"
        number = format.interval(*change.found.change, unit=change.unit, sign="+")
        number += format.Markup(" points") if change.unit else format.Markup("")
        if pd.notna(change.relative):
            number += format.Markup(f" ({100 * change.relative:+.0f} %)")
        if change.tau is None:
            statement = (
                f"{self.frechet} is not higher than with {other} "
                f"({change.other}{self.other_training(change)})"
            )
            verdict = QUALITY_WORDS[change.verdict]
        else:
            equal = self.equal(change.arm, change.other)
            statement = (
                f"{change.number} is lower than with {other} ({change.other}; equal: {equal}"
                f"{self.other_training(change)})"
            )
            verdict = WORDS[change.verdict]
        return self._claim(change.arm, statement, known, number, verdict)
