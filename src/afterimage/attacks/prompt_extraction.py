"""Training images that their prompts give away: generate and filter (Carlini et al. 2023, section
4.2).

Many images are drawn from each prompt. A prompt is flagged if at least as many of them as are asked
for all agree (``cliques.largest``); flagged prompts are ranked by the mean distance within that
clique, and its medoid stands for the prompt. It is extracted if some training image lies within
delta of it in normalised l2, the paper's (l2, 0.15); the paper compares with the image whose
caption the prompt is, so ``own`` says whether the nearest has it.

The same distance to held-out images is the control: where one of those is within delta, too, the
radius is too wide for these images to show anything.

The columns of a table of prompts that are made here:

- clique, clique_mean: images in the largest clique, and their mean distance (NaN for one image);
- flagged, bool; medoid: its number among the prompt's images;
- nearest, nearest_source, l2: the training image nearest to it (ids; the lowest row of equal ones),
  and its distance; own, bool: whether that image, or one equal to it, has the prompt as its caption;
  within, bool: whether it is within delta;
- nearest_holdout, holdout_l2, within_holdout: the same of held-out images that are no
  near-duplicates of training images; -1, NaN and false if there are none.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from afterimage.attacks.prompts import cliques
from afterimage.images import Images, contents
from afterimage.metrics.neighbours import Gallery

SHARES = ("prompts_flagged", "prompts_extracted", "prompts_own", "prompts_false")
"""Shares of prompts in ``results.csv``: flagged; of these, within delta of a training image; of
these, of one with the prompt as its caption; flagged, and within delta of a held-out image."""
RANKED = ("clique_mean", "flagged", "extracted", "own", "false", "images", "precision")
"""Columns of ``ranked``."""


def agreement(images: np.ndarray, size: int, edge: float) -> tuple[pd.DataFrame, int]:
    """Return how the images of each prompt agree, and for how many prompts a search for cliques was
    given up.

    Args:
        images: uint8, (P, M, H, W, C), the images of each prompt.
        size: Images of a clique, 2 <= ``size`` <= M.
        edge: Largest distance of two images that are joined.

    Returns:
        One row per prompt: cliques, minus the diameter of the ``size`` images that agree best;
        clique, clique_mean, flagged and medoid.
    """
    rows, given_up = [], 0
    for own in images:
        between = cliques.pairwise(own)
        tightest, largest = cliques.tightest(between, size), cliques.largest(between, edge)
        given_up += tightest.bounded or largest.bounded
        count = len(largest.members)
        rows.append(
            {
                "cliques": -tightest.diameter,
                "clique": count,
                "clique_mean": largest.mean if count > 1 else np.nan,
                "flagged": count >= size,
                "medoid": cliques.medoid(between, largest.members),
            }
        )
    return pd.DataFrame(rows), given_up


def compared(
    medoids: np.ndarray,
    prompts: np.ndarray,
    train: Images,
    captions: np.ndarray,
    holdout: Images,
    delta: float,
    flips: bool,
) -> pd.DataFrame:
    """Return how near each prompt's medoid is to training images and to held-out ones.

    Args:
        medoids: uint8, (P, H, W, C).
        prompts: Text, (P,).
        train: The images that the model was trained on, copies included, N of them.
        captions: Their captions as the model was given them, text, (N,).
        holdout: Held-out images without near-duplicates of ``train``.
        delta: Radius in normalised l2.
        flips: Compare mirrored images too.

    Returns:
        One row per prompt: nearest, nearest_source, l2, own, within, nearest_holdout, holdout_l2
        and within_holdout.
    """
    found = Gallery(train.pixels).nearest(medoids, 1, flips=flips)
    rows, l2 = found.rows[:, 0], found.distances[:, 0]
    looks = np.unique(contents(train.pixels), return_inverse=True)[1]
    table = {"nearest": train.ids[rows], "nearest_source": train.sources[rows], "l2": l2}
    table["own"] = np.array(
        [
            looks[row] in looks[captions == prompt]
            for row, prompt in zip(rows, prompts, strict=True)
        ],
        bool,
    )
    table |= {"within": l2 <= delta, "nearest_holdout": np.full(len(rows), -1)}
    table["holdout_l2"] = np.full(len(rows), np.nan)
    if len(holdout):
        found = Gallery(holdout.pixels).nearest(medoids, 1, flips=flips)
        table["nearest_holdout"] = holdout.ids[found.rows[:, 0]]
        table["holdout_l2"] = found.distances[:, 0]
    return pd.DataFrame(table | {"within_holdout": table["holdout_l2"] <= delta})


def shares(prompts: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return which prompts count in each of ``SHARES``, bool (P,)."""
    flagged, within = prompts["flagged"].to_numpy(bool), prompts["within"].to_numpy(bool)
    extracted = flagged & within
    own, false = (prompts[column].to_numpy(bool) for column in ("own", "within_holdout"))
    return dict(zip(SHARES, (flagged, extracted, extracted & own, flagged & false), strict=True))


def ranked(prompts: pd.DataFrame) -> pd.DataFrame:
    """Return what is extracted if only the flagged prompts that agree best are believed (figure 4
    of the paper).

    Args:
        prompts: Rows of ``prompts.parquet``.

    Returns:
        One row per mean distance of a flagged prompt, ascending, so that equal ones are not put in
        an order: clique_mean, and up to it: flagged, extracted, own and false (numbers of prompts
        as in ``SHARES``), images (different training images extracted, copies of a source counting
        as one) and precision, the share of flagged prompts that is extracted.
    """
    counted = shares(prompts)
    mean, source = (prompts[column].to_numpy() for column in ("clique_mean", "nearest_source"))
    rows = []
    for level in np.unique(mean[counted["prompts_flagged"]]):
        taken = mean <= level
        numbers = {
            name.removeprefix("prompts_"): int((taken & mask).sum())
            for name, mask in counted.items()
        }
        images = len(np.unique(source[taken & counted["prompts_extracted"]]))
        precision = numbers["extracted"] / numbers["flagged"]
        rows.append({"clique_mean": level, **numbers, "images": images, "precision": precision})
    return pd.DataFrame(rows, columns=RANKED)
