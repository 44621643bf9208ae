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
not account for the choice of subsets. They are the jackknife's (``metrics.jackknife``), of the
score over as many subsets as there could be. A few subsets score less than that, by chance alone:
Spearman's correlation of M subsets expects ((M - 2) rho + 3 tau) / (M + 1), 0.52 for a rho of 0.58
at M = 8. The interval is corrected for it and ``value``, as published, is not; so ``value`` lies
low in its interval and may lie below it. In simulations with 64 queries (Spearman's rho 0 to 0.58,
up to 60 % of the variance shared by all queries) 95 % intervals cover 91 to 98 % with 8 subsets and
93 to 98 % with 32. Bootstrap intervals do worse, since the ties of a resample lower every
correlation: basic ones cover 83 to 95 % with 8 subsets, percentile ones 2 to 97 %.

Attributors are compared on the same subsets (``difference``): what a subset does to all of them
cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from afterimage.config import ConfigError
from afterimage.metrics.jackknife import Jackknife


@dataclass(frozen=True)
class Correlations:
    """Spearman's correlations over M subsets, for Q queries; NaN for a query that has none.

    Attributes:
        all_subsets: Over all subsets, float64 (Q,).
        without: Over all subsets but one each, float64 (M, Q).
    """

    all_subsets: np.ndarray
    without: np.ndarray

    def jackknife(self) -> Jackknife:
        """Return the jackknife of the mean over queries.

        A query without a correlation is left out, of each mean in which it has none.
        """
        return Jackknife.of(
            float(_mean_of_defined(self.all_subsets)), _mean_of_defined(self.without)
        )

    def units(self) -> np.ndarray:
        """Return what each subset says of the mean over queries, float64 (M,); NaN as in
        ``jackknife``."""
        return pseudo_values(
            float(_mean_of_defined(self.all_subsets)), _mean_of_defined(self.without)
        )

    def minus(self, other: Correlations) -> Correlations:
        """Return the differences to correlations with the same measurements, query by query."""
        return Correlations(self.all_subsets - other.all_subsets, self.without - other.without)


def pseudo_values(statistic: float, without: np.ndarray) -> np.ndarray:
    """Return the pseudo-values of the jackknife, n S - (n - 1) S_-i, float64 (n,).

    Their mean is the statistic without its bias, and their variance over n its squared error, as
    of ``metrics.jackknife``: they stand for measurements of the n units, also where two statistics
    of the same units are compared.

    Args:
        statistic: S, of all units.
        without: S_-i, of all units but one each, floating (n,).
    """
    n = len(without)
    return n * statistic - (n - 1) * without


@dataclass(frozen=True)
class Score:
    """A linear data-modelling score.

    Attributes:
        value: Mean over the queries that have a rank correlation; NaN if none has.
        low: Lower end of the interval of the score over all possible subsets; NaN likewise, and
            with fewer than three subsets.
        high: Upper end.
        undefined: Queries without a rank correlation.
    """

    value: float
    low: float
    high: float
    undefined: int


@dataclass(frozen=True)
class Difference:
    """One attributor's score minus another's, over the queries for which both have one.

    Attributes:
        value: Difference of the two means over queries, as in ``Score``; NaN if no query is left.
        low: Lower end of its paired interval over subsets; NaN likewise, and with fewer than three
            subsets.
        high: Upper end.
        p: Two-sided p-value of no difference; NaN likewise, and where the subsets show no spread.
    """

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Choice:
    """A regulariser chosen on the first half of the subsets and reported on the second.

    Attributes:
        regulariser: The one with the best score on the first half.
        score: Its score on the second half.
        correlations: What that score is the mean of.
        oracle_regulariser: The one with the best score on the second half.
        oracle: That score, which no one can reach without knowing the second half.
    """

    regulariser: float
    score: Score
    correlations: Correlations = field(compare=False)
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
        units: What each subset says of ``value`` (``pseudo_values``), float64 (M,).
    """

    between_seeds: float
    reliability: float
    value: float
    low: float
    high: float
    units: np.ndarray = field(compare=False)


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


def correlate(predicted: np.ndarray, measured: np.ndarray) -> Correlations:
    """Return Spearman's correlations over all subsets, and over all but one each.

    Args:
        predicted: (M, Q), see ``predictions``.
        measured: (M, Q): the loss of every query under the networks trained on each subset, mean
            over seeds.
    """
    without = [_without_each(x, y) for x, y in zip(predicted.T, measured.T, strict=True)]
    return Correlations(spearman(predicted, measured), np.stack(without, axis=1))


def _without_each(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of two vectors, (M,), without each subset in turn, float64
    (M,); NaN as in ``spearman``.

    Twice the centred rank of subset i is sum_j sign(x_i - x_j), with mean ranks for ties. Without
    subset l, the term of l is missing.
    """
    ranks = []
    for values in (x, y):
        signs = np.sign(values[:, None] - values)
        rank = signs.sum(axis=1)[:, None] - signs
        np.fill_diagonal(rank, 0)
        ranks.append(rank)
    products = (ranks[0] * ranks[1]).sum(axis=0)
    norms = np.sqrt(np.square(ranks[0]).sum(axis=0) * np.square(ranks[1]).sum(axis=0))
    return np.divide(products, norms, out=np.full(len(x), np.nan), where=norms > 0)


