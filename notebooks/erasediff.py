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
# # Has the model forgotten, or does it only not say?
#
# EraseDiff (Wu et al., CVPR 2025) and its rivals start from a trained model, the **base**, and are to make it forget some of its
# training images. Published tables ask a classifier: what is the probability of the forgotten class (P_psi) over the images that
# the model draws when it is asked for that class? A low one says what the model shows, not what it holds. So every arm here is also
# attacked: are forgotten images extracted, do the losses give them away as trained on, and how soon does a little plain training
# bring them back? The **retrained** arm, which never saw them, is the honest answer to each question.

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
from IPython.display import HTML, Markdown, display
from matplotlib.ticker import MaxNLocator

from afterimage.artifacts import read_run
from afterimage.images import load_images
from afterimage.report import comparison
from afterimage.report.notebook import Notebook

book = Notebook(results, figures, confidence)
results, table, keep, folder, show, level = book.results, book.table, book.keep, book.folder, book.show, book.level


numbers = table("forgetting")
exact = numbers["exact_low"].notna()
for end in ("low", "high"):
    numbers[end] = numbers[end].where(~exact, numbers[f"exact_{end}"])
quality = table("quality")
quality = quality[quality.of == "generations"].assign(count=np.nan, of=np.nan)
judged = [arm for arm in arms if arm in set(numbers.arm)]
runs = {arm: read_run(folder("train", arm)) for arm in judged}
own = {arm: run["config"]["settings"]["arm"] for arm, run in runs.items()}
sets = list(dict.fromkeys(numbers.set))
definitions = {}
for arm in judged:
    definitions |= read_run(folder("attack", arm, "forgetting"))["config"]["settings"]["sets"]
settings = read_run(folder("attack", judged[0], "forgetting"))["config"]["settings"]
colour = {arm: "black" if own[arm]["without"] and not own[arm]["base"] else f"C{i % 10}" for i, arm in enumerate(judged)}


def rows(name, arm, metric, subset, alpha="none"):
    """The rows of one number, one per replicate."""
    chosen = (numbers.set == name) & (numbers.arm == arm) & (numbers.metric == metric) & (numbers.subset == subset) & (numbers.alpha == alpha)
    return numbers[chosen]


def asked(name, arm, metric, alpha="none"):
    """The rows of a number about the forgotten images; arms without labels are judged over all that they generate."""
    found = rows(name, arm, metric, "forget", alpha)
    return found if len(found) else rows(name, arm, metric, "all", alpha)


def rest(name, arm, metric):
    """The rows of a quality measure of the rest; of all generations where the set has no class of its own, or the arm no labels."""
    found = rows(name, arm, metric, "remain")
    return found if len(found) else quality[(quality.arm == arm) & (quality.metric == metric)]


def interval(found):
    return comparison.over_replicates(found, confidence)[0] if len(found) and found.value.notna().all() else None


def text(value, share=False, digits=3):
    """A number with its interval as HTML."""
    if value is None:
        return ""
    scale, unit = (100, " %") if share else (1, "")
    ends = "" if pd.isna(value.low) else f" <small>[{scale * value.low:.{digits}g}, {scale * value.high:.{digits}g}]</small>"
    return f"{scale * value.value:.{digits}g}{unit}{ends}"


def log_scale(axis, which):
    """Make an axis logarithmic, with ticks at 1, 2 and 5 times powers of ten, written as plain numbers."""
    getattr(axis, f"set_{which}scale")("log")
    low, high = getattr(axis, f"get_{which}lim")()
    ticks = [tick for tick in np.outer(10.0 ** np.arange(-9, 9), [1, 2, 5]).ravel() if low <= tick <= high]
    if len(ticks) < 2:
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    getattr(axis, f"set_{which}ticks")(ticks, [f"{tick:.2g}" for tick in ticks])
    getattr(axis, f"set_{which}ticks")([], minor=True)


