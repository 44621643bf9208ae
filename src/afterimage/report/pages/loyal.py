"""The page of LoyalDiffusion: blocks in skip connections, and two networks, against controls."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from afterimage.config.measures import NETWORKS
from afterimage.config.texts import ORIGINAL
from afterimage.report import arms as roles
from afterimage.report import figures, format, published, verdicts
from afterimage.report.format import Table
from afterimage.report.names import alignment_of, frechet_of, is_share, space_of, unit_of
from afterimage.report.notebook import Notebook, by_keys

WITH_BLOCKS = ("tail", "front", "both", "blocks")
FLOOR = "black"
"""Colour of the same measure of images that no model saw."""


class Loyal:
    """The content of the page for a study.

    Args:
        book: The notebook.
        arms: Names of the arms, in the order of the study.
        replicates: Trainings of each.

    Attributes:
        named: Arms with blocks, with two networks, with other captions than the images' own, or
            with dual fusion.
        shown: These and their controls.
        space: Feature space of the similarities.
        aligned: Text alignment, which stands where the paper has CLIP scores; None where nothing is
            drawn from captions.
    """

    def __init__(self, book: Notebook, arms: Sequence[str], replicates: int) -> None:
        self.book, self.replicates = book, replicates
        headline = book.table("arms")
        self.cell = by_keys(headline, "arm", "metric")
        self.wide = book.table("comparison_wide").set_index("arm")
        self.compared = by_keys(book.table("comparison"), "arm", "metric")
        self.runs = {arm: book.training(arm) for arm in arms}
        self.settings = {arm: run["config"]["settings"]["arm"] for arm, run in self.runs.items()}
        self.networks = {arm: roles.networks_of(own) for arm, own in self.settings.items()}
        self.captions = {arm: own.get("captions", ORIGINAL) for arm, own in self.settings.items()}
        self.fusion = {arm: own["dual_fusion"] is not None for arm, own in self.settings.items()}
        self.named = [
            arm
            for arm in arms
            if self.networks[arm] not in (None, "plain")
            or (self.networks[arm] == "plain" and not self._as_usual(arm))
        ]
        self.control_of = book.controls()
        controls = {self.control_of.get(arm) for arm in self.named}
        self.shown = [arm for arm in arms if arm in self.named or arm in controls]
        self.space = space_of("R", headline["metric"])
        self.frechet = frechet_of(headline["metric"])
        self.aligned = alignment_of(headline["metric"])
        space = self.space
        self.measures = {
            f"R[{space}]": (
                f"R: 95th percentile\nof similarity ({space})",
                f"R[{space}] of holdout",
            ),
            f"similarity[{space}]": ("mean similarity", f"similarity[{space}] of holdout"),
            "flagged_generations_calibrated": (
                "generations flagged\n(calibrated)",
                "flagged_holdout_calibrated",
            ),
            "planted_extracted_calibrated": (
                "planted images extracted\n(calibrated)",
                "twins_flagged_calibrated",
            ),
            self.frechet: (self.frechet, f"{self.frechet} of holdout"),
        }
        if self.aligned is not None:
            title = self.aligned.replace("[", "\n[") + ": higher is better"
            self.measures[self.aligned] = (title, f"{self.aligned} of holdout")

    def _as_usual(self, arm: str) -> bool:
        """Return whether an arm is trained on the images' own captions, without dual fusion."""
        return self.captions[arm] == ORIGINAL and not self.fusion[arm]

    def arms(self) -> Table:
        """Return one row per arm: its control, networks, blocks and budgets."""
        return [self._arm(arm) for arm in self.shown]

    def _arm(self, arm: str) -> dict[str, object]:
        settings, facts = self.settings[arm], self.runs[arm]["facts"]
        networks, blocks = self.networks[arm], settings["rau_net"]
        groups = ", ".join(map(str, blocks["groups"])) if networks in WITH_BLOCKS else ""
        updates = [
            f"{name} {facts[f'updates_{name}']:,}"
            for name in ("front", "tail")
            if f"updates_{name}" in facts
        ]
        of_each = f" ({', '.join(updates)}; {settings['budget']})" if updates else ""
        return {
            "arm": format.bold(arm),
            "control": self.control_of.get(arm, ""),
            "networks": roles.NETWORKS[networks] if networks else settings["method"],
            "captions": self._captions(arm),
            "blocks": f"{blocks['variant']} in groups {groups}" if groups else "none",
            "τ": settings.get("switch_timestep", ""),
            "updates": f"{facts['updates']:,}{of_each}",
            "images seen": f"{facts['images_seen']:,}",
            "weights": f"{facts['parameters']:,}",
        }

    def _captions(self, arm: str) -> str:
        if self.settings[arm]["condition"] != "text":
            return "none"
        return self.captions[arm] + (", dual fusion" if self.fusion[arm] else "")

    def levels(self) -> int:
        """Return the number of levels of the network."""
        if not self.shown:
            return 0
        run = self.runs[self.shown[0]]
        channels = run["config"]["settings"]["model"].get("channels")
        return run["facts"]["levels"] if channels is None else len(channels)

    def about_r(self) -> str:
        """Return how the replication score is measured, and whether published values compare."""
        published = "published values of R, which are computed in SSCD's space"
        if self.space not in NETWORKS:
            return (
                f"R is measured in the space `{self.space}`, centred on the mean of other real "
                f"images; it cannot be compared with {published}."
            )
        compares = self.space == "sscd"
        return (
            f"R is measured in the space `{self.space}` as it is, "
            f"{'that of published values' if compares else f'and not comparable with {published}'}."
        )

    def scale(self) -> str:
        """Return how large the networks and training sets are, and where weights start from, next
        to the paper's, as a sentence."""
        facts = [self.runs[arm]["facts"] for arm in self.shown]
        if not facts:
            return ""
        weights, images = (
            " to ".join(f"{number:,}" for number in sorted({min(of), max(of)}))
            for of in ([own[name] for own in facts] for name in ("parameters", "training_images"))
        )
        model = self.runs[self.shown[0]]["config"]["settings"]["model"]
        start = "stored weights" if model.get("kind") == "stored" else "scratch"
        return (
            f"Here networks of {weights} weights are trained from {start} on {images} images; the "
            "paper fine-tunes Stable Diffusion 2.1."
        )

    def figure(self) -> Figure:
        """Draw copies and quality of every arm, next to the same measure of images never seen."""
        figure, axes = figures.row_panels(self.shown, len(self.measures), width=2.35, height=0.34)
        for axis, (metric, (title, floor)) in zip(axes, self.measures.items(), strict=True):
            for y, arm in enumerate(self.shown):
                self._draw(axis, y, arm, metric, floor)
            axis.set_title(title, fontsize=8)
            known = [
                self.cell[arm, metric]["value"] for arm in self.shown if (arm, metric) in self.cell
            ]
            figures.trim(axis, top=2.5 * max(known) if metric == self.frechet else 1)
            if is_share(metric):
                figures.percent_axis(axis, "x")
        figure.tight_layout(w_pad=1.2)
        networks = dict.fromkeys(self.networks[arm] for arm in self.shown)
        entries = {
            roles.NETWORKS[name]: figures.dot(roles.NETWORK_COLOURS[name])
            for name in networks
            if name
        }
        figures.legend_below(figure, entries | {"never seen": figures.dot(FLOOR, "|")})
        return figure

    def _draw(self, axis: Axes, y: int, arm: str, metric: str, floor: str) -> None:
        if (arm, metric) not in self.cell:
            return
        row = self.cell[arm, metric]
        colour = roles.NETWORK_COLOURS.get(self.networks[arm] or "", "black")
        error = figures.error(row["value"], row["low"], row["high"])
        axis.errorbar([row["value"]], [y], xerr=error, fmt="o", color=colour, ms=4.5, lw=1.2)
        if (arm, floor) in self.cell:
            value = self.cell[arm, floor]["value"]
            axis.plot([value] * 2, [y - 0.3, y + 0.3], color=FLOOR, linewidth=1)

    # ---- the published rows

    def published(self) -> Table:
        """Return the rows of the paper's table with the corresponding arms of this study."""
        rows: Table = []
        for row, networks, known, other_captions, fusion in published.LOYAL:
            start: dict[str, object] = {"row": row, "arm": "", "published": known}
            arms = [
                arm
                for arm in self.shown
                if self.networks[arm] == networks
                and (self.captions[arm] != ORIGINAL) == other_captions
                and self.fusion[arm] == fusion
            ]
            if networks == published.HELD_OUT and self.shown:
                first = self._first("plain") or self.shown[0]
                held_out = {"arm": networks, **self._numbers(first, " of holdout")}
                rows.append(start | held_out)
            elif not arms:
                rows.append(start | {"arm": format.italic("no such arm")})
            for arm in arms:
                numbers = self._numbers(arm) | self._reductions(arm)
                rows.append(start | {"arm": format.bold(arm), **numbers})
        return rows

    def _first(self, networks: str) -> str | None:
        """Return the first arm with such networks that is trained as usual otherwise."""
        own = (arm for arm in self.shown if self._as_usual(arm))
        return next((arm for arm in own if self.networks[arm] == networks), None)

    def _numbers(self, arm: str, of: str = "") -> dict[str, object]:
        """Return the paper's columns of an arm, or of held-out images: similarities, the Fréchet
        distance and, of arms with captions, text alignment."""
        metrics = {
            "R": f"R[{self.space}]",
            "mean similarity": f"similarity[{self.space}]",
            "share above 0.5": f"similar[{self.space}]",
            self.frechet: self.frechet,
        }
        if self.aligned is not None and (arm, self.aligned + of) in self.cell:
            metrics[self.aligned] = self.aligned
        numbers: dict[str, object] = {}
        for name, metric in metrics.items():
            row = self.cell[arm, metric + of]
            unit: format.Unit = "%" if name.startswith("share") else ""
            numbers[name] = format.interval(row["value"], row["low"], row["high"], unit=unit)
        return numbers

    def _reductions(self, arm: str) -> dict[str, object]:
        """Return the decrease of R against one network, and against two, without blocks."""
        references = {"one network": self._first("plain"), "two networks": self._first("split")}
        return {
            f"R falls against {name}": self.reduction(arm, reference)
            for name, reference in references.items()
        }

    def reduction(self, arm: str, reference: str | None) -> str:
        """Return the relative decrease of R against a reference; empty for the reference itself."""
        if reference is None or arm == reference:
            return ""
        before, after = (self.cell[name, f"R[{self.space}]"]["value"] for name in (reference, arm))
        return format.interval((before - after) / before, unit="%", sign="+")

    # ---- verdicts

    def findings(self) -> str:
        """Return the verdict on every named arm, in Markdown."""
        if not self.named:
            return "This study has no arm with blocks, two networks, other captions or dual fusion."
        return "\n".join(self._finding(arm) for arm in self.named)

    def _finding(self, arm: str) -> str:
        control = self.control_of.get(arm)
        if control is None:
            return f"- **{arm}** names no control in this study."
        numbers = []
        for metric in (f"R[{self.space}]", self.frechet, self.aligned):
            if metric is None or (arm, metric) not in self.compared:
                continue
            row = self.compared[arm, metric]
            ends = (row["difference"], row["difference_low"], row["difference_high"])
            change = format.interval(*ends, unit=unit_of(metric, difference=True), sign="+")
            values = f"{row['value']:.3g} against {row['control_value']:.3g}"
            numbers.append(f"{metric} {values}, difference {change}")
        won = self.wide["beats_control"][arm] == verdicts.YES
        beats = ", and so **beats its control** (adjusted for the number of verdicts)"
        verdict = f"{self.wide['verdict'][arm]}{beats if won else ''}"
        return f"- **{arm}** against {control}: {verdict}. {'; '.join(numbers)}."

    def brackets(self) -> str:
        """Return a sentence that explains the intervals of the differences."""
        paired = f"paired over {self.replicates} replicates"
        alone = "within the one training, which gives no verdict"
        kind = paired if self.replicates > 1 else alone
        return f"In brackets: {self.book.level} intervals of the difference, {kind}."
