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

from afterimage.artifacts import read_run
from afterimage.images import load_images
from afterimage.report.notebook import Notebook, text

book = Notebook(results, figures, confidence)
results, keep, show, level = book.results, book.keep, book.show, book.level
phase = results / "attribution"
SETS = {"holdout": "held-out images", "generated": "generations", "extracted": "extracted generations"}
COLOUR = {"holdout": "C0", "generated": "C1", "extracted": "C2"}

main = read_run(phase / "scores" / "main")
facts, settings = main["facts"], main["config"]["settings"]
explained = read_run(next((phase / "retrain").iterdir()))["config"]["settings"]["attribution"]["arm"]
every = pd.read_csv(phase / "scores" / "main" / "lds.csv")
lds, moved = (every[every.target == target] for target in ("loss", "shift"))
sets = [name for name in SETS if name in set(lds.queries)]
cell = lds.set_index(["attributor", "queries"])
order = lds.groupby("attributor").lds.mean().sort_values(ascending=False).index.tolist()

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
show(pd.DataFrame(lines).fillna(""), shaded=[at for at, name in enumerate(order) if name == "shuffled"])
display(
    Markdown(
        f"In brackets: {level} bootstrap intervals over subsets; queries share them, so that resampling queries would be far too narrow. *Oracle λ* is the score "
        "at the regulariser that is best on the very subsets reported, as the published tables have it: more than a user can get. The *ceiling* is what a "
        "prediction that knows the expected losses would score against the measured ones, from independent trainings of the same subsets. `shuffled` is the control: "
        "the scores of `trak`, given to other images. Squared scores (`das`, `das_scalar`, and those named so) have no sign.\n\n"
        "**The order of this table is no ranking.** The intervals are too narrow, since resampling subsets lowers Spearman's correlation: in simulations nominal 95 % intervals held the true score in 53 to 95 % of cases with 64 queries and 32 subsets, and in 48 to 85 % with 48 queries and 8, "
        "least often for high scores. No interval of a difference between two attributors is computed, and with few subsets all scores come out too low. All of it is of one trained network and one drawing of the noise: with noise drawn again, scores from few timesteps may hardly correlate with "
        "themselves (10 timesteps of another small network: `das`, `trak` and `ggn_influence` 0.15 to 0.17, `dtrak` 0.38, `das_revised` 0.77), so that the table judges the noise of an estimate as much as its definition."
    )
)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 0.27 * len(order) + 1.1), sharey=True)
for axis, (target, rows) in zip(axes, (("loss", lds), ("shift", moved))):
    best = rows.drop_duplicates("queries").set_index("queries").get("ceiling", pd.Series(dtype=float)).dropna()
    for shift, part in zip(np.linspace(-0.22, 0.22, len(sets)), sets):
        some = rows[rows.queries == part].set_index("attributor").loc[order]
        at = np.arange(len(order)) + shift
        axis.hlines(at, some.low, some.high, color=COLOUR[part], linewidth=1)
        axis.plot(some.lds, at, "o", color=COLOUR[part], markersize=4, label=SETS[part])
        if part in best.index:
            axis.axvline(best[part], color=COLOUR[part], linewidth=0.9, linestyle="--")
    axis.axvline(0, color="0.7", linewidth=0.8)
    axis.set_xlabel(f"LDS of the {target}, {level} intervals" + ("; dashed: ceiling" if len(best) else ""))
    axis.grid(axis="y", color="0.93")
axes[0].set_yticks(range(len(order)), order)
axes[0].set_ylim(len(order) - 0.5, -0.5)
axes[0].legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(sets))
keep(figure, "attribution_lds")

# %% [markdown]
# The table and the left panel have the target of the published protocol, the query's **loss**. What DAS derives is of another quantity, the **shift**: how far the
# prediction for the query moves from that of the explained network (mean squared change). The right panel judges the same scores by it.

# %%
lines = []
for name in moved.groupby("attributor").lds.mean().sort_values(ascending=False).index:
    line = {"attributor": f"<b>{escape(name)}</b>"}
    for part in sets:
        row = moved[(moved.attributor == name) & (moved.queries == part)].iloc[0]
        line |= {f"LDS of the shift, {SETS[part]}": text(row.lds, row.low, row.high), f"oracle λ, {part}": text(row.oracle)}
        if "of_ceiling" in row and pd.notna(row.of_ceiling):
            line |= {f"of ceiling, {part}": text(row.of_ceiling, percent=True)}
    lines.append(line)
show(pd.DataFrame(lines).fillna(""), shaded=[at for at, line in enumerate(lines) if "shuffled" in line["attributor"]])

# %% [markdown]
# ## The regulariser
# Published scores take the regulariser λ that gives the best LDS. How much that choice is worth, and how well a choice on other subsets does:

