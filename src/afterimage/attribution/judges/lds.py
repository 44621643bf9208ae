"""The linear data-modelling score: do attribution scores rank networks by what they were trained on? (Park et al., ICML 2023)

A network trained on a subset S of the training images has some loss on a query z. The scores predict it linearly, as
g(z, S) = - sum over i in S of tau(z, i): what a query is made of lowers its loss. The score of an attribution is Spearman's
correlation between g(z, S) and the measured loss over the subsets, averaged over the queries.

Three things are done otherwise than in the released codes of D-TRAK (Zheng et al. 2024) and DAS (Lin et al. 2025):

- their regulariser is the one with the best score (an oracle); here it is chosen on one half of the subsets and reported on the
  other, with the oracle beside it (``choose``);
- a query whose predictions or losses are all the same has no rank correlation: it is left out of the mean, and counted;
- beside every score stands what a perfect prediction could get, as the measured losses are themselves noisy (``ceiling``).

Intervals are over the subsets (as published): queries share them, so that resampling queries says nothing about other subsets.
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
        oracle: That score: more than a user can get, who does not know the second half.
    """

    regulariser: float
    score: Score
    oracle_regulariser: float
    oracle: Score


@dataclass(frozen=True)
class Ceiling:
    """What a prediction can score against the mean losses of S trainings of each subset.

    Attributes:
        between_seeds: Spearman's correlation over subsets between the mean losses of two disjoint sets of floor(S / 2) seeds,
            averaged over queries and over all ways to choose them.
        reliability: The same, expected between two means over S seeds: what an independent retraining of all networks would score.
        value: Its square root: what a prediction that knows the expected losses would score.
        low: Lower end of the interval of ``value`` over subsets.
        high: Upper end.
    """

    between_seeds: float
    reliability: float
    value: float
    low: float
    high: float


