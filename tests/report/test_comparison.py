"""The rules by which an arm is set against its control, with answers that were known before."""

from __future__ import annotations

import itertools
import math
from functools import cache, partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from afterimage.config import Margin
from afterimage.metrics import replicates
from afterimage.metrics.intervals import Interval, square_and_add, wilson
from afterimage.report import comparison
from afterimage.report.comparison import METRICS, PAIRED
from afterimage.report.verdicts import (
    BETTER,
    MIXED,
    NO,
    NOT_SHOWN,
    NOT_TESTABLE,
    ONE_TRAINING,
    TRAINED_LESS,
    UNMEASURED,
    UNSEEN,
    WORSE,
    YES,
)

NAN = math.nan
INTERVALS = st.tuples(*[st.floats(-100, 100)] * 3).map(
    lambda ends: Interval(*np.array(sorted(ends))[[1, 0, 2]])
)


def points(*rows: tuple) -> pd.DataFrame:
    """Rows are arm, replicate, metric, value, and then low, high, and then count, of."""
    columns = ["arm", "replicate", "metric", "value", "low", "high", "count", "of"]
    return pd.DataFrame([[*row, *[NAN] * (8 - len(row))] for row in rows], columns=columns)


def share(arm: str, metric: str, count: int, of: int, replicate: int = 0) -> tuple:
    return arm, replicate, metric, count / of, 0.0, 1.0, count, of


# ---- intervals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_difference_of_shares_has_newcombes_published_limits(one, other, low, high):
    """Newcombe 1998, table II, method 10."""
    found = square_and_add(wilson(*one, 0.95), wilson(*other, 0.95))
    assert found.value == pytest.approx(one[0] / one[1] - other[0] / other[1])
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_difference_of_shares_covers_as_often_as_it_says():
    """Exact coverage over all outcomes of two binomials, not a simulation."""
    n, p, q = 24, 0.15, 0.4
    likely = np.outer(stats.binom.pmf(range(n + 1), n, p), stats.binom.pmf(range(n + 1), n, q))
    shares = [wilson(count, n, 0.9) for count in range(n + 1)]
    found = [[square_and_add(a, b) for b in shares] for a in shares]
    covers = np.array([[one.low <= p - q <= one.high for one in row] for row in found])
    assert (likely * covers).sum() == pytest.approx(0.9, abs=0.03)


@given(INTERVALS, INTERVALS)
def test_difference_of_two_intervals_turns_its_sign_with_their_order(one, other):
    there, back = square_and_add(one, other), square_and_add(other, one)
    assert there.low <= there.value <= there.high
    np.testing.assert_allclose(there, (-back.value, -back.high, -back.low))


@given(st.floats(-10, 10), st.floats(0, 5), st.floats(-10, 10), st.floats(0, 5))
def test_symmetric_intervals_add_as_normal_errors_do(a, half_a, b, half_b):
    found = square_and_add(Interval(a, a - half_a, a + half_a), Interval(b, b - half_b, b + half_b))
    half = math.sqrt(half_a**2 + half_b**2)
    np.testing.assert_allclose(found, (a - b, a - b - half, a - b + half), atol=1e-9)


@pytest.mark.parametrize(
    ("names", "deciding"),
    [
        (["FD_balanced[a]", "FD[a]", "coverage[a]"], ["FD_balanced[a]", "coverage[a]"]),
        (["FD_balanced[inception]", "FID[inception]"], ["FD_balanced[inception]"]),
        (["FD[a]", "coverage[a]"], ["FD[a]", "coverage[a]"]),
        (["remaining_FD[a, b]", "remaining_FD_balanced[a, b]"], ["remaining_FD_balanced[a, b]"]),
        # Balanced among the other classes alone: all images are still judged by the plain one.
        (
            ["FD[a]", "remaining_FD[a, b]", "remaining_FD_balanced[a, b]"],
            ["FD[a]", "remaining_FD_balanced[a, b]"],
        ),
    ],
)
def test_the_plain_distance_decides_only_where_there_is_no_balanced_one(names, deciding):
    rules = comparison.rules_of([*names, "class_share_tv[classifier]", "no such metric"])
    assert list(rules) == [*names, "class_share_tv[classifier]"]
    assert [name for name, rule in rules.items() if rule.decides] == deciding
    assert all(rule.better for rule in rules.values())