def role(arm):
    """What the published tables call an arm of this kind."""
    one = own[arm]
    if one["method"] == "baseline":
        return "fine-tune" if one["base"] else "retrained" if one["without"] else "unscrubbed"
    if one["method"] == "erasediff":
        return "EraseDiff noise" if "uniform" in one["target"] else "EraseDiff rl"
    return {"gradient_ascent": "NegGrad", "selective_amnesia": "SA", "salun": "SalUn"}.get(one["method"], one["method"])


def members_of(name):
    return [arm for arm in judged if len(numbers[(numbers.set == name) & (numbers.arm == arm)])]


def described(name):
    one = definitions[name]
    if one["label"] is not None:
        return f"all images of class {one['label']}"
    if one["ids"] is not None:
        return f"the sources of {len(one['ids'])} training images"
    return f"the images that the extraction attack got out of {one['extracted_from']} ({one['alpha']} alpha)"


chosen_from = {name: definitions[name]["extracted_from"] for name in sets if definitions[name]["extracted_from"]}


display(
    Markdown(
        f"Study `{study}`, {replicates} replicate(s), seed {runs[judged[0]]['config']['seed']}. Forget sets: "
        + "; ".join(f"**{name}** ({described(name)}; judged on it: {', '.join(members_of(name))})" for name in sets)
        + ". Pictures and curves of single models show replicate 0."
    )
)

# %% [markdown]
# ## The table, with the published one beside it
# **P_psi**: mean probability of the forgotten class. **entropy**: of the classifier on the same generations; at most the logarithm of
# the number of classes. **accuracy, rest**: how often the classifier sees what was asked for, other labels. **FD, precision, recall,
# rest**: generations of the other labels against reference images of the same; all generations where the set has no class of its own
# or the arm no labels. **extracted**: forgotten images given back, calibrated threshold. **AUC**: how well losses tell forgotten from
# held-out images; 0.5 is not at all. **back after**: updates of the relearning attack.

# %%
PUBLISHED = {
    "unscrubbed": (0.97, 9.63, 0.40, 0.79),
    "fine-tune": (0.96, 8.21, 0.43, 0.77),
    "NegGrad": (0.61, 76.73, 0.08, 0.61),
    "SA": (0.06, 8.19, 0.43, 0.75),
    "SalUn": (0.07, 9.16, 0.41, 0.76),
    "EraseDiff noise": (0.22, 7.61, 0.43, 0.72),
    "EraseDiff rl": (0.24, 8.66, 0.43, 0.77),
}
"""EraseDiff's table for CIFAR-10, conditional DDPM, airplane forgotten: P_psi, FID, precision, recall. SECOND-HAND: copied from a public
note on the paper, not compared with the paper itself."""
space = settings["quality"]["features"]
frechet = f"{'FID' if space == 'inception' else 'FD'}[{space}]"


def back(name, arm):
    found = asked(name, arm, "relearn_updates")
    if not len(found):
        return ""
    limit = settings["relearn_updates"]
    values = [f"{value:.0f}" if pd.notna(value) else f"not within {limit}" for value in found.value]
    return ", ".join(values)


def extracted(name, arm):
    found = asked(name, arm, "extracted_images", "calibrated")
    if not len(found):
        return ""
    counts = ", ".join(f"{row.count} of {row.of}" for row in found[["count", "of"]].astype(int).itertuples(index=False))
    return counts if replicates > 1 else f"{counts} <small>[{found.low.iloc[0] * found.of.iloc[0]:.1f}, {found.high.iloc[0] * found.of.iloc[0]:.1f}]</small>"


