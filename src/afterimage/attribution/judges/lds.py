"""The linear data-modelling score, LDS (Park et al. 2023): do scores predict retrained losses?

A network trained on a subset S of the training images has some loss on a query z. Attribution
scores tau predict it linearly, by g(z, S) = - sum over i in S of tau(z, i): training on an image
that the query owes much to lowers its loss. The LDS is Spearman's correlation between g(z, S) and
the measured loss over the subsets, averaged over the queries.

It differs in three points from the released codes of D-TRAK (Zheng et al. 2024) and DAS (Lin et al.
2025):

- they report the best score over all regularisers (an oracle); here the regulariser is chosen on
  one half of the subsets and the score reported on the other half, next to the oracle
  (``choose_regulariser``);
- a query whose predictions or losses are all equal has no rank correlation: it is left out of the
  mean, and such queries are counted;
- every score is accompanied by the best possible one, since the measured losses are themselves
  noisy (``ceiling``).

Intervals are over subsets (as published): all queries share them, so that resampling queries would
not account for the choice of subsets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from afterimage.config import ConfigError
from afterimage.metrics import intervals


@dataclass(frozen=True)
class Score:
    """A linear data-modelling score.

    Attributes:
        value: Mean over the queries that have a rank correlation; NaN if none has.
        low: Lower end of its interval over subsets; NaN likewise.
        high: Upper end.
        undefined: Queries without a rank correlation.
    """

    value: float
    low: float
    high: float
    undefined: int


@dataclass(frozen=True)
class Choice:
    """A regulariser chosen on the first half of the subsets and reported on the second.

    Attributes:
        regulariser: The one with the best score on the first half.
        score: Its score on the second half.
        oracle_regulariser: The one with the best score on the second half.
        oracle: That score, which no one can reach without knowing the second half.
    """

    regulariser: float
    score: Score
    oracle_regulariser: float
    oracle: Score


@dataclass(frozen=True)
class Ceiling:
    """The best possible score against the mean losses over S trainings of each subset.

    Attributes:
        between_seeds: Spearman's correlation over subsets between the mean losses of two disjoint
            sets of floor(S / 2) seeds, averaged over queries and over all such pairs of sets.
        reliability: The same between two means over S seeds (estimated): the score of an
            independent retraining of all networks.
        value: Its square root: the score of a prediction by the expected losses.
        low: Lower end of the interval of ``value`` over subsets.
        high: Upper end.
    """

    between_seeds: float
    reliability: float
    value: float
    low: float
    high: float


def spearman(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation over the subsets for every query; ties get their mean rank.

    Args:
        predicted: (..., M, Q); any leading dimensions, such as attributors and regularisers.
        measured: (M, Q).

    Returns:
        float64, (..., Q); NaN where all values of a query are equal, or one is NaN.
    """
    ranks, measured_ranks = _centred_ranks(predicted), _centred_ranks(measured)
    products = np.einsum("...mq,mq->...q", ranks, measured_ranks)
    norms = np.linalg.norm(ranks, axis=-2) * np.linalg.norm(measured_ranks, axis=-2)
    return np.divide(products, norms, out=np.full(products.shape, np.nan), where=norms > 0)


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks along the second-last axis minus their mean; exactly 0 if all are equal."""
    return rankdata(values, axis=-2) - (values.shape[-2] + 1) / 2


def predictions(scores: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return minus the sum of the scores of the images that each subset keeps.

    The score of the first image is first subtracted from the scores of a query. As all subsets have
    the same size, this shifts all predictions by the same amount, and makes them exactly equal if
    all scores are.

    Args:
        scores: floating, (..., Q, N).
        masks: bool, (M, N): which images each subset keeps, the same number in all rows.

    Returns:
        float64, (..., M, Q).

    Raises:
        ConfigError: if the subsets have different sizes.
    """
    if len(np.unique(masks.sum(axis=1))) > 1:
        raise ConfigError("the subsets of a linear data-modelling score must have the same size")
    relative = scores.astype(np.float64) - scores[..., :1]
    return -np.swapaxes(relative @ masks.T.astype(np.float64), -1, -2)


