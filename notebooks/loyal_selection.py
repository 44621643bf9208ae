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
# # Which skips should get blocks, and from which timestep on?
#
# LoyalDiffusion (Li et al. 2024; CVPR 2026) puts **information transfer blocks** into some skip
# connections, at timesteps from the switch τ on. The paper chooses skip groups and τ by
# experiment. `snakemake loyal_selection` repeats that: from one trained network, arms with blocks
# in one group each, and pairs of networks for each τ, all trained further for as long as a
# control without blocks. Group 0 is the skip of the first convolution, group g that of level g.

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
from afterimage.report.notebook import GREEN, Notebook
from afterimage.report.pages.loyal_selection import Selection

book = Notebook(results, figures, confidence, plantings)
page = Selection(book, replicates)
book.say(page.summary(study))

# %% [markdown]
# ## By skip group

# %%
book.keep(page.groups(), "loyal_groups")

# %% [markdown]
# Copies (left) and quality (right) by skip group, blocks at all timesteps; lower is better. Small
# points are replicates. Dashed: the control without blocks; dotted: the floor, the same measure
# of held-out images; red: the largest distance that a choice may have. Green: chosen.
#
# ## By switch timestep

# %%
if page.settings["switch_timesteps"]:
    book.keep(page.timesteps(), "loyal_timesteps")
    book.say(page.bars())
else:
    book.say("This study tries no switch timesteps.")

# %% [markdown]
# Arms are trained for each τ, two networks sharing the control's budget. What the blocks do is
# the distance between the coloured line and the grey one of two networks without; what the split
# itself does is the grey line's distance from the dashed one.
#
# ## Without further training

# %%
book.keep(page.swap(), "loyal_swap")

# %% [markdown]
# The cheap look without further training: the control and the network with blocks throughout take
# turns while sampling. Each bar covers the timesteps at which the network with blocks predicts.
# Neither was trained for its range alone, so this hints at where copying is decided and does not
# stand for LoyalDiffusion.
#
# ## The choice

# %%
rows, chosen = page.ranking()
book.show(rows, shaded=chosen, shade=GREEN)
book.say(page.certainty())
book.say(page.rules())
