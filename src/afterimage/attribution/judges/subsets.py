"""The halves of the training images that networks are retrained on: the linear data-modelling score's subsets (Park et al. 2023).

All subsets have the same size, and every class has its share in each of them, to within one image. Subset m of a family is drawn
from a stream of its own, addressed by the family's name and m. (The index files of the released codes are drawn from consecutive
seeds, so that their validation, test and retraining families hold partly the same subsets.)
"""

from __future__ import annotations

import numpy as np

from afterimage import seeds
from afterimage.artifacts import ArtifactError


def masks(
    labels: np.ndarray, share: float, count: int, seed: int, family: str = "lds"
) -> np.ndarray:
    """Return which images each subset keeps, bool (M, N): round(share N) of them in every row.

    In each row the images stand in random order within their class, the classes end to end, and every (1 / share)-th of them is
    kept, from a random start. A class therefore gives its share of the images, rounded up or down, and every image has the same
    chance to be kept.

    Args:
        labels: int64, (N,); -1, no label, is one class like others.
        share: Share of the images to keep, in (0, 1).
        count: M.
        seed: Root seed of the study.
        family: Families of different names have unrelated subsets. More subsets of one family leave the first ones as they are.

    Raises:
        ArtifactError: if so few images leave nothing to choose.
    """
    images = len(labels)
    size = round(share * images)
    if not 0 < size < images:
        raise ArtifactError(
            f"attribution.share = {share} of {images} training images is {size}: nothing to choose"
        )
    found = np.zeros((count, images), bool)
    for m, row in enumerate(found):
        rng = seeds.numpy_rng(seed, "attribution", "subsets", family, m)
        order = rng.permutation(images)
        order = order[np.argsort(labels[order], kind="stable")]
        passed = (np.arange(images + 1) * size + rng.integers(images)) // images
        row[order] = np.diff(passed) == 1
    return found
