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
# # Has the model forgotten, or has it just stopped showing it?
#
# EraseDiff (Wu et al., CVPR 2025) and its rivals start from a trained model, the **base**, and
# are meant to make it forget some of its training images. Published tables ask a classifier: what
# is the probability of the forgotten class (P_psi) over the images that the model generates when
# it is asked for that class? A low one says what the model shows, not what it holds. So every arm
# here is also attacked: are forgotten images extracted, do the losses give them away as trained
# on, and how soon does a little plain training bring them back? The **retrained** arm, which
# never saw them, is the honest answer to each question.

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
from afterimage.report.pages.erasediff import Unlearning, counted

book = Notebook(results, figures, confidence, plantings)
page = Unlearning(book, arms, replicates)
book.say(page.summary(study))

# %% [markdown]
# Pictures and curves of single models show replicate 0.
#
# ## The table, with the published one next to it
#
# **P_psi**: mean probability of the forgotten class. **UA**: share of the same generations that
# the classifier does not take for it; higher is better. **entropy**: of the classifier on the same
# generations; at most the logarithm of the number of classes. **accuracy, rest**: how often the
# classifier sees what was asked for, other labels, or for prompts the label that all training
# images with this caption have. **FD_balanced, precision, recall, rest**:
# generations of the other labels, or prompts, against reference images of the same; all generations
# where the set has no class or captions of its own, or the arm neither labels nor captions.
# **text_alignment, all**: of the generations for all captions, those of forgotten images too, the
# share of other prompts that fit a generation less well than its own; it stands where the paper
# has CLIP scores. **extracted**: forgotten images given back, calibrated threshold. **copied**: of
# generations drawn for the captions of forgotten images, those that copy one of them, calibrated
# threshold. **brought back**: of the forgotten images with the most copies, those of which some
# optimised text embedding draws a copy, and **never-trained** the same of images that no network
# saw, the control. **AUC**: how well losses tell forgotten from held-out images; 0.5 is not at all.
# **back after**: updates of the relearning attack.

# %%
for name in page.sets:
    book.say(f"**{name}**: {page.described(name)}")
    book.show(page.table(name))
    book.say(page.unmeasured(name))
book.say(format.brackets(confidence, replicates))
book.say(page.guidance())

# %% [markdown]
# *trained on* counts the forgotten images that the arm's weights have seen, in its own training or
# in that of the arms that it starts from, including those that it was then made to forget; 0 marks
# an arm that never saw them, whose extractions are false alarms. Published values:
# EraseDiff's table for CIFAR-10 (conditional DDPM, class airplane), **second-hand**, copied from
# a public note on the paper and not checked against the paper itself; other images, another
# classifier, another feature space and other guidance: compare orders, not values.
#
# ## Run time

# %%
for name in page.sets:
    rows = page.run_times(name)
    if rows:
        book.say(f"**{name}**")
        book.show(rows)

# %% [markdown]
# Seconds of the arm's own training on this machine, whatever else ran there, with what the method
# does before its first update. Published run times are relative to EraseDiff's, second-hand like
# the table, and of the published budgets: compare them where arms have as many updates.
#
# ## Forgetting against quality

# %%
for name in page.sets:
    book.keep(page.arm_by_arm(name), f"arms_{name}")
    book.keep(page.trade_off(name), f"forgetting_{name}")
book.say(f"Bars: {book.level} intervals.")
book.say(page.chosen_sets())

# %% [markdown]
# Above arm by arm, below forgetting against the Fréchet distance of generations with other labels
# (of all generations where the set has no class of its own, or the arm no labels); lower and
# further left is better. Squares: the arm that the others start from. Stars and dotted lines:
# retrained without the images; it need not be beaten, and what it gives back are false alarms.
# Extraction at the calibrated threshold.
#
# ## Along the steps

# %%
if page.curves():
    book.keep(page.losses(), "steps")
else:
    book.say("No arm on this page starts from another and is trained.")
book.say(page.at_once())

# %% [markdown]
# Each method's own losses, logarithmic: that of the rest, and that which it takes the forgotten
# images by. The second differs between methods: gradient ascent drives the ordinary loss **up**,
# the others drive the error against another target **down**.

# %%
if page.erasing():
    book.keep(page.gradients(), "gradients")
    book.say(page.gradient_summary())
else:
    book.say("No arm on this page is EraseDiff's.")

# %% [markdown]
# Where the cosine of the gradients of the two losses is negative, a step that serves the rest
# alone would undo forgetting, and lambda has to make up for it; where it is above the barrier's
# share, lambda is zero and the step is an ordinary one on the rest. The right panel shows the
# product of the forgetting gradient with the step direction that was asked for: with the
# theorem's rule never below the barrier (dotted). Points are means over the updates between two
# points of the training curve.
#
# ## Before and after, from the same noise

# %%
if show_images:
    for name in page.sets:
        book.keep(page.pictures(name), f"images_{name}")
else:
    book.say(format.IMAGES_WITHHELD)

# %% [markdown]
# One row per arm, one column per start: all arms sample from the same noise and labels, so that a
# column shows what unlearning made of one image.
#
# ## Class by class

# %%
for name in page.sets:
    if len(page.by_class(name)):
        book.keep(page.classes(name), f"classes_{name}")
if not any(len(page.by_class(name)) for name in page.sets):
    book.say("No forget set is a class.")

# %% [markdown]
# Share of the generations, in percent, that the classifier sees as the class that was asked for,
# for forget sets that are a class. A forgotten class should be light, all others as dark as in
# the base.
#
# ## Relearning

# %%
for name in page.sets:
    book.keep(page.relearning(name), f"relearning_{name}")
    book.say(page.relearning_updates(name))

# %% [markdown]
# Every arm is trained plainly on the forgotten images alone, all in the same order and noise. An
# arm that has forgotten needs as many updates as one that never saw them; an arm whose probability
# is up, or whose loss is down, much sooner only hid them. Copies count as often as they occur in
# the training set.
#
# ## What holds here

# %%
for name in page.sets:
    table = page.against_base_and_retrained(name)
    if len(table):
        book.say(f"**{name}**: each arm against {page.others(name)}")
        book.show(table)
book.say(f"Differences with {book.level} intervals.")

# %% [markdown]
# The rules are those of the comparison page: one training gives no verdict, and p-values are
# adjusted for the number of differences in the table (Holm). An arm has forgotten, as far as
# these attacks can tell, if it is lower than its base in P_psi, no higher than the retrained arm
# in what is extracted, copied and brought back and in AUC, and needs as many updates to relearn;
# for sets given by captions *copied* and *brought back* are the main numbers. *No difference seen*
# does not say that there is none, only that the adjusted p-value is not small enough; the interval
# may leave out zero all the same.

# %%
for name in page.sets:
    rows = page.published_order(name)
    if rows:
        book.say(f"**{name}**: EraseDiff's published order among the methods, and the order here")
        book.show(rows)
        book.say(counted(rows))

# %% [markdown]
# ## Every number
# Metrics ending in `_holdout` are the same measure of real held-out images.

# %%
book.html(format.plain_table(book.table("forgetting")))