def spearman(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation over the subsets for every query; ties get their mean rank.

    Args:
        predicted: (..., M, Q); any leading dimensions, such as attributors and regularisers.
        truth: (M, Q).

    Returns:
        float64, (..., Q); NaN where all values of a query are the same, or one is NaN.
    """
    one, other = _centred_ranks(predicted), _centred_ranks(truth)
    products = np.einsum("...mq,mq->...q", one, other)
    norms = np.linalg.norm(one, axis=-2) * np.linalg.norm(other, axis=-2)
    return np.divide(products, norms, out=np.full(products.shape, np.nan), where=norms > 0)


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks along the last but one dimension, less their mean; exactly 0 where all are the same."""
    return rankdata(values, axis=-2) - (values.shape[-2] + 1) / 2


def predictions(scores: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return minus the sum of the scores of the images that each subset keeps.

    The scores of a query are first taken relative to that of the first image. This shifts its predictions alike where all subsets
    have one size, and makes them exactly equal where all its scores are.

    Args:
        scores: floating, (..., Q, N).
        masks: bool, (M, N): which images each subset keeps; all rows with the same number of them.

    Returns:
        float64, (..., M, Q).

    Raises:
        ConfigError: if the subsets have different sizes.
    """
    if len(np.unique(masks.sum(axis=1))) > 1:
        raise ConfigError("the subsets of a linear data-modelling score must have one size")
    relative = scores.astype(np.float64) - scores[..., :1]
    return -np.swapaxes(relative @ masks.T.astype(np.float64), -1, -2)


def lds(
    predicted: np.ndarray,
    truth: np.ndarray,
    resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> Score:
    """Return the linear data-modelling score with its percentile-bootstrap interval over subsets.

    Args:
        predicted: (M, Q), see ``predictions``.
        truth: (M, Q): the loss of every query under the networks trained on each subset, averaged over their seeds.
        resamples: Bootstrap resamples of the subsets.
        confidence: Coverage of the interval.
        rng: The stream to draw the resamples from.
    """
    each = spearman(predicted, truth)
    defined = ~np.isnan(each)
    if not defined.any():
        return Score(math.nan, math.nan, math.nan, len(each))
    means = _resampled(
        predicted[:, defined], truth[:, defined], _resamples(len(truth), resamples, rng)
    )
    low, high = intervals.percentile(means[~np.isnan(means)], confidence)
    return Score(float(each[defined].mean()), low, high, int((~defined).sum()))


def halves(subsets: int) -> tuple[slice, slice]:
    """Return the subsets that are learned from (regularisers, empirical influences) and those that scores are reported on."""
    return slice(0, subsets // 2), slice(subsets // 2, subsets)


def choose(
    predicted: np.ndarray,
    truth: np.ndarray,
    regularisers: list[float],
    resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> Choice:
    """Choose a regulariser on the first half of the subsets and score it on the second.

    In choosing, a query without a rank correlation counts as one of 0; the first of equally good regularisers is taken.

    Args:
        predicted: (L, M, Q): one prediction per regulariser.
        truth: (M, Q), as in ``lds``.
        regularisers: The L regularisers.
        resamples: As in ``lds``.
        confidence: As in ``lds``.
        rng: As in ``lds``; both scores are over the same resamples.
    """
    first, second = (
        int(np.argmax(_means(predicted[:, half], truth[half]))) for half in halves(len(truth))
    )
    reported = halves(len(truth))[1]
    drawn = int(rng.integers(2**63))
    chosen, oracle = (
        lds(
            predicted[at, reported],
            truth[reported],
            resamples,
            confidence,
            np.random.default_rng(drawn),
        )
        for at in (first, second)
    )
    return Choice(regularisers[first], chosen, regularisers[second], oracle)


def _means(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.nan_to_num(spearman(predicted, truth)).mean(axis=-1)


def ceiling(
    losses: np.ndarray, resamples: int, confidence: float, rng: np.random.Generator
) -> Ceiling:
    """Return what the noise of training leaves to be predicted, from trainings of each subset that differ in the seed only.

    With rho the correlation between the means of two disjoint sets of h = floor(S / 2) seeds, the formula of Spearman and Brown
    (1910) gives the correlation between the means of two sets of S seeds, k = S / h:

        rho_S = k rho / (1 + (k - 1) rho).

    The noise-free expectation correlates with a mean over S seeds by its root, sqrt(rho_S). Both are exact for Pearson's
    correlation and noise of equal variance, and near for Spearman's. Both are taken of the mean over queries, since that of a single
    query is too uncertain; where queries differ in noise this makes the ceiling a little too high. A negative rho counts as 0.

    Args:
        losses: (S, M, Q): the loss of every query under every network, seed by seed.
        resamples: As in ``lds``.
        confidence: As in ``lds``.
        rng: As in ``lds``.

    Raises:
        ConfigError: with a single seed, whose noise cannot be told from what the subsets do.
    """
    seeds, subsets = losses.shape[:2]
    if seeds < 2:
        raise ConfigError(
            f"attribution.seeds = {seeds}: a ceiling needs at least 2 trainings of each subset"
        )
    half = seeds // 2
    counts = np.concatenate([np.ones((1, subsets)), _resamples(subsets, resamples, rng)])
    pairs = [
        _resampled(losses[list(one)].mean(axis=0), losses[list(other)].mean(axis=0), counts)
        for one, other in combinations(combinations(range(seeds), half), 2)
        if not set(one) & set(other)
    ]
    rho = np.mean(pairs, axis=0)
    times = seeds / half
    held = np.maximum(rho, 0)
    reliability = times * held / (1 + (times - 1) * held)
    low, high = intervals.percentile(
        np.sqrt(reliability[1:][~np.isnan(reliability[1:])]), confidence
    )
    return Ceiling(float(rho[0]), float(reliability[0]), math.sqrt(reliability[0]), low, high)


def _resamples(subsets: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each resample holds each subset, float64 (R, M)."""
    return rng.multinomial(subsets, np.full(subsets, 1 / subsets), size=resamples).astype(
        np.float64
    )


def _resampled(one: np.ndarray, other: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation in every resample, mean over the queries that have one, float64 (R,); NaN if none has.

    In a resample that holds subset j w_j times, twice the centred rank of subset i is sum_j w_j sign(x_i - x_j), ties at their mean
    rank. One product of matrices thus ranks all resamples of a query.

    Args:
        one: (M, Q).
        other: (M, Q).
        counts: float64, (R, M): w.
    """
    sums, defined = np.zeros(len(counts)), np.zeros(len(counts))
    for columns in zip(one.T, other.T, strict=True):
        x, y = (counts @ ((v > v[:, None]).astype(np.float64) - (v < v[:, None])) for v in columns)
        norms = np.sqrt((counts * x * x).sum(axis=1) * (counts * y * y).sum(axis=1))
        known = norms > 0
        sums[known] += (counts * x * y).sum(axis=1)[known] / norms[known]
        defined += known
    return np.divide(sums, defined, out=np.full(len(counts), np.nan), where=defined > 0)
