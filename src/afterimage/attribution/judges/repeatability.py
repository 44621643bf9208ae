"""Repeatability: how far an attributor agrees with itself under other noise.

A score is an estimate: the gradients that it comes from are averaged over a few timesteps, noises
and probes. Whatever an attributor means, a score that does not agree with itself when these are
drawn again predicts no retraining. Both draws are scored by themselves, from the same few images
and queries (``config.Repeatability``). With fewer training images than the study's, the
preconditioner of these is less certain, and so is the score.

Where all images share the noise of a timestep, both draws repeat what that noise makes common to
all images: an agreement between draws of noise is what counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afterimage.attribution import attributors
from afterimage.attribution.attributors.inputs import AttributionInputs
from afterimage.attribution.judges import lds
from afterimage.config.attribution import ATTRIBUTOR_TABLE


@dataclass(frozen=True)
class Draws:
    """What scores of the same images and queries are computed from, under two draws of the noise.

    Attributes:
        first: Under the noise of the study.
        second: Under other noise.
        columns: Set of queries -> the slice of its queries among those of all sets.
    """

    first: AttributionInputs
    second: AttributionInputs
    columns: dict[str, slice]

    def of(self, name: str, regularisers: dict[str, float]) -> dict[str, float]:
        """Return the agreement of an attributor with itself for each set of queries.

        Args:
            name: The attributor.
            regularisers: Set -> relative lambda; only sets of these.

        Returns:
            Set -> ``agreement``; NaN for attributors whose features are not drawn again.
        """
        if not ATTRIBUTOR_TABLE[name].in_variants:
            return dict.fromkeys(regularisers, float("nan"))
        first, second = (attributors.scorer(name, inputs) for inputs in (self.first, self.second))
        return {
            queries: agreement(
                first(relative)[self.columns[queries]], second(relative)[self.columns[queries]]
            )
            for queries, relative in regularisers.items()
        }


def agreement(scores: np.ndarray, reference: np.ndarray) -> float:
    """Return Spearman's correlation of two scores, (Q, N), over the images; mean over queries.

    Queries without a correlation are left out; NaN if there are no others.
    """
    correlations = lds.spearman(scores.T, reference.T)
    return float(np.nanmean(correlations)) if np.isfinite(correlations).any() else float("nan")
