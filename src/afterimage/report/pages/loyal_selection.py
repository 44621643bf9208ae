"""The page of the selection: which skips get blocks, and from which timestep on."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from afterimage import artifacts
from afterimage.report import figures, format
from afterimage.report.arms import NETWORK_COLOURS
from afterimage.report.format import Table
from afterimage.report.notebook import Notebook

PANELS = {
    "R": ("R", "R_holdout"),
    "similarity": ("mean similarity", "similarity_holdout"),
    "flagged_generations": ("generations flagged\n(fixed alpha)", "flagged_holdout"),
    "frechet": ("Fréchet distance", "frechet_holdout"),
}
"""Measure -> its title, and the same of held-out images."""
SPLITS = {
    "tail": "blocks at t ≥ τ",
    "front": "blocks at t < τ (mirrored)",
    "split": "two networks, no blocks",
}
WHOLE = {
    "none": ("plain", "--", "one network, no blocks"),
    "whole": ("blocks", "-.", "one network, blocks throughout"),
}
"""Arrangement of one network -> its colour (``NETWORK_COLOURS``), line and label."""
CHOSEN = NETWORK_COLOURS["blocks"]
LIMIT = "largest admissible distance"


class Selection:
    """The content of the page for a study.

    Args:
        book: The notebook.
        replicates: Trainings of each arm.

    Attributes:
        settings: The block ``loyal_selection`` of the study.
        facts: The choices.
    """

    def __init__(self, book: Notebook, replicates: int) -> None:
        self.book, self.replicates = book, replicates
        folder = book.results / "selection" / "table"
        record = artifacts.read_run(folder)
        self.settings, self.facts = record["config"]["settings"]["selection"], record["facts"]
        self.cases, self.changes, self.ranked, self.swaps = (
            pd.read_csv(folder / f"{name}.csv", dtype={"groups": str})
            for name in ("arms", "changes", "ranking", "swap")
        )
        self.control = self.cases[self.cases["arrangement"] == "none"]
        self.limit = self.control["frechet"].mean() * (1 + self.settings["largest_cost"])
        self.cost = f"{100 * self.settings['largest_cost']:g} %"

    def summary(self, study: str) -> str:
        """Return what was compared and chosen, in Markdown."""
        groups = ", ".join(map(str, self.facts["chosen_groups"])) or "none"
        tau = self.facts["chosen_switch_timestep"]
        seen = self.control["images_seen"].mean()
        return (
            f"Study `{study}`, {self.replicates} replicate(s). Base: **{self.settings['base']}**; "
            f"blocks: {self.settings['variant']}; {self.settings['updates']:,} further updates "
            f"for each arm, {seen:,.0f} images seen. By `{self.settings['by']}`, at a cost of at "
            f"most {self.cost} in the Fréchet distance: **groups {groups}**, "
            f"{f'**τ = {tau}**' if tau else '**no τ**'}."
        )

    # ---- groups

    def groups(self) -> Figure:
        """Draw copies and quality by skip group, blocks at all timesteps."""
        one_network = self.cases["arrangement"].isin(["none", "groups", "whole"])
        rows = self.cases[one_network].drop_duplicates("arm")
        labels = [self.label(*row) for row in zip(rows["arrangement"], rows["groups"], strict=True)]
        figure, axes = figures.row_panels(labels, len(PANELS), width=2.6, height=0.34)
        for axis, (measure, (title, floor)) in zip(axes, PANELS.items(), strict=True):
            for y, arm in enumerate(rows["arm"]):
                self._draw_arm(axis, y, self.cases[self.cases["arm"] == arm], measure)
            style: figures.Style = {"color": "black", "linewidth": 0.8}
            axis.axvline(self.control[measure].mean(), ls="--", label="no blocks: mean", **style)
            axis.axvline(self.control[floor].mean(), ls=":", label="held-out images", **style)
            if measure == "frechet":
                axis.axvline(self.limit, color=figures.FLOOR, lw=0.8, ls="--", label=LIMIT)
            axis.set_title(title, fontsize=8)
            figures.trim(axis, top=2.5 * self.cases["frechet"].max() if measure == "frechet" else 1)
        figure.tight_layout(w_pad=1.2)
        handles, names = axes[-1].get_legend_handles_labels()
        entries = {"chosen": figures.dot(CHOSEN), "not chosen": figures.dot("0.55")}
        figures.legend_below(figure, entries | dict(zip(names, handles, strict=True)))
        return figure

    @staticmethod
    def label(arrangement: str, groups: str) -> str:
        """Return the name of a row: in which groups an arm has blocks."""
        if arrangement == "none":
            return "no blocks"
        return f"{'groups' if arrangement == 'whole' else 'group'} {groups}"

    def _draw_arm(self, axis: Axes, y: int, cases: pd.DataFrame, measure: str) -> None:
        arrangement, groups = cases[["arrangement", "groups"]].iloc[0]
        chosen = arrangement == "groups" and int(groups) in self.facts["chosen_groups"]
        plain = arrangement == "none"
        colour = "black" if plain else CHOSEN if chosen else "0.55"
        axis.plot(cases[measure], [y] * len(cases), ".", color=colour, markersize=3.5, alpha=0.7)
        axis.plot(cases[measure].mean(), y, "D" if plain else "o", color=colour, markersize=5.5)

    # ---- timesteps

    def timesteps(self) -> Figure:
        """Draw copies and quality by the switch, two networks sharing the control's budget."""
        taus = sorted(self.settings["switch_timesteps"])
        figure, axes = figures.grid(3, 3, 3.3, 3.5, sharex=True)
        for axis, measure in zip(axes, ("R", "flagged_generations", "frechet"), strict=True):
            self._draw_splits(axis, measure, 0.012 * (max(taus) - min(taus)))
            for arrangement, (networks, line, label) in WHOLE.items():
                mean = self.cases[self.cases["arrangement"] == arrangement][measure].mean()
                colour = NETWORK_COLOURS[networks]
                axis.axhline(mean, color=colour, linewidth=1, linestyle=line, label=label)
            if measure == "frechet":
                axis.axhline(self.limit, color=figures.FLOOR, lw=0.8, ls="--", label=LIMIT)
            axis.set_title(PANELS[measure][0].replace("\n", " "), fontsize=9)
            axis.set_xlabel("switch timestep τ")
            axis.set_xticks(taus)
        figures.legend_right(axes[2])
        figure.tight_layout()
        return figure

    def _draw_splits(self, axis: Axes, measure: str, shift: float) -> None:
        for place, (arrangement, label) in enumerate(SPLITS.items()):
            cases = self.cases[self.cases["arrangement"] == arrangement]
            by_tau = cases.groupby("switch_timestep")[measure]
            mean, error = by_tau.mean(), by_tau.sem() if self.replicates > 1 else None
            style: figures.Style = {"marker": "o", "markersize": 4, "capsize": 2, "label": label}
            at = mean.index + shift * (place - 1)
            axis.errorbar(at, mean, error, color=NETWORK_COLOURS[arrangement], **style)

    def bars(self) -> str:
        """Return a sentence that explains the bars of ``timesteps``."""
        if self.replicates == 1:
            return "One replicate, so without intervals."
        return f"Bars: standard error of {self.replicates} replicates."

    # ---- swaps

    def swap(self) -> Figure:
        """Draw copies and quality by the timesteps at which a network with blocks predicts."""
        figure, axes = figures.grid(2, 2, 4.3, 3.4)
        means = self.swaps.groupby(["low", "high"], sort=False).mean().reset_index()
        end = means["high"].max()
        after, before = means["high"] == end, means["low"] == 0
        ranges = {
            "from τ on": (NETWORK_COLOURS["tail"], means[~before & after]),
            "below τ": (NETWORK_COLOURS["front"], means[before & ~after & (means["high"] > 0)]),
            "in between": (NETWORK_COLOURS["both"], means[~before & ~after]),
        }
        for axis, measure in zip(axes, ("R", "frechet"), strict=True):
            for row, (networks, line, _) in zip(
                means.to_dict("records"), WHOLE.values(), strict=False
            ):
                where = "nowhere" if networks == "plain" else "throughout"
                style: figures.Style = {
                    "color": NETWORK_COLOURS[networks],
                    "linewidth": 1,
                    "linestyle": line,
                }
                axis.axhline(row[measure], label=f"blocks {where}", **style)
            for label, (colour, rows) in ranges.items():
                bars = (rows[measure], rows["low"], rows["high"])
                axis.hlines(*bars, color=colour, linewidth=2.5, alpha=0.8, label=label)
            axis.set_title(PANELS[measure][0], fontsize=9)
            axis.set(xlabel="timesteps with blocks", xlim=(0, end))
        figures.legend_right(axes[1])
        figure.tight_layout()
        return figure

    # ---- the choice

    def ranking(self) -> tuple[Table, list[int]]:
        """Return one row per candidate.

        Benefit, cost, rank; and the positions of the chosen ones.
        """
        rows = [self._candidate(row) for row in self.ranked.to_dict("records")]
        return rows, [row for row, chosen in enumerate(self.ranked["chosen"]) if chosen]

    def _candidate(self, row: dict) -> dict[str, object]:
        group, tau = row["group"], row["switch_timestep"]
        all_times = f"blocks in group {group:.0f}, all timesteps"
        late = f"blocks at t ≥ {tau:.0f}"
        cells: dict[str, object] = {
            "candidate": all_times if pd.notna(group) else f"{late}, two networks"
        }
        for name in ("s", "c"):
            ends = (row[name], row[f"{name}_low"], row[f"{name}_high"])
            cells[name] = format.interval(*ends, unit="%", sign="+")
        against = self.changes[
            (self.changes["arm"] == row["arm"])
            & (self.changes["measure"] == self.settings["by"])
            & (self.changes["against"] != "select_none")
        ]
        cells["s against two networks without blocks"] = ""
        if len(against):
            ends = against[["change", "low", "high"]].iloc[0]
            shown = format.interval(*ends, unit="%", sign="+")
            cells["s against two networks without blocks"] = shown
        cells["admissible"] = "yes" if row["admissible"] else "no"
        cells["rank"] = "" if pd.isna(row["rank"]) else f"{row['rank']:.0f}"
        return cells | {"chosen": format.bold("yes") if row["chosen"] else ""}

    def certainty(self) -> str:
        """Return the certainty of the choice, as a sentence."""
        if self.replicates == 1:
            return "With one replicate it is not known whether any choice is more than chance."
        chosen = self.ranked[self.ranked["chosen"]]
        return (
            f"Of the {len(chosen)} chosen, {(chosen['s_low'] > 0).sum()} lower "
            f"`{self.settings['by']}` with an interval above zero; they were chosen by the same "
            "numbers, so that chance has helped them."
        )

    def rules(self) -> str:
        """Return how candidates are ranked, as far as it depends on the study."""
        text = (
            f"s: relative decrease of `{self.settings['by']}` against the control without blocks; "
            "c: relative increase of the Fréchet distance. A candidate is admissible if c is at "
            f"most {self.cost}. Groups are ranked by s, the first {self.settings['keep']} that "
            "lower copying are chosen; of the timesteps the smallest admissible one, which leaves "
            "the largest range with blocks."
        )
        if self.replicates == 1:
            return text
        return (
            f"{text} In brackets: {self.book.level} intervals between replicates, paired by "
            "replicate, not corrected for how many candidates there are. Ranks and what is "
            "admissible follow the values, not the intervals."
        )