for name in sets:
    lines = []
    for arm in members_of(name):
        facts = read_run(folder("attack", arm, "forgetting"))["facts"]["sets"][name]
        published = PUBLISHED.get(role(arm), ("", "", "", "")) if definitions[name]["label"] is not None else ("", "", "", "")
        lines.append(
            {
                "arm": f"<b>{escape(arm)}</b>",
                "as published": role(arm),
                "trained on": f"{facts['trained']} of {facts['sources']}",
                "P_psi": text(interval(asked(name, arm, "probability"))),
                "entropy": text(interval(asked(name, arm, "entropy"))),
                "accuracy, rest": text(interval(rows(name, arm, "accuracy", "remain")), share=True),
                f"{frechet}, rest": text(interval(rest(name, arm, frechet))),
                "precision, rest": text(interval(rest(name, arm, f"precision[{space}]")), digits=2),
                "recall, rest": text(interval(rest(name, arm, f"recall[{space}]")), digits=2),
                "extracted": extracted(name, arm),
                "AUC": text(interval(asked(name, arm, "roc_auc"))),
                "back after": back(name, arm),
                "published P_psi": published[0],
                "published FID": published[1],
                "published precision": published[2],
                "published recall": published[3],
            }
        )
    first = members_of(name)[0]
    control = {"arm": "<i>real held-out images</i>", "P_psi": text(interval(asked(name, first, "probability_holdout")))}
    control |= {"entropy": text(interval(asked(name, first, "entropy_holdout"))), "accuracy, rest": text(interval(rows(name, first, "accuracy_holdout", "remain")), share=True)}
    control |= {f"{frechet}, rest": text(interval(rows(name, first, f"{frechet}_holdout", "remain")))}
    control |= {f"{what}, rest": text(interval(rows(name, first, f"{what}[{space}]_holdout", "remain")), digits=2) for what in ("precision", "recall")}
    control = {key: value for key, value in control.items() if value}
    shown = pd.DataFrame([*lines, *([control] if len(control) > 1 else [])]).fillna("")
    display(Markdown(f"**{name}**: {described(name)}"))
    show(shown.loc[:, (shown != "").any()])
display(
    Markdown(
        f"In brackets: {level} intervals "
        + ("within the one training, exact for counts and shares, from a bootstrap for others." if replicates == 1 else "between replicates (Student's t).")
        + " *trained on* counts the forgotten images that stood in the arm's own training data, those that it was then made to forget included; 0 marks an arm that never saw "
        "them, whose extractions are false alarms. (A fine-tuned arm shows 0 as well: its base saw them.) "
        "Published values: EraseDiff's table for CIFAR-10 (conditional DDPM, class airplane), **second-hand**, copied from a public note on the paper and not compared with the paper itself; "
        f"other images, another classifier, another feature space, and guidance of scale 3 where it is {settings['sample']['guidance']:g} here: compare orders, not values."
    )
)

# %% [markdown]
# ## Forgetting against quality

# %%
def bars(one):
    """The error bars of an interval, as matplotlib takes them; None where there is none."""
    return None if pd.isna(one.low) else [[max(one.value - one.low, 0)], [max(one.high - one.value, 0)]]


