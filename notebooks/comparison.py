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
# Every **arm** is one way of training, and every arm faces the same attacks. A remedy that trains
# less also remembers less, so each arm is compared with a **control** of its own: plain training
# that is meant to match it in everything but the remedy (as few updates per network, as many
# samples with gradient, two networks without blocks, retraining without the images). What the two
# share, and what they do not, is listed below. The rules by which an arm is judged are fixed in
# `afterimage.report.verdicts` and repeated below; nothing on this page is judged by hand.

# %% tags=["parameters"]
results = "results/default"
figures = "figures"
study = "default"
arms = ["baseline", "dedup"]
replicates = 1
plantings = 1
show_images = True
pairs = 24
confidence = 0.95

# %%
from afterimage.report import format
from afterimage.report.notebook import GREEN, Notebook
from afterimage.report.pages.comparison import Comparison

book = Notebook(results, figures, confidence, plantings)
page = Comparison(book, arms, replicates)

# %% [markdown]
# ## Each arm and its control

# %%
book.say(page.groups())
if page.control_of:
    book.show(page.verdicts(), shaded=page.winners(), shade=GREEN)
book.say(page.criteria())

# %% [markdown]
# An arm **beats its control** if it remembers less, its quality is better or no worse within the
# margin, and its network was trained for no fewer updates. Whether it remembers less is decided by
# one number, the generations flagged at the threshold calibrated on held-out images: every
# generation counts, its false alarms are known, and two deciding numbers would be two chances. It
# is *not testable* where the control's count does not exceed its false alarms.
#
# Quality is *no worse* where a loss as large as the margin is ruled out, *worse* where a loss was
# seen, and **not shown** where the intervals are too wide to tell: the half-width of an interval is
# the smallest loss that would have been seen. A noisier arm is so less likely to pass. “No
# difference seen” does not mean that there is none. The Fréchet distance that decides is
# **FD_balanced**, taken at the reference's class shares where a classifier knows classes. FD and
# coverage are of all classes together, and so measure **class shares** too (class_share_tv), which
# planted copies skew: an arm that copies less may be better in them without drawing better.
#
# ## Copying at equal quality

# %%
paths = page.frontier
book.say(paths.groups())
if len(paths.compared):
    book.show(paths.rows(), shaded=paths.winners(), shade=GREEN)
    book.keep(paths.drawings.copies(), "paths")
    book.say(paths.caption())

# %% [markdown]
# A remedy that trains less well copies less, and so does plain training that is **stopped early**.
# Trainings are therefore compared as paths: each keeps networks on the way, which are sampled and
# attacked as the last one is. What decides is the least copying that a path offers to whoever
# asks for a quality and may stop anywhere, beside what plain training offers, averaged over the
# qualities that both reach, replicate by replicate. A factor of one half says: half the odds that
# a generation is a copy. The other columns decide nothing.

# %%
if len(paths.compared):
    book.keep(paths.drawings.prices(), "prices")
    book.say("What each state has cost, with what the arm that it started from cost.")

# %% [markdown]
# ## What an arm and its control share

# %%
if page.control_of:
    book.show(page.budgets())

# %% [markdown]
# Arms of one replicate share the noise that sampling starts from, and the attacks. Arms that are
# given the same images and start from the same network also share initial weights, the order of
# the images, timesteps and the noise of training, as far as their methods draw the same batches:
# such an arm differs from its control by the remedy and by what is listed under *not equal*.
# Others differ by chance as well.
#
# ## Memorization against quality

# %%
figure, caption = page.trade_off()
book.keep(figure, "pareto")
book.say(caption)

# %% [markdown]
# A thin line in an arm's colour leads to its control. The dashed front joins the arms that no
# other arm beats in both. It is drawn through the points alone: neighbours on the front may well
# lie within each other's intervals. Training less also moves an arm down, and mostly to the
# right; copying less moves it to the left by the class shares alone.
#
# ## How far each arm moved from its control

# %%
if page.control_of:
    book.keep(page.differences(), "differences")
    book.say(f"Arm minus control with {book.level} intervals.")
    book.say(f"Lower is better, except for: {page.better_higher()}.")

# %% [markdown]
# Grey also marks what gives no verdict: one training, or a control at its false alarms. Black ticks
# are the margins of quality. Arrows point to values beyond the axis. Intervals are not adjusted;
# the colour of the generations flagged follows the adjusted p-value. Planted images and the
# membership attack decide nothing.
#
# ## Every arm, grouped by control
# Extraction at the threshold calibrated on held-out images, next to the same count on images that
# the model never saw.

# %%
rows, heads = page.results()
book.show(rows, shaded=heads)
book.say(format.brackets(confidence, replicates))

# %% [markdown]
# An arm that is the control of others heads its group (grey), and appears again in the group of
# its own control if it has one.
#
# ## What each arm cost
# An arm that saw less may remember less for that reason alone.

# %%
rows, heads = page.costs()
book.show(rows, shaded=heads)

# %% [markdown]
# *Updates* are the optimiser's, over all networks of the arm, *updates per network* those that
# each got; *samples with gradient* are those not skipped; *passes* are images seen divided by
# training images. For an arm that starts from another, all of these count its own training alone,
# except the column that says otherwise. *Seconds* are those of the training loop on this machine,
# whatever else ran there; *setup* is what a method does before its first update.
