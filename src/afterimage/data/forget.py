"""The training images of a forget set. Copies of an image are always forgotten together, those
with another caption too.

A set of extracted images is chosen by the first half of an arm's generations. What arms still show
of it is judged on the second halves: of images that were chosen because they came back under one
noise, some do not come back under another, without any remedy.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.images import Images

TRAINING = "training images"
OF_IMAGES = ("label", "caption", "ids")
"""Keys of sets that the training images alone determine."""


def choosing(generations: int) -> np.ndarray:
    """Return the mask of the generations that choose a set, bool, (G,): the first half, rounded
    down. The others judge it."""
    return np.arange(generations) < generations // 2


def mentions(captions: np.ndarray, words: str) -> np.ndarray:
    """Return the mask of the captions, text (N,), that contain a word or phrase: whole words,
    whatever their case and the white space between them; bool, (N,)."""
    phrase = r"\s+".join(map(re.escape, words.split()))
    pattern = re.compile(rf"(?<!\w){phrase}(?!\w)", re.IGNORECASE)
    return np.array([pattern.search(caption) is not None for caption in captions], bool)


def rows(
    train: Images,
    name: str,
    settings: dict[str, Any],
    extraction: Path | None = None,
    what: str = TRAINING,
) -> np.ndarray:
    """Return a mask of the training images that belong to the set, bool, (N,).

    Args:
        train: The training split.
        name: The set's name, for messages.
        settings: The set, as plain values of ``config.ForgetSet``.
        extraction: Store of the extraction attack on the arm that the set names, for sets of
            extracted images.
        what: What the images are, for messages.

    Raises:
        ConfigError: if an id is not that of a training image.
        ArtifactError: if the set is empty, or the whole training set.
    """
    if settings["label"] is not None:
        mask = train.labels == settings["label"]
        reason = f"label {settings['label']} is that of"
    elif settings["caption"] is not None:
        named = train.sources[mentions(train.captions, settings["caption"])]
        mask = np.isin(train.sources, named)
        reason = f"{settings['caption']!r} is in the captions of"
    elif settings["ids"] is not None:
        ids = np.array(settings["ids"])
        unknown = ids[~np.isin(ids, train.ids)]
        if len(unknown):
            allowed = f"{train.ids.min()} to {train.ids.max()}"
            raise ConfigError(
                f"forget.{name}.ids: {unknown[0]} is not a row of the training split ({allowed})"
            )
        mask = np.isin(train.sources, train.sources[np.isin(train.ids, ids)])
        reason = "the ids are those of"
    else:
        assert extraction is not None, name
        artifacts.check_file(extraction / "pairs.parquet")
        pairs = parquet.read_table(extraction / "pairs.parquet")
        anchor = artifacts.read_run(extraction)["config"]["settings"]["anchor"]
        flagged = pairs[f"flagged_{anchor}_{settings['alpha']}"].to_numpy()
        found = pairs["nearest_source"].to_numpy()[flagged & choosing(len(pairs))]
        mask = np.isin(train.sources, found)
        reason = (
            f"the attack on the first half of the generations of {settings['extracted_from']!r} "
            f"(alpha {settings['alpha']}) found"
        )
    if not mask.any():
        raise ArtifactError(
            f"forget.{name} is empty: {reason} none of the {len(train)} {what}; "
            "allowed are sets of some of them, not all"
        )
    if mask.all():
        raise ArtifactError(
            f"forget.{name} is the whole training set: {reason} all {len(train)} {what}; "
            "allowed are sets of some of them, not all"
        )
    return mask


def refuse_unfit(
    images: Images, sets: Mapping[str, dict[str, Any]], kinds: Collection[str], what: str = TRAINING
) -> None:
    """Check that each set of some kinds has some of the images, and not all.

    Args:
        images: The images that sets are chosen from.
        sets: Name -> the set, as plain values of ``config.ForgetSet``.
        kinds: Keys of ``config.ForgetSet`` that say what a set is; others are not looked at.
        what: What the images are, for messages.

    Raises:
        ConfigError, ArtifactError: as ``rows``.
    """
    for name, settings in sets.items():
        if any(settings[kind] is not None for kind in kinds):
            rows(images, name, settings, what=what)