for name in sets:
    here = members_of(name)
    never = next((arm for arm in here if role(arm) == "retrained"), None)
    bases = {own[arm]["base"] for arm in here}
    mark = {arm: {"fmt": "*", "markersize": 10} if arm == never else {"fmt": "s", "markersize": 8, "fillstyle": "none"} if arm in bases else {"fmt": "o", "markersize": 5} for arm in here}
    forgets = {
        "probability of the class": {arm: interval(asked(name, arm, "probability")) for arm in here},
        "images extracted": {arm: interval(asked(name, arm, "extracted_images", "calibrated")) for arm in here},
        "membership AUC": {arm: interval(asked(name, arm, "roc_auc")) for arm in here},
    }
    forgets = {label: values for label, values in forgets.items() if all(values.values())}
    keeps = {frechet: {arm: interval(rest(name, arm, frechet)) for arm in here}}
    if all(len(rows(name, arm, "accuracy", "remain")) for arm in here):
        keeps["accuracy"] = {arm: interval(rows(name, arm, "accuracy", "remain")) for arm in here}

    measures = {f"forgotten: {label}": values for label, values in forgets.items()} | {f"rest: {label}": values for label, values in keeps.items()}
    figure, axes = plt.subplots(1, len(measures), figsize=(2.2 * len(measures) + 1, 0.32 * len(here) + 0.9), squeeze=False, sharey=True)
    for axis, (label, values) in zip(axes.flat, measures.items()):
        for at, arm in enumerate(here):
            axis.errorbar([values[arm].value], [at], xerr=bars(values[arm]), color=colour[arm], elinewidth=1, capsize=2, **mark[arm])
        if never is not None:
            axis.axvline(values[never].value, color="black", linewidth=0.7, linestyle=":")
        axis.set_title(label.replace(": ", "\n", 1), fontsize=8)
        axis.tick_params(axis="y", length=0)
        axis.set_yticks(range(len(here)), here, fontsize=8)
    axes[0][0].set_ylim(len(here) - 0.4, -0.6)
    figure.tight_layout(w_pad=0.6)
    keep(figure, f"arms_{name}")

    figure, axes = plt.subplots(1, len(forgets), figsize=(3.2 * len(forgets), 3.1), squeeze=False)
    points = np.array([keeps[frechet][arm].value for arm in here])
    for axis, (label, values) in zip(axes.flat, forgets.items()):
        for arm in here:
            x, y = keeps[frechet][arm], values[arm]
            axis.errorbar([x.value], [y.value], fmt="none", xerr=bars(x), yerr=bars(y), ecolor=colour[arm], elinewidth=0.7, alpha=0.4)
            axis.plot([x.value], [y.value], mark[arm]["fmt"], color=colour[arm], label=arm, zorder=5 if arm in bases else 4, **{key: value for key, value in mark[arm].items() if key != "fmt"})
        axis.set(xlabel=f"{frechet} of the rest", ylabel=label, xlim=(0, 1.3 * points.max()))
        if points.max() > 10 * points.min():
            axis.set_xlim(0.6 * points.min(), 1.6 * points.max())
            log_scale(axis, "x")
        if label == "membership AUC":
            axis.axhline(0.5, color="grey", linewidth=0.7, linestyle=":")
    axes.flat[-1].legend(frameon=False, fontsize=8, bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.tight_layout()
    keep(figure, f"forgetting_{name}")
display(
    Markdown(
        f"Above arm by arm, below forgetting against the {frechet} of generations with other labels (of all generations where the set has no class of its own, or the arm no labels); lower and further left is better. Squares: the arm that the "
        f"others start from. Stars and dotted lines: retrained without the images; nothing below is needed, and what it gives back are false alarms. Extraction at the calibrated threshold. Bars: {level} intervals."
        + "".join(
            f" **{name}** is what the attack got out of {origin} by one noise: under that noise all of it comes back from {origin} by construction, under other noise a part would not, **with no remedy at all**. "
            "How much a remedy takes away cannot be read off here."
            for name, origin in chosen_from.items()
        )
    )
)

# %% [markdown]
# ## Along the steps

# %%
curves = {arm: pd.read_json(folder("train", arm, "metrics.jsonl"), lines=True) for arm in judged if own[arm]["base"]}
curves = {arm: curve.pivot_table(index="step", columns="name", values="value") for arm, curve in curves.items()}
if curves:
    columns = min(3, len(curves))
    figure, axes = plt.subplots(-(-len(curves) // columns), columns, figsize=(3 * columns, 2.2 * -(-len(curves) // columns)), squeeze=False)
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, (arm, curve) in zip(axes.flat, curves.items()):
        axis.plot(curve.index, curve.loss, color="0.35", label="loss of the rest")
        if "forget_loss" in curve:
            axis.plot(curve.index, curve.forget_loss, color="C3", label="forgetting loss")
        log_scale(axis, "y")
        axis.set_title(arm, fontsize=9)
        axis.set_xlabel("update")
    handles, labels = max((axis.get_legend_handles_labels() for axis in axes.flat), key=lambda pair: len(pair[0]))
    figure.legend(handles, labels, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0), ncol=2)
    figure.tight_layout()
    keep(figure, "steps")
    display(
        Markdown(
            "Each method's own losses, logarithmic: that of the rest, and that which it takes the forgotten images by. The second differs between methods: gradient ascent "
            "drives the ordinary loss **up**, the others drive the error against another target **down**."
        )
    )

# %%
erasing = [arm for arm in curves if own[arm]["method"] == "erasediff"]
if erasing:
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.8))
    for arm in erasing:
        curve = curves[arm]
        axes[0].plot(curve.index, curve.cosine, color=colour[arm], label=arm)
        axes[1].plot(curve.index, curve["lambda"], color=colour[arm])
        axes[2].plot(curve.index, curve.descent_asked, color=colour[arm])
        if "barrier" in curve:
            axes[2].plot(curve.index, curve.barrier, color=colour[arm], linewidth=0.9, linestyle=":")
    axes[0].axhline(0, color="grey", linewidth=0.7)
    axes[0].set_title("cosine of the two gradients", fontsize=9)
    axes[1].set_title("lambda", fontsize=9)
    axes[2].set_title("descent of the forgetting loss; dotted: barrier", fontsize=9)
    axes[2].set_yscale("symlog", linthresh=1e-3)
    for axis in axes:
        axis.set_xlabel("update")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0), ncol=4)
    figure.tight_layout()
    keep(figure, "gradients")
    lines = []
    for arm in erasing:
        curve, facts = curves[arm], runs[arm]["facts"]
        lines.append(
            f"**{arm}** (target {own[arm]['target']}, barrier {own[arm]['barrier']}): mean cosine {curve.cosine.mean():.3f}, negative in {100 * (curve.cosine < 0).mean():.0f} % of the points; "
            f"mean lambda {curve['lambda'].mean():.3g}; the forgotten images moved the weights in {facts['pushed_updates']} of {facts['updates']} updates."
        )
    display(Markdown("  \n".join(lines)))
    display(
        Markdown(
            "Where the cosine of the gradients of the two losses is negative, a step that serves the rest alone would undo forgetting, and lambda has to make up for it; where it is above the barrier's share, lambda is zero and the "
            "step is an ordinary one on the rest. The right panel shows the product of the forgetting gradient with the step direction that was asked for: with the theorem's rule never below the barrier (dotted). "
            "Points are means over the updates between two points of the training curve."
        )
    )

