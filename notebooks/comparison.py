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
# # Which remedy beats its own control?
#
# Every **arm** is one way of training, and every arm met the same attacks. A remedy that trains less also remembers less, so each
# arm is compared with a **control** of its own: plain training that is meant to be like it but for what is claimed to help (as few
# updates per network, as many samples with gradient, two networks without blocks, retraining without the images). What the two do
# share, and what not, is listed below. The rules by which an arm is judged are fixed in `afterimage.report.comparison` and repeated
# below; nothing on this page is judged by hand.

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
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.patheffects import Normal, Stroke

from afterimage.artifacts import read_run
from afterimage.report import comparison
from afterimage.report.notebook import Notebook

book = Notebook(results, figures, confidence)
results, table, keep, show, level = book.results, book.table, book.keep, book.show, book.level


compared, wide, points = table("comparison"), table("comparison_wide").set_index("arm"), table("points")
there = set(compared.metric)
cell = compared.set_index(["arm", "metric"])
known = set(cell.index[cell.value.notna()])
control_of = wide.control.dropna()
about = {what: [m for m in dict.fromkeys(compared.metric[compared.decides == what])] for what in ("memorization", "quality", "forgetting")}
frechet = next(m for m in about["quality"] if m.startswith(("FD[", "FID[")))
SHARES = {m for m in there if m.startswith(("flagged_", "planted_", "twins_", "forgotten_extracted", "mq@"))}
NAMES = {
    "flagged_generations_calibrated": "generations flagged",
    "flagged_holdout_calibrated": "held-out images flagged",
    "planted_extracted_calibrated": "planted images extracted",
    "twins_flagged_calibrated": "never-trained twins “extracted”",
    "unique_images_calibrated": "different images extracted",
    "membership_auc": "membership AUC",
    "forgotten_probability": "probability of forgotten class",
    "forgotten_extracted_calibrated": "forgotten images extracted",
    "updates": "updates",
    "updates_per_model": "updates per network",
    "network_updates": "updates per network since its first weights",
    "images_seen": "images seen",
    "kept_samples": "samples with gradient",
    "training_images": "training images",
    "passes": "passes",
    "parameters": "weights",
    "setup_seconds": "seconds of setup",
    "training_seconds": "seconds",
    "epsilon": "epsilon of DP",
}
OTHER = "C7"
METHODS = {"baseline": "0.35", "rau_net": "C2", "loyal": "C9", "iet_agc": "C0", "dp_sgd": "C5", "erasediff": "C3", "salun": "C1", "selective_amnesia": "C4", "gradient_ascent": "C6"}
"""Colours: the methods differ in them, arms of one method do not."""


settings = {arm: read_run(results / "train" / arm / "rep0")["config"]["settings"]["arm"] for arm in arms}


def method(arm):
    own = settings[arm]
    return "rau_net" if own["method"] == "baseline" and own["rau_net"] else own["method"]


methods = {arm: method(arm) for arm in arms}
colour = {arm: METHODS.get(name, OTHER) for arm, name in methods.items()}


def name_of(metric):
    stem, bracket, what = metric.partition("[")
    return NAMES[metric] if metric in NAMES else f"{NAMES[stem]} ({what[:-1]})" if stem in NAMES else metric


def interval(row, metric, difference=False):
    """A number of ``comparison.csv`` with its interval as HTML; shares in percent, their differences in percentage points."""
    names = ("difference", "difference_low", "difference_high") if difference else ("value", "low", "high")
    scale = 100 if metric in SHARES else 1
    value, *ends = (scale * row[name] for name in names)
    sign = "+" if difference else ""

    def text(number):
        return f"{number:{sign}.1f}" if scale == 100 else f"{number:{sign},.0f}" if abs(number) >= 1000 else f"{number:{sign}.3g}"

    if pd.isna(value):
        return ""
    shown = text(value) + (" %" if scale == 100 and not difference else "")
    exact = scale == 1 and ends[0] == ends[1]  # the same budget in all replicates
    return shown if pd.isna(ends[0]) or exact else f"{shown} <small>[{text(ends[0])}, {text(ends[1])}]</small>"


# %% [markdown]
# ## Each arm and its control