def test_a_better_distance_of_all_images_is_no_better_quality():
    """It is what an arm that copies less has by construction; at equal class shares it is worse."""
    values = {"FD[x]": (5.0, 9.0), "FD_balanced[x]": (2.0, 1.0), "coverage[x]": (0.9, 0.9)}
    table = points(
        *(
            (arm, k, metric, value + 0.01 * k * (1 + (arm == "arm")))
            for metric, pair in values.items()
            for arm, value in zip(("arm", "control"), pair, strict=True)
            for k in range(3)
        )
    )
    compared = compare(table, controls={"control": None, "arm": "control"})
    own = compared[compared["arm"] == "arm"].set_index("metric")
    assert own["decides"].to_dict() == {
        "FD_balanced[x]": "quality",
        "FD[x]": "",
        "coverage[x]": "quality",
    }
    assert own.loc["FD[x]", "verdict"] == BETTER
    assert comparison.together(own["verdict"][own["decides"] == "quality"]) == WORSE
    assert "FD[x]" not in comparison.replicate_points(table)


def test_students_interval_of_three_values():
    """t(0.975; 2) = 4.302653, standard deviation 1."""
    half = 4.302653 / math.sqrt(3)
    np.testing.assert_allclose(
        comparison.student(np.array([1.0, 2.0, 3.0]), 0.95), (2, 2 - half, 2 + half), rtol=1e-6
    )


def test_several_replicates_are_paired():
    """The replicates differ by 10, the arms by 1 to 3: only the pairs show it. A replicate without
    its pair does not count."""
    own = points(
        *(("arm", k, "FD[x]", 10 * k - shift) for k, shift in enumerate((1, 2, 3))),
        ("arm", 7, "FD[x]", 1e6),
    )
    control = points(*(("control", k, "FD[x]", 10 * k) for k in (2, 0, 1)))
    found, method, p = comparison.difference(own, control, 0.95)
    assert p == pytest.approx(stats.ttest_1samp([-1, -2, -3], 0).pvalue)
    half = 4.302653 / math.sqrt(3)
    np.testing.assert_allclose(found, (-2, -2 - half, -2 + half), rtol=1e-6)
    assert method == "paired t"


def test_one_replicate_takes_the_intervals_within_it():
    counted, method, p = comparison.difference(
        points(share("a", "m", 56, 70)), points(share("b", "m", 48, 80)), 0.95
    )
    assert (round(counted.low, 4), round(counted.high, 4), method) == (0.0524, 0.3339, "score")
    assert math.isnan(p)
    resampled = comparison.difference(
        points(("a", 0, "m", 5.0, 2.0, 8.0)), points(("b", 0, "m", 1.0, -3.0, 5.0)), 0.95
    )
    assert resampled[:2] == (Interval(4, -1, 9), "square-and-add")
    alone, method, _ = comparison.difference(
        points(("a", 0, "m", 5.0)), points(("b", 0, "m", 1.0)), 0.95
    )
    assert (alone.value, method) == (4, "")
    assert math.isnan(alone.low)
    assert math.isnan(
        comparison.difference(points(("a", 0, "m", NAN)), points(("b", 0, "m", 1.0)), 0.95)[0].value
    )


def test_equal_replicates_have_no_spread():
    """Differences of 1/10 whose floating-point numbers are not all the same, and five trainings of
    which none copies."""
    assert len({a - b for a, b in ((0.3, 0.2), (0.4, 0.3), (0.9, 0.8))}) > 1
    own = points(*(("a", k, "m", value) for k, value in enumerate((0.3, 0.4, 0.9))))
    control = points(*(("b", k, "m", value) for k, value in enumerate((0.2, 0.3, 0.8))))
    found = comparison.difference(own, control, 0.95)
    assert found.change.value == pytest.approx(0.1)
    assert comparison.judged([(found, "higher")], 0.95) == [UNMEASURED]
    none = points(
        *(("a", k, "m", 0.0, 0.0, high, 0, 512) for k, high in enumerate((0.006, 0.007, 0.005)))
    )
    assert comparison.over_replicates(none, 0.95) == (Interval(0, 0, 0.007), "within the replicate")
    budget, _ = comparison.over_replicates(
        points(*(("a", k, "updates", 1500.0) for k in range(5))), 0.95
    )
    assert budget.value == 1500
    assert math.isnan(budget.low)


