# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Do blocks in skip connections keep training images from coming back?
#
# LoyalDiffusion (Li et al. 2024; CVPR 2026) puts **information transfer blocks** into skip connections of the denoising network
# (RAU-Net) and uses that network at high noise only: a *front* network denoises timesteps below the switch τ, a *tail* network
# those from τ on. Two things change at once, the blocks and the split of one network into two. So every arm here has a control
# without blocks, and the arm with two networks has one with **two networks without blocks**, trained for as long.

# %% tags=["parameters"]
results = "results/default"
figures = "figures"
study = "default"
arms = ["baseline", "dedup"]
replicates = 1
show_images = True
pairs = 24

# %%
from functools import partial
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from afterimage.artifacts import read_run
from afterimage.report.notebook import Notebook

book = Notebook(results, figures)
results, table, keep, show, level = book.results, book.table, book.keep, partial(book.show, cells="vertical-align:top", shade="#e9f5e9"), book.level
COLOUR = {"plain": "0.35", "blocks": "C2", "split": "C7", "tail": "C0", "front": "C1", "both": "C4"}
"""Kind of arm -> colour: one plain network, one with blocks, two without, two with blocks in the tail, in the front, in both."""


def text(value, low=np.nan, high=np.nan, percent=False, sign=""):
    """A number with its interval, if it has one."""
    if pd.isna(value):
        return "n/a"
    form = (lambda x: f"{100 * x:{sign}.1f}") if percent else (lambda x: f"{x:{sign}.3g}")
    shown = form(value) + (" %" if percent else "")
    return shown if pd.isna(low) or low == high else f"{shown} <small>[{form(low)}, {form(high)}]</small>"


def within(axis, top=1.0):
    """Trim a dot plot to values that can be: intervals between few replicates reach beyond."""
    axis.margins(x=0.12)
    low, high = (np.clip(end, -0.02 * min(top, 1), 1.02 * top) for end in axis.get_xlim())
    axis.set_xlim(low, high if high > low else low + 0.1)
    axis.tick_params(labelsize=7.5, length=2)
    axis.grid(axis="y", color="0.93")


headline = table("arms")
own = headline.set_index(["arm", "metric"])
wide = table("comparison_wide").set_index("arm")
runs = {arm: read_run(results / "train" / arm / "rep0") for arm in arms}
settings = {arm: run["config"]["settings"]["arm"] for arm, run in runs.items()}
space = next(metric for metric in headline.metric if metric.startswith("R["))[2:-1]
frechet = next(metric for metric in headline.metric if metric.startswith(("FD[", "FID[")) and metric.endswith("]"))
MEASURES = {
    f"R[{space}]": (f"R: 95th percentile\nof similarity ({space})", f"R[{space}] of holdout"),
    f"similarity[{space}]": ("mean similarity", f"similarity[{space}] of holdout"),
    "flagged_generations_calibrated": ("generations flagged\n(calibrated)", "flagged_holdout_calibrated"),
    "planted_extracted_calibrated": ("planted images extracted\n(calibrated)", "twins_flagged_calibrated"),
    frechet: (frechet, f"{frechet} of holdout"),
}
"""What is shown of every arm -> its title, and the same measure of images that no model saw."""


def kind(arm):
    """What an arm's networks are: a key of ``COLOUR``, or None for what this page does not show."""
    one = settings[arm]
    blocks = one["rau_net"] is not None and one["rau_net"]["variant"] != "none" and bool(one["rau_net"]["groups"])
    if one["method"] == "loyal":
        return one["blocks_in"] if blocks else "split"
    return ("blocks" if blocks else "plain") if one["method"] == "baseline" else None


named = [arm for arm in arms if kind(arm) in ("split", "tail", "front", "both", "blocks")]
controls = [wide.control[arm] for arm in named if pd.notna(wide.control[arm])]
shown = [arm for arm in arms if arm in named or arm in controls]
display(Markdown(f"Study `{study}`, {replicates} replicate(s); arms on this page: {', '.join(shown)}."))

# %% [markdown]
# ## The arms