# %% [markdown]
# ## Before and after, from the same noise

# %%
for name in sets:
    here = members_of(name)
    label = definitions[name]["label"]
    if not show_images:
        display(Markdown("The study does not allow its images to be shown (`report.show_images: false`)."))
        break
    drawn = {arm: load_images(folder("sample", arm, "images.npz")) for arm in here}
    labelled = [arm for arm in here if drawn[arm].labels.max() >= 0]
    columns = 8
    if label is not None and labelled:
        labels = drawn[labelled[0]].labels
        blocks = {f"asked for class {label}": np.flatnonzero(labels == label)[:columns], "asked for other classes": np.flatnonzero(labels != label)[:columns]}
        here = labelled
    else:
        blocks = {"generations": np.arange(2 * columns)}
    gap = 0.6
    wide = sum(len(at) for at in blocks.values()) + gap * (len(blocks) - 1)
    figure, axes = plt.subplots(len(here), 1, figsize=(0.5 * wide, 0.55 * len(here)), squeeze=False)
    for axis, arm in zip(axes.flat, here):
        strips = [np.concatenate(list(np.pad(drawn[arm].pixels[at], ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)), axis=1) for at in blocks.values()]
        space_between = np.full((strips[0].shape[0], round(gap * strips[0].shape[0]), strips[0].shape[2]), 255, np.uint8)
        strip = strips[0] if len(strips) == 1 else np.concatenate([strips[0], space_between, strips[1]], axis=1)
        axis.imshow(strip.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        for side in axis.spines.values():
            side.set_visible(False)
        axis.set_ylabel(arm, rotation=0, ha="right", va="center", fontsize=8)
    at = 0.0
    for title, chosen in blocks.items():
        axes[0][0].text((at + len(chosen) / 2) / wide, 1.1, title, transform=axes[0][0].transAxes, ha="center", fontsize=8)
        at += len(chosen) + gap
    figure.subplots_adjust(hspace=0.05)
    keep(figure, f"images_{name}")
if show_images:
    display(Markdown("One row per arm, one column per start: all arms draw from the same noise and labels, so that a column shows what unlearning made of one image."))

# %% [markdown]
# ## Class by class

# %%
for name in sets:
    label = definitions[name]["label"]
    by_label = numbers[(numbers.set == name) & (numbers.metric == "accuracy_by_label")]
    here = [arm for arm in members_of(name) if arm in set(by_label.arm)]
    if label is None or not here:
        continue
    found = by_label.assign(label=by_label.subset.str.removeprefix("label=").astype(int)).groupby(["arm", "label"]).value.mean().unstack()
    found[label] = [interval(asked(name, arm, "classified")).value for arm in found.index]
    found = found.loc[here, sorted(found.columns)]
    figure, axis = plt.subplots(figsize=(0.55 * len(found.columns) + 1.6, 0.34 * len(found) + 0.8))
    axis.imshow(found, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(found.to_numpy()):
        for j, value in enumerate(row):
            axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color="white" if value > 0.6 else "black")
    axis.set_xticks(range(len(found.columns)), [f"{one}\nforgotten" if one == label else str(one) for one in found.columns], fontsize=8)
    axis.set_yticks(range(len(found)), found.index, fontsize=8)
    axis.set_xlabel("label asked for")
    axis.tick_params(length=0)
    keep(figure, f"classes_{name}")
    display(Markdown("Share of the generations, in percent, that the classifier sees as the class that was asked for. A forgotten class should be light, all others as dark as in the base."))

# %% [markdown]
# ## Relearning

# %%
for name in sets:
    here = members_of(name)
    learned = {arm: pd.concat([pd.read_csv(folder("attack", arm, "forgetting", "relearning.csv", replicate=k)) for k in range(replicates)]) for arm in here}
    learned = {arm: curve[curve.set == name].groupby("update")[["probability", "loss"]].mean() for arm, curve in learned.items()}
    classed = any(curve.probability.notna().any() for curve in learned.values())
    panels = (["probability"] if classed else []) + ["loss"]
    titles = {"probability": "mean probability of the class, new generations", "loss": "mean loss of the forgotten images"}
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3), squeeze=False)
    for axis, what in zip(axes.flat, panels):
        for arm, curve in learned.items():
            axis.plot(curve.index, curve[what], color=colour[arm], label=arm, marker=".", linewidth=1.2)
        axis.set(xlabel="updates on the forgotten images alone", title=titles[what])
        axis.title.set_fontsize(9)
    if classed:
        axes[0][0].axhline(settings["relearn_probability"], color="grey", linewidth=0.7, linestyle=":")
        axes[0][0].set_ylim(-0.03, 1.03)
    losses = pd.concat([curve.loss for curve in learned.values()])
    if losses.max() > 5 * losses.min():
        log_scale(axes[0][-1], "y")
    axes.flat[-1].legend(frameon=False, fontsize=8, bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.tight_layout()
    keep(figure, f"relearning_{name}")
    if classed:
        lines = [f"**{arm}**: {back(name, arm)}" for arm in here if back(name, arm)]
        display(Markdown(f"Updates after which the class has a mean probability of {settings['relearn_probability']:g} (looked at every {settings['relearn_every']} updates):  \n" + "  \n".join(lines)))
display(
    Markdown(
        "Every arm is trained plainly on the forgotten images alone, all in the same order and noise. An arm that has forgotten needs as many updates as one that never saw them; an arm whose curve is up "
        "much sooner only hid them. Copies count as often as they stand in the training set."
    )
)

# %% [markdown]
# ## What holds here

# %%
MEASURES = {
    "P_psi": lambda name, arm: asked(name, arm, "probability"),
    "extracted": lambda name, arm: asked(name, arm, "extracted_images", "calibrated"),
    "AUC": lambda name, arm: asked(name, arm, "roc_auc"),
    f"{frechet} of the rest": lambda name, arm: rest(name, arm, frechet),
}
"""What arms are compared in: lower is better in all."""


def against(name, arm, other, measure):
    """The difference of an arm to another, and what its interval says of the arm; None where one of them lacks the number."""
    pair = [MEASURES[measure](name, one) for one in (arm, other)]
    if not all(len(found) for found in pair):
        return None, None
    change, method = comparison.difference(*pair, confidence)
    verdict = comparison.judge(change, "lower", method)
    by_choice = measure == "extracted" and chosen_from.get(name) == other and verdict != comparison.ONE_TRAINING
    return change, comparison.NOT_TESTABLE if by_choice else verdict


def worded(change, verdict):
    if change is None:
        return ""
    ends = "" if pd.isna(change.low) else f" <small>[{change.low:+.3g}, {change.high:+.3g}]</small>"
    mark = {"better": "<b>lower</b>", "worse": "<b>higher</b>", "no difference seen": "no difference seen"}.get(verdict, verdict)
    return f"{mark}: {change.value:+.3g}{ends}"


for name in sets:
    here = members_of(name)
    never = next((arm for arm in here if role(arm) == "retrained"), None)
    others = "its base and the arm that never saw the images" if never else "its base; no arm was retrained without the images"
    lines = []
    for arm in here:
        base = own[arm]["base"]
        if base not in here:
            continue
        line = {"arm": f"<b>{escape(arm)}</b>"}
        for other in filter(None, (base, never)):
            line |= {f"{measure}, to {other}": worded(*against(name, arm, other, measure)) for measure in MEASURES}
        if back(name, arm):
            line["back after" + (f" ({never}: {back(name, never)})" if never else "")] = back(name, arm)
        lines.append(line)
    if lines:
        frame = pd.DataFrame(lines).fillna("")
        display(Markdown(f"**{name}**: each arm against {others}"))
        show(frame.loc[:, (frame != "").any()])
display(
    Markdown(
        f"Differences with {level} intervals, by the rules of the comparison page: one training gives no verdict, none is corrected for how many there are, and a set that an attack chose is not testable against the arm that it was chosen from. "
        "An arm has forgotten, as far as these attacks can tell, if it is lower than its base in P_psi, no higher than the retrained arm in what is extracted "
        "and in AUC, and needs as many updates to relearn. *No difference seen* means that the interval covers zero, not that there is none."
    )
)

# %%
for name in sets:
    here = members_of(name)
    lines = []
    for arm in here:
        if not role(arm).startswith("EraseDiff") or definitions[name]["label"] is None:
            continue
        for other in here:
            if role(other) not in PUBLISHED or role(other).startswith("EraseDiff"):
                continue
            for place, label in enumerate(("P_psi", f"{frechet} of the rest")):
                published = PUBLISHED[role(arm)][place] - PUBLISHED[role(other)][place]
                change, verdict = against(name, arm, other, label)
                if change is None:
                    continue
                same = (verdict == "better") == (published < 0)
                said = verdict if verdict not in (comparison.BETTER, comparison.WORSE) else "<b>as published</b>" if same else "<b>the other way round</b>"
                values = f"{PUBLISHED[role(arm)][place]} against {PUBLISHED[role(other)][place]}"
                lines.append({"arm": escape(arm), "against": escape(other), "measure": label, "published (second-hand)": f"{'lower' if published < 0 else 'higher'} ({values})", "here": worded(change, verdict), "the order": said})
    if lines:
        display(Markdown(f"**{name}**: EraseDiff's published order among the methods, and the order here"))
        show(pd.DataFrame(lines))
        counted = pd.Series([line["the order"] for line in lines]).str.replace("</?b>", "", regex=True).value_counts()
        display(Markdown("Of these " + str(len(lines)) + " pairs: " + ", ".join(f"{number} {what}" for what, number in counted.items()) + "."))

# %% [markdown]
# ## Every number
# Metrics ending in `_holdout` are the same measure of real held-out images.

# %%
style = {"index": False, "na_rep": "", "float_format": "{:.4g}".format}
display(HTML(table("forgetting").to_html(**style)))