def test_confidence_is_that_of_the_study():
    own = points(*(("a", k, "FD[x]", value) for k, value in enumerate((21.0, 22.0, 24.0))))
    for confidence in (0.6, 0.99):
        interval, kind = comparison.over_replicates(own, confidence)
        expected = stats.t.interval(confidence, 2, own["value"].mean(), stats.sem(own["value"]))
        np.testing.assert_allclose(interval[1:], expected)
        assert kind == "between replicates"


@pytest.mark.parametrize(
    ("metric", "values", "ends"),
    [
        ("FD_balanced[x]", (0.1, 0.2, 1.0), (0, None)),
        ("FD_balanced[x] of holdout", (0.1, 0.2, 1.0), (0, None)),
        ("coverage[x]", (0.1, 0.9, 0.9), (0, 1)),
        ("roc_auc", (0.7, 0.8, 1.0), (None, 1)),
        ("KID[x]", (0.1, 0.2, 1.0), (None, None)),
        ("R[pixels]", (-0.9, 0.9, 0.9), (-1, 1)),
        ("similarity[pixels]", (-0.9, 0.9, 0.9), (-1, 1)),
        ("similar[pixels]", (0.9, 1.0, 1.0), (None, 1)),
        ("average_precision", (0.1, 0.9, 0.9), (0, 1)),
        ("missing_classes[x]", (0.0, 0.0, 0.5), (0, None)),
        ("KID_sd[x]", (0.1, 0.2, 1.0), (0, None)),
        ("number of another attack", (0.1, 0.2, 1.0), (None, None)),
    ],
)
def test_intervals_end_where_a_number_does(metric, values, ends):
    own = points(*(("a", k, metric, value) for k, value in enumerate(values)))
    found, _ = comparison.over_replicates(own, 0.95)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert found.value == pytest.approx(np.mean(values))
    expected = [
        end if outer is None else outer for end, outer in zip((low, high), ends, strict=True)
    ]
    assert found[1:] == pytest.approx(expected)


def test_intervals_of_counts_hold_what_few_copies_leave_open():
    """Student's interval of 0, 0 and 1 of 512 goes from -0.2 to 0.3 %, exact limits to 0.36 %."""
    own = points(
        *(share("a", "flagged_generations", count, 512, k) for k, count in enumerate((0, 0, 1)))
    )
    found, kind = comparison.over_replicates(own, 0.95)
    low, high = stats.binomtest(1, 1536).proportion_ci(0.95)
    assert kind == "between replicates"
    assert found.value == pytest.approx(1 / 1536)
    assert found.low == 0 < low
    assert found.high == pytest.approx(high)


@pytest.mark.parametrize("is_paired", [True, False])
@pytest.mark.parametrize(
    ("metric", "counts", "most"),
    [
        ("coverage[x]", False, 1),
        ("forgotten_copied_calibrated[found]", True, 1),
        ("R[pixels]", False, 2),
        ("FD[x]", False, math.inf),
    ],
)
def test_a_difference_ends_where_one_of_two_such_numbers_does(metric, counts, most, is_paired):
    """Of 0.9, 1 and 0.2 to 0, 0.1 and 0: Student's interval passes 1 either way, that of R not 2.
    The p-value knows nothing of the ends."""
    values = ((0.9, 1.0, 0.2), (0.0, 0.1, 0.0))
    own, control = (
        points(
            *(
                (arm, k, metric, value, 0.0, 1.0, *((round(20 * value), 20) if counts else ()))
                for k, value in enumerate(of_arm)
            )
        )
        for arm, of_arm in zip("ab", values, strict=True)
    )
    test = stats.ttest_rel if is_paired else partial(stats.ttest_ind, equal_var=False)
    for first, second, sign in ((own, control, 1), (control, own, -1)):
        expected = test(values[0], values[1])
        ends = np.array(expected.confidence_interval(0.95))
        assert ends[1] > 1
        found = comparison.difference(first, second, 0.95, is_paired)
        assert found.change.value == pytest.approx(sign * 2 / 3)
        assert sorted(sign * np.array(found.change[1:])) == pytest.approx(
            ends.clip(-most, most).tolist()
        )
        assert found.p == pytest.approx(expected.pvalue)


