"""Are generations nearer to training images than unseen images are? A one-sided band over all
thresholds.

Scores of n generations are compared with scores of m held-out images; a small score means near. Let
K_j be the number of generations below the (j + 1)-th smallest held-out score, so that j held-out
images lie below that threshold. For generations that are exchangeable with the held-out images, K_j
is beta-binomial, BetaBin(n, j + 1, m - j), whatever the distribution of the scores: the conformal
p-values of Bates et al. 2023 ("Testing for outliers with conformal p-values") use the same ranks.

The band u_j holds for all thresholds of the lower tail simultaneously: P(K_j <= u_j for all j) >=
0.95. Every u_j cuts the distribution of its K_j at one tail probability, chosen as the 5 % quantile
of the smallest tail probability over j in simulated rankings (Berk and Jones 1979, for two
samples). All of the following hold simultaneously, for any threshold chosen after looking, as in
Gazin, Blanchard and Roquain 2024 ("Transductive conformal inference with adaptive scores"):

- at most u_j generations that are not copies lie below threshold j, so at least K_j - u_j copies
  do;
- if no generation is a copy, K_j > u_j for some j happens with probability at most 5 %.

The alternatives have less power. A threshold that 1 in 1,000 held-out images reach is a single
order statistic. Benjamini-Hochberg on the conformal p-values rejects nothing unless the share of
copies is about 20 / (m + 1), since no p-value is below 1 / (m + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special

TAIL = 0.1
"""Thresholds reach up to this quantile of the held-out scores."""
_DENSE = 32  # thresholds used one by one; above, 64 of them, evenly spaced on a log scale
_RANKINGS = 20_000


@dataclass(frozen=True)
class Band:
    """Simultaneous upper bounds for generations that are not copies.

    Attributes:
        below: int64 (J,), ascending from 0: j, the held-out images below each threshold.
        upper: int64 (J,): u_j, the largest plausible number of non-copies below the same threshold.
    """

    below: np.ndarray
    upper: np.ndarray


@lru_cache(maxsize=64)
def band(generations: int, held_out: int, confidence: float = 0.95) -> Band:
    """Return the band for n ``generations`` and m ``held_out`` images, each at least 1."""
    last = max(0, int(TAIL * held_out) - 1)
    sparse = np.geomspace(_DENSE, max(last, _DENSE), 64).round()
    below = np.unique(np.concatenate([np.arange(_DENSE), sparse])).astype(np.int64)
    below = below[below <= last]
    counts = _rankings(generations, held_out, below)
    tails = np.zeros((len(below), generations + 2))  # P(K_j >= k) for k = 0 ... n + 1
    for tail, j in zip(tails, below, strict=True):
        tail[:-1] = np.cumsum(_beta_binomial(generations, j + 1, held_out - j)[::-1])[::-1]
    smallest = np.sort(tails[np.arange(len(below)), counts].min(axis=1))
    cut = smallest[int((1 - confidence) * (_RANKINGS + 1)) - 1]
    upper = (tails >= cut).sum(axis=1) - 1
    return Band(below, upper)


def _beta_binomial(trials: int, a: int, b: int) -> np.ndarray:
    """Return the probabilities of 0 to ``trials`` successes, float64 (trials + 1,)."""
    successes = np.arange(trials + 1)
    failures = trials - successes
    return np.exp(
        special.betaln(successes + a, failures + b)
        - special.betaln(a, b)
        - special.betaln(successes + 1, failures + 1)
        - np.log(trials + 1)
    )


def _rankings(generations: int, held_out: int, below: np.ndarray) -> np.ndarray:
    """Simulate K_j of exchangeable scores, int64 (rankings, J)."""
    rng = np.random.default_rng([generations, held_out])
    # Order statistics of m uniform scores are partial sums of m + 1 exponentials over their total.
    gaps = rng.standard_gamma(np.diff(below, prepend=-1), (_RANKINGS, len(below)))
    rest = rng.standard_gamma(held_out - below[-1], _RANKINGS)
    scores = np.cumsum(gaps, axis=1) / (gaps.sum(axis=1) + rest)[:, None]
    counts = np.zeros((_RANKINGS, len(below)), np.int64)
    nearer, reached = np.zeros(_RANKINGS, np.int64), np.zeros(_RANKINGS)
    for column in range(len(below)):
        share = (scores[:, column] - reached) / (1 - reached)
        nearer = nearer + rng.binomial(generations - nearer, share)
        counts[:, column], reached = nearer, scores[:, column]
    return counts


@dataclass(frozen=True)
class Exceedance:
    """The result of applying the band to one set of generations.

    Attributes:
        copies: Lower bound on the number of copies among the generations; 0 if none is shown.
        threshold: The held-out score at which that bound is reached (the strictest one).
        held_out_below: Held-out images below ``threshold``.
        false_alarms: Upper bound on the generations below ``threshold`` that are not copies.
        nearer: bool (n,): mask of the generations below ``threshold``.
    """

    copies: int
    threshold: float
    held_out_below: int
    false_alarms: int
    nearer: np.ndarray


def exceedance(scores: np.ndarray, held_out: np.ndarray, confidence: float = 0.95) -> Exceedance:
    """Compare the scores of generations, float64 (n,), with those of held-out images, float64 (m,).

    Scores may be infinite. A generation that ties with a held-out image is not below it.
    """
    limits = band(len(scores), len(held_out), confidence)
    thresholds = np.sort(held_out)[limits.below]
    counts = np.searchsorted(np.sort(scores), thresholds, side="left")
    best = int(np.argmax(counts - limits.upper))
    return Exceedance(
        copies=max(0, int(counts[best] - limits.upper[best])),
        threshold=float(thresholds[best]),
        held_out_below=int((held_out < thresholds[best]).sum()),
        false_alarms=int(limits.upper[best]),
        nearer=scores < thresholds[best],
    )


def visible_rate(generations: int, held_out: int, power: float, confidence: float = 0.95) -> float:
    """Return the smallest copying rate that is detected with probability ``power``; infinite if
    none is.

    A copy here is a generation that is nearer than every held-out image. The rate is the smallest x
    with P(Bin(n, x) > u_0) >= power; non-copies below the same threshold would only add to the
    count.
    """
    upper = int(band(generations, held_out, confidence).upper[0])
    if upper >= generations:
        return np.inf
    return float(special.betaincinv(upper + 1, generations - upper, power))
