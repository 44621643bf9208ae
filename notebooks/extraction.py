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
# # Which training images does the model give back?
#
# Each **arm** is one way of training the same small diffusion model. From every arm generations are drawn, and each is compared
# with all images that the arm was trained on (Carlini et al. 2023, section 5.1). The same comparison is made for real held-out
# images that no model saw: what is flagged among those is a false alarm, so read every count beside that control.

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
import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown, display
from matplotlib.ticker import LogLocator, NullLocator

from afterimage.artifacts import read_run
from afterimage.images import load_images
from afterimage.report.notebook import Notebook

book = Notebook(results, figures, confidence)
results, table, keep, folder, level = book.results, book.table, book.keep, book.folder, book.level
OWN, CONTROL = "C0", "0.55"
"""Colours of an arm and of the arm that it is compared with: names would need more colours than the eye can tell apart."""


def panels(count, width=2.6, height=2.1, columns=4, **shared):
    """A figure with one small panel per arm, and its used panels."""
    columns = min(columns, count)
    figure, axes = plt.subplots(-(-count // columns), columns, figsize=(width * columns, height * -(-count // columns)), squeeze=False, **shared)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes.flat[:count]


def percent(value):
    return "n/a" if pd.isna(value) else f"{100 * value:.1f} %"


headline, copies, extraction = table("arms"), table("copies"), table("extraction")
own = headline.set_index(["arm", "metric"])
control_of = table("comparison_wide").set_index("arm").control.dropna()
few = len(arms) <= 4
one = read_run(folder("train", arms[0]))
display(
    Markdown(
        f"Study `{study}`, {replicates} replicate(s) of {len(arms)} arms, seed {one['config']['seed']}; code "
        f"`{(one['environment']['git_commit'] or 'unknown')[:10]}`{' (changed since that commit)' if one['environment']['git_dirty'] else ''}, "
        f"environment lock `{(one['environment']['lock_sha256'] or 'unknown')[:10]}`. Pictures of single models show replicate 0."
    )
)

# %% [markdown]
# ## Does the model copy?
#
# For each training, generations are compared with held-out images over all thresholds at once. *Copies shown*: more generations are
# near to training images than held-out images leave to chance. *Not shown*: a copying rate of the given size would have been seen in
# 95 of 100 such attacks, if its copies are nearer than every held-out image. Without copies at most 5 of 100 attacks say *shown*; the
# answers of several trainings are not corrected for how many there are.

# %%
def facts_of(arm, replicate):
    return read_run(folder("attack", arm, "extraction", replicate=replicate))["facts"]


def answer(arm, replicate):
    facts = facts_of(arm, replicate)
    verdict = facts["verdict"]
    rate = verdict["visible_rate"]
    return {
        "arm": arm,
        "training": replicate,
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


display(pd.DataFrame([answer(arm, k) for arm in arms for k in range(replicates)]).set_index("arm"))
for arm in arms if few else arms[:1]:
    display(Markdown(f"**{arm}**: {facts_of(arm, 0)['verdict']['sentence']}"))
smallest = max(facts_of(arm, k)["holdout_smallest_rate"] for arm in arms for k in range(replicates))
display(Markdown(f"So many held-out images cannot show rates of false alarms below about {100 * smallest:.2g} %."))

# %% [markdown]
# ## The arms at a glance

# %%
SHARES = ("flagged_", "planted_", "twins_", "mq@")
metrics = list(dict.fromkeys(headline.metric))
frechet = next(m for m in metrics if m.startswith(("FD[", "FID[")) and m.endswith("]"))
columns = {
    "flagged_generations_calibrated": "generations flagged",
    "flagged_holdout_calibrated": "held-out images flagged",
    "planted_extracted_calibrated": "planted images extracted",
    "twins_flagged_calibrated": "their never-trained twins",
    "unique_images_calibrated": "different images extracted",
    "flagged_generations": "generations flagged, published threshold",
    "flagged_holdout": "held-out images flagged, published threshold",
    frechet: frechet,
}
columns = {metric: name for metric, name in columns.items() if metric in metrics}


def shown(arm, metric):
    if (arm, metric) not in own.index:
        return ""
    row = own.loc[(arm, metric)]
    numbers = [f"{100 * n:.1f}" if metric.startswith(SHARES) else f"{n:.3g}" for n in (row.value, row.low, row.high)]
    return numbers[0] + (" %" if metric.startswith(SHARES) else "") + ("" if pd.isna(row.low) else f"  [{numbers[1]}, {numbers[2]}]")


pd.set_option("display.max_rows", None, "display.max_columns", None)
display(pd.DataFrame({name: [shown(arm, metric) for arm in arms] for metric, name in columns.items()}, index=arms))
display(
    Markdown(
        f"The threshold is calibrated on halves of the held-out images and its false alarms counted on the other halves, averaged over random halvings, but for the columns with the published one. In brackets: {level} intervals "
        + (
            "within the one replicate, exact for shares and counts, from a bootstrap for others. They say how sure the number is **for these images and generations**; only several replicates say what another training would have given."
            if replicates == 1
            else "between replicates (t). They cover another training and sampling of the same arm on the same images."
        )
        + " Every number stands in `report/tables/arms.csv`; the page `comparison` sets each arm against its own control."
    )
)

# %% [markdown]
# ## The pairs
# Left the generation, right the training image nearest to it, below the distance (root mean square difference of pixels in [0, 1])
# and the ratio to the mean distance of that image's neighbours; one pair per training image, smallest ratio first.

# %%
if show_images:
    training = load_images(results / "data" / "split" / "train.npz")
    row_of = {id_: row for row, id_ in enumerate(training.ids)}


def best_pairs(arm, count):
    found = pd.read_parquet(folder("attack", arm, "extraction", "pairs.parquet"))
    return found.sort_values("ratio_training").drop_duplicates("nearest_source").head(count)


def draw_pairs(axes, arm, count):
    generations = load_images(folder("sample", arm, "images.npz"))
    number_of = {id_: row for row, id_ in enumerate(generations.ids)}
    for axis, pair in zip(axes, best_pairs(arm, count).itertuples()):
        images = [generations.pixels[number_of[pair.sample]], training.pixels[row_of[pair.nearest]]]
        gap = np.full((images[0].shape[0], 1, images[0].shape[2]), 255, np.uint8)
        axis.imshow(np.concatenate([images[0], gap, images[1]], axis=1).squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(f"{pair.l2:.3f}  ratio {pair.ratio_training:.2f}", fontsize=7, pad=2)


for arm in arms if few else arms[:1]:
    if show_images:
        figure, axes = plt.subplots(-(-pairs // 8), 8, figsize=(8 * 1.45, -(-pairs // 8) * 1.15), squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        draw_pairs(axes.flat, arm, pairs)
        figure.suptitle(f"{arm}: generation | nearest training image", fontsize=10)
        figure.tight_layout()
        keep(figure, f"pairs_{arm}")
    else:
        display(Markdown(f"**{arm}**: the study does not allow its images to be shown (`report.show_images: false`)."))
        display(best_pairs(arm, pairs)[["sample", "nearest", "l2", "ratio_training"]].round(4))
if show_images and not few:
    figure, axes = plt.subplots(len(arms), 6, figsize=(6 * 1.45, len(arms) * 0.95), squeeze=False)
    for row, arm in zip(axes, arms):
        for axis in row:
            axis.axis("off")
        row[0].text(-0.08, 0.5, arm, transform=row[0].transAxes, ha="right", va="center", fontsize=8)
        draw_pairs(row, arm, 6)
    figure.suptitle("every arm: generation | nearest training image, its six smallest ratios", fontsize=10, y=1)
    figure.tight_layout(h_pad=0.3)
    keep(figure, "pairs")
display(
    Markdown(
        "A pair that the eye cannot tell apart is a training image that the model holds. The ratio compares the pair's distance with how "
        "far that training image lies from its own neighbours, so that a plain image is not called copied merely because everything is near it."
    )
)

# %% [markdown]
# ## Distances of generations and of held-out images

# %%
for name, key, label in (("distances", "l2", "distance to the nearest training image"), ("ratios", "ratio_training", "ratio (threshold 1)")):
    figure, axes = panels(len(arms), sharex=True)
    both = {arm: [pd.read_parquet(folder("attack", arm, "extraction", f"{what}.parquet"))[key] for what in ("pairs", "holdout_pairs")] for arm in arms}
    everything = np.concatenate([values for some in both.values() for values in some])
    bins = np.linspace(0, np.quantile(everything[np.isfinite(everything)], 0.995), 50)
    for axis, (arm, (generated, held_out)) in zip(axes, both.items()):
        axis.hist(generated, bins, density=True, alpha=0.6, color=OWN)
        axis.hist(held_out, bins, density=True, histtype="step", color="black")
        axis.set_yticks([])
        axis.set_title(arm, fontsize=9)
        if key == "ratio_training":
            axis.axvline(1, color="red", linewidth=0.8)
    figure.supxlabel(f"{label}; filled: generations, outline: real held-out images", fontsize=9)
    figure.tight_layout()
    keep(figure, name)
lines = [
    f"**{arm}**: {percent(own.loc[(arm, 'flagged_generations'), 'value'])} of generations and "
    f"{percent(own.loc[(arm, 'flagged_holdout'), 'value'])} of real held-out images have a ratio of at most 1."
    for arm in (arms if few else arms[:1])
]
display(Markdown("  \n".join(lines)))
display(
    Markdown(
        "Where the filled histogram has mass at the left that the outline lacks, generations are nearer to training images than real images "
        "of the same kind are. The share of held-out images left of the red line is what the rule gets wrong without any model."
    )
)

# %% [markdown]
# ## Extraction against multiplicity

# %%
ticks = sorted(copies.copies.unique())
for alpha, name in (("calibrated", "multiplicity"), ("fixed", "multiplicity_published_threshold")):
    figure, axes = panels(len(arms), sharex=True, sharey=True)
    for axis, arm in zip(axes, arms):
        for other, shade, shift in ((control_of.get(arm), CONTROL, 1 / 1.06), (arm, OWN, 1.06)):
            some = copies[(copies.arm == other) & (copies.alpha == alpha)].sort_values("copies")
            error = np.clip(np.stack([some.share - some.low, some.high - some.share]), 0, None)
            axis.errorbar(some.copies * shift, some.share, error, marker="o", markersize=3, linewidth=1, capsize=1.5, color=shade)
            twins = some.dropna(subset=["twins_share"])
            axis.plot(twins.copies * shift, twins.twins_share, "x", markersize=4, color=shade)
        axis.set_title(arm + (f"  (grey: {control_of[arm]})" if arm in control_of else ""), fontsize=8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(c) for c in ticks])
        axis.set_ylim(-0.04, 1.04)
    threshold = "calibrated on held-out images" if alpha == "calibrated" else "as published"
    figure.supxlabel(f"copies in the training set as planted (threshold {threshold}; crosses: never-trained twins)", fontsize=9)
    figure.supylabel("share of images extracted", fontsize=9)
    figure.tight_layout()
    keep(figure, name)
display(
    Markdown(
        f"Each point is the share of the different images with that many planted copies which came back, pooled over replicates, with exact {level} intervals"
        + ("" if replicates == 1 else " (too narrow: every replicate attacks the same images, and they are counted as others)")
        + "; crosses are "
        "the twins that were drawn together with the planted images but never trained on. With a model that memorises, the share rises with the "
        "number of copies while the twins stay low; deduplication is meant to take the right part of the curve down to its left end."
    )
)

# %% [markdown]
# ## The arms side by side

# %%
chosen = [m for m in ("flagged_generations_calibrated", "planted_extracted_calibrated", "unique_images_calibrated", "flagged_generations", frechet) if m in metrics]
CONTROLS = {"planted_extracted_calibrated": "twins_flagged_calibrated", frechet: f"{frechet} of holdout"}
CONTROLS |= {m: m.replace("generations", "holdout") for m in chosen if "generations" in m}
figure, axes = plt.subplots(1, len(chosen), figsize=(2.1 * len(chosen) + 1, 0.24 * len(arms) + 1.2), sharey=True, squeeze=False)
for axis, metric in zip(axes.flat, chosen):
    for y, arm in enumerate(arms):
        if (arm, metric) in own.index:
            row = own.loc[(arm, metric)]
            error = None if pd.isna(row.low) else [[max(row.value - row.low, 0)], [max(row.high - row.value, 0)]]
            axis.errorbar([row.value], [y], xerr=error, fmt="o", markersize=4, color=OWN, capsize=2, linewidth=1)
        if (arm, CONTROLS.get(metric)) in own.index:
            axis.plot([own.loc[(arm, CONTROLS[metric]), "value"]] * 2, [y - 0.3, y + 0.3], color="black", linewidth=1.2)
    axis.set_title(columns.get(metric, metric).replace(", ", ",\n"), fontsize=8)
    if metric == frechet:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=4))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
    else:
        axis.set_xlim(left=0)
    if metric.startswith(SHARES):
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
axes[0, 0].set_yticks(range(len(arms)), arms)
axes[0, 0].set_ylim(len(arms) - 0.5, -0.5)
figure.tight_layout()
keep(figure, "arms")
display(
    Markdown(
        f"Points are the arms with {level} intervals, black bars the same measure on images that the model never saw (real held-out images, or the twins of the planted ones). "
        "A remedy is worth having if extraction falls while the distance to reference images (which no arm was trained on) does not rise; that distance measures class shares too, which planted copies skew. "
        "Whether the intervals of two arms overlap is no test of their difference: the page `comparison` has that."
    )
)

passes = ", ".join(f"{arm} {own.loc[(arm, 'passes'), 'value']:.3g}" for arm in arms)
display(
    Markdown(
        f"Passes over the training images: {passes}. With the same number of updates an arm that trains on fewer images sees each of them "
        "more often, and more passes alone make a model remember more: compare arms at equal updates with that in mind."
    )
)

# %% [markdown]
# ## Can the attack tell trained from never trained?

# %%
figure, axes = panels(len(arms), sharex=True, sharey=True)
for axis, arm in zip(axes, arms):
    for other, shade in ((control_of.get(arm), CONTROL), (arm, OWN)):
        if other is not None:
            curve = pd.read_csv(folder("attack", other, "extraction", "precision_recall.csv"))
            axis.plot(curve.recall.astype(float), curve.precision.astype(float), color=shade, linewidth=1.2)
    axis.axhline(0.5, color="0.3", linewidth=0.7, linestyle=":")
    average = f"AP {own.loc[(arm, 'average_precision'), 'value']:.2f}" if (arm, "average_precision") in own.index else ""
    axis.set_title(f"{arm}  {average}" + (f"\n(grey: {control_of[arm]})" if arm in control_of else "\n"), fontsize=8)
    axis.set(xlim=(0, 1.02), ylim=(0, 1.04), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
figure.supxlabel("recall of planted images", fontsize=9)
figure.supylabel("precision against their twins", fontsize=9)
figure.tight_layout()
keep(figure, "precision_recall")
display(
    Markdown(
        "Planted images and their never-trained twins are ranked together by their smallest ratio. An attack that learns nothing from the model "
        "stays on the dotted line; one that never mistakes a twin stays at the top."
    )
)

# %% [markdown]
# ## Deduplication against the planted truth

# %%
display(table("dedup").set_index("method").T.map(lambda number: f"{number:.4g}"))
display(
    Markdown(
        "Pair precision and recall are measured against the duplicates that were planted. Pairs that a detector found but nobody planted count "
        "as false here even where the eye would agree with them."
    )
)

# %% [markdown]
# ## Every number
# Both readings of whose neighbours normalise the distance (`training`, `candidate`), both thresholds, and MQ as IET-AGC defines it;
# below them the quality. One line opens the table of each arm.

# %%
style = {"index": False, "na_rep": "", "float_format": "{:.4g}".format}
overall, quality = extraction[extraction.subset == "all"].drop(columns=["subset"]), table("quality")
for arm in arms:
    shown_tables = "".join(some[some.arm == arm].drop(columns="arm").to_html(**style) for some in (overall, quality))
    display(HTML(f"<details><summary>{arm}</summary>{shown_tables}</details>"))