# ---- verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "p", "better", "verdict"),
    [
        (-1, 0.04, "lower", BETTER),
        (-1, 0.04, "higher", WORSE),
        (1, 0.04, "lower", WORSE),
        (1, 0.04, "higher", BETTER),
        (1, 0.06, "lower", UNSEEN),
    ],
)
def test_a_number_is_judged_by_its_p_value_and_direction(value, p, better, verdict):
    change = Interval(value, value - 2, value + 2)
    found = comparison.Difference(change, PAIRED, p)
    assert comparison.judged([(found, better)], 0.95) == [verdict]
    assert comparison.judged([(found._replace(method="score"), better)], 0.95) == [ONE_TRAINING]
    unknown = comparison.Difference(Interval(NAN, NAN, NAN), PAIRED)
    assert comparison.judged([(unknown, better)], 0.95) == [UNMEASURED]


def test_a_table_is_judged_at_the_level_of_all_its_differences():
    """Of three p-values, 0.02 is small enough alone, and too large beside two others; so it is
    beside one that could not be measured."""
    first, second, third = (
        comparison.Difference(Interval(-1, -2, 0.1), PAIRED, p) for p in (0.016, 0.02, 0.3)
    )
    lacking = comparison.Difference(Interval(NAN, NAN, NAN), "")

    def judged(*found):
        return comparison.judged([(each, "lower") for each in found], 0.95)

    assert judged(second) == [BETTER]
    assert judged(first, second, third) == [BETTER, BETTER, UNSEEN]
    assert judged(second, third, third) == [UNSEEN] * 3
    assert judged(second, lacking, lacking) == [UNSEEN, UNMEASURED, UNMEASURED]
    assert judged() == []


def test_at_most_one_table_in_twenty_has_a_false_verdict():
    """Twelve numbers of an arm that differs from its control in nothing, in 800 tables of three
    trainings each; without adjustment nearly half of the tables would have one."""
    rng = np.random.default_rng(0)
    tables = rng.normal(size=(800, 12, 2, 3))

    def of(values):
        estimate = replicates.paired(*values)
        return comparison.Difference(
            Interval(*estimate.interval(0.95)), PAIRED, float(estimate.p_value())
        )

    found = [[(of(values), "lower") for values in table] for table in tables]
    false = [set(comparison.judged(table, 0.95)) != {UNSEEN} for table in found]
    alone = [any(comparison.judged([each], 0.95) != [UNSEEN] for each in table) for table in found]
    assert stats.binomtest(sum(false), 800, 0.05, alternative="greater").pvalue > 0.001
    assert np.mean(alone) > 0.3


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ([], UNMEASURED),
        ([UNMEASURED], UNMEASURED),
        ([UNSEEN, UNMEASURED], UNSEEN),
        ([UNSEEN, BETTER], BETTER),
        ([WORSE, UNSEEN], WORSE),
        ([BETTER, WORSE], MIXED),
        ([BETTER, UNSEEN, WORSE], MIXED),
        ([NOT_TESTABLE, UNMEASURED], NOT_TESTABLE),
        ([NOT_TESTABLE, UNSEEN], UNSEEN),
        ([NOT_TESTABLE, WORSE], WORSE),
        ([ONE_TRAINING, UNMEASURED], ONE_TRAINING),
    ],
)
def test_several_numbers_about_one_thing(said, verdict):
    for order in itertools.permutations(said):
        assert comparison.together(order) == verdict


