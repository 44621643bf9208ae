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
# # Do averaged shards and skipped samples keep a model from memorising?
#
# IET-AGC (Liu et al., ECCV 2024) has two parts. **IET** trains one model per shard of the data and averages their weights now and
# then. **AGC** leaves samples out of the batch whose loss is abnormally low for their timestep. This page redraws the paper's
# measures for the arms of this study that use either part. Beside each stand plain training (*default*) and a **control** of
# equal budget, by updates per network or by samples with gradient (which one is said beside it): a shard's model sees only a part
# of the updates, and a model that was trained less remembers less without any remedy. The paper has no such control.

# %% tags=["parameters"]
results = "results/default"
figures = "figures"
study = "default"
arms = ["baseline", "iet_agc"]
replicates = 1
show_images = True
pairs = 24
confidence = 0.95

# %%
import json
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from scipy import stats

from afterimage.artifacts import read_run
from afterimage.attacks.membership import roc_auc
from afterimage.report import comparison
from afterimage.report.comparison import Interval, difference, judge, over_replicates, student
from afterimage.report.notebook import Notebook

book = Notebook(results, figures, confidence)
results, table, keep, folder, show, level = book.results, book.table, book.keep, book.folder, book.show, book.level


METHOD = comparison.PAIRED if replicates > 1 else "within one training"
between = f"between {replicates} replicates (Student's t)" if replicates > 1 else "within the one training"

# %%
runs = {arm: [read_run(folder("train", arm, replicate=k)) for k in range(replicates)] for arm in arms}
settings = {arm: own[0]["config"]["settings"]["arm"] for arm, own in runs.items()}
control_of = table("comparison_wide").set_index("arm").control.dropna()
iet = [arm for arm in arms if settings[arm]["method"] == "iet_agc"]
skipping = [arm for arm in iet if settings[arm]["agc_threshold"] > 0]
SHARED = ("data", "without", "fraction", "condition", "base", "rau_net", "train")


def alike(arm, other):
    """Whether the settings of two arms differ in nothing but their methods and budgets; their random numbers always do."""
    return all(settings[arm][key] == settings[other][key] for key in SHARED)


plain = [arm for arm in arms if settings[arm]["method"] == "baseline" and any(alike(arm, other) for other in iet)]
default_of = {arm: next((other for other in plain if alike(arm, other) and not settings[other]["matched_to"]), None) for arm in iet}
others = [*dict.fromkeys([*plain, *(control_of.get(arm) for arm in iet), *(settings[arm]["base"] for arm in iet)])]
shown = [arm for arm in arms if arm in others] + iet
shades = iter(np.linspace(0, 0.72, max(2, len(shown) - len(iet))))
colour = {arm: f"C{iet.index(arm)}" if arm in iet else str(next(shades)) for arm in shown}
dash = {arm: "-" if arm in iet or arm in default_of.values() else "--" for arm in shown}
display(
    Markdown(
        f"Study `{study}`, {replicates} replicate(s), seed {runs[shown[0]][0]['config']['seed']}. Arms of the method: {', '.join(f'**{arm}**' for arm in iet)}. "
        f"Compared with them: {', '.join(arm for arm in shown if arm not in iet) or 'none'}."
    )
)

# %% [markdown]
# ## What was trained

# %%
lines = []
for arm in shown:
    own, facts = settings[arm], [run["facts"] for run in runs[arm]]
    mean = {key: np.mean([fact[key] for fact in facts]) for key in ("updates", "updates_per_model", "images_seen", "kept_samples", "training_images")}
    line = {"arm": f"<b>{escape(arm)}</b>" if arm in iet else escape(arm), "control": escape(control_of.get(arm, ""))}
    part = {"shards": "", "rounds": "", "lambda": "", "local steps per round": ""}
    if arm in iet:
        part = {"shards": own["shards"], "rounds": own["rounds"], "lambda": f"{own['agc_threshold']:g}", "local steps per round": facts[0]["steps_per_round"]}
    line |= part | {"starts from": escape(own["base"] or ""), "updates": f"{mean['updates']:,.0f}", "updates per network": f"{mean['updates_per_model']:,.0f}"}
    line |= {"samples with gradient": f"{mean['kept_samples']:,.0f} ({100 * mean['kept_samples'] / mean['images_seen']:.1f} %)"}
    lines.append(line | {"passes over the data": f"{mean['images_seen'] / mean['training_images']:.1f}"})
