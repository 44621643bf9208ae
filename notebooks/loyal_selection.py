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
# # Which skips should get blocks, and from which timestep on?
#
# LoyalDiffusion (Li et al. 2024; CVPR 2026) puts **information transfer blocks** into some skip connections, at timesteps from the
# switch τ on. The paper chooses skip groups and τ by experiment. `snakemake loyal_selection` repeats that: from one trained network,
# arms with blocks in one group each, and pairs of networks for each τ, all trained on for as long as a control without blocks. Group 0 is the
# skip of the first convolution, group g that of level g.

# %% tags=["parameters"]
results = "results/default"
figures = "figures"
study = "default"
arms = ["baseline", "dedup"]
replicates = 1
show_images = True
pairs = 24
confidence = 0.95

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

from afterimage.artifacts import read_run
from afterimage.report.notebook import Notebook, text, within

book = Notebook(results, figures, confidence)
keep, level = book.keep, book.level
COLOUR = {"none": "0.35", "whole": "C2", "split": "C7", "tail": "C0", "front": "C1"}
"""Arrangement of the blocks -> colour: nowhere, at all timesteps; two networks with none, with blocks from τ on, below τ."""

folder = book.results / "selection" / "table"
chosen = read_run(folder)
selection, facts = chosen["config"]["settings"]["selection"], chosen["facts"]
cases, changes, ranking, swaps = (pd.read_csv(folder / f"{name}.csv", dtype={"groups": str}) for name in ("arms", "changes", "ranking", "swap"))
control = cases[cases.arrangement == "none"]
limit = control.FD.mean() * (1 + selection["largest_cost"])
groups = ", ".join(map(str, facts["chosen_groups"])) or "none"
display(
    Markdown(
        f"Study `{study}`, {replicates} replicate(s). Base: **{selection['base']}**; blocks: {selection['variant']}; {selection['updates']:,} further updates for each arm, {control.images_seen.mean():,.0f} images seen. "
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
if selection["switch_timesteps"]:
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
            axis.axhline(cases[cases.arrangement == what][measure].mean(), color=COLOUR[what], linewidth=1, linestyle=style, label=label)
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
figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.4))
means = swaps.groupby(["low", "high"], sort=False).mean().reset_index()
end = means.high.max()
for axis, (measure, title) in zip(axes, (("R", "R"), ("FD", "Fréchet distance"))):
    none, whole = means.iloc[0], means.iloc[1]
    axis.axhline(none[measure], color=COLOUR["none"], linewidth=1, linestyle="--", label="blocks nowhere")
    axis.axhline(whole[measure], color=COLOUR["whole"], linewidth=1, linestyle="-.", label="blocks throughout")
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
lines = []
for row in ranking.itertuples():
    measured = {"s": text(row.s, row.s_low, row.s_high, percent=True, sign="+"), "c": text(row.c, row.c_low, row.c_high, percent=True, sign="+")}
    what = f"blocks in group {row.group:.0f}, all timesteps" if pd.notna(row.group) else f"blocks at t ≥ {row.switch_timestep:.0f}, two networks"
    against = changes[(changes.arm == row.arm) & (changes.measure == selection["by"]) & (changes.against != "select_none")]
    if len(against):
        one = against.iloc[0]
        measured["s against two networks without blocks"] = text(one.change, one.low, one.high, percent=True, sign="+")
    lines.append({"candidate": what, **measured, "admissible": "yes" if row.admissible else "no", "rank": "" if pd.isna(row.rank) else f"{row.rank:.0f}", "chosen": "<b>yes</b>" if row.chosen else ""})
book.show(pd.DataFrame(lines).fillna(""), shaded=[at for at, row in enumerate(ranking.itertuples()) if row.chosen], shade="#e9f5e9", cells="vertical-align:top")
sure = ranking[ranking.chosen & (ranking.s_low > 0)]
display(
    Markdown(
        f"Of the {int(ranking.chosen.sum())} chosen, {len(sure)} lower `{selection['by']}` with an interval above zero; they were chosen by the same numbers, so that chance has helped them."
        if replicates > 1
        else "With one replicate it is not known whether any choice is more than chance."
    )
)
display(
    Markdown(
        f"s: relative fall of `{selection['by']}` against the control without blocks; c: relative rise of the Fréchet distance. A candidate is admissible if c is at most {100 * selection['largest_cost']:g} %. "
        f"Groups are ranked by s, the first {selection['keep']} that lower copying are chosen; of the timesteps the smallest admissible one, which leaves the largest range with blocks. "
        + (f"In brackets: {level} intervals between replicates, paired by replicate, not corrected for how many candidates there are. Ranks and what is admissible follow the values, not the intervals." if replicates > 1 else "")
    )
)