def test_every_number_that_decides_has_a_direction():
    assert {rule.better for rule in METRICS.values()} == {"", "lower", "higher"}
    assert {rule.decides for rule in METRICS.values()} == {
        "",
        "memorization",
        "quality",
        "forgetting",
        "rest",
    }
    assert all(rule.better for rule in METRICS.values() if rule.decides)
    assert all(
        rule.better == "lower" for rule in METRICS.values() if rule.decides == "memorization"
    )
    assert all(rule.alarms for rule in METRICS.values() if rule.decides == "memorization")


def test_a_number_is_known_by_its_name_without_space_or_set():
    assert comparison.rule_of("FD[inception]") == METRICS["FD"]
    assert comparison.rule_of("forgotten_probability[zeros]") == METRICS["forgotten_probability"]
    assert comparison.rule_of("mq@0.5 (share)") == METRICS["mq@0.5 (share)"]
    for name in (
        "FD[classifier] of holdout",
        "KID_sd[classifier]",
        "mq@0.5 (share) of holdout",
        "alpha_calibrated",
    ):
        assert comparison.rule_of(name) is None


CONTROLS = {"control": None, "arm": "control"}
MARGIN = Margin(relative_fd=0.1, coverage=0.5)
"""A tenth of the control's Fréchet distance of 7 in ``table``, and half a unit of its coverage of 7."""


def compare(
    numbers: pd.DataFrame, controls: dict[str, str | None] = CONTROLS, **options
) -> pd.DataFrame:
    settings = {"paired": dict.fromkeys(controls, True), "confidence": 0.95, "margin": MARGIN}
    return comparison.compare(numbers, controls, **(settings | options))


ALARMS = {"flagged_holdout_calibrated": 0.5, "twins_flagged_calibrated": 0.5}


def table(
    changes: dict[str, float], replicates: int = 5, alarms: dict[str, float] = ALARMS
) -> pd.DataFrame:
    """Two arms that differ by ``changes``, give or take 0.1 from replicate to replicate, and their
    false alarms.

    The control has 5 to 9, each number with an interval of plus and minus 1 within its training.
    """
    rows = []
    for k in range(replicates):
        for arm in CONTROLS:
            value = {
                metric: 5 + k + (by + 0.1 * (-1) ** k) * (arm == "arm")
                for metric, by in changes.items()
            }
            rows += [
                (arm, k, metric, number, number - 1, number + 1) for metric, number in value.items()
            ]
            rows += [
                (arm, k, metric, number, number - 0.2, number + 0.2)
                for metric, number in alarms.items()
            ]
    return points(*rows)


def verdict(changes: dict[str, float], **options) -> pd.Series:
    """The row of ``comparison.verdicts`` of the arm in ``table``."""
    said = comparison.verdicts(compare(table(changes, **options)))
    assert list(said["arm"]) == ["arm"]
    return said.loc[0]


LESS_ALONE = "remembers less, "
UNKNOWN = "no difference in memorization seen, "
KEPT = "quality no worse within the margin"


@pytest.mark.parametrize(
    ("flagged", "planted", "frechet", "coverage", "beats", "words"),
    [
        (-3, -3, 0, 0, YES, LESS_ALONE + KEPT),
        (
            -3,
            3,
            0,
            0,
            YES,
            LESS_ALONE + KEPT,
        ),  # the planted images are reported, and decide nothing
        (-3, 0, -3, 0, YES, LESS_ALONE + "better in FD[x]"),
        (-3, 0, 0, 3, YES, LESS_ALONE + "better in coverage[x]"),
        (-3, 0, -3, 3, YES, LESS_ALONE + "better in FD[x] and coverage[x]"),
        (-3, 0, 0.3, -0.2, YES, LESS_ALONE + KEPT),  # a loss within the margin, which was seen
        (-3, -3, 3, 0, NO, LESS_ALONE + "worse in FD[x]"),
        (-3, -3, 0, -3, NO, LESS_ALONE + "worse in coverage[x]"),
        (-3, -3, 3, -3, NO, LESS_ALONE + "worse in FD[x] and coverage[x]"),
        (-3, -3, -3, -3, NO, LESS_ALONE + "better in FD[x], but worse in coverage[x]"),
        (0, -3, 0, 3, NOT_SHOWN, UNKNOWN + "better in coverage[x]"),
        (0, 0, 0, 0, NOT_SHOWN, UNKNOWN + KEPT),
        (0, 0, 3, 0, NO, UNKNOWN + "worse in FD[x]"),
        (3, 0, -3, 0, NO, "remembers more, better in FD[x]"),
    ],
)
def test_an_arm_beats_its_control_if_it_remembers_less_at_no_cost_of_quality(
    flagged, planted, frechet, coverage, beats, words
):
    changes = {
        "flagged_generations_calibrated": flagged,
        "planted_extracted_calibrated": planted,
        "FD[x]": frechet,
    }
    changes |= {
        "coverage[x]": coverage,
        "membership_auc": 9,
        "KID[x]": 9,
    }  # these are shown and decide nothing
    said = verdict(changes)
    assert (said["beats_control"], said["verdict"]) == (beats, words)