show(pd.DataFrame(lines, index=shown), shaded=iet)
display(
    Markdown(
        "Published: 10 shards, 10 rounds of 100 epochs, lambda 0.5 on CIFAR-10 (defaults of the released code), about as many updates over all shards as "
        "the default arm has. A network of a shard then gets one K-th of them; *passes* stay the same, as every shard passes over its own images only."
    )
)

# %% [markdown]
# ## MQ at every threshold
# MQ at tau is the number of generations whose squared distance to the nearest training image is below tau times the mean over its 50
# nearest. It has no calibration: the dotted line is the same count for real held-out images, which no model made.

# %%
extraction = table("extraction")
mq = extraction[extraction.metric.str.startswith("mq@") & (extraction.subset == "all")].copy()
mq["tau"] = mq.metric.str.removeprefix("mq@").astype(float)
held_out = extraction[extraction.metric.str.startswith("mq_holdout@") & (extraction.subset == "all")].copy()
held_out["tau"] = held_out.metric.str.removeprefix("mq_holdout@").astype(float)
for rows in (mq, held_out):
    rows[["low", "high"]] = rows[["exact_low", "exact_high"]]
taus = sorted(mq.tau.unique())
of_arm = {arm: mq[mq.arm == arm] for arm in shown}
generations = int(mq["of"].iloc[0])


def at(arm, tau):
    return of_arm[arm][of_arm[arm].tau == tau]


def copies(arm, tau):
    """Whether the MQ of an arm exceeds that of real held-out images."""
    return comparison.copies(at(arm, tau), held_out[(held_out.arm == arm) & (held_out.tau == tau)])


figure, axis = plt.subplots(figsize=(6.4, 3.8))
floor = 0.5 / (generations * replicates)
for i, arm in enumerate(shown):
    values = [over_replicates(at(arm, tau), confidence)[0] for tau in taus]
    x = np.array(taus) + 0.004 * (i - (len(shown) - 1) / 2)
    mean = np.array([value.value for value in values])
    bars = np.array([[max(value.value - max(value.low, floor), 0), max(min(value.high, 1) - value.value, 0)] for value in values]).T
    drawn = np.maximum(mean, floor)
    axis.errorbar(x, drawn, np.where(mean > 0, bars, 0), color=colour[arm], linestyle=dash[arm], marker="o", markersize=3.5, capsize=2, linewidth=1.2, label=arm)
real = held_out[held_out.arm == shown[0]].groupby("tau").value.mean()
axis.plot(real.index, np.maximum(real, floor), ":", color="C3", linewidth=1.4, label="real held-out images")
axis.set_yscale("log")
ticks = [tick for tick in (1, 0.1, 0.01, 0.001, 0.0001) if tick > 2 * floor]
axis.set_yticks([*ticks, floor], [*(f"{100 * tick:g} %" for tick in ticks), "none"])
axis.set_yticks([], minor=True)
axis.set_ylim(0.7 * floor, 1.3)
axis.set_xticks(taus, [f"{tau:g}" for tau in taus])
axis.set_xlabel("tau")
axis.set_ylabel("share of generations counted")
axis.legend(frameon=False, fontsize=8, bbox_to_anchor=(1.02, 1), loc="upper left")
keep(figure, "mq")
display(
    Markdown(
        f"Shares of {generations:,} generations per replicate with {level} intervals {between if replicates > 1 else '(exact)'}; solid colours are the arms of the method, solid black and grey plain "
        "training with the full budget, dashed the arms with a matched one. Where the held-out line is not far below the arms, the count says nothing about copying: real images that nobody copied are counted, too."
    )
)

