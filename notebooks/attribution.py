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
# # Which training images made this image?
#
# An **attributor** gives every training image a score for a query, from the gradients of one trained network. Whether the scores mean
# anything is judged by retraining: networks are trained on random subsets of the training images, and the sum of the scores of the
# images that a subset keeps is compared with the loss of the query under the network trained on it (**linear data-modelling score**, LDS:
# Spearman's correlation over subsets, mean over queries). DAS (Lin et al., ICLR 2025) is one attributor; its rivals stand beside it, the
# same subsets and the same noise for all.

# %% tags=["parameters"]
results = "results/default"
figures = "figures"
study = "default"
arms = ["baseline", "dedup"]
replicates = 1
confidence = 0.95
show_images = True
pairs = 24

# %%
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from afterimage.artifacts import load_images, read_run
from afterimage.report.notebook import Notebook, text

book = Notebook(results, figures, confidence)
results, keep, show, level = book.results, book.keep, book.show, book.level
phase = results / "attribution"
SETS = {"holdout": "held-out images", "generated": "generations", "extracted": "extracted generations"}
COLOUR = {"holdout": "C0", "generated": "C1", "extracted": "C2"}

main = read_run(phase / "scores" / "main")
facts, settings = main["facts"], main["config"]["settings"]
explained = read_run(next((phase / "retrain").iterdir()))["config"]["settings"]["attribution"]["arm"]
lds = pd.read_csv(phase / "scores" / "main" / "lds.csv")
sets = [name for name in SETS if name in set(lds.queries)]
cell = lds.set_index(["attributor", "queries"])
order = lds.groupby("attributor").lds.mean().sort_values(ascending=False).index.tolist()
ceilings = lds.drop_duplicates("queries").set_index("queries").get("ceiling", pd.Series(dtype=float))

# %%
counts = ", ".join(f"{facts['queries'][name]} {SETS[name]}" for name in sets)
display(
    Markdown(
        f"Study `{study}`, arm **{explained}**: {facts['training_images']} training images; queries: {counts}. Retrained on "
        f"{settings['subsets']} subsets of {100 * settings['share']:g} % of the images, {settings['seeds']} time(s) each. Regularisers, and what is "
        f"learned from retraining, come from the first half of the subsets; what is shown is measured on the {facts['reported_subsets']} others."
    )
)

# %% [markdown]
# ## How well each attributor predicts retraining

# %%
lines = []
for name in order:
    line = {"attributor": f"<b>{escape(name)}</b>"}
    for part in sets:
        row = cell.loc[(name, part)]
        line |= {f"LDS, {SETS[part]}": text(row.lds, row.low, row.high), f"oracle λ, {part}": text(row.oracle)}
        if "of_ceiling" in row and pd.notna(row.of_ceiling):
            line |= {f"of ceiling, {part}": text(row.of_ceiling, percent=True)}
        if row.undefined:
            line[f"LDS, {SETS[part]}"] += f" <small>({row.undefined:.0f} queries without)</small>"
    lines.append(line)
show(pd.DataFrame(lines), shaded=[at for at, name in enumerate(order) if name == "shuffled"])
display(
    Markdown(
        f"In brackets: {level} bootstrap intervals over subsets; queries share them, so that resampling queries would be far too narrow. *Oracle λ* is the score "
        "at the regulariser that is best on the very subsets reported, as the published tables have it: more than a user can get. The *ceiling* is what a "
        "prediction that knows the expected losses would score against the measured ones, from independent trainings of the same subsets. `shuffled` is the control: "
        "the scores of `trak`, given to other images. Squared scores (`das`, `das_scalar`, and those named so) have no sign."
    )
)

# %%
figure, axis = plt.subplots(figsize=(7.5, 0.27 * len(order) + 1.1))
for shift, part in zip(np.linspace(-0.22, 0.22, len(sets)), sets):
    some = cell.xs(part, level="queries").loc[order]
    at = np.arange(len(order)) + shift
    axis.hlines(at, some.low, some.high, color=COLOUR[part], linewidth=1)
    axis.plot(some.lds, at, "o", color=COLOUR[part], markersize=4, label=SETS[part])
    if part in ceilings.index and pd.notna(ceilings[part]):
        axis.axvline(ceilings[part], color=COLOUR[part], linewidth=0.9, linestyle="--")