LESS = {
    "flagged_generations_calibrated": -3,
    "planted_extracted_calibrated": -3,
    "FD[x]": 0,
    "coverage[x]": 0,
}


def test_text_alignment_alone_is_named_where_it_alone_is_worse():
    said = verdict(LESS | {"text_alignment[x]": -3})
    assert (said["quality"], said["beats_control"]) == (WORSE, NO)
    assert said["verdict"] == LESS_ALONE + "worse in text_alignment[x]"


def test_text_alignment_decides_nothing_where_both_are_judged_on_a_forget_set():
    forgets = {"remaining_FD[x, zeros]": 0, "remaining_coverage[x, zeros]": 0}
    said = verdict(LESS | forgets | {"text_alignment[x]": -3})
    assert (said["beats_control"], said["verdict"]) == (YES, LESS_ALONE + KEPT)
    said = verdict(LESS | forgets | {"remaining_coverage[x, zeros]": -3})
    assert said["verdict"] == LESS_ALONE + "worse in remaining_coverage[x, zeros]"


def test_one_training_gives_no_verdict():
    said = verdict(LESS, replicates=1)
    assert (said["beats_control"], said["verdict"], said["memorization"]) == (ONE_TRAINING,) * 3
    row = compare(table(LESS, replicates=1)).set_index(["arm", "metric"]).loc["arm"]
    assert row["difference_high"]["flagged_generations_calibrated"] < 0  # shown all the same


def test_a_network_that_was_trained_less_does_not_beat_one_that_was_trained_more():
    assert verdict(LESS | {"network_updates": 0})["beats_control"] == YES
    assert verdict(LESS | {"network_updates": 2})["beats_control"] == YES
    said = verdict(LESS | {"network_updates": -2})
    assert said["beats_control"] == TRAINED_LESS
    assert said["verdict"] == LESS_ALONE + KEPT + ", its control's network was trained longer"


# ---- false alarms --------------------------------------------------------------------------------


def counted(*arms: tuple[str, str, list[int], int]) -> pd.DataFrame:
    """Arm, metric, counts of the replicates and of how many, with exact intervals within each
    replicate."""
    rows = []
    for arm, metric, counts, of in arms:
        for k, count in enumerate(counts):
            rows.append((arm, k, metric, count / of, *exact(count, of), count, of))
    return points(*rows)


@cache
def exact(count: int, of: int) -> tuple[float, float]:
    limits = stats.binomtest(count, of).proportion_ci(0.95, method="exact")
    return limits.low, limits.high


FLAGGED, HELD_OUT = "flagged_generations_calibrated", "flagged_holdout_calibrated"
QUALITY = [
    (arm, k, "FD[x]", 5.0 + 0.1 * ((k + (arm == "arm")) % 3)) for k in range(5) for arm in CONTROLS
]