# %%
table = pd.read_csv(phase / "scores" / "main" / "regularisers.csv").query("target == 'loss'")
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
leverage = pd.read_csv(phase / "scores" / "main" / "leverage.csv")
if len(leverage):
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
# ## Without the images that made it
# The first images of a ranking are taken out, a network is trained on the others, and the same noise is denoised again. The more the picture
# changes, and the more the query's loss rises, the more these images had made it. `random` takes out as many by chance; `again` takes none out and trains with other
# random numbers: what any retraining changes.

# %%
stores = sorted((phase / "counterfactual").glob("*/**/changes.csv")) if (phase / "counterfactual").is_dir() else []
if stores:
    changes = pd.concat([pd.read_csv(path) for path in stores])
    again = changes[changes.choice == "again"].set_index("query").loss
    changes["rise"] = changes.loss - changes["query"].map(again)
    changes["distance"] = 1 - changes.cosine
    choices = ["again", "random", *(name for name in dict.fromkeys(changes.choice) if name not in ("again", "random"))]
    MEASURES = {
        "l2": "pixels (normalised l2)",
        "distance": "classifier features (1 - cosine)",
        "rise": "loss of the query, less that of `again`",
    }
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(10, 0.3 * len(choices) + 1.1), sharey=True)
    for axis, (column, label) in zip(axes, MEASURES.items()):
        for at, choice in enumerate(choices):
            values = changes.loc[changes.choice == choice, column]
            axis.plot(values, np.full(len(values), at), "o", color="C0", alpha=0.35, markersize=4)
            axis.plot(values.median(), at, "|", color="k", markersize=11, markeredgewidth=2)
        axis.set_xlabel(label)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="y", color="0.93")
    axes[0].set_yticks(range(len(choices)), choices)
    axes[0].set_ylim(len(choices) - 0.5, -0.5)
    keep(figure, "attribution_counterfactual")
    taken = changes.loc[changes.choice != "again", "removed"].max()
    display(
        Markdown(
            f"{again.size} generations, {taken} of {facts['training_images']} training images taken out. Bars: medians over the generations, without intervals: so few rank no attributors."
        )
    )
else:
    display(Markdown("This study does not take images out (`attribution.counterfactual`)."))

# %%
if stores and show_images:
    asked = load_images(phase / "queries" / "generated.npz")
    figure, axes = plt.subplots(
        len(choices) + 1, again.size, figsize=(0.75 * again.size + 1.3, 0.75 * (len(choices) + 1)), squeeze=False
    )
    for column, query in enumerate(again.index):
        pictures = [asked.pixels[query]]
        for choice in choices:
            path = phase / "counterfactual" / choice / ("" if choice == "again" else str(query)) / "regenerated.npz"
            pictures.append(load_images(path).pixels[column if choice == "again" else 0])
        for axis, picture in zip(axes[:, column], pictures):
            axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, label in zip(axes[:, 0], ["the generation", *choices]):
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    keep(figure, "attribution_regenerated")

# %% [markdown]
# ## Forgotten images
# Does a remedy take away the influence of the images that it makes a network forget? For the same generations, the chance that a forgotten training image is scored
# higher than another one, in the network before the remedy and after it (0.5: no more influence than others).

# %%
stores = sorted((phase / "remedied").glob("*/influence.csv")) if (phase / "remedied").is_dir() else []
if stores:
    influence = pd.concat([pd.read_csv(path).assign(arm=path.parent.name) for path in stores])
    groups = [name for name in ("forgotten", "others") if name in set(influence.queries)]
    names = list(dict.fromkeys(influence.attributor))
    remedied = [arm for arm in arms if arm in set(influence.arm)]
    figure, axes = plt.subplots(
        1, len(groups), figsize=(4.2 * len(groups), 0.24 * len(names) * len(remedied) + 1.2), sharey=True, squeeze=False
    )
    for axis, group in zip(axes.flat, groups):
        some = influence[influence.queries == group].set_index(["arm", "attributor", "network"]).auc
        for place, (arm, name) in enumerate((arm, name) for arm in remedied for name in names):
            before, after = some[arm, name, "before"], some[arm, name, "after"]
            axis.plot([before, after], [place, place], color="0.7", linewidth=1)
            axis.plot(before, place, "o", color="0.55", markersize=4, label="before" if place == 0 else None)
            axis.plot(after, place, "o", color="C3", markersize=4, label="after" if place == 0 else None)
        axis.axvline(0.5, color="0.7", linewidth=0.8)
        shown = {"forgotten": "forgotten images", "others": "other images"}[group]
        count = influence.loc[influence.queries == group, "count"].iloc[0]
        axis.set(title=f"{count} generations that show {shown}", xlabel="chance that a forgotten image is scored higher")
        axis.grid(axis="y", color="0.93")
    axes[0, 0].set_yticks(range(len(remedied) * len(names)), [f"{arm}: {name}" for arm in remedied for name in names])
    axes[0, 0].set_ylim(len(remedied) * len(names) - 0.5, -0.5)
    axes[0, 0].legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.06), ncols=2)
    keep(figure, "attribution_remedied")
    before = read_run(stores[0].parent)["config"]["settings"]["before"]
    display(Markdown(f"Before: `{before}`. Squared scores (`das`) are large for any effect, helpful or harmful."))
