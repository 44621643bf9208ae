"""The rules of verdicts: known answers, and their error rates over thousands of made-up tables."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from afterimage.config import Margin
from afterimage.metrics import replicates
from afterimage.metrics.intervals import Interval
from afterimage.report import comparison, verdicts
from afterimage.report.verdicts import (
    BETTER,
    MIXED,
    NO,
    NO_WORSE,
    NOT_SHOWN,
    NOT_TESTABLE,
    ONE_TRAINING,
    PRIMARY,
    TRAINED_LESS,
    UNMEASURED,
    UNSEEN,
    WORSE,
    YES,
)

NAN = math.nan

# ---- known answers


@pytest.mark.parametrize(
    ("low", "high", "beyond", "verdict"),
    [
        (-2, -1, (-4, -3), BETTER),
        (-1, 1, (-3, -1), NO_WORSE),
        (0.2, 0.8, (-1.8, -1.2), NO_WORSE),  # a loss that was seen, smaller than the margin
        (1, 3, (-1, 1), WORSE),
        (-1, 3, (-3, 1), NOT_SHOWN),
        (-1, 2, (-3, 0), NOT_SHOWN),  # just the margin is not ruled out
        (NAN, NAN, (-3, -1), UNMEASURED),
    ],
)
def test_quality_is_judged_against_the_margin(low, high, beyond, verdict):
    """The margin is 2; the same the other way round where higher is better."""
    change = Interval((low + high) / 2, low, high)
    worse = Interval(sum(beyond) / 2, *beyond)
    assert verdicts.of_quality(change, worse, "lower") == verdict
    mirrored = (Interval(-each.value, -each.high, -each.low) for each in (change, worse))
    assert verdicts.of_quality(*mirrored, "higher") == verdict


def test_the_control_is_made_worse_by_its_margin():
    control = np.array([5.0, 10.0])
    np.testing.assert_allclose(verdicts.at_margin(control, "lower", 0.1, True), [5.5, 11])
    np.testing.assert_allclose(verdicts.at_margin(control, "lower", 0.1, False), [5.1, 10.1])
    np.testing.assert_allclose(verdicts.at_margin(control, "higher", 0.02, False), [4.98, 9.98])
    np.testing.assert_allclose(verdicts.at_margin(control, "higher", 0.1, True), [4.5, 9])


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ([], UNMEASURED),
        ([UNMEASURED, UNMEASURED], UNMEASURED),
        ([NO_WORSE, UNMEASURED], NOT_SHOWN),
        ([NO_WORSE, NO_WORSE], NO_WORSE),
        ([NO_WORSE, BETTER], BETTER),
        ([BETTER, NOT_SHOWN], NOT_SHOWN),
        ([NO_WORSE, NOT_SHOWN], NOT_SHOWN),
        ([WORSE, NOT_SHOWN], WORSE),
        ([WORSE, BETTER], MIXED),
        ([ONE_TRAINING, UNMEASURED], ONE_TRAINING),
    ],
)
def test_all_numbers_of_quality_must_be_kept(words, verdict):
    for order in itertools.permutations(words):
        assert verdicts.all_of_quality(order) == verdict


@pytest.mark.parametrize(
    ("memorization", "quality", "outcome"),
    [
        (BETTER, BETTER, YES),
        (BETTER, NO_WORSE, YES),
        (BETTER, NOT_SHOWN, NOT_SHOWN),
        (BETTER, UNMEASURED, UNMEASURED),
        (BETTER, WORSE, NO),
        (BETTER, MIXED, NO),
        (UNSEEN, BETTER, NOT_SHOWN),
        (UNSEEN, WORSE, NO),
        (WORSE, BETTER, NO),
        (WORSE, NOT_SHOWN, NO),
        (NOT_TESTABLE, WORSE, NOT_TESTABLE),
        (UNMEASURED, BETTER, UNMEASURED),
        (ONE_TRAINING, UNMEASURED, ONE_TRAINING),
        (BETTER, ONE_TRAINING, ONE_TRAINING),
    ],
)
def test_an_arm_beats_its_control_by_both(memorization, quality, outcome):
    assert verdicts.beats(memorization, quality) == outcome
    shorter = verdicts.beats(memorization, quality, trained_less=True)
    assert shorter == (TRAINED_LESS if outcome == YES else outcome)


def test_the_adjusted_p_value_decides():
    found = verdicts.by_p_value([-1, -1, 1, 1, -1], [0.04, 0.05, 0.04, 0.06, NAN], "lower", 0.05)
    assert found.tolist() == [BETTER, UNSEEN, WORSE, UNSEEN, UNMEASURED]
    assert verdicts.by_p_value(1.0, 0.01, "higher", 0.05) == BETTER


# ---- error rates

CONTROL_OF = np.array([0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3, 4, 5, 5])
"""Seventeen arms and their six controls; two controls serve five and six of them."""
IS_PAIRED = np.arange(len(CONTROL_OF)) % 3 > 0
MARGIN = Margin(relative_fd=0.1, coverage=0.02)


@dataclass(frozen=True)
class Truth:
    """What trainings are drawn around.

    Attributes:
        rate: Generations flagged, of 512, for every control.
        spread: Standard deviation of the log-odds of that rate between trainings.
        effect: What an arm adds to the log-odds.
        distance, coverage: What an arm's quality has more than its control's: a share of the
            Fréchet distance, and units of coverage.
        noise, noise_coverage: Their standard deviations between trainings.
        shared: Correlation of paired replicates.
    """

    rate: float = 0.3
    spread: float = 0.15
    effect: float = 0.0
    distance: float = 0.0
    coverage: float = 0.0
    noise: float = 0.03
    noise_coverage: float = 0.005
    shared: float = 0.5


@dataclass(frozen=True)
class Tables:
    """Made-up tables: values of arms, (T, 17, R), and of their controls, for each number."""

    arms: dict[str, np.ndarray]
    controls: dict[str, np.ndarray]

    @classmethod
    def of(cls, truth: Truth, tables: int, trainings: int = 5, seed: int = 0) -> Tables:
        rng = np.random.default_rng(seed)
        own = rng.standard_normal((3, tables, len(CONTROL_OF), trainings))
        common = rng.standard_normal((3, tables, max(CONTROL_OF) + 1, trainings))
        shared = np.where(IS_PAIRED, truth.shared, 0)[:, None]
        noise = np.sqrt(shared) * common[:, :, CONTROL_OF] + np.sqrt(1 - shared) * own
        logit = special.logit(truth.rate)

        def flagged(errors: np.ndarray, effect: float) -> np.ndarray:
            odds = logit + effect + truth.spread * errors
            return rng.binomial(512, special.expit(odds)) / 512

        def quality(errors: np.ndarray, distance: float, coverage: float) -> list[np.ndarray]:
            return [
                6 * (1 + distance) * (1 + truth.noise * errors[1]),
                0.7 - coverage + truth.noise_coverage * errors[2],
            ]

        names = (PRIMARY, "FD[x]", "coverage[x]")
        arms = [flagged(noise[0], truth.effect), *quality(noise, truth.distance, truth.coverage)]
        controls = [flagged(common[0], 0.0), *quality(common, 0.0, 0.0)]
        return cls(
            dict(zip(names, arms, strict=True)),
            {name: each[:, CONTROL_OF] for name, each in zip(names, controls, strict=True)},
        )

    def difference(self, metric: str, at_margin: bool = False) -> replicates.Estimate:
        """The estimated difference of every arm, by the method of its pair."""
        arm, control = self.arms[metric], self.controls[metric]
        rule = comparison.rule_of(metric)
        if at_margin:
            loss, relative = getattr(MARGIN, rule.margin), rule.margin == "relative_fd"
            control = verdicts.at_margin(control, rule.better, loss, relative)
        both = replicates.paired(arm, control), replicates.welch(arm, control)
        columns = [
            np.where(IS_PAIRED, *pair)
            for pair in zip(*(vars(each).values() for each in both), strict=True)
        ]
        return replicates.Estimate(*columns)

    def memorization(self, adjusted: bool = True) -> np.ndarray:
        change = self.difference(PRIMARY)
        p_values = change.p_value()
        if adjusted:
            p_values = replicates.holm(p_values)
        return verdicts.by_p_value(change.value, p_values, "lower", 0.05)

    def quality(self) -> np.ndarray:
        return verdicts.all_of_quality(
            [
                verdicts.of_quality(
                    self.difference(metric).interval(0.95),
                    self.difference(metric, at_margin=True).interval(0.95),
                    comparison.rule_of(metric).better,
                )
                for metric in ("FD[x]", "coverage[x]")
            ]
        )

    def beats(self) -> np.ndarray:
        return verdicts.beats(self.memorization(), self.quality())


NOTHING = [
    (Truth(), 5),
    (Truth(shared=0.0), 5),
    (Truth(shared=0.9), 5),
    (Truth(rate=0.02, spread=0.3), 5),
    (Truth(rate=0.005, spread=0.0), 5),
    (Truth(spread=0.5), 3),
    (Truth(), 2),
]


@pytest.mark.parametrize(("truth", "trainings"), NOTHING)
def test_where_nothing_differs_at_most_one_table_in_twenty_has_a_false_verdict(truth, trainings):
    """Quality is kept by construction, so that memorization alone stands between an arm and a yes."""
    made = Tables.of(replace(truth, distance=-0.1, noise=0.01), 2000, trainings)
    limit = stats.binom.ppf(0.999, 2000, 0.05) / 2000
    assert (made.beats() == YES).any(axis=1).mean() <= 0.05
    assert np.isin(made.memorization(), (BETTER, WORSE)).any(axis=1).mean() <= limit


def test_without_adjustment_a_third_of_the_tables_would_have_one():
    made = Tables.of(Truth(), 2000)
    assert (made.memorization(adjusted=False) == BETTER).any(axis=1).mean() > 0.2


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
@pytest.mark.parametrize(
    ("distance", "coverage"), [(0.1, 0.0), (0.1, -0.1), (0.0, 0.02), (-0.3, 0.02), (0.1, 0.02)]
)
def test_a_harm_at_the_margin_seldom_passes_for_none(distance, coverage, noise):
    truth = Truth(
        effect=-1.5, distance=distance, coverage=coverage, noise=noise, noise_coverage=noise / 10
    )
    made = Tables.of(truth, 400)
    passed = np.isin(made.quality(), (BETTER, NO_WORSE))
    assert passed.mean(axis=0).max() <= stats.binom.ppf(0.9999, 400, 0.025) / 400  # of each arm
    assert passed.mean() <= 0.03
    assert (made.beats() == YES).mean() <= 0.03


def test_a_noisier_arm_passes_less_often():
    passed = [
        np.isin(Tables.of(Truth(noise=noise), 300).quality(), (BETTER, NO_WORSE)).mean()
        for noise in (0.02, 0.05, 0.1, 0.2)
    ]
    assert passed == sorted(passed, reverse=True)
    assert passed[0] > 0.9
    assert passed[-1] < 0.2


def test_a_real_remedy_at_no_loss_is_seen():
    made = Tables.of(Truth(effect=-1.5), 300)
    assert (made.beats() == YES).mean() > 0.8
    assert (made.beats() == NO).mean() < 0.01


def test_the_detectable_difference_is_seen_in_four_of_five_tables():
    """One arm and its control, so that nothing is adjusted; both methods."""
    rng = np.random.default_rng(0)
    arm, control = rng.standard_normal((2, 20_000, 5))
    for compare, freedom, off in ((replicates.paired, 4, 0.01), (replicates.welch, 8, 0.03)):
        shift = replicates.detectable(math.sqrt(2 / 5), freedom, 0.05)
        seen = compare(arm + shift, control).p_value() < 0.05
        assert seen.mean() == pytest.approx(0.8, abs=off)  # Welch's degrees of freedom vary


def test_the_tables_of_a_study_are_judged_by_the_same_rules():
    """Whole tables through ``comparison``, against the arrays that the error rates were taken of."""
    made = Tables.of(Truth(effect=-0.4, distance=0.03, noise=0.05), 2, seed=3)
    names = [f"arm{index}" for index in range(len(CONTROL_OF))]
    controls = {f"control{index}": None for index in range(max(CONTROL_OF) + 1)}
    controls |= {name: f"control{index}" for name, index in zip(names, CONTROL_OF, strict=True)}
    expected = made.beats()
    for table in range(len(expected)):
        rows = []
        for arm, name, side in [
            *((arm, name, made.arms) for arm, name in enumerate(names)),
            *((int(np.argmax(c == CONTROL_OF)), f"control{c}", made.controls) for c in range(6)),
        ]:
            for metric, values in side.items():
                rows += [
                    (name, k, metric, value, value - 0.01, value + 0.01)
                    for k, value in enumerate(values[table, arm])
                ]
            rows += [(name, k, "flagged_holdout_calibrated", 0.0, 0.0, 0.01) for k in range(5)]
        columns = ["arm", "replicate", "metric", "value", "low", "high"]
        points = pd.DataFrame(rows, columns=columns).assign(count=NAN, of=NAN)
        compared = comparison.compare(
            points, controls, dict(zip(names, IS_PAIRED, strict=True)), 0.95, MARGIN
        )
        said = comparison.verdicts(compared).set_index("arm").loc[names]
        assert said["beats_control"].tolist() == expected[table].tolist()
        change = made.difference(PRIMARY)
        p_values = replicates.holm(change.p_value())[table]
        np.testing.assert_allclose(said["p_adjusted"].astype(float), p_values)
        seen = [
            replicates.detectable(change.error[table, arm], change.freedom[table, arm], 0.05 / 17)
            for arm in range(len(names))
        ]  # at the level that the largest difference of seventeen has to reach
        np.testing.assert_allclose(said["detectable"].astype(float), seen)
    assert {YES, NOT_SHOWN} <= set(expected.ravel())