# %%
PAPER = [0.4, 0.5, 0.6]
frechet = next(m for m in dict.fromkeys(table("quality").metric) if m.startswith(("FD[", "FID[")) and not m.endswith("holdout"))
quality = table("quality")
quality = quality[(quality.metric == frechet) & (quality.of == "generations")].assign(count=np.nan)
quality["of"] = np.nan


def cell(interval, scale=1.0, digits=".3g"):
    value, low, high = (scale * number for number in interval)
    return f"{value:{digits}}" + ("" if pd.isna(low) else f" <small>[{low:{digits}}, {high:{digits}}]</small>")


wanted = [tau for tau in PAPER if tau in taus]
lines = []
for arm in shown:
    line = {"arm": f"<b>{escape(arm)}</b>" if arm in iet else escape(arm)}
    for tau in wanted:
        line[f"MQ at {tau:g}, of {generations:,}"] = cell(Interval(*(generations * number for number in over_replicates(at(arm, tau), confidence)[0])), digits=".4g")
    line[frechet] = cell(over_replicates(quality[quality.arm == arm], confidence)[0])
    lines.append(line)
line = {"arm": "real held-out images, rescaled"} | {f"MQ at {tau:g}, of {generations:,}": f"{generations * real[tau]:.4g}" for tau in wanted}
show(pd.DataFrame([*lines, line | {frechet: ""}], index=[*shown, "held out"]), shaded=iet)
display(
    Markdown(
        f"The paper's main table has these columns for CIFAR-10, CIFAR-100 and AFHQ-Dog with 65,536 generations; its cells are not repeated here because they were not verified. Brackets: {level} intervals {between}. "
        f"{frechet} is a Fréchet distance in this study's feature space to images that no arm saw, not the paper's FID."
    )
)

# %% [markdown]
# ## Against plain training, and against a control of equal budget

# %%
BUDGETS = {"updates": "updates in all", "updates_per_model": "updates per network", "kept_samples": "samples with gradient"}


def trained_less(arm, other):
    """Whether a network of an arm was trained for fewer updates than one of another that starts from the same weights."""
    own, theirs = (np.mean([run["facts"]["updates_per_model"] for run in runs[one]]) for one in (arm, other))
    return settings[arm]["base"] == settings[other]["base"] and own < 0.99 * theirs


def equal(arm, other):
    """Which budgets of two arms are the same to one in a hundred, in words."""
    means = {key: [np.mean([run["facts"][key] for run in runs[one]]) for one in (arm, other)] for key in BUDGETS}
    return ", ".join(BUDGETS[key] for key, pair in means.items() if max(pair) - min(pair) <= 0.01 * max(pair)) or "no budget"


compared, changes = [], []
for arm in iet:
    for kind, other in (("default", default_of[arm]), ("control", control_of.get(arm))):
        if other not in shown or (kind == "control" and other == default_of[arm]):
            continue
        numbers = [(f"MQ at {tau:g}", at(arm, tau), at(other, tau), 100, tau) for tau in wanted]
        numbers.append((frechet, quality[quality.arm == arm], quality[quality.arm == other], 1, None))
        for name, own, theirs, scale, tau in numbers:
            change, method = difference(own, theirs, confidence)
            verdict = judge(change, "lower", method)
            if tau is not None:
                verdict = comparison.above_false_alarms(verdict, copies(arm, tau), copies(other, tau))
                verdict = comparison.TRAINED_LESS if verdict == comparison.BETTER and trained_less(arm, other) else verdict
            base = theirs.value.mean()
            relative = own.value.mean() / base - 1 if base else np.nan
            changes.append({"arm": arm, "kind": kind, "other": other, "number": name, "scale": scale, **change._asdict(), "relative": relative, "verdict": verdict})
