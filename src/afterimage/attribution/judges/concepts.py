"""Known concepts: a picture of a red circle owes its red to red images and its shape to circles.

Where captions are composed of concepts (a colour and a shape), the training images that show those
of a query are known. An attributor should score them above images with another word of the same
concept. A combination that was held out of the training images (Okawa et al. 2023, "Compositional
abilities emerge multiplicatively") is of particular use: no image shows it, so that a generation of
it can only owe its parts to images that share one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from afterimage.artifacts import ArtifactError
from afterimage.data.forget import mentions
from afterimage.metrics.ranking import roc_auc

COLUMNS = ["query", "concept", "word", "combination", "area"]
TRAINED, HELD_OUT = "trained", "held out"
"""Whether some training image shows all concepts of a query together."""


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
    """Return how well scores tell the images with a query's word from those with another one.

    Args:
        scores: Q x N, finite.
        train: Captions of the training images, text (N,).
        queries: Captions of the queries, text (Q,).
        concepts: Concept -> its words.

    Returns:
        One row per query and concept, for queries whose caption has one of the concept's words:
        ``query`` (its position), ``concept``, ``word``, ``combination`` (``TRAINED`` or
        ``HELD_OUT``; NaN where the caption lacks another concept), and ``area`` (under the ROC
        curve; the probability that an image with the word scores above one with another word).

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
    rows = []
    for query, own in enumerate(zip(*(asked[c].tolist() for c in concepts), strict=True)):
        combination = TRAINED if own in trained else HELD_OUT
        for concept, word in zip(concepts, own, strict=True):
            if word < 0:
                continue
            same, others = known[concept] == word, known[concept] >= 0
            area = roc_auc(scores[query, others & ~same], scores[query, same])
            name = concepts[concept][word]
            rows.append((query, concept, name, combination if min(own) >= 0 else np.nan, area))
    return pd.DataFrame(rows, columns=COLUMNS)