# %%
NETWORKS = {
    "plain": "one, no blocks",
    "blocks": "one with blocks, all timesteps",
    "split": "two, no blocks",
    "tail": "two, blocks in the tail (as published)",
    "front": "two, blocks in the front (mirrored)",
    "both": "two, blocks in both",
}
lines = []
for arm in shown:
    one, facts = settings[arm], runs[arm]["facts"]
    blocks = one["rau_net"]
    parts = [f"{name} {facts[f'updates_{name}']:,}" for name in ("front", "tail") if f"updates_{name}" in facts]
    lines.append(
        {
            "arm": f"<b>{escape(arm)}</b>",
            "control": "" if pd.isna(wide.control[arm]) else escape(wide.control[arm]),
            "networks": NETWORKS[kind(arm)] if kind(arm) else escape(one["method"]),
            "blocks": f"{blocks['variant']} in groups {', '.join(map(str, blocks['groups']))}" if kind(arm) in ("tail", "front", "both", "blocks") else "none",
            "τ": one.get("switch_timestep", ""),
            "updates": f"{facts['updates']:,}" + (f" ({', '.join(parts)}; {one['budget']})" if parts else ""),
            "images seen": f"{facts['images_seen']:,}",
            "weights": f"{facts['parameters']:,}",
        }
    )
show(pd.DataFrame(lines))
levels = runs[shown[0]]["config"]["settings"]["model"]["channels"] if shown else []
display(
    Markdown(
        f"Group 0 is the skip of the first convolution, group g that of level g; this network has levels 1 to {len(levels)}, and the paper puts blocks into its two "
        "deepest. With the budget `matched_total` two networks share the updates of one, so that equal rows of *images seen* are equal work."
    )
)

# %% [markdown]
# ## Copies and quality of every arm

# %%
if shown:
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(2.35 * len(MEASURES), 0.34 * len(shown) + 1.2), sharey=True, squeeze=False)
    for axis, (metric, (title, floor)) in zip(axes.flat, MEASURES.items()):
        for y, arm in enumerate(shown):
            if (arm, metric) not in own.index:
                continue
            row = own.loc[(arm, metric)]
            shade = COLOUR.get(kind(arm), "black")
            if pd.notna(row.low):
                axis.plot([row.low, row.high], [y, y], color=shade, linewidth=1.2)
            axis.plot(row.value, y, "o", color=shade, markersize=4.5)
            if (arm, floor) in own.index:
                axis.plot([own.loc[(arm, floor), "value"]] * 2, [y - 0.3, y + 0.3], color="black", linewidth=1)
        axis.set_title(title, fontsize=8)
        within(axis, top=2.5 * max(own.loc[(arm, metric), "value"] for arm in shown) if metric == frechet else 1)
    axes[0, 0].set_yticks(range(len(shown)), shown)
    axes[0, 0].set_ylim(len(shown) - 0.5, -0.5)
    figure.tight_layout(w_pad=1.2)
    keep(figure, "loyal_arms")
    display(
        Markdown(
            f"Points with {level} intervals ("
            + ("within the one training" if replicates == 1 else f"between {replicates} replicates")
            + "); lower is better everywhere. Black bars are the floor: the same measure of real images that no model saw (for planted images: of their never-trained twins). "
            f"R is measured in the space `{space}`, centred on the mean of other real images; it compares with no published R, which is taken in SSCD's space. Where more than one generation in "
            "twenty is a copy R is near 1 whatever the arm does: read the mean similarity and the flagged share beside it."
        )
    )

# %% [markdown]
# ## The published rows
# The paper's table as far as it is public: its rows, what is published of each, and the arms of this study that stand for them. Which row
# the headline of 48.63 % is relative to is not said in the abstract, so both reductions are given here.

# %%
ROWS = [
    ("one network, no blocks", "plain", "the reference"),
    ("the same, captions generalised to 5 words", None, "R −32.18 % (a third party's summary, not verified)"),
    ("the same, with dual fusion", None, "R −43.5 % (abstract of the earlier paper, arXiv 2309.07254)"),
    ("RAU-Net at all timesteps", "blocks", "value not verified"),
    ("two networks, no blocks", "split", "not in the paper as far as known: the control of the next row"),
    ("two networks, blocks in the tail (LoyalDiffusion)", "tail", "value not verified"),
    ("two networks, blocks in the front (mirrored)", "front", "not in the paper as far as known"),
    ("LoyalDiffusion with generalised captions and dual fusion", None, "R −48.63 % (abstract; relative to which row is not said)"),
    ("real images that no model saw", "floor", "value not verified (RepliBing)"),
]
first = next((arm for arm in shown if kind(arm) == "plain"), None)
split = next((arm for arm in shown if kind(arm) == "split"), None)
r, near = f"R[{space}]", f"similar[{space}]"


