"""Random subsets of the training images to retrain on, for the LDS (Park et al. 2023).

All subsets have the same size, and are stratified by class to within one image. Subset m of a
family is drawn from its own random stream, seeded by the family's name and m. (The index files of
the released codes are drawn from consecutive seeds, so that their validation, test and retraining
families share some subsets.)
"""

from __future__ import annotations

import numpy as np

from afterimage import seeds
from afterimage.artifacts import ArtifactError


def masks(
    labels: np.ndarray, share: float, count: int, seed: int, family: str = "lds"
) -> np.ndarray:
    """Return which images each subset keeps, bool (M, N): round(share N) of them in every row.

    For each row the images are sorted by class, in random order within a class, and every
    (1 / share)-th of them is kept, from a random start (systematic sampling). The number kept of a
    class is therefore its share, rounded up or down, and all images have the same probability.

    Args:
        labels: int64, (N,); -1, no label, is a class of its own.
        share: Fraction of the images to keep, in (0, 1).
        count: M.
        seed: Root seed of the study.
        family: Families of different names have independent subsets. Drawing more subsets of a
            family does not change the first ones.

    Raises:
        ArtifactError: if none or all of the images would be kept.
    """
    images = len(labels)
    size = round(share * images)
    if not 0 < size < images:
        raise ArtifactError(
            f"attribution.share = {share} keeps {size} of {images} training images; some must be "
            "kept and some left out"
        )
    kept = np.zeros((count, images), bool)
    for m, row in enumerate(kept):
        rng = seeds.numpy_rng(seed, "attribution", "subsets", family, m)
        order = rng.permutation(images)
        order = order[np.argsort(labels[order], kind="stable")]
        steps = (np.arange(images + 1) * size + rng.integers(images)) // images
        row[order] = np.diff(steps) == 1
    return kept
