"""The band over all thresholds: its error rate, its bounds, its power, by simulation and against
exact ranks."""

import itertools

import numpy as np
import pytest
from scipy.stats import betabinom, binom

from afterimage.metrics.exceedance import band, exceedance, visible_rate


def binomial_limit(trials, rate):
    """The largest count that is plausible for this rate: its upper 0.1 % quantile."""
    return binom.ppf(0.999, trials, rate)


@pytest.mark.parametrize(
    ("generations", "held_out"), [(192, 100), (1000, 400), (100, 2000), (500, 30), (7, 5)]
)
def test_without_copies_at_most_5_of_100_audits_show_any(generations, held_out):
    rng = np.random.default_rng(generations)
    shown = sum(
        exceedance(rng.random(generations), rng.random(held_out)).copies > 0 for _ in range(2000)
    )
    assert shown <= binomial_limit(2000, 0.05)


def test_the_band_is_not_idle():
    """A band at a level far below 5 % would keep the error rate too."""
    rng = np.random.default_rng(5)
    shown = sum(exceedance(rng.random(300), rng.random(300)).copies > 0 for _ in range(2000))
    assert shown >= 2000 * 0.03


def test_the_band_holds_in_all_rankings_of_small_sets():
    """Exact: of all orders of 5 generations and 8 held-out images at most 5 % leave the band."""
    limits = band(5, 8)
    broken, total = 0, 0
    for places in itertools.combinations(range(13), 5):
        held_out = [place for place in range(13) if place not in places]
        counts = [sum(place < held_out[j] for place in places) for j in limits.below]
        broken += any(np.array(counts) > limits.upper)
        total += 1
    assert broken / total <= 0.05


def test_one_threshold_is_the_exact_distribution_of_ranks():
    """With up to 19 held-out images there is one threshold, their smallest; K is beta-binomial."""
    rng = np.random.default_rng(0)
    counts = [np.sum(rng.random(50) < rng.random(10).min()) for _ in range(20_000)]
    assert np.mean(np.array(counts) > band(50, 10).upper[0]) <= 0.05 + 0.005
    assert np.mean(np.array(counts) >= band(50, 10).upper[0]) > 0.05 - 0.005
    assert len(band(50, 10).upper) == 1


@pytest.mark.parametrize(("generations", "held_out"), [(200, 100), (1000, 400)])
def test_every_threshold_is_cut_at_one_tail_probability(generations, held_out):
    """P(K_j > u_j) < cut <= P(K_j >= u_j) with the same cut for all j, by scipy's beta-binomial."""
    limits = band(generations, held_out)
    shapes = (generations, limits.below + 1, held_out - limits.below)
    assert betabinom.sf(limits.upper, *shapes).max() < betabinom.sf(limits.upper - 1, *shapes).min()


@pytest.mark.parametrize(("copies", "held_out"), [(5, 400), (40, 100), (200, 2000)])
def test_the_bound_on_copies_holds(copies, held_out):
    rng = np.random.default_rng(copies)
    broken = 0
    for _ in range(500):
        scores = np.concatenate([rng.random(copies) ** 2 * 0.02, rng.random(1000 - copies)])
        result = exceedance(scores, rng.random(held_out))
        broken += result.copies > copies
        assert result.copies >= result.nearer.sum() - result.false_alarms
    assert broken <= binomial_limit(500, 0.05)


def test_false_alarms_are_bounded_at_the_threshold_chosen_afterwards():
    rng = np.random.default_rng(1)
    broken = 0
    for _ in range(500):
        null = rng.random(900)
        result = exceedance(np.concatenate([np.zeros(100), null]), rng.random(300))
        broken += np.sum(null < result.threshold) > result.false_alarms
    assert broken <= binomial_limit(500, 0.05)


@pytest.mark.parametrize(("generations", "held_out"), [(1000, 100), (1000, 400), (200, 2000)])
def test_the_visible_rate_is_seen_as_often_as_stated(generations, held_out):
    rng = np.random.default_rng(held_out)
    rate = visible_rate(generations, held_out, 0.95)
    shown = 0
    for _ in range(400):
        copies = rng.binomial(generations, rate)
        scores = np.concatenate([np.zeros(copies), rng.random(generations - copies)])
        shown += exceedance(scores, rng.random(held_out)).copies > 0
    assert shown >= binom.ppf(0.001, 400, 0.95)
    assert visible_rate(generations, 10 * held_out, 0.95) < rate


def test_known_answers():
    held_out = np.linspace(0.2, 1, 400)
    far = exceedance(np.full(200, 0.9), held_out)
    assert (far.copies, far.nearer.sum()) == (0, 0)
    copies = exceedance(np.concatenate([np.full(50, 0.1), np.full(150, 0.9)]), held_out)
    assert copies.nearer.sum() == 50
    assert copies.threshold == held_out[0]
    assert copies.copies == 50 - band(200, 400).upper[0]
    assert copies.held_out_below == 0
    scores = np.concatenate(
        [np.full(50, 0.1), held_out[:40]]
    )  # one at each threshold, which is not below it
    ties = exceedance(scores, held_out)
    assert ties.nearer.tolist() == (scores < ties.threshold).tolist()
    assert ties.threshold in scores
    assert visible_rate(1, 1, 0.95) == np.inf


def test_many_slightly_near_generations_are_seen_past_a_few_near_held_out_images():
    """Five held-out images nearer than every copy hide the copies from the smallest score, not from
    the band."""
    rng = np.random.default_rng(0)
    held_out = np.concatenate([np.full(5, 0.01), 0.3 + 0.7 * rng.random(395)])
    result = exceedance(np.concatenate([np.full(100, 0.2), 0.3 + 0.7 * rng.random(900)]), held_out)
    assert result.held_out_below == 5
    assert result.copies > 50


def test_infinite_scores_and_ties_are_never_nearer():
    result = exceedance(np.full(100, 0.5), np.full(100, 0.5))
    assert result.copies == 0
    assert exceedance(np.full(100, np.inf), np.full(100, np.inf)).copies == 0


def test_large_sets_are_cheap_and_thresholds_ascend():
    limits = band(65_536, 10_000)
    assert len(limits.below) <= 96
    assert (np.diff(limits.below) > 0).all()
    assert (np.diff(limits.upper) >= 0).all()
    assert limits.below[-1] == 999