# %%
deciding = about["memorization"] + about["quality"] + about["forgetting"]
lines = []
for arm in arms:
    if arm in control_of:
        row = {"arm": f"<b>{escape(arm)}</b>", "control": escape(control_of[arm]), "verdict": escape(wide.verdict[arm])}
        if replicates > 1:
            row["beats its control"] = "<b>yes</b>" if wide.beats_control[arm] == comparison.YES else escape(wide.beats_control[arm])
        for metric in deciding:
            row[name_of(metric)] = interval(cell.loc[(arm, metric)], metric, difference=True) if (arm, metric) in known else ""
        lines.append(row)
judged = pd.DataFrame(lines, index=[arm for arm in arms if arm in control_of])
said = {arm: wide.beats_control[arm] for arm in judged.index}
HEADS = {
    comparison.YES: f"Beat their own control, not corrected for {len(said)} verdict(s)",
    comparison.NO: "Do not (remember more, or are worse in quality)",
    comparison.NOT_SHOWN: "Not shown (no difference in memorization seen, which does not say that there is none)",
    comparison.TRAINED_LESS: "Remember less, but so may any network that was trained for as few updates: the control's was trained longer",
    comparison.NOT_TESTABLE: "Not testable (the control's copies do not exceed false alarms: nothing can remember less than nothing)",
    comparison.UNMEASURED: "Not measured",
    comparison.ONE_TRAINING: "One training: no verdict (another training of the same arm would give other numbers)",
}
if len(judged):
    groups = {head: ", ".join(f"**{arm}** (over {control_of[arm]})" for arm in said if said[arm] == word) for word, head in HEADS.items()}
    display(Markdown("\n\n".join(f"**{head}:** {some}." for head, some in groups.items() if some)))
    show(judged, shaded=[arm for arm in said if said[arm] == comparison.YES], shade="#e9f5e9")
    comparisons = int(compared.verdict[compared.decides.isin([*about, "rest"])].isin([comparison.BETTER, comparison.WORSE, comparison.UNSEEN]).sum())
    display(
        Markdown(
            f"Numbers are the arm's minus its control's, with {level} intervals (shares in percentage points)"
            + (": score intervals for shares, the two bootstrap intervals combined for others, all **within one training**. They do not say what another training would have given, and so no verdict is given." if replicates == 1 else f", paired over {replicates} replicates (Student's t); none where all replicates have the same difference.")
            + f" An arm *remembers less* if its interval lies below zero for {' or '.join(map(name_of, about['memorization']))} and above it for none; *quality* is judged in the same way by "
            f"{' and '.join(about['quality'])}{', of the classes that remain where both arms are judged on forgetting' if about['forgetting'] else ''}. It **beats its control** if it remembers less, no quality measure is worse, "
            "and its network was trained for no fewer updates. A count of copies is *not testable* where the control's does not exceed its false alarms (held-out images flagged; for planted images, their twins). "
            + (f"*Forgetting* is judged by {' and '.join(map(name_of, about['forgetting']))}; an arm whose control is retraining need not beat it: no difference is what it is meant to reach. " if about["forgetting"] else "")
            + "“No difference seen” means that the interval covers zero, not that there is none; **“no loss of quality seen” is not “no loss”**: no margin is stated that the interval would have to keep, and a noisy arm passes more easily. "
            "Fréchet distance and coverage are of all classes together, and so measure **class shares** too, which planted copies skew: an arm that copies less may be better in them without drawing better."
            + ("" if replicates == 1 else f" **Verdicts are not corrected for how many there are**: {comparisons} intervals decide here, and where nothing differs about {(1 - confidence) * comparisons:.1f} of them would still leave zero out.")
        )
    )
else:
    display(Markdown("No arm of this study names a control."))

# %% [markdown]
# ## What an arm and its control share

# %%
BUDGETS = [metric for metric in ("updates", "updates_per_model", "network_updates", "kept_samples", "training_images") if metric in there]
lines = []
for arm, control in control_of.items():
    bases = [settings[one]["base"] for one in (arm, control)]
    shared = [metric for metric in BUDGETS if {(arm, metric), (control, metric)} <= known and (metric != "network_updates" or any(bases))]
    both = {metric: (cell.value[arm, metric], cell.value[control, metric]) for metric in shared}
    same = [metric for metric, pair in both.items() if max(pair) - min(pair) <= 0.01 * max(pair)]
    lines.append(
        {
            "arm": f"<b>{escape(arm)}</b>",
            "control": escape(control),
            "equal, to one in a hundred": ", ".join(map(name_of, same)) or "no budget",
            "not equal": ", ".join(f"{name_of(metric)} ({pair[0]:,.0f} against {pair[1]:,.0f})" for metric, pair in both.items() if metric not in same),
            "initial weights": f"both of <b>{escape(bases[0])}</b>" if bases[0] and bases[0] == bases[1] else " against ".join(f"of <b>{escape(base)}</b>" if base else "drawn" for base in bases) if any(bases) else "each its own",
        }
    )
