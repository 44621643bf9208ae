"""Variants of a study's captions (``config.texts``): for each image the text that stands in the
place of its caption.

A variant belongs to images, not to captions: two images with one caption may have different texts
in another column, and different random words. Copies of an image share its text; an image that
carries the caption of another (``data.planting``) has the other's text.

Somepalli et al. 2023, "Understanding and mitigating copying in diffusion models", train with fixed
and with random captions; Li et al. (Dual Fusion, 2023; LoyalDiffusion, 2024) with general ones.
"""

from __future__ import annotations

from collections import Counter

import pandas as pd

from afterimage import seeds
from afterimage.artifacts import ArtifactError
from afterimage.config.texts import (
    CaptionVariant,
    ColumnCaptions,
    FixedCaption,
    GeneralCaptions,
    RandomCaptions,
)
from afterimage.images import Images


def rewritten(
    variant: CaptionVariant,
    name: str,
    parts: list[Images],
    seed: int,
    columns: pd.DataFrame | None = None,
) -> dict[int, str]:
    """Return the id of every image -> its text. Words are separated by white space.

    Args:
        variant: The variant.
        name: Its name in the study; with an image's id the address of its random words.
        parts: The study's images; the words of ``random``, and how frequent words are, come from
            the captions of the first part, the pool.
        seed: The study's seed.
        columns: ``captions.parquet`` of ``data fetch``, for ``column``.

    Raises:
        ArtifactError: if ``columns`` lacks an image.
    """
    captions = {
        image: text
        for part in parts
        for image, text in zip(part.ids.tolist(), part.captions.tolist(), strict=True)
    }
    pool = parts[0].captions.tolist()
    match variant:
        case ColumnCaptions():
            assert columns is not None
            texts = dict(zip(columns["id"].tolist(), columns[name].tolist(), strict=True))
            if missing := captions.keys() - texts.keys():
                raise ArtifactError(f"variant {name} has no text for image {min(missing)}")
            return {image: texts[image] for image in captions}
        case FixedCaption():
            return dict.fromkeys(captions, variant.caption.strip())
        case RandomCaptions():
            words = sorted({word for text in pool for word in text.split()})
            return {image: _random(words, variant.words, seed, name, image) for image in captions}
        case GeneralCaptions():
            frequency = Counter(word for text in pool for word in set(text.casefold().split()))
            return {
                image: general(text, variant.words, frequency) for image, text in captions.items()
            }


def _random(words: list[str], count: int, seed: int, name: str, image: int) -> str:
    rng = seeds.numpy_rng(seed, "captions", name, image)
    return " ".join(words[place] for place in rng.integers(len(words), size=count))


def general(caption: str, words: int, frequency: Counter[str]) -> str:
    """Return the ``words`` most frequent different words of a caption, in its order; of equally
    frequent ones the first.

    Args:
        caption: Text.
        words: How many are kept.
        frequency: Word, in lower case -> number of captions that have it.
    """
    different: dict[str, str] = {}
    for word in caption.split():
        different.setdefault(word.casefold(), word)
    kept = sorted(different, key=lambda word: -frequency[word])[:words]
    return " ".join(text for word, text in different.items() if word in kept)
