"""Known concepts: a picture of a red circle owes its red to red images and its shape to circles.

Where captions are composed of concepts (a colour and a shape), the training images that show those
of a query are known. An attributor should score images that share one word with the query above
images that share none. (Images that share another word do not count: of a combination that nobody
trained on, red circles, the circles are all of other colours, so that a score that knows the colour
alone would seem to take them for the wrong shape.) A combination that was held out of the training images (Okawa et al. 2023, "Compositional
abilities emerge multiplicatively") is of particular use: no image shows it, so that a generation of
it can only owe its parts to images that share one of them.

Queries share the training images: scores that say nothing have an area off 0.5 in all queries
alike, if they are alike. So a mean over queries has two errors, one over queries and one over
training images, which is that of the mean of DeLong's placements (1988, Biometrics 44:837).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from afterimage.artifacts import ArtifactError
from afterimage.data.forget import mentions

COLUMNS = ["query", "concept", "word", "combination", "area", "images_error"]
TRAINED, RELATED, HELD_OUT = "trained", "related", "held out"
"""Whether some training image shows all concepts of a query together, and if so whether the word is
also one of a held out combination among the queries. Scores may favour the images with a word for
every query (large circles), which cancels in a mean over words, but not where there is one word: so
``RELATED`` queries are the control of ``HELD_OUT`` ones."""


def words_of(captions: np.ndarray, words: Sequence[str]) -> np.ndarray:
    """Return the position of the one word that each caption has, int64 (N,); -1 where it has none
    of the words, or several.

    Args:
        captions: text, (N,).
        words: Words or phrases, found as ``forget.mentions`` finds them.
    """
    found = np.stack([mentions(captions, word) for word in words], axis=1)
    return np.where(found.sum(axis=1) == 1, found.argmax(axis=1), -1)


def areas(
    scores: np.ndarray,
    train: np.ndarray,
    queries: np.ndarray,
    concepts: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """Return how well scores tell the images that share a word alone with a query from those that
    share none.

    Args:
        scores: Q x N, finite.
        train: Captions of the training images, text (N,).
        queries: Captions of the queries, text (Q,).
        concepts: Concept -> its words.

    Returns:
        One row per query and concept, for queries whose caption has one of the concept's words:
        ``query`` (its position), ``concept``, ``word``, ``combination`` (``TRAINED``, ``RELATED``
        or ``HELD_OUT``; None where the caption lacks another concept), ``area`` (under the ROC curve;
        the probability that an image with the word scores above one with another word of the
        concept, both without the query's other words; NaN where there is no such pair), and
        ``images_error``, the standard error over training images of the mean area of all queries of
        this concept and combination.

    Raises:
        ArtifactError: if no training image has one of the words, naming it.
    """
    known = {concept: words_of(train, words) for concept, words in concepts.items()}
    asked = {concept: words_of(queries, words) for concept, words in concepts.items()}
    for concept, words in concepts.items():
        absent = np.setdiff1d(np.arange(len(words)), known[concept])
        if len(absent):
            raise ArtifactError(
                f"attribution.concepts.{concept}: {words[absent[0]]!r} is the only word of the "
                f"concept in none of the {len(train)} training images' captions"
            )
    trained = set(zip(*(known[concept].tolist() for concept in concepts), strict=True))
    combinations = list(zip(*(asked[c].tolist() for c in concepts), strict=True))
    held_out = {own for own in combinations if min(own) >= 0} - trained
    rows = []
    influences = defaultdict(list)
    for query, own in enumerate(combinations):
        shared = {c: (w >= 0) & (known[c] == w) for c, w in zip(concepts, own, strict=True)}
        count = np.sum(list(shared.values()), axis=0)
        for place, (concept, word) in enumerate(zip(concepts, own, strict=True)):
            if word < 0:
                continue
            if min(own) < 0:
                combination = None
            elif own in held_out:
                combination = HELD_OUT
            else:
                is_related = any(other[place] == word for other in held_out)
                combination = RELATED if is_related else TRAINED
            no_other = count == shared[concept]
            comparable = np.where(no_other, known[concept], -1)
            area, influence = _area(scores[query], comparable, word)
            if not np.isnan(area):
                influences[concept, combination].append(influence)
            rows.append((query, concept, concepts[concept][word], combination, area))
    errors = {key: float(np.linalg.norm(np.mean(each, axis=0))) for key, each in influences.items()}
    complete = [(*row, errors.get((row[1], row[3]), np.nan)) for row in rows]
    return pd.DataFrame(complete, columns=COLUMNS)


def _area(scores: np.ndarray, words: np.ndarray, word: int) -> tuple[float, np.ndarray]:
    """Return the area of a query's scores, (N,), for images with ``word`` against those with
    another one, and the influence of each image on it, (N,); NaN without a pair.

    The sum of squares of the influences estimates the area's variance over images.
    """
    same, others = np.flatnonzero(words == word), np.flatnonzero((words >= 0) & (words != word))
    if not len(same) or not len(others):
        return np.nan, np.full(len(scores), np.nan)
    ranks = rankdata(scores[np.concatenate([same, others])])
    below = (ranks[: len(same)] - rankdata(scores[same])) / len(others)
    above = 1 - (ranks[len(same) :] - rankdata(scores[others])) / len(same)
    area = below.mean()
    influence = np.zeros(len(scores))
    for rows, placements in ((same, below), (others, above)):
        count = len(rows)
        influence[rows] = (placements - area) / np.sqrt(count * max(count - 1, 1))
    return float(area), influence