if lines:
    show(pd.DataFrame(lines), cells="vertical-align:top")
    display(
        Markdown(
            "Arms of one replicate share the training images that they are given, the noise that sampling starts from, and the attacks. They do **not** share initial weights (unless both start from the same base), "
            "the order of the images, or the noise of training. So an arm differs from its control by the remedy, by what stands under *not equal*, and by chance, of which pairing by replicate takes little away."
        )
    )

# %% [markdown]
# ## Memorization against quality

# %%


def place_labels(axis, anchors, texts, colours, obstacles, size=8):
    """Write each text near its anchor where it covers no other text and as little else as can be; a line leads to those far away.

    Positions are in pixels: ``anchors`` (N, 2), ``obstacles`` (M, 2).
    """
    renderer = axis.figure.canvas.get_renderer()
    frame = axis.get_window_extent(renderer)
    to_data = axis.transData.inverted().transform
    obstacles = np.concatenate([anchors, obstacles])
    crowd = [(np.hypot(*(anchors - anchor).T) < 60).sum() for anchor in anchors]
    taken = []
    for at in np.argsort(crowd, kind="stable")[::-1]:
        label = axis.text(0, 0, texts[at], fontsize=size, color=colours[at], zorder=6, path_effects=[Stroke(linewidth=2, foreground="white"), Normal()])
        box = label.get_window_extent(renderer)
        best = (np.inf, None)
        for radius in (8, 14, 22, 32, 44, 58, 74, 92, 112, 134, 158):
            for angle in np.deg2rad(np.arange(0, 360, 15)):
                x, y = anchors[at] + radius * np.array([np.cos(angle), np.sin(angle)])
                low = np.array([x - box.width * (1 - np.cos(angle)) / 2, y - box.height / 2])
                high = low + [box.width, box.height]
                if low[0] < frame.x0 + 3 or high[0] > frame.x1 + 40 or low[1] < frame.y0 + 3 or high[1] > frame.y1:
                    continue
                overlap = sum(np.prod(np.clip(np.minimum(high, end) - np.maximum(low, start), 0, None)) for start, end in taken)
                covered = ((obstacles > low - 2) & (obstacles < high + 2)).all(1).sum()
                best = min(best, (20 * overlap / (box.width * box.height) + 0.15 * covered + radius / 50, (*low, *high)))
        low, high = np.array(best[1][:2]), np.array(best[1][2:])
        taken.append((low - 1, high + 1))
        label.set_position(to_data(low + [0, 0.2 * box.height]))
        near = np.clip(anchors[at], low, high)
        if np.hypot(*(near - anchors[at])) > 11:
            axis.plot(*np.stack([to_data(anchors[at]), to_data(near)]).T, color=colours[at], linewidth=0.5, zorder=5)


