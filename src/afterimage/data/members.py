"""The rows of the training split that an arm trains on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from afterimage.artifacts import ArtifactError
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


def trained_rows(train: Images, members: pd.DataFrame) -> Images:
    """Return the images that an arm trained on, those marked ``trained`` in its table of members.

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
    return train.take(np.isin(train.ids, ids))