def cells(arm, of=""):
    """R, mean similarity, share above 0.5 and the Fréchet distance of an arm, or of held-out images."""
    found = {}
    for name, metric in (("R", r), ("mean similarity", f"similarity[{space}]"), ("share above 0.5", near), (frechet, frechet)):
        row = own.loc[(arm, metric + of)]
        found[name] = text(row.value, row.low, row.high, percent=name.startswith("share"))
    return found


def reduction(arm, reference):
    if reference is None or arm == reference:
        return ""
    return text((own.loc[(reference, r), "value"] - own.loc[(arm, r), "value"]) / own.loc[(reference, r), "value"], percent=True, sign="+")


lines = []
for what, which, published in ROWS:
    standing = [arm for arm in shown if kind(arm) == which] if which else []
    if which == "floor" and shown:
        lines.append({"row": what, "arm": "held-out images", "published": published, **cells(first or shown[0], " of holdout")})
    elif not standing:
        lines.append({"row": what, "arm": "<i>not tested here: needs captions</i>" if which is None else "<i>no such arm</i>", "published": published})
    for arm in standing:
        both = {f"R falls against {name}": reduction(arm, arm_) for name, arm_ in (("one network", first), ("two networks", split))}
        lines.append({"row": what, "arm": f"<b>{escape(arm)}</b>", "published": published, **cells(arm), **both})
show(pd.DataFrame(lines).fillna(""))

# %% [markdown]
# ## What holds here
# Computed from this study's results by the rules of `afterimage.report.comparison`; nothing is asserted.

# %%
lines = []
for arm in named:
    control = wide.control[arm]
    if pd.isna(control):
        lines.append(f"- **{arm}** names no control in this study.")
        continue
    a, b = own.loc[(arm, r)], own.loc[(control, r)]
    change = (a.value - b.value) / b.value
    apart = "" if pd.isna(a.low) or pd.isna(b.low) else ", their intervals overlap" if a.low <= b.high and b.low <= a.high else ", their intervals do not overlap"
    cost = own.loc[(arm, frechet), "value"] / own.loc[(control, frechet), "value"] - 1
    lines.append(
        f"- **{arm}** against {control}: {wide.verdict[arm]}{' and so **beats its control**' if wide.beats_control[arm] == True else ''}. "  # noqa: E712
        f"R {a.value:.3f} against {b.value:.3f} ({100 * change:+.1f} %{apart}); {frechet} {100 * cost:+.1f} %."
    )
display(Markdown("\n".join(lines) if lines else "This study has no arm with blocks or with two networks."))
display(
    Markdown(
        "At this scale a network is trained from scratch on a few hundred small images, while the paper fine-tunes Stable Diffusion 2.1. What does not hold here may hold there; "
        "what the published blocks were at all is open, since the authors' surviving code neither trains nor saves them (variants `frozen_fixed` and `frozen_redrawn` do the same)."
    )
)

# %% [markdown]
# ## Where blocks go: the selection
# The paper chooses skip groups and τ by experiment. `snakemake loyal_selection` repeats that: from one trained network, arms with blocks
# in one group each, and pairs of networks for each τ, all trained on for as long as a control without blocks.

# %%
folder = results / "selection" / "table"
selected = folder.is_dir()
if not selected:
    display(Markdown("Not run for this study. `snakemake loyal_selection` makes it (block `loyal_selection` of the study); then make this page again."))