changes = pd.DataFrame(changes, columns=["arm", "kind", "other", "number", "scale", "value", "low", "high", "relative", "verdict"])
if len(changes):
    names = [*(f"MQ at {tau:g}" for tau in wanted), frechet]
    rows = list(dict.fromkeys(zip(changes.arm, changes.kind, changes.other)))
    rows.sort(key=lambda row: (row[1] != "default", iet.index(row[0])))
    height = np.arange(len(rows)) + 0.8 * np.array([row[1] != "default" for row in rows])
    figure, axes = plt.subplots(1, len(names), figsize=(2.1 * len(names) + 1.2, 0.3 * height[-1] + 1.4), sharey=True, squeeze=False)
    for axis, name in zip(axes.flat, names):
        for row, y in zip(rows, height):
            one = changes[(changes.arm == row[0]) & (changes.kind == row[1]) & (changes.number == name)].iloc[0]
            shade = {comparison.BETTER: "C2", comparison.WORSE: "C3"}.get(one.verdict, "0.5")
            axis.plot([one.scale * one.low, one.scale * one.high], [y, y], color=shade, linewidth=1.3)
            axis.plot(one.scale * one.value, y, "o", color=shade, markersize=4)
        axis.axvline(0, color="black", linewidth=0.7)
        axis.set_title(name + ("\n(percentage points)" if name != frechet else "\n"), fontsize=8)
        axis.tick_params(labelsize=8, length=2)
        axis.set_ylim(height[-1] + 0.6, -0.6)
    axes[0, 0].set_yticks(height, [f"{arm}  –  {other}{f' (equal: {equal(arm, other)})' if kind == 'control' else ''}" for arm, kind, other in rows])
    figure.tight_layout(w_pad=1.5)
    keep(figure, "changes")
    display(
        Markdown(
            f"Arm minus the arm that it is compared with, {level} intervals ({'paired over ' + str(replicates) + ' replicates' if replicates > 1 else 'within the one training'}): green where lower, red where higher, grey where the "
            "interval covers zero or no verdict is given (one training; another arm whose MQ does not exceed that of held-out images, or whose network was trained longer). The upper rows are the paper's comparison, the lower rows ask what is left of it where the budgets in brackets are equal. "
            "Budgets that are not named there differ, and the network that was trained longer remembers more for that alone. Arms share neither initial weights (unless both start from one network) nor order nor noise of training."
        )
    )
    count_at = {arm: generations * at(arm, wanted[len(wanted) // 2]).value.mean() for arm in shown}
    sentences = [
        f"**{arm}**: {count_at[default_of[arm]]:.4g} generations under {default_of[arm]}, {count_at[arm]:.4g} under {arm}, {count_at[control_of[arm]]:.4g} under its control {control_of[arm]}, which is plain training too (equal: {equal(arm, control_of[arm])})."
        for arm in iet
        if default_of[arm] and control_of.get(arm) in plain and control_of[arm] != default_of[arm]
    ]
    display(Markdown("  \n".join([f"MQ at {wanted[len(wanted) // 2]:g}, mean over replicates:", *sentences])))

# %% [markdown]
# ## When samples are skipped

# %%
if skipping:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    for arm in skipping:
        counts = sum(pd.read_parquet(folder("train", arm, "tables", "skips_by_timestep.parquet", replicate=k)).set_index("timestep") for k in range(replicates))
        edges = np.linspace(0, len(counts), min(40, len(counts)) + 1).astype(int)
        binned = counts.groupby(pd.cut(counts.index, edges, right=False, labels=False)).sum()
        axes[0].step(edges, 100 * np.append(share := (binned.skipped / binned.seen).to_numpy(), share[-1]), where="post", color=colour[arm], label=arm)
        curves = []
        for k in range(replicates):
            rows = [json.loads(line) for line in folder("train", arm, "metrics.jsonl", replicate=k).read_text().splitlines()]
            curves.append(pd.Series({row["step"]: row["value"] for row in rows if row["name"] == "skipped"}))
        curve = 100 * pd.concat(curves, axis=1).mean(axis=1)
        axes[1].plot(curve.index / curve.index.max(), curve, color=colour[arm], linewidth=0.5, alpha=0.5)
        axes[1].plot(curve.index / curve.index.max(), curve.rolling(max(1, len(curve) // 12), min_periods=1, center=True).mean(), color=colour[arm], linewidth=1.6, label=arm)
    axes[0].set(xlabel="timestep (0: almost no noise)", ylabel="share of samples skipped (%)", ylim=(0, None))
    axes[1].set(xlabel="share of the training done", ylim=(0, None))
    axes[1].legend(frameon=False, fontsize=8, bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.tight_layout()
    keep(figure, "skips")
    display(
        Markdown(
            "Left by timestep, over the whole training; right along it (thin: points of the training curve, thick: their running mean). The bank starts at zero and forgets quickly (the weight of a loss falls by a fifth with "
            "every later visit of its timestep), so that part of the skipping is noise of the bank itself: without any memorization, losses that vary much at one timestep are skipped, too."
        )
    )

# %% [markdown]
# ## Whom skipping meets

# %%
planted = pd.read_parquet(results / "data" / "split" / "index.parquet").query("part == 'train'").set_index("id")


def skips_of(arm, k):
    """One row per trained image: id, copies, seen, skipped."""
    members = pd.read_parquet(folder("train", arm, "members.parquet", replicate=k))
    trained = members[members.trained].reset_index(drop=True)
    by_image = pd.read_parquet(folder("train", arm, "tables", "skips_by_image.parquet", replicate=k))
    joined = trained.assign(seen=by_image.seen, skipped=by_image.skipped)
    return joined.assign(copies=planted.copies.reindex(joined.id).to_numpy(), replicate=k)


met = []
if skipping:
    figure, axes = plt.subplots(1, len(skipping), figsize=(3.4 * len(skipping) + 0.6, 3.2), sharey=True, squeeze=False)
    for axis, arm in zip(axes.flat, skipping):
        rows = pd.concat([skips_of(arm, k) for k in range(replicates)])
        sources = rows.groupby(["replicate", "source", "copies"], as_index=False)[["seen", "skipped"]].sum()
        sources["share"] = sources.skipped / sources.seen
        order = sorted(sources.copies.unique())
        jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(sources))
        axis.scatter(sources.copies.map(order.index) + jitter, 100 * sources.share, s=5, color=colour[arm], alpha=0.3, linewidth=0)
        means = sources.groupby("copies").share.mean()
        axis.plot(range(len(order)), 100 * means[order], "_", color="black", markersize=22, markeredgewidth=1.6)
        axis.set_xticks(range(len(order)), [f"{copies}\n({(sources.copies == copies).sum() // replicates})" for copies in order])
        axis.set_title(arm, fontsize=9)
        axis.set_xlabel("copies planted (images)")
        per = sources.assign(several=sources.copies > 1).groupby(["replicate", "several"]).share.mean().unstack()
        if True in per and False in per:
            gaps = (per[True] - per[False]).to_numpy()
            if replicates > 1:
                gap = student(gaps, confidence)
            else:
                test = stats.ttest_ind(sources.share[sources.copies > 1], sources.share[sources.copies == 1], equal_var=False).confidence_interval(confidence)
                gap = Interval(gaps[0], test.low, test.high)
            met.append({"arm": arm, "planted": per[True].mean(), "other": per[False].mean(), "gap": gap, "verdict": judge(gap, "higher", METHOD)})
    axes[0, 0].set_ylabel("share of visits skipped (%)")
    axes[0, 0].set_ylim(0, None)
    figure.tight_layout()
    keep(figure, "skips_by_copies")
    text = "  \n".join(
        f"**{one['arm']}**: images planted more than once were skipped in {100 * one['planted']:.1f} % of their visits, others in {100 * one['other']:.1f} %; difference "
        f"{100 * one['gap'].value:+.1f} points, {level} interval [{100 * one['gap'].low:+.1f}, {100 * one['gap'].high:+.1f}]."
        for one in met
    )
    display(Markdown(f"One point per different training image and replicate (all its copies together), bars are means.\n\n{text or 'Nothing is planted in this study.'}"))

# %% [markdown]
# ## Do memorised images have a lower loss?
# The observation that AGC rests on. Memorised are the images that the extraction attack got out of plain training (threshold
# calibrated on held-out images); losses are those of the membership attack.

# %%
anchor = read_run(folder("attack", shown[0], "extraction"))["config"]["settings"]["anchor"]
first = next((arm for arm in default_of.values() if arm), shown[0])


def losses_of(arm, k):
    """One row per trained image of the arm: source, loss, memorised (by plain training)."""
    found = pd.read_parquet(folder("attack", first, "extraction", "images.parquet", replicate=k)).set_index("source")
    rows = pd.read_parquet(folder("attack", arm, "membership", "losses.parquet", replicate=k))
    rows = rows[(rows["set"] == "train") & rows.trained]
    memorised = found[f"extracted_{anchor}_calibrated"].reindex(rows.source, fill_value=False).to_numpy(bool)
    return rows[["source", "loss"]].assign(memorised=memorised, replicate=k)


columns = 4 if len(shown) in (4, 7, 8) or len(shown) > 9 else min(3, len(shown))
figure, axes = plt.subplots(-(-len(shown) // columns), columns, figsize=(2.7 * columns + 0.4, 2 * -(-len(shown) // columns) + 0.3), sharex=True, squeeze=False)
loss_lines, everything = [], {arm: pd.concat([losses_of(arm, k) for k in range(replicates)]) for arm in shown}
logs = np.log10(pd.concat(everything.values()).loss)
bins = np.logspace(logs.min(), logs.max(), 40)
ticks = [tick for tick in np.outer(10.0 ** np.arange(-6, 4), [1, 2, 5]).ravel() if bins[0] <= tick <= bins[-1]]
ticks = ticks[:: -(-len(ticks) // 5)]
for axis in axes.flat[len(shown) :]:
    axis.axis("off")
for axis, arm in zip(axes.flat, shown):
    rows = everything[arm]
    for memorised, shade, name in ((False, "0.65", "others"), (True, "C3", "memorised by plain training")):
        some = rows.loss[rows.memorised == memorised]
        if len(some):
            axis.hist(some, bins, weights=np.full(len(some), 1 / len(some)), color=shade, alpha=0.65, label=name)
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_yticks([])
    axis.tick_params(labelbottom=True)
    axis.set_title(arm, fontsize=9)
    gaps, areas = [], []
    for _, own in rows.groupby("replicate"):
        split = [np.log(own.loss[own.memorised == memorised].to_numpy()) for memorised in (True, False)]
        if min(map(len, split)) > 1:
            gaps.append((split[0].mean() - split[1].mean(), split))
            areas.append(roc_auc(*split))
    if gaps:
        test = stats.ttest_ind(*gaps[0][1], equal_var=False).confidence_interval(confidence)
        gap = student(np.array([gap for gap, _ in gaps]), confidence) if len(gaps) > 1 else Interval(gaps[0][0], test.low, test.high)
        loss_lines.append({"arm": arm, "memorised": rows.loss[rows.memorised].median(), "others": rows.loss[~rows.memorised].median(), "gap": gap, "auc": np.mean(areas), "verdict": judge(gap, "lower", METHOD)})
for axis in axes.flat[max(0, len(shown) - columns) : len(shown)]:
    axis.set_xlabel("loss")
named = {name: handle for axis in axes.flat for handle, name in zip(*axis.get_legend_handles_labels())}
figure.legend(named.values(), named.keys(), loc="upper center", bbox_to_anchor=(0.5, 0.01), ncol=2, frameon=False)
figure.tight_layout()
keep(figure, "losses")
if loss_lines:
    show(
        pd.DataFrame(
            [
                {
                    "arm": f"<b>{escape(one['arm'])}</b>" if one["arm"] in iet else escape(one["arm"]),
                    "median loss, memorised": f"{one['memorised']:.3g}",
                    "median loss, others": f"{one['others']:.3g}",
                    "ratio of mean losses (geometric)": cell(Interval(*np.exp(one["gap"]))),
                    "AUC of the loss": f"{one['auc']:.3f}",
                }
                for one in loss_lines
            ],
            index=[one["arm"] for one in loss_lines],
        ),
        shaded=iet,
    )
    display(Markdown(f"A ratio below 1, or an AUC above 0.5, says that memorised images have the lower loss; {level} intervals {between}."))
else:
    display(Markdown(f"The attack got no image, or every image, out of **{first}**: there is nothing to compare."))

# %% [markdown]
# ## What holds here

# %%
WORDS = {"better": "holds here", "worse": "the opposite holds here", "no difference seen": "undecided here: the interval covers no difference", "not measured": "not measured here"}
WORDS |= {word: word for word in (comparison.ONE_TRAINING, comparison.NOT_TESTABLE)}
WORDS |= {comparison.TRAINED_LESS: "lower here, but so may any network be that was trained for as few updates: the other was trained longer"}
SECOND = "as reported in a secondary source (a summary of the paper); the paper's tables were not read"
ABSTRACT = "the paper's abstract"
PUBLISHED = [("MQ", "MQ down by up to about 87 % over the datasets", SECOND), ("quality", "FID equal or slightly better", ABSTRACT)]
claims = []


def percent_change(one):
    shift = "" if pd.isna(one.relative) else f" ({100 * one.relative:+.0f} %)"
    return f"{one.scale * one.value:+.3g} [{one.scale * one.low:+.3g}, {one.scale * one.high:+.3g}]{' points' if one.scale == 100 else ''}{shift}"


for arm in iet:
    whole = settings[arm]["shards"] > 1 and settings[arm]["agc_threshold"] > 0
    for kind, words in (("default", "plain training"), ("control", "its control")):
        some = changes[(changes.arm == arm) & (changes.kind == kind)].set_index("number")
        said = {name: ("no such control", "") if kind == "control" else (text, evidence) if whole else ("one part alone: not read", "") for name, text, evidence in PUBLISHED}
        if "MQ at 0.5" in some.index:
            one = some.loc["MQ at 0.5"]
            claims.append([escape(arm), f"MQ at 0.5 is lower than with {words} ({escape(one.other)}; equal: {equal(arm, one.other)})", *said["MQ"], percent_change(one), WORDS[one.verdict]])
        if frechet in some.index:
            one = some.loc[frechet]
            verdict = {"worse": "does not hold here: higher", "no difference seen": "no rise seen here, which is not none", "better": "lower here, class shares included"}.get(one.verdict, WORDS[one.verdict])
            claims.append([escape(arm), f"{frechet} is not higher than with {words} ({escape(one.other)})", *said["quality"], percent_change(one), verdict])
for one in (one for one in loss_lines if one["arm"] == first):
    claims.append([escape(first), "images that plain training memorises have a lower loss", "losses of easily memorised images are lower", ABSTRACT, f"ratio {cell(Interval(*np.exp(one['gap'])))}", WORDS[one["verdict"]]])
for one in met:
    claims.append([escape(one["arm"]), "images planted more than once are skipped more often", "not reported", "", f"{100 * one['gap'].value:+.2g} [{100 * one['gap'].low:+.2g}, {100 * one['gap'].high:+.2g}] points", WORDS[one["verdict"]]])
show(pd.DataFrame(claims, columns=["arm", "statement", "published", "evidence for the published", f"here, {level} interval", "verdict"]))
display(
    Markdown(
        f"Verdicts follow from the intervals alone and hold for this study's data, network and budget: {generations:,} generations instead of 65,536 and {replicates} replicate(s). "
        f"{len(claims)} intervals decide, none corrected for their number; one training decides nothing. The Fréchet distance is of all classes together: it measures class shares too, which planted copies skew, "
        "so that an arm that copies less may have a lower one without drawing better. *Not testable*: the MQ of the other arm does not exceed that of held-out images, and where nobody copies no method can copy less."
    )
)
