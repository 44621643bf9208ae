"""Text alignment: whether images show what they were asked for.

Captions are embedded where images are, in the feature space of the quality measures: TF-IDF of
their words, mapped by ridge regression fitted to the reference pairs, which no arm is trained on.
An image's alignment is the share of other prompts that are further from it (by cosine) than its own;
1/2 is chance. It takes the place of the CLIP score at scales and in domains that CLIP does not know:
what it can tell shows on held-out pairs, which are measured in the same way.
"""

from __future__ import annotations

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

WORDS = r"(?u)\w+"
"""What counts as a word."""
RIDGE = 1.0
"""Weight of the squared coefficients; TF-IDF rows have norm 1."""


class TextEncoder:
    """Maps captions into a feature space of images.

    Args:
        captions: Of the reference images, text (N,).
        features: Of the same images, float64 (N, D).

    Raises:
        ValueError: if no caption has a word.
    """

    def __init__(self, captions: np.ndarray, features: np.ndarray) -> None:
        self._centre = features.mean(axis=0)
        self._words = TfidfVectorizer(token_pattern=WORDS)
        counts = self._words.fit_transform(captions)
        self._ridge = Ridge(alpha=RIDGE).fit(counts, features - self._centre)

    def embed(self, captions: np.ndarray) -> np.ndarray:
        """Return the embeddings of captions, relative to the mean reference image; float64
        (N, D)."""
        return self._ridge.predict(self._words.transform(captions))

    def alignment(self, features: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """Return the alignment of each image, float64 (N,), in [0, 1].

        Args:
            features: Of the images, float64 (N, D).
            captions: What each was asked for, text (N,); at least two different ones.
        """
        different, own = np.unique(captions, return_inverse=True)
        cosines = _unit(features - self._centre) @ _unit(self.embed(different)).T
        mine = cosines[np.arange(len(own)), own][:, None]
        further = (cosines < mine) + 0.5 * (cosines == mine)
        return (further.sum(axis=1) - 0.5) / (len(different) - 1)  # its own is no other one


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)
