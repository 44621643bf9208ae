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
# IET-AGC (Liu et al., ECCV 2024) has two parts. **IET** trains one model per shard of the data
# and averages their weights at intervals. **AGC** leaves samples out of the batch whose loss is
# abnormally low for their timestep. This page reproduces the paper's measures for the arms of
# this study that use either part. Next to each are plain training (*default*) and a **control**
# of equal budget, by updates per network or by samples with gradient (the table says which): a
# shard's model gets only a fraction of the updates, and a model that was trained less remembers
# less without any remedy. The paper has no such control.

# %% tags=["parameters"]
results = "results/default"
figures = "figures"
study = "default"
arms = ["baseline", "iet_agc"]
replicates = 1
plantings = 1
show_images = True
pairs = 24
confidence = 0.95

# %%
from afterimage.report import format
from afterimage.report.notebook import Notebook
from afterimage.report.pages.iet_agc import IetAgc

book = Notebook(results, figures, confidence, plantings)
page = IetAgc(book, arms, replicates)
book.say(page.summary(study))

# %% [markdown]
# ## What was trained

# %%
book.show(page.trained(), shaded=page.own_rows())

# %% [markdown]
# Published: 10 shards, 10 rounds of 100 epochs, lambda 0.5 on CIFAR-10 (defaults of the released
# code), about as many updates over all shards as the default arm has. A shard's network then gets
# one K-th of them; *passes* stay the same, as every shard passes over its own images only.
#
# ## MQ at every threshold
# MQ at tau is the number of generations whose squared distance to the nearest training image is
# below tau times the mean over its 50 nearest. It has no calibration: the dotted line is the same
# count for real held-out images, which no model made.

# %%
book.keep(page.mq_figure(), "mq")
book.say(page.mq_caption())

# %% [markdown]
# Solid colours are the arms of the method, solid black and grey plain training with the full
# budget, dashed the arms with a matched one. Where the held-out line is not far below the arms,
# the count says nothing about copying: real images that nobody copied are counted, too.

# %%
book.show(page.paper_table(), shaded=page.own_rows())
book.say(f"Brackets: {book.level} intervals {format.spread(replicates)}.")

# %% [markdown]
# The paper's main table has these columns for CIFAR-10, CIFAR-100 and AFHQ-Dog with 65,536
# generations; its cells are not repeated here because they were not verified. The last column is
# a Fréchet distance in this study's feature space to images that no arm saw, not the paper's FID.
#
# ## Captioned images

# %%
if page.aligned:
    book.show(page.text_table(), shaded=page.own_rows())
    book.say(f"Brackets: {book.level} intervals {format.spread(replicates)}.")
else:
    book.say("No arm of this study is drawn from captions.")

# %% [markdown]
# The columns of the paper's table for LAION-10k: mean similarity of generations to the nearest
# training image, its 95th percentile R, the share above 0.5, and where it has FID and CLIP scores
# this study's Fréchet distance and text alignment (higher is better: the share of other prompts
# that fit a generation less well than its own). A change of R in percent is relative to the other
# arm's R; it decides nothing on this page.
#
# ## Against plain training, and against a control of equal budget

# %%
if page.changes:
    book.keep(page.changes_figure(), "changes")
    book.say(page.changes_caption())
    book.say(page.chain())

# %% [markdown]
# Grey also marks what gives no verdict: one training; another arm whose MQ does not exceed that
# of held-out images, or whose network was trained longer. The upper rows are the paper's
# comparison, the lower rows ask what is left of it where the budgets in brackets are equal.
# Budgets that are not named there differ, and the network that was trained longer remembers more
# for that alone. Arms on the same images share initial weights, and with plain training order and
# noise; the shards of IET have orders and noise of their own.
#
# ## When samples are skipped

# %%
if page.skipping:
    book.keep(page.skips(), "skips")
else:
    book.say("No arm of this study skips samples.")

# %% [markdown]
# Left by timestep, over the whole training; right along it (thin: points of the training curve,
# thick: their running mean). The bank starts at zero and forgets quickly (the weight of a loss
# falls by a fifth with every later visit of its timestep), so that part of the skipping is noise
# of the bank itself: without any memorization, losses that vary much at one timestep are skipped,
# too.
#
# ## Which images are skipped

# %%
if page.skipping:
    book.keep(page.skips_by_copies(), "skips_by_copies")
    book.say(page.skipping_sentences())

# %% [markdown]
# One point per different training image and replicate (all its copies together); bars are means.
#
# ## Do memorised images have a lower loss?
# The observation that AGC is based on. Memorised are the images that the extraction attack got
# out of plain training (threshold calibrated on held-out images); losses are those of the
# membership attack.

# %%
book.keep(page.losses_figure(), "losses")
if page.losses:
    shaded = [row for row, losses in enumerate(page.losses) if losses.arm in page.iet]
    book.show(page.losses_table(), shaded=shaded)
    book.say(f"Brackets: {book.level} intervals {format.spread(replicates)}.")
else:
    book.say(f"The attack got no image, or every image, out of **{page.reference()}**.")

# %% [markdown]
# A ratio below 1, or an AUC above 0.5, says that memorised images have the lower loss. Without
# images on both sides there is nothing to compare.
#
# ## What holds here

# %%
book.show(page.claims())
book.say(page.decided())

# %% [markdown]
# Verdicts follow from p-values, paired by replicate and adjusted for the number of differences
# judged (Holm), so that an interval that leaves out zero may be undecided. They hold for this
# study's data, network and budget; the paper generates 65,536 images. One training decides
# nothing. FD_balanced is taken at the reference's class shares. Plain FD, which stands here where
# no classifier knows classes, measures class shares too, which planted copies skew: an arm that
# copies less may have a lower one without drawing better.
# *Not testable*: the MQ of the other arm does not exceed that of held-out images, and
# where nobody copies no method can copy less.
