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

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, Image, Markdown, display

from afterimage.artifacts import load_images, read_run

results, figures = Path(results), Path(figures)
figures.mkdir(exist_ok=True)
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "x"})
colour = {arm: f"C{i}" for i, arm in enumerate(arms)}


def folder(phase, arm, *rest, replicate=0):
    return results.joinpath(phase, arm, f"rep{replicate}", *rest)


def table(name):
    return pd.read_csv(results / "report" / "tables" / f"{name}.csv")


def keep(figure, name):
    figure.savefig(figures / f"{name}.png", bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    display(Image(filename=figures / f"{name}.png"))


def percent(value):
    return "n/a" if pd.isna(value) else f"{100 * value:.1f} %"


headline, copies, extraction = table("arms"), table("copies"), table("extraction")
own = headline.set_index(["arm", "metric"])
runs = {arm: read_run(folder("train", arm)) for arm in arms}
one = runs[arms[0]]
display(
    Markdown(
        f"Study `{study}`, {replicates} replicate(s) of {len(arms)} arms, seed {one['config']['seed']}; code "
        f"`{(one['environment']['git_commit'] or 'unknown')[:10]}`{' (changed since that commit)' if one['environment']['git_dirty'] else ''}, "
        f"environment lock `{(one['environment']['lock_sha256'] or 'unknown')[:10]}`."
    )
)

# %% [markdown]
# ## The arms at a glance

# %%
metrics = list(dict.fromkeys(headline.metric))
pd.set_option("display.max_rows", None, "display.max_columns", None)
wide = headline.assign(
    shown=[(f"{v:.4g}" if abs(v) < 1e4 else f"{v:,.0f}") + (f"  [{lo:.4g}, {hi:.4g}]" if pd.notna(lo) else "") for v, lo, hi in headline[["value", "low", "high"]].values]
).pivot(index="metric", columns="arm", values="shown")
display(wide.loc[metrics, arms].fillna("").rename_axis(None, axis=0).rename_axis(None, axis=1))
display(
    Markdown(
        "In brackets: 95 % intervals within the one replicate, exact for shares and counts, from a bootstrap for others. They say how sure the number is **for these images and generations**; only several replicates say what another "
        "training would have given."
        if replicates == 1
        else "In brackets: 95 % intervals between replicates (t). They cover another training and sampling of the same arm on the same images."
    )
)

# %% [markdown]
# ## The pairs
# Left the generation, right the training image nearest to it, below the distance (root mean square difference of pixels in [0, 1])
# and the ratio to the mean distance of that image's neighbours; one pair per training image, smallest ratio first.

# %%
for arm in arms:
    found = pd.read_parquet(folder("attack", arm, "extraction", "pairs.parquet"))
    best = found.sort_values("ratio_training").drop_duplicates("nearest_source").head(pairs)
    if show_images:
        generations = load_images(folder("sample", arm, "images.npz"))
        training = load_images(results / "data" / "split" / "train.npz")
        row_of = {int(id_): row for row, id_ in enumerate(training.ids)}
        columns = 8
        rows = -(-len(best) // columns)
        figure, axes = plt.subplots(rows, columns, figsize=(columns * 1.45, rows * 1.15), squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for axis, pair in zip(axes.flat, best.itertuples()):
            images = [generations.pixels[pair.sample], training.pixels[row_of[int(pair.nearest)]]]
            gap = np.full((images[0].shape[0], 1, images[0].shape[2]), 255, np.uint8)
            axis.imshow(np.concatenate([images[0], gap, images[1]], axis=1).squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_title(f"{pair.l2:.3f}  ratio {pair.ratio_training:.2f}", fontsize=7, pad=2)
        figure.suptitle(f"{arm}: generation | nearest training image", fontsize=10)
        figure.tight_layout()
        keep(figure, f"pairs_{arm}")
    else:
        display(Markdown(f"**{arm}**: the study does not allow its images to be shown (`report.show_images: false`)."))
        display(best[["sample", "nearest", "l2", "ratio_training"]].round(4))
display(
    Markdown(
        "A pair that the eye cannot tell apart is a training image that the model holds. The ratio compares the pair's distance with how "
        "far that training image lies from its own neighbours, so that a plain image is not called copied merely because everything is near it."
    )
)

# %% [markdown]
# ## Distances of generations and of held-out images

# %%
figure, axes = plt.subplots(2, len(arms), figsize=(4.2 * len(arms), 5), squeeze=False, sharex="row")
for column, arm in enumerate(arms):
    generated = pd.read_parquet(folder("attack", arm, "extraction", "pairs.parquet"))
    held_out = pd.read_parquet(folder("attack", arm, "extraction", "holdout_pairs.parquet"))
    for axis, key, label in ((axes[0][column], "l2", "distance to the nearest training image"), (axes[1][column], "ratio_training", "ratio (threshold 1)")):
        high = np.quantile(np.concatenate([generated[key], held_out[key]]), 0.995)
        bins = np.linspace(0, high, 50)
        axis.hist(generated[key], bins, density=True, alpha=0.6, color=colour[arm], label="generations")
        axis.hist(held_out[key], bins, density=True, histtype="step", color="black", label="real held-out images")
        axis.set_xlabel(label)
        axis.set_yticks([])
    axes[1][column].axvline(1, color="red", linewidth=0.8)
    axes[0][column].set_title(arm)
    axes[0][column].legend(frameon=False)
figure.tight_layout()
keep(figure, "distances")
lines = [
    f"**{arm}**: {percent(own.loc[(arm, 'flagged_generations'), 'value'])} of generations and "
    f"{percent(own.loc[(arm, 'flagged_holdout'), 'value'])} of real held-out images have a ratio of at most 1."
    for arm in arms
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
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True)
for axis, alpha in zip(axes, ("fixed", "calibrated")):
    for i, arm in enumerate(arms):
        some = copies[(copies.arm == arm) & (copies.alpha == alpha)].sort_values("copies")
        shift = 1 + 0.04 * (i - (len(arms) - 1) / 2)
        error = np.clip(np.stack([some.share - some.low, some.high - some.share]), 0, None)
        axis.errorbar(some.copies * shift, some.share, error, marker="o", capsize=2, color=colour[arm], label=arm)
        twins = some.dropna(subset=["twins_share"])
        axis.plot(twins.copies * shift, twins.twins_share, "x", color=colour[arm], label=f"{arm}: never-trained twins")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(copies.copies.unique()), [str(c) for c in sorted(copies.copies.unique())])
    axis.set_xlabel("copies in the training set as planted")
    axis.set_title(f"{alpha} alpha")
axes[0].set_ylabel("share of images extracted")
axes[0].set_ylim(-0.03, 1.03)
axes[1].legend(frameon=False, fontsize=8, bbox_to_anchor=(1.02, 1), loc="upper left")
figure.tight_layout()
keep(figure, "multiplicity")
display(
    Markdown(
        "Each point is the share of the different images with that many planted copies which came back, with exact 95 % intervals; crosses are "
        "the twins that were drawn together with the planted images but never trained on. With a model that memorises, the share rises with the "
        "number of copies while the twins stay low; deduplication is meant to take the right part of the curve down to its left end."
    )
)

# %% [markdown]
# ## The arms side by side

# %%
shown_first = ("unique_images", "unique_images_calibrated", "flagged_generations", "flagged_generations_calibrated")
chosen = [m for m in shown_first if m in metrics]
chosen += [m for m in metrics if m.startswith(("FD[", "FID[")) and m.endswith("]")]
figure, axes = plt.subplots(1, len(chosen), figsize=(2.3 * len(chosen), 3))
for axis, metric in zip(np.atleast_1d(axes), chosen):
    for i, arm in enumerate(arms):
        row = own.loc[(arm, metric)]
        error = None if pd.isna(row.low) else [[max(row.value - row.low, 0)], [max(row.high - row.value, 0)]]
        axis.errorbar([i], [row.value], error, fmt="o", color=colour[arm], capsize=3)
    control = metric.replace("generations", "holdout") if "generations" in metric else f"{metric} of holdout"
    for i, arm in enumerate(arms):
        if (arm, control) in own.index:
            axis.plot([i - 0.25, i + 0.25], [own.loc[(arm, control), "value"]] * 2, color="black", linewidth=1)
    axis.set_xticks(range(len(arms)), arms, rotation=20)
    axis.set_title(metric, fontsize=8)
    axis.set_xlim(-0.6, len(arms) - 0.4)
    axis.set_ylim(bottom=0)
figure.tight_layout()
keep(figure, "arms")
display(
    Markdown(
        "Points are the arms with 95 % intervals, black bars the same measure on real held-out images. A remedy is worth having if extraction "
        "falls while the distance to reference images (which no arm was trained on) does not rise."
    )
)

passes = ", ".join(f"{arm} {own.loc[(arm, 'passes'), 'value']:.0f}" for arm in arms)
display(
    Markdown(
        f"Passes over the training images: {passes}. With the same number of updates an arm that trains on fewer images sees each of them "
        "more often, and more passes alone make a model remember more: compare arms at equal updates with that in mind."
    )
)

# %% [markdown]
# ## Can the attack tell trained from never trained?

# %%
figure, axis = plt.subplots(figsize=(4.2, 3.4))
for arm in arms:
    curve = pd.read_csv(folder("attack", arm, "extraction", "precision_recall.csv"))
    if len(curve):
        axis.plot(curve.recall, curve.precision, color=colour[arm], label=f"{arm} (AP {own.loc[(arm, 'average_precision'), 'value']:.2f})")
axis.set(xlabel="recall of planted images", ylabel="precision against their twins", xlim=(0, 1.02), ylim=(0, 1.02))
axis.axhline(0.5, color="grey", linewidth=0.7, linestyle=":")
axis.legend(frameon=False)
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
# Both readings of whose neighbours normalise the distance (`training`, `candidate`), both thresholds, and MQ as IET-AGC defines it.

# %%
shown = extraction[extraction.subset == "all"].drop(columns=["subset"])
style = {"index": False, "na_rep": "", "float_format": "{:.4g}".format}
display(HTML(shown.to_html(**style)))
display(HTML(table("quality").to_html(**style)))