@pytest.mark.parametrize(
    ("arm", "control", "beats", "words"),
    [
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], NOT_TESTABLE, "memorization not testable"),
        (
            [0, 1, 0, 2, 0],
            [5, 4, 6, 3, 5],
            NOT_TESTABLE,
            "memorization not testable",
        ),  # 0.9 %: false alarms
        (
            [5, 4, 6, 3, 5],
            [0, 0, 0, 0, 0],
            NOT_TESTABLE,
            "memorization not testable",
        ),  # more, but no more than false alarms
        ([90, 80, 99, 85, 95], [0, 0, 0, 0, 0], NO, "remembers more"),
        ([0, 0, 0, 0, 0], [90, 80, 99, 85, 95], YES, "remembers less"),
        (
            [92, 79, 100, 83, 96],
            [90, 80, 99, 85, 95],
            NOT_SHOWN,
            "no difference in memorization seen",
        ),
    ],
)
def test_a_control_at_its_false_alarms_cannot_be_beaten(arm, control, beats, words):
    alarms = [(name, HELD_OUT, [2] * 5, 400) for name in CONTROLS]
    numbers = counted(("arm", FLAGGED, arm, 512), ("control", FLAGGED, control, 512), *alarms)
    said = comparison.verdicts(compare(pd.concat([numbers, points(*QUALITY)]))).loc[0]
    assert said["beats_control"] == beats
    assert said["verdict"].startswith(words)


@pytest.mark.parametrize(("twins", "planted"), [(0, BETTER), (17, NOT_TESTABLE)])
def test_every_count_is_held_against_its_own_false_alarms_and_the_primary_one_decides(
    twins, planted
):
    """Few generations show an image, but planted ones come back; unless as many of their twins do."""
    numbers = counted(
        *((name, FLAGGED, [5, 4, 6, 3, 5], 512) for name in CONTROLS),
        *((name, HELD_OUT, [2] * 5, 400) for name in CONTROLS),
        ("control", "planted_extracted_calibrated", [16, 18, 20, 15, 17], 32),
        ("arm", "planted_extracted_calibrated", [2, 1, 0, 2, 1], 32),
        *((name, "twins_flagged_calibrated", [twins] * 5, 32) for name in CONTROLS),
    )
    compared = compare(numbers)
    verdict_on = compared.set_index(["arm", "metric"]).loc["arm"]["verdict"]
    assert verdict_on["planted_extracted_calibrated"] == planted
    assert comparison.verdicts(compared).loc[0, "memorization"] == NOT_TESTABLE


def test_copies_without_false_alarms_beside_them_are_not_judged():
    numbers = counted(
        ("arm", FLAGGED, [0, 1, 0, 2, 0], 512), ("control", FLAGGED, [90, 80, 99, 85, 95], 512)
    )
    said = comparison.verdicts(compare(pd.concat([numbers, points(*QUALITY)]))).loc[0]
    assert (said["memorization"], said["beats_control"]) == (UNMEASURED, UNMEASURED)


@pytest.mark.parametrize(("rate", "least", "most"), [(0.01, 0, 0.025), (0.1, 0.999, 1)])
def test_networks_that_flag_like_held_out_images_are_seldom_taken_for_copying(rate, least, most):
    """Five networks of 512 generations, 400 held-out images of which 1 % are flagged: simulated."""
    rng = np.random.default_rng(0)
    trials = 400
    found = [
        comparison.copies(
            counted(("a", FLAGGED, list(rng.binomial(512, rate, 5)), 512)),
            counted(("a", HELD_OUT, [int(rng.binomial(400, 0.01))] * 5, 400)),
        )
        for _ in range(trials)
    ]
    assert least <= np.mean(found) <= most


# ---- forgetting ----------------------------------------------------------------------------------


def test_forgetting_is_judged_where_both_arms_are():
    changes = {"flagged_generations_calibrated": 0, "FD[x]": 0, "forgotten_probability[zeros]": 3}
    assert verdict(changes)["verdict"].endswith(", forgets less")
    both = table(changes)
    alone = both[~((both["arm"] == "control") & both["metric"].str.startswith("forgotten"))]
    said = comparison.verdicts(compare(alone)).loc[0]
    assert said["forgetting"] == UNMEASURED
    assert said["verdict"] == UNKNOWN + KEPT