else:
    chosen = read_run(folder)
    selection, facts = chosen["config"]["settings"]["selection"], chosen["facts"]
    cases, changes, ranking, swaps = (pd.read_csv(folder / f"{name}.csv", dtype={"groups": str}) for name in ("arms", "changes", "ranking", "swap"))
    control = cases[cases.arrangement == "none"]
    limit = control.FD.mean() * (1 + selection["largest_cost"])
    groups = ", ".join(map(str, facts["chosen_groups"])) or "none"
    display(
        Markdown(
            f"Base: **{selection['base']}**; blocks: {selection['variant']}; {selection['updates']:,} further updates for each arm, {control.images_seen.mean():,.0f} images seen. "
            f"By `{selection['by']}`, at a cost of at most {100 * selection['largest_cost']:g} % in the Fréchet distance: **groups {groups}**"
            + (f", **τ = {facts['chosen_switch_timestep']}**." if facts["chosen_switch_timestep"] else ", **no τ**.")
        )
    )

# %%
PANELS = {
    "R": ("R", "R_holdout"),
    "similarity": ("mean similarity", "similarity_holdout"),
    "flagged_generations": ("generations flagged\n(fixed alpha)", "flagged_holdout"),
    "FD": ("Fréchet distance", "FD_holdout"),
}
if selected:
    rows = list(dict.fromkeys(cases.arm[cases.arrangement.isin(["none", "groups", "whole"])]))
    names = {"none": "no blocks", "whole": "groups ", "groups": "group "}
    figure, axes = plt.subplots(1, len(PANELS), figsize=(2.6 * len(PANELS), 0.34 * len(rows) + 1.2), sharey=True)
    for axis, (measure, (title, floor)) in zip(axes, PANELS.items()):
        for y, arm in enumerate(rows):
            one = cases[cases.arm == arm]
            what = one.arrangement.iloc[0]
            picked = what == "groups" and int(one.groups.iloc[0]) in facts["chosen_groups"]
            shade = "black" if what == "none" else "C2" if picked else "0.55"
            axis.plot(one[measure], [y] * len(one), ".", color=shade, markersize=3.5, alpha=0.7)
            axis.plot(one[measure].mean(), y, "D" if what == "none" else "o", color=shade, markersize=5.5)
        axis.axvline(control[measure].mean(), color="black", linewidth=0.8, linestyle="--")
        axis.axvline(control[floor].mean(), color="black", linewidth=0.8, linestyle=":")
        if measure == "FD":
            axis.axvline(limit, color="C3", linewidth=0.8, linestyle="--")
        axis.set_title(title, fontsize=8)
        within(axis, top=2.5 * max(cases.FD) if measure == "FD" else 1)
    first_rows = cases.drop_duplicates("arm").set_index("arm").loc[rows]
    axes[0].set_yticks(range(len(rows)), [names[what] + ("" if what == "none" else where) for what, where in zip(first_rows.arrangement, first_rows.groups)])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.tight_layout(w_pad=1.2)
    keep(figure, "loyal_groups")
    display(
        Markdown(
            f"Copies (left) and quality (right) by skip group, blocks at all timesteps; lower is better. Small points are replicates ({replicates}). Dashed: the control without blocks; dotted: the "
            "floor, the same measure of held-out images; red: the largest distance that a choice may have. Green: chosen."
        )
    )