def draw(axis, memory):
    """Every arm's mean with its intervals, its replicates, a line to its control, and the front."""
    shown = [arm for arm in arms if {(arm, memory), (arm, frechet)} <= known]
    across, up = cell.loc[[(arm, frechet) for arm in shown]], cell.loc[[(arm, memory) for arm in shown]]
    colours = [colour[arm] for arm in shown]
    means = np.stack([across.value, up.value], axis=1)
    for row, at in enumerate(means):
        bars = [[[max(at[i] - table.low.iloc[row], 0)], [max(table.high.iloc[row] - at[i], 0)]] for i, table in enumerate((across, up))]
        axis.errorbar(*at, xerr=bars[0], yerr=bars[1], fmt="none", ecolor=colours[row], elinewidth=0.8, alpha=0.45, zorder=2)
        if control_of.get(shown[row]) in shown:
            axis.plot(*zip(at, means[shown.index(control_of[shown[row]])]), color=colours[row], linewidth=0.6, alpha=0.5, zorder=1)
    axis.scatter(*means.T, s=36, color=colours, edgecolor="white", linewidth=0.6, zorder=4)
    single = points[points.arm.isin(shown)].dropna(subset=[frechet, memory])
    if replicates > 1:
        axis.scatter(single[frechet], single[memory], s=7, color=[colour[arm] for arm in single.arm], alpha=0.45, linewidth=0, zorder=3)

    left, right = np.nanmin([*across.low, *single[frechet]]), np.nanmax([*across.high, *single[frechet]])
    axis.set(xscale="log", xlim=(0.93 * max(left, 0.5 * means[:, 0].min()), 1.1 * min(right, 2 * means[:, 0].max())))
    top = np.nanmax([*up.high, *single[memory], 0.01])
    axis.set_ylim(-0.04 * top, min(1.03, 1.04 * top))
    ends = axis.get_xlim()
    ticks = [tick for tick in np.outer(10.0 ** np.arange(-4, 6), [1, 2, 3, 5, 7]).ravel() if ends[0] <= tick <= ends[1]]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axis.set_xlabel(f"{frechet} to images that no arm saw (log scale, lower is better)")
    axis.set_ylabel(f"{name_of(memory)} (lower is better)")
    on_front = comparison.front(means)
    stairs = means[on_front][np.lexsort(means[on_front].T[::-1])]
    axis.step([*stairs[:, 0], ends[1]], [*stairs[:, 1], stairs[-1, 1]], where="post", color="black", linewidth=0.9, linestyle="--", alpha=0.6, zorder=1)

    axis.figure.canvas.draw()
    bars = [np.linspace((row.low, at[1]), (row.high, at[1]), 12) for row, at in zip(across.itertuples(), means)]
    bars += [np.linspace((at[0], row.low), (at[0], row.high), 12) for row, at in zip(up.itertuples(), means)]
    covered = np.concatenate([*bars, single[[frechet, memory]].to_numpy()])
    covered = covered[np.isfinite(covered).all(1) & (covered[:, 0] > 0)]
    place_labels(axis, axis.transData.transform(means), shown, colours, axis.transData.transform(covered))
    return [arm for arm, on in zip(shown, on_front) if on]


panels = len(about["memorization"])
if len(arms) <= 4:
    figure, axes = plt.subplots(1, panels, figsize=(4.8 * panels, 3.6), squeeze=False)
else:
    figure, axes = plt.subplots(panels, 1, figsize=(9.5, 6.2 * panels), squeeze=False)
figure.tight_layout(h_pad=3, w_pad=4)
fronts = {memory: draw(axis, memory) for axis, memory in zip(axes.flat, about["memorization"])}
used = list(dict.fromkeys(methods.values()))
handles = [plt.Line2D([], [], marker="o", linestyle="", color=METHODS.get(name, OTHER), label=name) for name in used]
figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncol=min(len(used), 5), frameon=False, title="colour: method")
keep(figure, "pareto")
display(
    Markdown(
        f"Large points are the arms with {level} intervals"
        + (", small points their replicates" if replicates > 1 else " within the one training")
        + ". A thin line in an arm's colour leads to its control. The dashed front joins the arms that no other arm beats in both: "
        + "; ".join(f"{', '.join(some)} ({name_of(memory)})" for memory, some in fronts.items())
        + ". Of the points alone: neighbours on the front may well lie within each other's intervals. Training less also moves an arm down, and mostly to the right; copying less moves it to the left by the class shares alone."
    )
)

# %% [markdown]
# ## How far each arm moved from its control

