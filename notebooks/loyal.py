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
# LoyalDiffusion (Li et al. 2024; CVPR 2026) puts **information transfer blocks** into skip
# connections of the denoising network (RAU-Net) and uses that network at high noise only: a
# *front* network denoises timesteps below the switch τ, a *tail* network those from τ on. Two
# things change at once, the blocks and the split of one network into two. So every arm here has a
# control without blocks, and the arm with two networks has one with **two networks without
# blocks**, trained for as long. Arm and control share initial weights (but for the blocks'), order
# and noise. Which skips get blocks, and τ, are chosen by experiment
# in the paper; `snakemake loyal_selection` repeats that and has a page of its own,
# `selection/page/loyal_selection.html` among the study's results.

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
from afterimage.report.notebook import Notebook
from afterimage.report.pages.loyal import Loyal

book = Notebook(results, figures, confidence, plantings)
page = Loyal(book, arms, replicates)
shown = ", ".join(page.shown)
book.say(f"Study `{study}`, {replicates} replicate(s); arms on this page: {shown}.")

# %% [markdown]
# ## The arms

# %%
book.show(page.arms())
book.say(f"This network has levels 1 to {page.levels()}.")

# %% [markdown]
# Group 0 is the skip of the first convolution, group g that of level g; the paper puts blocks
# into its two deepest. With the budget `matched_total` two networks share the updates of one, so
# that equal values of *images seen* are equal work.
#
# ## Copies and quality of every arm

# %%
if page.shown:
    book.keep(page.figure(), "loyal_arms")
    book.say(f"Points with {book.level} intervals ({format.spread(replicates)}).")
    book.say(page.about_r())

# %% [markdown]
# Lower is better, except for text alignment: the share of other prompts that fit a generation less
# well than its own, measured where arms have captions. It stands where the paper has CLIP scores
# and cannot be compared with them. Black bars are the same measure of real images that no model
# saw (for planted images: of their never-trained twins): the floor, of text alignment what can be
# reached. Where more than one generation in twenty is a copy R is near 1 whatever the arm does:
# read the mean similarity and the flagged share next to it.
#
# ## The published rows
# The paper's table as far as it is public: its rows, what is published of each, and the arms of
# this study that stand for them. The columns are the paper's, with this study's Fréchet distance
# and text alignment where the paper has FID and CLIP scores. The abstract does not say which row
# the headline of 48.63 % is relative to, so both reductions are given here.

# %%
book.show(page.published())

# %% [markdown]
# ## What holds here
# Computed from this study's results by the rules of `afterimage.report.verdicts`; nothing is
# asserted.

# %%
book.say(page.findings())
book.say(page.brackets())
book.say(page.scale())

# %% [markdown]
# That no difference, or no loss of quality, was seen does not say that there is none. What does
# not hold here may hold there; what the published blocks were at all is open, since the authors'
# surviving code neither trains nor saves them (variants `frozen_fixed` and `frozen_redrawn` do the
# same).
