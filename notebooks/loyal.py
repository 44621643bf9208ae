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
# without blocks, and the arm with two networks has one with **two networks without blocks**, trained for as long. Arm and control
# draw initial weights, order and noise of their own, so that they differ by chance as well. Which skips get blocks, and τ, the paper
# chooses by experiment; `snakemake loyal_selection` repeats that and has a page of its own, `selection/page/loyal_selection.html`
# among the study's results.

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
from functools import partial
from html import escape

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

from afterimage.artifacts import read_run
from afterimage.report import comparison
from afterimage.report.notebook import Notebook, text, within

book = Notebook(results, figures, confidence)
results, table, keep, show, level = book.results, book.table, book.keep, partial(book.show, cells="vertical-align:top"), book.level
COLOUR = {"plain": "0.35", "blocks": "C2", "split": "C7", "tail": "C0", "front": "C1", "both": "C4"}
"""Kind of arm -> colour: one plain network, one with blocks, two without, two with blocks in the tail, in the front, in both."""

headline = table("arms")
own = headline.set_index(["arm", "metric"])
wide = table("comparison_wide").set_index("arm")
compared = table("comparison").set_index(["arm", "metric"])
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
    numbers = []
    for metric in (r, frechet):
        row = compared.loc[(arm, metric)]
        numbers.append(f"{metric} {row.value:.3g} against {row.control_value:.3g}, difference {text(row.difference, row.difference_low, row.difference_high, sign='+')}")
    beats = ", and so **beats its control** (not corrected for the number of verdicts)" if wide.beats_control[arm] == comparison.YES else ""
    lines.append(f"- **{arm}** against {control}: {wide.verdict[arm]}{beats}. {'; '.join(numbers)}.")
display(Markdown("\n".join(lines) if lines else "This study has no arm with blocks or with two networks."))
display(
    Markdown(
        f"In brackets: {level} intervals of the difference, {'within the one training, which gives no verdict' if replicates == 1 else f'paired over {replicates} replicates'}. That no difference, or no loss of quality, was seen does not say that there is none. "
        "At this scale a network is trained from scratch on a few hundred small images, while the paper fine-tunes Stable Diffusion 2.1. What does not hold here may hold there; "
        "what the published blocks were at all is open, since the authors' surviving code neither trains nor saves them (variants `frozen_fixed` and `frozen_redrawn` do the same)."
    )
)