# %%
if selected and selection["switch_timesteps"]:
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.5), sharex=True)
    labels = {"tail": "blocks at t ≥ τ", "front": "blocks at t < τ (mirrored)", "split": "two networks, no blocks"}
    shift = 0.012 * (max(selection["switch_timesteps"]) - min(selection["switch_timesteps"]))
    for axis, measure in zip(axes, ("R", "flagged_generations", "FD")):
        title = PANELS[measure][0].replace("\n", " ")
        for at, (what, label) in enumerate(labels.items()):
            some = cases[cases.arrangement == what].groupby("switch_timestep")[measure]
            error = some.sem() if replicates > 1 else None
            axis.errorbar(some.mean().index + shift * (at - 1), some.mean(), error, marker="o", markersize=4, capsize=2, color=COLOUR[what], label=label)
        for what, style, label in (("none", "--", "one network, no blocks"), ("whole", "-.", "one network, blocks throughout")):
            axis.axhline(cases[cases.arrangement == what][measure].mean(), color=COLOUR["plain" if what == "none" else "blocks"], linewidth=1, linestyle=style, label=label)
        if measure == "FD":
            axis.axhline(limit, color="C3", linewidth=0.8, linestyle="--", label="largest admissible")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("switch timestep τ")
        axis.set_xticks(sorted(selection["switch_timesteps"]))
    axes[2].legend(frameon=False, fontsize=7.5, bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.tight_layout()
    keep(figure, "loyal_timesteps")
    display(
        Markdown(
            "Arms trained for each τ, two networks sharing the control's budget"
            + (f"; bars: standard error of {replicates} replicates" if replicates > 1 else "; one replicate, so without intervals")
            + ". What the blocks do is the distance between the coloured line and the grey one of two networks without; what the split itself does is the grey line's distance from the dashed one."
        )
    )

# %%
if selected:
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.4))
    means = swaps.groupby(["low", "high"], sort=False).mean().reset_index()
    end = means.high.max()
    for axis, (measure, title) in zip(axes, (("R", "R"), ("FD", "Fréchet distance"))):
        none, whole = means.iloc[0], means.iloc[1]
        axis.axhline(none[measure], color=COLOUR["plain"], linewidth=1, linestyle="--", label="blocks nowhere")
        axis.axhline(whole[measure], color=COLOUR["blocks"], linewidth=1, linestyle="-.", label="blocks throughout")
        for label, shade, some in (
            ("from τ on", COLOUR["tail"], means[(means.low > 0) & (means.high == end)]),
            ("below τ", COLOUR["front"], means[(means.low == 0) & (means.high < end) & (means.high > 0)]),
            ("in between", "C4", means[(means.low > 0) & (means.high < end)]),
        ):
            for i, one in enumerate(some.itertuples()):
                axis.plot([one.low, one.high], [getattr(one, measure)] * 2, color=shade, linewidth=2.5, alpha=0.8, solid_capstyle="butt", label=label if i == 0 else None)
        axis.set_title(title, fontsize=9)
        axis.set(xlabel="timesteps with blocks", xlim=(0, end))
    axes[1].legend(frameon=False, fontsize=7.5, bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.tight_layout()
    keep(figure, "loyal_swap")
    display(
        Markdown(
            "The cheap look without further training: the control and the network with blocks throughout take turns while sampling. Each bar covers the timesteps at which the network with "
            "blocks predicts. Neither was trained for its part alone, so this hints at where copying is decided and does not stand for LoyalDiffusion."
        )
    )

# %%
if selected:
    lines = []
    for row in ranking.itertuples():
        measured = {"s": text(row.s, row.s_low, row.s_high, percent=True, sign="+"), "c": text(row.c, row.c_low, row.c_high, percent=True, sign="+")}
        what = f"blocks in group {row.group:.0f}, all timesteps" if pd.notna(row.group) else f"blocks at t ≥ {row.switch_timestep:.0f}, two networks"
        against = changes[(changes.arm == row.arm) & (changes.measure == selection["by"]) & (changes.against != "select_none")]
        if len(against):
            one = against.iloc[0]
            measured["s against two networks without blocks"] = text(one.change, one.low, one.high, percent=True, sign="+")
        lines.append({"candidate": what, **measured, "admissible": "yes" if row.admissible else "no", "rank": "" if pd.isna(row.rank) else f"{row.rank:.0f}", "chosen": "<b>yes</b>" if row.chosen else ""})
    show(pd.DataFrame(lines).fillna(""), shaded=[at for at, row in enumerate(ranking.itertuples()) if row.chosen])
    sure = ranking[ranking.chosen & (ranking.s_low > 0)]
    display(
        Markdown(
            f"Of the {int(ranking.chosen.sum())} chosen, {len(sure)} lower `{selection['by']}` by more than chance explains (interval above zero)."
            if replicates > 1
            else "With one replicate it is not known whether any choice is more than chance."
        )
    )
    display(
        Markdown(
            f"s: relative fall of `{selection['by']}` against the control without blocks; c: relative rise of the Fréchet distance. A candidate is admissible if c is at most {100 * selection['largest_cost']:g} %. "
            f"Groups are ranked by s, the first {selection['keep']} that lower copying are chosen; of the timesteps the smallest admissible one, which leaves the largest range with blocks. "
            + (f"In brackets: {level} intervals between replicates, paired." if replicates > 1 else "")
        )
    )