axis.axvline(0, color="0.7", linewidth=0.8)
axis.set_yticks(range(len(order)), order)
axis.set_ylim(len(order) - 0.5, -0.5)
axis.set_xlabel(f"LDS, with {level} intervals over subsets" + ("; dashed: ceiling" if len(ceilings.dropna()) else ""))
axis.grid(axis="y", color="0.93")
axis.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(sets))
keep(figure, "attribution_lds")

# %% [markdown]
# ## The regulariser
# Published scores take the regulariser λ that gives the best LDS. How much that choice is worth, and how well a choice on other subsets does:

# %%
table = pd.read_csv(phase / "scores" / "main" / "regularisers.csv")
regularised = [name for name in order if table[table.attributor == name].regulariser.nunique() > 1]
figure, axes = plt.subplots(1, len(sets), figsize=(3.6 * len(sets), 3.3), sharey=True, squeeze=False)
for axis, part in zip(axes.flat, sets):
    for name in regularised:
        some = table[(table.attributor == name) & (table.queries == part) & (table.half == "second")]
        (line,) = axis.plot(some.regulariser, some.lds, linewidth=1.2, label=name)
        chosen = cell.loc[(name, part)]
        axis.plot(chosen.regulariser, chosen.lds, "o", color=line.get_color(), markersize=4)
    axis.set(xscale="log", xlabel="λ / mean eigenvalue", title=SETS[part])
    axis.axhline(0, color="0.7", linewidth=0.8)