else:
    display(Markdown("This study does not follow forgotten images (`attribution.remedied`)."))

# %% [markdown]
# ## Cost against quality
# The same scores from cheaper features, and from two stages: all images by the main features, the best of them again by the reference's. Cost is the time that the
# features took. *Agreement* is Spearman's correlation with the reference's scores over the training images; *first* the share of its first images that are kept.

# %%
if (phase / "acceleration" / "acceleration.csv").is_file():
    made = read_run(phase / "acceleration")
    reference = made["config"]["settings"]["reference"]
    every = pd.read_csv(phase / "acceleration" / "acceleration.csv")
    shown = [name for name in ("das_revised", "dtrak", "trak", "das", "ggn_influence") if name in set(every.attributor)]
    part = "generated"
    some = every[(every.queries == part) & every.attributor.isin(shown)]
    wide = some.set_index(["variant", "attributor"])
    rows = [row for name in shown for _, row in some[some.attributor == name].sort_values("seconds").iterrows()]
    lines = [
        {
            "attributor": f"<b>{escape(row.attributor)}</b>",
            "features": escape(row.variant),
            "seconds": f"{row.seconds:.1f}",
            "LDS": text(row.lds, row.low, row.high),
            "agreement": text(row.agreement),
            "first": text(row["first"], percent=True),
        }
        for row in rows
    ]
    show(pd.DataFrame(lines), shaded=[at for at, row in enumerate(rows) if row.variant == reference])
    display(
        Markdown(
            f"{SETS[part].capitalize()}; shaded: the reference. Two stages look at {made['facts']['shortlist']} of {facts['training_images']} images again."
        )
    )
    figure, axes = plt.subplots(1, len(shown), figsize=(2.6 * len(shown), 3), sharey=True, squeeze=False)
    colours = dict(zip(some.sort_values("seconds").variant.unique(), plt.get_cmap("tab20").colors[::2] + plt.get_cmap("tab20").colors[1::2]))
    for axis, name in zip(axes.flat, shown):
        for row in some[some.attributor == name].sort_values("seconds").itertuples():
            axis.vlines(row.seconds, row.low, row.high, color=colours[row.variant], linewidth=0.8)
            axis.plot(row.seconds, row.lds, "o", color=colours[row.variant], markersize=5, label=row.variant)
        axis.set(xscale="log", xlabel="seconds", title=name)
        axis.grid(axis="y", color="0.93")
    axes[0, 0].set_ylabel(f"LDS, {SETS[part]}")
    axes.flat[-1].legend(frameon=False, fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left")
    keep(figure, "attribution_cost")
else:
    display(Markdown("This study has no variants of its features (`attribution.variants`)."))

# %%
KEYS = {"timesteps": "timesteps T", "dimension": "dimension k of the projection"}
features = {
    path.parts[-4]: read_run(path.parent)["config"]["settings"]["features"]
    for path in (phase / "features").glob("*/final/queries/run.json")
}
curves = {
    key: sorted(
        (made[key], name)
        for name, made in features.items()
        if all(made[other] == features["main"][other] for other in made if other not in (key, "rows"))
    )
    for key in KEYS
}
if any(len(points) > 1 for points in curves.values()):
    figure, axes = plt.subplots(1, len(curves), figsize=(7.5, 3), sharey=True)
    for axis, (key, points) in zip(axes, curves.items()):
        for name in shown:
            found = [(value, wide.lds[variant, name]) for value, variant in points if (variant, name) in wide.index]
            axis.plot(*zip(*found), "o-", markersize=4, linewidth=1, label=name)
        axis.set(xscale="log", xlabel=KEYS[key])
        axis.set_xticks([value for value, _ in points], labels=[str(value) for value, _ in points])
        axis.minorticks_off()
        axis.grid(color="0.93")
    axes[0].set_ylabel(f"LDS, {SETS[part]}")
    axes[-1].legend(frameon=False, fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left")
    keep(figure, "attribution_timesteps_dimension")

# %% [markdown]
# ## Published numbers
# LDS on CIFAR-2 from the executed notebooks of D-TRAK (Zheng et al., ICLR 2024), in percent, at T = 10 / T = 100, regulariser by oracle, 64 subsets. Networks, data
# and queries are others than here: scores of different set-ups cannot be compared, and their order only where it is known here.

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