def test_arms_that_are_judged_on_forgetting_are_judged_by_the_quality_of_the_rest():
    """The others' quality counts again where only one of the two is."""
    changes = {"flagged_generations_calibrated": -3, "FD[x]": 3, "coverage[x]": 0}
    both = table(changes | {"remaining_FD[x, zeros]": -3, "remaining_coverage[x, zeros]": 0})
    said = comparison.verdicts(compare(both)).loc[0]
    assert (said["quality"], said["verdict"]) == (
        BETTER,
        LESS_ALONE + "better in remaining_FD[x, zeros]",
    )
    alone = both[~((both["arm"] == "control") & both["metric"].str.startswith("remaining"))]
    assert comparison.verdicts(compare(alone)).loc[0, "quality"] == WORSE


def test_without_quality_no_arm_beats_its_control():
    said = verdict({"flagged_generations_calibrated": -3})
    assert (said["beats_control"], said["verdict"]) == (
        UNMEASURED,
        "remembers less, quality not measured",
    )


def test_budgets_are_set_side_by_side_and_not_judged():
    both = points(("a", 0, "updates", 300.0), ("b", 0, "updates", 1500.0), ("a", 0, "noise", 1.0))
    row = compare(both, {"a": "b", "b": None}).set_index("arm").loc["a"]
    assert (row["value"], row["control_value"], row["difference"], row["verdict"]) == (
        300,
        1500,
        -1200,
        "",
    )


def test_arms_keep_the_order_of_the_study_and_numbers_that_of_the_rules():
    rows = [
        (arm, 0, metric, 1.0)
        for arm in ("b", "z", "a")
        for metric in ("updates", "FD[x]", "flagged_generations_calibrated")
    ]
    compared = compare(points(*rows), {"z": None, "a": "z", "b": "z"})
    assert list(compared["arm"].unique()) == ["z", "a", "b"]
    assert list(compared["metric"].unique()) == [
        "flagged_generations_calibrated",
        "FD[x]",
        "updates",
    ]


def test_wide_form_has_one_row_per_arm_and_no_empty_interval():
    both = counted(("a", FLAGGED, [1], 10), ("b", FLAGGED, [9], 10), ("b", HELD_OUT, [1], 40))
    both = pd.concat([both, points(("a", 0, "updates", 3.0), ("b", 0, "updates", 4.0))])
    wide = comparison.wide(compare(both, {"a": "b", "b": None})).set_index("arm")
    assert list(wide.index) == ["a", "b"]
    assert wide.loc["a", "memorization"] == ONE_TRAINING
    assert pd.isna(wide.loc["b", "verdict"])
    assert wide.loc["b", "flagged_generations_calibrated"] == 0.9
    assert {"flagged_generations_calibrated_low", "updates"} <= set(wide)
    assert "updates_low" not in wide


# ---- points and front ----------------------------------------------------------------------------


def test_replicate_points_hold_the_deciding_numbers_of_every_replicate():
    rows = [
        (arm, k, metric, 10 * k + len(arm))
        for arm in ("z", "aa")
        for k in (0, 1)
        for metric in ("FD[x]", "coverage[x]")
    ]
    rows += [
        ("z", 0, "planted_extracted_calibrated", 0.5),
        ("z", 0, "updates", 3.0),
        ("z", 0, "forgotten_probability[s]", 0.1),
    ]
    found = comparison.replicate_points(points(*rows))
    assert list(found) == [
        "arm",
        "replicate",
        "FD[x]",
        "coverage[x]",
        "planted_extracted_calibrated",
    ]
    assert list(zip(found["arm"], found["replicate"], found["FD[x]"], strict=True)) == [
        ("z", 0, 1),
        ("z", 1, 11),
        ("aa", 0, 2),
        ("aa", 1, 12),
    ]
    assert found["planted_extracted_calibrated"].notna().sum() == 1


def test_front_of_known_points():
    at = np.array([[1, 5], [2, 2], [2, 2], [3, 2], [5, 1], [6, 1], [4, 4]])
    assert comparison.front(at).tolist() == [True, True, True, False, True, False, False]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_nothing_beats_the_front_and_something_beats_all_else(some):
    at = np.array(some)
    on = comparison.front(at)
    assert on.any()
    for mine, kept in zip(some, on, strict=True):
        beaten = any(x <= mine[0] and y <= mine[1] and (x, y) != mine for x, y in some)
        assert kept == (not beaten)
