"""Which prompts stand out from held-out prompts: conformal p-values and their correction.

If a prompt is not memorised, its statistic and those of held-out prompts are exchangeable, so that
the rank among them is uniform: the conformal p-value (Vovk et al. 2005). Bates et al. (2023,
Annals of Statistics 51:149) show that the procedure of Benjamini and Hochberg, applied to the
p-values of many prompts against the same held-out prompts, keeps the false discovery rate.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import false_discovery_control


def p_values(statistics: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Return conformal p-values, float64 (n,).

    Args:
        statistics: Of the prompts, (n,); larger for memorised ones.
        held_out: Of held-out prompts, (m,).
    """
    ordered = np.sort(held_out)
    at_least = len(ordered) - np.searchsorted(ordered, statistics, side="left")
    return (1 + at_least) / (1 + len(ordered))


def flagged(p: np.ndarray, rate: float) -> np.ndarray:
    """Return the prompts that stand out, bool (n,), at a false discovery rate of ``rate``."""
    return false_discovery_control(p, method="bh") <= rate


def together(prompts: int, held_out: int, rate: float) -> int:
    """Return how many prompts beyond all held-out ones are flagged, if no fewer are."""
    return int(np.ceil(round(prompts / (rate * (held_out + 1)), 9)))


def fewest(rate: float) -> int:
    """Return the number of held-out prompts with which any prompt can be flagged."""
    return int(np.ceil(round(1 / rate, 9))) - 1