axes[0, 0].set_ylabel("LDS on the reported subsets")
axes[0, -1].legend(frameon=False, fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left")
keep(figure, "attribution_regularisers")
display(Markdown("Dots: the regulariser chosen on the first half of the subsets."))

# %% [markdown]
# ## Copies whose number is known
# A generation that shows a training image planted m times was made by those m copies. Does an attributor rank them first? And does a low leverage
# give duplicates away without any query?

# %%
copies = pd.read_csv(phase / "scores" / "main" / "copies.csv")
if len(copies):
    mean = copies.groupby("attributor")[["recall", "chance"]].mean().loc[[name for name in order if name in set(copies.attributor)]]
    several = copies[copies.copies > 1]
    figure, axis = plt.subplots(figsize=(6.5, 0.25 * len(mean) + 1))
    axis.barh(range(len(mean)), mean.recall, color="0.6")
    axis.plot(mean.chance, range(len(mean)), "|", color="C3", markersize=9)
    axis.set_yticks(range(len(mean)), mean.index)
    axis.set_ylim(len(mean) - 0.5, -0.5)
    axis.set(xlabel="share of the m copies among the first m images (red: by chance)", xlim=(0, 1.02))
    keep(figure, "attribution_copies")
    display(Markdown(f"{copies['query'].nunique()} extracted generations, {several['query'].nunique()} of images that stand several times in the training set."))
else:
    display(Markdown("The extraction attack found nothing in this arm's generations, so that there is no generation of known origin."))
if (phase / "scores" / "main" / "leverage.csv").is_file():
    leverage = pd.read_csv(phase / "scores" / "main" / "leverage.csv")
    best = leverage.loc[(leverage.auc - 0.5).abs().idxmax()]
    display(
        Markdown(
            f"Leverage: an image with copies has a smaller one than an image without in {100 * best.auc:.0f} % of pairs at the regulariser where this share is farthest from one half "
            f"(λ = {best.regulariser:g}); over all regularisers from {100 * leverage.auc.min():.0f} to {100 * leverage.auc.max():.0f} %."
        )
    )

# %% [markdown]
# ## First choices

# %%
PICTURED = [name for name in ("das", "das_revised", "dtrak", "trak", "ggn_influence", "pixel_l2") if name in order]
if show_images:
    train = load_images(results / "data" / "split" / "train.npz")
    row_of = pd.Series(range(len(train)), train.ids)
    first = pd.read_parquet(phase / "scores" / "main" / "first.parquet")
    part = "extracted" if "extracted" in sets else "generated"
    asked = load_images(phase / "queries" / f"{part}.npz")
    columns = 8
    for query in range(min(3, len(asked))):
        figure, axes = plt.subplots(len(PICTURED), columns + 1, figsize=(0.62 * (columns + 1) + 1.3, 0.62 * len(PICTURED)), squeeze=False)
        for line, name in zip(axes, PICTURED):
            some = first[(first.attributor == name) & (first.queries == part) & (first["query"] == query)].sort_values("rank")
            pictures = [asked.pixels[query], *train.pixels[row_of.loc[some.id[:columns]]]]
            sources = [None, *train.sources[row_of.loc[some.id[:columns]]]]
            for axis, picture, source in zip(line, pictures, sources):
                axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
                axis.set_xticks([])
                axis.set_yticks([])
                right = source is not None and part == "extracted" and source == asked.sources[query]
                for spine in axis.spines.values():
                    spine.set(visible=True, color="C2" if right else "0.8", linewidth=2 if right else 0.5)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        keep(figure, f"attribution_first_{query}")
    display(Markdown(f"Left: the query ({SETS[part]}); then the first {columns} training images of each attributor. Green frames: copies of the image that the generation shows."))
else:
    display(Markdown("The study does not allow its images to be shown (`report.show_images`)."))

# %% [markdown]
# ## Cost against quality
# The same scores from cheaper features. Cost is the time that the features took.

# %%
variants = [path.name for path in sorted((phase / "scores").iterdir())]
if len(variants) > 1:
    rows = []
    for variant in variants:
        stores = [read_run(path.parent) for path in (phase / "features" / variant / "final").glob("*/run.json")]
        made = stores[0]["config"]["settings"]["features"]
        scored = pd.read_csv(phase / "scores" / variant / "lds.csv").assign(variant=variant)
        scored = scored.assign(cost=sum(store["seconds"] for store in stores), timesteps=made["timesteps"], dimension=made["dimension"])
        rows.append(scored)
    every = pd.concat(rows)
    part = "generated"
    shown = [name for name in ("das", "das_revised", "dtrak", "trak", "ggn_influence") if name in order]
    figure, axes = plt.subplots(1, len(shown), figsize=(2.5 * len(shown), 3), sharey=True, squeeze=False)
    for axis, name in zip(axes.flat, shown):
        some = every[(every.attributor == name) & (every.queries == part)]
        axis.errorbar(some.cost, some.lds, [some.lds - some.low, some.high - some.lds], fmt="o", markersize=4, linewidth=0.8)
        for row in some.itertuples():
            axis.annotate(row.variant, (row.cost, row.lds), xytext=(3, 3), textcoords="offset points", fontsize=7)
        axis.set(xscale="log", xlabel="seconds", title=name)
    axes[0, 0].set_ylabel(f"LDS, {SETS[part]}")
    keep(figure, "attribution_cost")
else:
    display(Markdown("This study has no variants of its features (`attribution.variants`)."))

# %% [markdown]
# ## Published numbers
# LDS on CIFAR-2 from the executed notebooks of D-TRAK (Zheng et al., ICLR 2024), in percent, at T = 10 / T = 100, regulariser by oracle, 64 subsets. Networks, data
# and queries are others than here, and scores of different set-ups cannot be compared; their order can.

# %%
PUBLISHED = {
    "dtrak": ("27.2 / 34.2", "19.1 / 26.0"),
    "trak": ("11.5 / 24.0", "5.9 / 16.1"),
    "relative_influence": ("11.3 / 23.8", "6.0 / 16.2"),
    "renormalised_influence": ("11.0 / 21.8", "5.8 / 14.9"),
    "pixel_cosine": ("7.9 / 8.0", "4.9 / 5.4"),
}
lines = [
    {"attributor": name, "CIFAR-2, held out": held, "CIFAR-2, generated": made}
    | {f"here, {SETS[part]}": text(cell.loc[(name, part)].lds, percent=True) for part in ("holdout", "generated")}
    for name, (held, made) in PUBLISHED.items()
    if name in order
]
show(pd.DataFrame(lines))
