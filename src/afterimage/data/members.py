"""The rows of the training split that an arm trains on, and those that its weights have seen.

An arm that starts from another one has seen that one's images, too: a network that was fine-tuned
without some of them may still give them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from afterimage.artifacts import ArtifactError, check_file
from afterimage.images import Images

if TYPE_CHECKING:
    import pandas as pd


def members(images: Images, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Return a mask of the rows to train on, bool, (N,).

    It is a random share of the sources, each with all its copies. With ``fraction`` 0.5 this is the
    half-data model of Carlini et al. 2023, section 5.
    """
    sources = np.unique(images.sources)
    sampled = rng.permutation(sources)[: max(1, round(fraction * len(sources)))]
    return np.isin(images.sources, sampled)


def seen(tables: Sequence[Path]) -> pd.DataFrame:
    """Return an arm's table of members, in which ``trained`` marks all rows that its weights have
    seen.

    Args:
        tables: ``members.parquet`` of the arm, and of the arms that it starts from.

    Raises:
        ArtifactError: for a damaged file, or tables of different rows.
    """
    import pandas as pd

    for path in tables:
        check_file(path)
    members, *others = (pd.read_parquet(path) for path in tables)
    for path, other in zip(tables[1:], others, strict=True):
        if not members["id"].equals(other["id"]):
            raise ArtifactError(f"{path} lists other images than {tables[0]}")
        members["trained"] |= other["trained"]
    return members


def trained_mask(train: Images, members: pd.DataFrame) -> np.ndarray:
    """Return the mask, bool (N,), of the images that are marked ``trained`` in a table of members.

    Raises:
        ArtifactError: if the members are not rows of ``train``, or none is marked as trained.
    """
    ids = members.loc[members["trained"], "id"].to_numpy()
    unknown = ids[~np.isin(ids, train.ids)]
    if len(unknown):
        raise ArtifactError(
            f"members names training image {unknown[0]}, which the training set does not have"
        )
    if not len(ids):
        raise ArtifactError("members marks no training image as trained")
    return np.isin(train.ids, ids)


def trained_rows(train: Images, members: pd.DataFrame) -> Images:
    """Return the images that ``trained_mask`` marks."""
    return train.take(trained_mask(train, members))