# %%
if len(judged):
    moved = [*about["memorization"], *about["quality"], "membership_auc"]
    rows = sorted(judged.index, key=lambda arm: (arms.index(control_of[arm]), arms.index(arm)))
    height = np.arange(len(rows)) + 0.8 * np.cumsum([at > 0 and control_of[arm] != control_of[rows[at - 1]] for at, arm in enumerate(rows)])
    figure, axes = plt.subplots(1, len(moved), figsize=(2.1 * len(moved) + 1.5, 0.24 * height[-1] + 1.3), sharey=True, squeeze=False)
    for axis, metric in zip(axes.flat, moved):
        scale = 100 if metric in SHARES else 1
        some = {arm: cell.loc[(arm, metric)] for arm in rows if (arm, metric) in known}
        sizes = np.array([scale * max(abs(row.difference_low), abs(row.difference_high)) for row in some.values() if pd.notna(row.difference_low)])
        limit = 1.1 * max(sizes[sizes <= 3 * np.quantile(sizes, 0.75)].max(), 1e-9) if len(sizes) else 1
        for arm, y in zip(rows, height):
            if arm not in some or pd.isna(some[arm].difference):
                continue
            row = some[arm]
            shade = {comparison.BETTER: "C2", comparison.WORSE: "C3"}.get(row.verdict, "0.5")
            value, low, high = (scale * row[end] for end in ("difference", "difference_low", "difference_high"))
            if abs(value) > limit:
                axis.plot(np.sign(value) * limit, y, ">" if value > 0 else "<", color=shade, markersize=5, clip_on=False)
                axis.annotate(f"{value:+.3g}", (np.sign(value) * limit, y), (-6 * np.sign(value), 0), textcoords="offset points", fontsize=6.5, va="center", ha="right" if value > 0 else "left", color=shade)
            else:
                axis.plot(np.clip([low, high], -limit, limit), [y, y], color=shade, linewidth=1.2)
                axis.plot(value, y, "o", color=shade, markersize=4)
        axis.axvline(0, color="black", linewidth=0.7)
        axis.set(xlim=(-limit, limit), ylim=(height[-1] + 0.7, -0.7))
        axis.set_title(name_of(metric) + ("\n(percentage points)" if scale == 100 else "\n"), fontsize=8)
        axis.tick_params(labelsize=7.5, length=2)
    axes[0, 0].set_yticks(height, [f"{arm}  –  {control_of[arm]}" for arm in rows])
    figure.tight_layout(w_pad=1.5)
    keep(figure, "differences")
    display(
        Markdown(
            f"Arm minus control with {level} intervals: green where the arm is better, red where it is worse, grey where no difference was seen or no verdict is given (one training; a control at its false alarms). "
            f"Lower is better, but for {' and '.join(metric for metric in moved if cell.better.xs(metric, level='metric').iloc[0] == 'higher') or 'none'}. Arrows: beyond the axis. "
            "The membership attack does not decide the verdict."
        )
    )

# %% [markdown]
# ## Every arm, grouped by control
# Extraction at the threshold calibrated on held-out images, with the same count on images that the model never saw beside it.

# %%


def grouped(columns):
    """Show the compared numbers of every arm: each control first, then the arms compared with it."""
    columns = [metric for metric in columns if metric in there]
    inner = [arm for arm in arms if arm in set(control_of)]
    groups = [[arm, *(other for other in arms if control_of.get(other) == arm)] for arm in inner]
    groups += [[arm] for arm in arms if arm not in inner and arm not in control_of]
    lines, heads = [], []
    for group in groups:
        for arm in group:
            first = arm == group[0]
            heads += [len(lines)] if first else []
            values = [interval(cell.loc[(arm, metric)], metric) if (arm, metric) in known else "" for metric in columns]
            lines.append([f"<b>{escape(arm)}</b>" if first else f"&emsp;{escape(arm)}", *values])
    show(pd.DataFrame(lines, columns=["arm", *map(name_of, columns)]), shaded=heads, shade="#f0f0f0")


grouped([*about["memorization"], "flagged_holdout_calibrated", "twins_flagged_calibrated", "unique_images_calibrated", *about["quality"], "membership_auc"])
display(
    Markdown(
        f"In brackets: {level} intervals"
        + (" within the one training, exact for shares and counts, from a bootstrap for others." if replicates == 1 else f" between {replicates} replicates (Student's t); where all are equal (nothing flagged in any), within one of them.")
        + " An arm that is the control of others stands at the head of its group (grey), and again in the group of its own control if it has one."
    )
)

# %% [markdown]
# ## What each arm cost
# An arm that saw less may remember less for that reason alone.

# %%
grouped(["updates", "updates_per_model", "network_updates", "images_seen", "kept_samples", "training_images", "passes", "parameters", "setup_seconds", "training_seconds", "epsilon"])
display(
    Markdown(
        "*Updates* are the optimiser's, over all networks of the arm, *updates per network* those that each got; *samples with gradient* those not skipped; "
        "*passes* are images seen by training images. For an arm that starts from another, all of these count its own training alone, but for the column that says otherwise. *Seconds* are of the training loop on this machine, whatever else ran there; *setup* is what a method does before its first update."
    )
)
