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
# An **attributor** gives every training image a score for a query, from the gradients of one
# trained network. Whether the scores mean anything is judged by retraining: networks are trained
# on random subsets of the training images, and the sum of the scores of the images that a subset
# keeps is compared with the loss of the query under the network trained on it (**linear
# datamodeling score**, LDS: Spearman's correlation over subsets, mean over queries). DAS (Lin et
# al., ICLR 2025) is one attributor; its rivals are judged next to it, with the same subsets and
# the same noise for all.

# %% tags=["parameters"]
results = "results/default"
figures = "figures"
study = "default"
arms = ["baseline", "dedup"]
replicates = 1
plantings = 1
confidence = 0.95
show_images = True
pairs = 24

# %%
from afterimage.report import format
from afterimage.report.notebook import Notebook
from afterimage.report.pages.attribution import SETS, Attribution

book = Notebook(results, figures, confidence, plantings)
page = Attribution(book)
book.say(page.summary(study))
book.say(page.networks())

# %% [markdown]
# ## How well each attributor predicts retraining

# %%
rows, control = page.table("loss")
book.show(rows, shaded=control)
book.say(f"In brackets: {book.level} jackknife intervals over subsets. {page.repeated()}")

# %% [markdown]
# Queries share the subsets, so that resampling queries would give far too narrow intervals.
# *Of ceiling* is the score as a share of the *ceiling*: what a prediction that knows the expected
# losses would score against the measured ones, from independent trainings of the same subsets.
# The interval is Fieller's; it has no bounds where the subsets do not exclude a ceiling of 0.
# *Oracle λ* is the score at the regulariser that is best on the very subsets reported, as the
# published tables have it: more than a user can get. `shuffled` is the control: the scores of
# `trak`, given to other images.
# Squared scores (`das`, `das_scalar`, and those named so) have no sign.
#
# A few subsets score low by chance alone: Spearman's correlation of 8 subsets expects 0.52 where
# all possible subsets have 0.58. Intervals are of the score over all possible subsets; a score
# lies low in its interval, or below it. In simulations with 64 queries 95 % intervals hold that
# score in 91 to 98 % of cases with 8 subsets and in 93 to 98 % with 32.
#
# *Repeatability* is the rank correlation of an attributor's scores with themselves when the noise
# and the probes of its gradients are drawn again: where it is low, the table judges the noise of
# an estimate rather than its definition. With `features.noise: shared`, the default, all images
# have the same noise at a timestep, which makes most scores repeat; whether they are any better,
# only LDS tells.

# %%
if page.several:
    book.show(page.by_network("loss"))
    book.say("Each network by itself, for the loss: its score, and its repeatability.")

# %% [markdown]
# All attributors predict the same networks, so that what a subset does to all of them cancels in
# a difference: two may differ clearly where their intervals overlap.

# %%
book.show(page.behind("loss"))
book.say(
    f"In brackets: {book.level} intervals of each difference, paired by subset and query; bold: "
    "different after the adjustment for the number of pairs (Holm), since the leader is chosen by "
    f"the same numbers. {page.told_apart('loss')}"
)

# %%
book.keep(page.lds_figure(), "attribution_lds")

# %% [markdown]
# The table and the left panel have the target of the published protocol, the query's **loss**.
# What DAS derives is of another quantity, the **shift**: how far the prediction for the query
# moves from that of the explained network (mean squared change). The right panel judges the same
# scores by it.

# %%
rows, control = page.table("shift")
book.show(rows, shaded=control)

# %% [markdown]
# ## The regulariser
# Published scores use the regulariser λ that gives the best LDS. How much that choice is worth,
# and how well a choice on other subsets does:

# %%
book.keep(page.regularisers(), "attribution_regularisers")

# %% [markdown]
# Dots: the regulariser chosen on the first half of the subsets.
#
# ## Copies whose number is known
# A generation that shows a training image planted m times was made by those m copies. Does an
# attributor rank them first? And does a low leverage give duplicates away without any query?

# %%
if len(page.copies()):
    book.keep(page.copies_figure(), "attribution_copies")
    book.say(page.copies_caption())
else:
    book.say(
        "The extraction attack found nothing in this arm's generations: none is of known origin."
    )
