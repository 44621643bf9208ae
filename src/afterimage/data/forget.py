"""The training images of a forget set. Copies of an image are always forgotten together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.images import Images


def rows(
    train: Images, name: str, settings: dict[str, Any], extraction: Path | None = None
) -> np.ndarray:
    """Return a mask of the training images that belong to the set, bool, (N,).

    Args:
        train: The training part of the split.
        name: The set's name, for messages.
        settings: The set, as plain values of ``config.ForgetSet``.
        extraction: Store of the extraction attack on the arm that the set names, for sets of
            extracted images.

    Raises:
        ConfigError: if an id is not that of a training image.
        ArtifactError: if the set is empty, or the whole training set.
    """
    if settings["label"] is not None:
        chosen = train.labels == settings["label"]
    elif settings["ids"] is not None:
        wanted = np.array(settings["ids"])
        unknown = wanted[~np.isin(wanted, train.ids)]
        if len(unknown):
            ids = f"{train.ids.min()} to {train.ids.max()}"
            raise ConfigError(
                f"forget.{name}.ids: {unknown[0]} is not a row of the training part ({ids})"
            )
        chosen = np.isin(train.sources, train.sources[np.isin(train.ids, wanted)])
    else:
        assert extraction is not None, name
        artifacts.check_file(extraction / "images.parquet")
        extracted = pd.read_parquet(extraction / "images.parquet")
        anchor = artifacts.read_run(extraction)["config"]["settings"]["anchor"]
        chosen = np.isin(
            train.sources,
            extracted.loc[extracted[f"extracted_{anchor}_{settings['alpha']}"], "source"],
        )
    if not chosen.any():
        if settings["extracted_from"] is None:
            reason = f"label {settings['label']} is that of"
        else:
            reason = (
                f"the attack on {settings['extracted_from']!r} (alpha {settings['alpha']}) found"
            )
        raise ArtifactError(
            f"forget.{name} is empty: {reason} none of the {len(train)} training images"
        )
    if chosen.all():
        raise ArtifactError(f"forget.{name} is the whole training set")
    return chosen