def _mean_of_defined(correlations: np.ndarray) -> np.ndarray:
    """Return the mean over queries, the last axis, that have a correlation; NaN if none has."""
    defined = ~np.isnan(correlations)
    count = defined.sum(axis=-1)
    total = np.where(defined, correlations, 0).sum(axis=-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def score_of(correlations: Correlations, confidence: float) -> Score:
    """Return the linear data-modelling score with its interval over subsets.

    Args:
        correlations: From ``correlate``.
        confidence: Coverage of the interval.
    """
    low, high = np.clip(correlations.jackknife().interval(confidence), -1, 1).tolist()
    return Score(
        float(_mean_of_defined(correlations.all_subsets)),
        low,
        high,
        int(np.isnan(correlations.all_subsets).sum()),
    )


def lds(predicted: np.ndarray, measured: np.ndarray, confidence: float) -> Score:
    """Return the linear data-modelling score with its interval over subsets.

    Args:
        predicted: As in ``correlate``.
        measured: As in ``correlate``.
        confidence: Coverage of the interval.
    """
    return score_of(correlate(predicted, measured), confidence)


def difference(first: Correlations, second: Correlations, confidence: float) -> Difference:
    """Return the score of ``first`` minus that of ``second``, paired by subset and query.

    Args:
        first: From ``correlate``.
        second: With the same measurements, other predictions.
        confidence: Coverage of the interval.
    """
    paired = first.minus(second)
    jackknife = paired.jackknife()
    low, high = jackknife.interval(confidence)
    return Difference(float(_mean_of_defined(paired.all_subsets)), low, high, jackknife.p_value())


def halves(subsets: int) -> tuple[slice, slice]:
    """Return the subsets that are fitted to (e.g. regularisers) and those that are reported on."""
    return slice(0, subsets // 2), slice(subsets // 2, subsets)


def choose_regulariser(
    predicted: np.ndarray,
    measured: np.ndarray,
    regularisers: list[float],
    confidence: float,
) -> Choice:
    """Choose a regulariser on the first half of the subsets and score it on the second.

    For the choice, a query without a rank correlation counts as 0; of equal scores, the first
    regulariser is chosen.

    Args:
        predicted: (L, M, Q): one prediction per regulariser.
        measured: (M, Q), as in ``lds``.
        regularisers: The L regularisers.
        confidence: As in ``lds``.
    """
    first, second = (
        int(np.argmax(_means(predicted[:, half], measured[half]))) for half in halves(len(measured))
    )
    reported = halves(len(measured))[1]
    chosen, oracle = (
        correlate(predicted[index, reported], measured[reported]) for index in (first, second)
    )
    return Choice(
        regularisers[first],
        score_of(chosen, confidence),
        chosen,
        regularisers[second],
        score_of(oracle, confidence),
    )


def _means(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    return np.nan_to_num(spearman(predicted, measured)).mean(axis=-1)


def ceiling(losses: np.ndarray, confidence: float) -> Ceiling:
    """Return the best possible score, from several trainings of each subset with other seeds.

    With rho the correlation between the means of two disjoint sets of h = floor(S / 2) seeds, the
    formula of Spearman and Brown (1910) gives the correlation between the means of two sets of S
    seeds, k = S / h:

        rho_S = k rho / (1 + (k - 1) rho).

    The correlation of the noise-free expectation with a mean over S seeds is its square root,
    sqrt(rho_S). Both formulas are exact for Pearson's correlation and noise of equal variance, and
    approximate for Spearman's. They are applied to the mean over queries, as that of a single query
    is too uncertain; if queries differ in noise, the ceiling is slightly too high. A negative rho
    counts as 0. The interval is that of rho, with both formulas applied to its ends.

    Args:
        losses: (S, M, Q): the loss of every query under every network.
        confidence: As in ``lds``.

    Raises:
        ConfigError: with a single seed, for which noise and the effect of the subsets cannot be
            separated.
    """
    seeds = len(losses)
    if seeds < 2:
        raise ConfigError(
            f"attribution.seeds = {seeds}: a ceiling needs at least 2 trainings of each subset"
        )
    half = seeds // 2
    pairs = [
        correlate(losses[list(left)].mean(axis=0), losses[list(right)].mean(axis=0))
        for left, right in combinations(combinations(range(seeds), half), 2)
        if not set(left) & set(right)
    ]
    between = Correlations(
        np.mean([pair.all_subsets for pair in pairs], axis=0),
        np.mean([pair.without for pair in pairs], axis=0),
    )
    ends = np.clip(between.jackknife().interval(confidence), -1, 1).tolist()
    rho = float(_mean_of_defined(between.all_subsets))
    reliability, low, high = _spearman_brown(np.array([rho, *ends]), seeds / half).tolist()
    value, low, high = (math.sqrt(each) for each in (reliability, low, high))
    without = np.sqrt(_spearman_brown(_mean_of_defined(between.without), seeds / half))
    return Ceiling(rho, reliability, value, low, high, pseudo_values(value, without))


def _spearman_brown(rho: np.ndarray, ratio: float) -> np.ndarray:
    """Return the correlation of means over ``ratio`` times as many seeds; 0 for a negative rho."""
    nonnegative = np.maximum(rho, 0)
    return ratio * nonnegative / (1 + (ratio - 1) * nonnegative)