book.say(page.leverage())

# %% [markdown]
# ## Concepts that captions are composed of
# Where captions name concepts (a colour and a shape), the images with the words of a query are
# those that it owes them to. The **area** is the probability that an image that shares this word
# alone with the query scores above one that shares none of its words: 0.5 is chance. No image
# shows a *held out* combination, so that only images with one of the words can explain it;
# compare it with *related* ones, which were trained and share the concept's word with it.
# Intervals are for other queries and other training images, and not adjusted.

# %%
if len(page.concepts()):
    book.keep(page.concepts_figure(), "attribution_concepts")
else:
    book.say("The study names no concepts (`attribution.concepts`).")

# %% [markdown]
# ## First choices

# %%
if show_images:
    for k in range(len(page.phases)):
        book.say(f"Network {k}:" if page.several else "")
        for query, figure in enumerate(page.first_choices(k)):
            book.keep(figure, f"attribution_first_rep{k}_{query}")
    book.say(f"Left: the query ({SETS[page.pictured_set()]}); then the first training images.")
else:
    book.say(format.IMAGES_WITHHELD)

# %% [markdown]
# One row per attributor. Green frames: copies of the image that the generation shows.
#
# ## Without the images that made it
# The first images of a ranking are taken out, a network is trained on the others, and the same
# noise is denoised again. The more the picture changes, and the more the query's loss rises, the
# more these images had made it. `random` takes out as many by chance; `again` takes none out and
# trains with other random numbers: what any retraining changes.

# %%
counterfactual = len(page.counterfactuals()) > 0
if counterfactual:
    book.keep(page.counterfactual(), "attribution_counterfactual")
    book.show(page.counterfactual_table())
    book.say(f"{page.counterfactual_caption()} In brackets: {book.level} intervals.")
else:
    book.say("This study does not take images out (`attribution.counterfactual`).")

# %% [markdown]
# Intervals are over generations (Student's t; Fieller's of the ratio, *no bounds* where the rise
# of `pixel_l2` may be none, no ratio where its mean is), differences paired by generation; bold:
# different after the adjustment for the number of choices. The network of `again` is one for all
# generations of a network, so that all rises and ratios share its error; differences do not.

# %%
if counterfactual and page.several:
    book.show(page.counterfactual_by_network())
if counterfactual and show_images:
    for k in range(len(page.phases)):
        book.say(f"Network {k}:" if page.several else "")
        book.keep(page.regenerated(k), f"attribution_regenerated_rep{k}")

# %% [markdown]
# ## Forgotten images
# Does a remedy remove the influence of the images that it makes a network forget? For the same
# generations, the chance that a forgotten training image is scored higher than another one, in
# the network before the remedy and after it (0.5: no more influence than others).

# %%
if page.influence_stores():
    book.keep(page.influence(arms), "attribution_remedied")
    lines = ", one line for each network" if page.several else ""
    book.say(f"Before: `{page.before()}`{lines}.")
else:
    book.say("This study does not follow forgotten images (`attribution.remedied`).")

# %% [markdown]
# Squared scores (`das`) are large for any effect, helpful or harmful.
#
# ## Cost against quality
# The same scores from cheaper features, and from two stages: all images by the main features, the
# best of them again by the reference's. Cost is the time that the features took. *Agreement* is
# Spearman's correlation with the reference's scores over the training images; *first* the share
# of its first images that are kept.

# %%
if page.has_variants():
    rows, reference = page.cost_table()
    book.show(rows, shaded=reference)
    book.say(f"Of the generations; shaded: the reference. {page.shortlist()}")
    book.keep(page.cost_figure(), "attribution_cost")
else:
    book.say("This study has no variants of its features (`attribution.variants`).")
if page.has_variants() and any(len(points) > 1 for points in page.dials().values()):
    book.keep(page.dials_figure(), "attribution_timesteps_dimension")

# %% [markdown]
# ## Published numbers
# LDS on CIFAR-2 from the executed notebooks of D-TRAK (Zheng et al., ICLR 2024), in percent, at T
# = 10 / T = 100, regulariser by oracle, 64 subsets. Networks, data and queries are different
# there: scores of different set-ups cannot be compared, and their order only where it is known
# here.

# %%
book.show(page.published())
