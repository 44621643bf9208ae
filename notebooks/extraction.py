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
# Each **arm** is one way of training the study's diffusion model. Images are generated with every
# arm, and each is compared with all images that its weights have seen (Carlini et al. 2023,
# section 5.1). Real held-out images that no model saw are compared in the same way: what is
# flagged among those is a false alarm, so read every count next to that control.

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
from afterimage.report.pages.extraction import DISTANCES, THRESHOLDS, Extraction
from afterimage.report.prompts import EXTRACTED, NOT_EXTRACTED, NOTE

book = Notebook(results, figures, confidence, plantings)
page = Extraction(book, arms, replicates)
book.say(page.provenance(study))

# %% [markdown]
# Pictures of single models show replicate 0.
#
# ## Does the model copy?
#
# For each training, generations are compared with held-out images over all thresholds at once.
# *Copies shown*: more generations are close to training images than held-out images leave to
# chance. *Not shown*: a copying rate of the given size would have been seen in 95 of 100 such
# attacks, if its copies are closer than every held-out image. Without copies at most 5 of 100
# attacks say *shown*; the answers of several trainings are not corrected for how many there are.

# %%
book.show(page.answers())
book.say(page.sentences())
book.say(page.smallest_rate())

# %% [markdown]
# ## The arms at a glance

# %%
book.show(page.at_a_glance())
book.say(f"{format.brackets(confidence, replicates)} {page.scope()}")

# %% [markdown]
# The threshold is calibrated on halves of the held-out images and its false alarms are counted on
# the other halves, averaged over random halvings, except in the columns with the published one.
# Every number is in `report/tables/arms.csv`; the page `comparison` compares each arm with its
# own control.
#
# ## The pairs
# Left the generation, right the training image nearest to it, above them the distance (root mean
# square difference of pixels in [0, 1]) and its ratio to the mean distance of that image's
# neighbours; one pair per training image, smallest ratio first.

# %%
if show_images:
    for name, figure in page.pair_figures(pairs):
        book.keep(figure, name)
else:
    book.say(format.IMAGES_WITHHELD)
    for arm, table in page.pair_tables(pairs):
        book.say(f"**{arm}**")
        book.show(table)

# %% [markdown]
# A pair that the eye cannot tell apart is a training image that the model holds. The ratio
# compares the pair's distance with how far that training image is from its own neighbours, so
# that a plain image is not called copied merely because everything is close to it.
#
# ## Distances of generations and of held-out images

# %%
for name in DISTANCES:
    book.keep(page.distances(name), name)
book.say(page.below_one())

# %% [markdown]
# Where the filled histogram has mass at the left that the outline lacks, generations are closer
# to training images than real images of the same kind are. The share of held-out images left of
# the red line is what the rule gets wrong without any model.
#
# ## Extraction against multiplicity

# %%
for name in THRESHOLDS:
    book.keep(page.multiplicity(name), name)
book.say(f"Bars: {book.level} intervals whose units are the images, not images times trainings.")

# %% [markdown]
# Each point is the share of the different images with that many planted copies that came back,
# pooled over replicates; crosses are the twins that were drawn together with the planted images
# but never trained on. With a model that memorises, the share rises with the number of copies
# while the twins stay low; deduplication is meant to bring the right part of the curve down to
# its left end.
#
# ## Image, caption or both

# %%
if len(page.planted_apart()):
    book.show(page.planted_apart())
    book.say(
        "What is repeated in the training set: the image with its caption (*both*), the image with "
        "other captions, the caption with other images, or *neither* (Somepalli et al. 2023). "
        "A *carrier* is an image, once, that carries the caption of another. Threshold calibrated "
        "on held-out images; twins are never trained on."
    )
else:
    book.say("Every planted image is repeated with its caption, if it has one.")

# %% [markdown]
# ## Are the captions of training known by their prompts?

# %%
if len(page.prompts()):
    book.show(page.prompts())
    book.say(NOTE)
else:
    book.say("Prompts were not attacked (`prompts` in the study).")

# %% [markdown]
# ## Which training images do captions give away?
#
# The attack on Stable Diffusion (Carlini et al. 2023, section 4.2): many images are drawn from one
# caption, and those that agree with each other are taken for a memory. Nothing but the caption is
# needed for that; training images only tell whether it was one.

# %%
if page.prompted:
    book.show(page.prompts_extracted())
    book.say(f"{EXTRACTED} {format.brackets(confidence, replicates)}")
    book.keep(page.prompts_ranked(), "prompts_ranked")
    book.show(page.prompts_published())
else:
    book.say(NOT_EXTRACTED)

# %% [markdown]
# In the figure captions of training are believed one after the other, from the one whose images
# agree best: to the right more are extracted, and what is drawn is the share of the flagged ones
# that were right. A ranking that is worth something starts at the top. The grey line is what the
# same radius finds among held-out images: where it is as high as the other, nearness within that
# radius is no sign of memory in these images. *Extracted before the first that is not* is how far
# precision stays at 100 %; *when all are found*, where the number extracted ends. The published
# numbers are of a model and a data set that are larger by orders of magnitude.

# %% [markdown]
# ## The arms side by side

# %%
book.keep(page.side_by_side(), "arms")
book.say(f"Points are the arms with {book.level} intervals. {page.passes()}")

# %% [markdown]
# Black bars are the same measure on images that the model never saw (real held-out images, or the
# twins of the planted ones). A remedy is worth having if extraction falls while the distance to
# reference images (which no arm was trained on) does not rise; that distance measures class
# shares too, which planted copies skew. Whether the intervals of two arms overlap is no test of
# their difference: the page `comparison` has that.
#
# With the same number of updates an arm that trains on fewer images sees each of them more often,
# and more passes alone make a model remember more: compare arms at equal updates with that in
# mind.
#
# ## Can the attack tell trained from never trained?

# %%
book.keep(page.precision_recall(), "precision_recall")

# %% [markdown]
# Planted images and their never-trained twins are ranked together by their smallest ratio. An
# attack that learns nothing from the model stays on the dotted line; one that never mistakes a
# twin stays at the top.
#
# ## Deduplication against the planted truth

# %%
book.show(page.deduplication())

# %% [markdown]
# **combined** is what the study decides by; **combined** with the name of an arm, what that arm's
# own settings decide. Pair precision and recall are measured against the duplicates that were
# planted, *n/a* where none were. Pairs that a detector found but nobody planted count as
# false here even where the eye would agree with them.
#
# ## Every number
# Both choices of whose neighbours normalise the distance (`training`, `candidate`), both
# thresholds, and MQ as IET-AGC defines it; below them the quality. Click on an arm to unfold its
# tables.

# %%
book.html(page.every_number())
