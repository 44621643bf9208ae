"""What is drawn to explain one replicate, apart from what is drawn to explain another.

Queries, noise, probes, projections, subsets of the training images and the networks that are
trained on them are drawn anew for each replicate: what several replicates tell of an attributor is
then independent and can be averaged. What a replicate was made with, its training and its
generations, has addresses of its own under the study's seed.
"""

from __future__ import annotations

from afterimage import seeds


def root_seed(seed: int, replicate: int) -> int:
    """Return the root seed of what is drawn to explain a replicate.

    Args:
        seed: Root seed of the study, which is that of replicate 0.
        replicate: The replicate.
    """
    return seeds.derive(seed, "attribution", "replicate", replicate) if replicate else seed