def lds(
    predicted: np.ndarray,
    measured: np.ndarray,
    resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> Score:
    """Return the linear data-modelling score with its percentile-bootstrap interval over subsets.

    Args:
        predicted: (M, Q), see ``predictions``.
        measured: (M, Q): the loss of every query under the networks trained on each subset, mean
            over seeds.
        resamples: Bootstrap resamples of the subsets.
        confidence: Coverage of the interval.
        rng: Random generator for the resamples.
    """
    correlations = spearman(predicted, measured)
    defined = ~np.isnan(correlations)
    if not defined.any():
        return Score(math.nan, math.nan, math.nan, len(correlations))
    means = _resampled(
        predicted[:, defined], measured[:, defined], _resamples(len(measured), resamples, rng)
    )
    low, high = intervals.percentile(means[~np.isnan(means)], confidence)
    return Score(float(correlations[defined].mean()), low, high, int((~defined).sum()))


def halves(subsets: int) -> tuple[slice, slice]:
    """Return the subsets that are fitted to (e.g. regularisers) and those that are reported on."""
    return slice(0, subsets // 2), slice(subsets // 2, subsets)


def choose_regulariser(
    predicted: np.ndarray,
    measured: np.ndarray,
    regularisers: list[float],
    resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> Choice:
    """Choose a regulariser on the first half of the subsets and score it on the second.

    For the choice, a query without a rank correlation counts as 0; of equal scores, the first
    regulariser is chosen.

    Args:
        predicted: (L, M, Q): one prediction per regulariser.
        measured: (M, Q), as in ``lds``.
        regularisers: The L regularisers.
        resamples: As in ``lds``.
        confidence: As in ``lds``.
        rng: As in ``lds``; both scores have the same resamples.
    """
    first, second = (
        int(np.argmax(_means(predicted[:, half], measured[half]))) for half in halves(len(measured))
    )
    reported = halves(len(measured))[1]
    resampling_seed = int(rng.integers(2**63))
    score, oracle = (
        lds(
            predicted[index, reported],
            measured[reported],
            resamples,
            confidence,
            np.random.default_rng(resampling_seed),
        )
        for index in (first, second)
    )
    return Choice(regularisers[first], score, regularisers[second], oracle)


def _means(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    return np.nan_to_num(spearman(predicted, measured)).mean(axis=-1)


def ceiling(
    losses: np.ndarray, resamples: int, confidence: float, rng: np.random.Generator
) -> Ceiling:
    """Return the best possible score, from several trainings of each subset with other seeds.

    With rho the correlation between the means of two disjoint sets of h = floor(S / 2) seeds, the
    formula of Spearman and Brown (1910) gives the correlation between the means of two sets of S
    seeds, k = S / h:

        rho_S = k rho / (1 + (k - 1) rho).

    The correlation of the noise-free expectation with a mean over S seeds is its square root,
    sqrt(rho_S). Both formulas are exact for Pearson's correlation and noise of equal variance, and
    approximate for Spearman's. They are applied to the mean over queries, as that of a single query
    is too uncertain; if queries differ in noise, the ceiling is slightly too high. A negative rho
    counts as 0.

    Args:
        losses: (S, M, Q): the loss of every query under every network.
        resamples: As in ``lds``.
        confidence: As in ``lds``.
        rng: As in ``lds``.

    Raises:
        ConfigError: with a single seed, for which noise and the effect of the subsets cannot be
            separated.
    """
    seeds, subsets = losses.shape[:2]
    if seeds < 2:
        raise ConfigError(
            f"attribution.seeds = {seeds}: a ceiling needs at least 2 trainings of each subset"
        )
    half = seeds // 2
    counts = np.concatenate([np.ones((1, subsets)), _resamples(subsets, resamples, rng)])
    pairs = [
        _resampled(losses[list(left)].mean(axis=0), losses[list(right)].mean(axis=0), counts)
        for left, right in combinations(combinations(range(seeds), half), 2)
        if not set(left) & set(right)
    ]
    rho = np.mean(pairs, axis=0)
    ratio = seeds / half
    nonnegative = np.maximum(rho, 0)
    reliability = ratio * nonnegative / (1 + (ratio - 1) * nonnegative)
    low, high = intervals.percentile(
        np.sqrt(reliability[1:][~np.isnan(reliability[1:])]), confidence
    )
    return Ceiling(float(rho[0]), float(reliability[0]), math.sqrt(reliability[0]), low, high)


def _resamples(subsets: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each resample contains each subset, float64 (R, M)."""
    return rng.multinomial(subsets, np.full(subsets, 1 / subsets), size=resamples).astype(
        np.float64
    )


def _resampled(left: np.ndarray, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation in every resample, mean over queries, float64 (R,).

    Queries without a correlation are left out; NaN if there are no others. In a resample that
    contains subset j w_j times, twice the centred rank of subset i is sum_j w_j sign(x_i - x_j),
    with mean ranks for ties. One matrix product thus ranks all resamples of a query.

    Args:
        left: (M, Q).
        right: (M, Q).
        counts: float64, (R, M): w.
    """
    sums, defined = np.zeros(len(counts)), np.zeros(len(counts))
    for columns in zip(left.T, right.T, strict=True):
        x, y = (counts @ ((v > v[:, None]).astype(np.float64) - (v < v[:, None])) for v in columns)
        norms = np.sqrt((counts * x * x).sum(axis=1) * (counts * y * y).sum(axis=1))
        has_ranks = norms > 0
        sums[has_ranks] += (counts * x * y).sum(axis=1)[has_ranks] / norms[has_ranks]
        defined += has_ranks
    return np.divide(sums, defined, out=np.full(len(counts), np.nan), where=defined > 0)
