"""The rules by which an arm is set against its control, with answers that were known before."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from afterimage.report import comparison
from afterimage.report.comparison import BETTER, METRICS, MIXED, UNMEASURED, UNSEEN, WORSE, Interval

NAN = math.nan
INTERVALS = st.tuples(*[st.floats(-100, 100)] * 3).map(lambda ends: Interval(*np.array(sorted(ends))[[1, 0, 2]]))


def points(*rows: tuple) -> pd.DataFrame:
    """Rows are arm, replicate, metric, value, and then low, high, and then count, of."""
    columns = ["arm", "replicate", "metric", "value", "low", "high", "count", "of"]
    return pd.DataFrame([[*row, *[NAN] * (8 - len(row))] for row in rows], columns=columns)


def share(arm: str, metric: str, count: int, of: int, replicate: int = 0) -> tuple:
    return arm, replicate, metric, count / of, 0.0, 1.0, count, of


# ---- intervals ----------------------------------------------------------------------------------------------------------


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
    found = comparison.square_and_add(comparison.wilson(*one, 0.95), comparison.wilson(*other, 0.95))
    assert found.value == pytest.approx(one[0] / one[1] - other[0] / other[1])
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_difference_of_shares_covers_as_often_as_it_says():
    """Exact coverage over all outcomes of two binomials, not a simulation."""
    n, p, q = 24, 0.15, 0.4
    likely = np.outer(stats.binom.pmf(range(n + 1), n, p), stats.binom.pmf(range(n + 1), n, q))
    shares = [comparison.wilson(count, n, 0.9) for count in range(n + 1)]
    found = [[comparison.square_and_add(a, b) for b in shares] for a in shares]
    covers = np.array([[one.low <= p - q <= one.high for one in row] for row in found])
    assert (likely * covers).sum() == pytest.approx(0.9, abs=0.03)


@given(INTERVALS, INTERVALS)
def test_difference_of_two_intervals_turns_its_sign_with_their_order(one, other):
    there, back = comparison.square_and_add(one, other), comparison.square_and_add(other, one)
    assert there.low <= there.value <= there.high
    np.testing.assert_allclose(there, (-back.value, -back.high, -back.low))


@given(st.floats(-10, 10), st.floats(0, 5), st.floats(-10, 10), st.floats(0, 5))
def test_symmetric_intervals_add_as_normal_errors_do(a, half_a, b, half_b):
    found = comparison.square_and_add(Interval(a, a - half_a, a + half_a), Interval(b, b - half_b, b + half_b))
    half = math.sqrt(half_a**2 + half_b**2)
    np.testing.assert_allclose(found, (a - b, a - b - half, a - b + half), atol=1e-9)


def test_students_interval_of_three_values():
    """t(0.975; 2) = 4.302653, standard deviation 1."""
    half = 4.302653 / math.sqrt(3)
    np.testing.assert_allclose(comparison.student(np.array([1.0, 2.0, 3.0]), 0.95), (2, 2 - half, 2 + half), rtol=1e-6)


def test_several_replicates_are_paired():
    """The replicates differ by 10, the arms by 1 to 3: only the pairs show it. A replicate without its pair does not count."""
    own = points(*(("arm", k, "FD[x]", 10 * k - shift) for k, shift in enumerate((1, 2, 3))), ("arm", 7, "FD[x]", 1e6))
    control = points(*(("control", k, "FD[x]", 10 * k) for k in (2, 0, 1)))
    found, method = comparison.difference(own, control, 0.95)
    half = 4.302653 / math.sqrt(3)
    np.testing.assert_allclose(found, (-2, -2 - half, -2 + half), rtol=1e-6)
    assert method == "paired t"


def test_one_replicate_takes_the_intervals_within_it():
    counted, method = comparison.difference(points(share("a", "m", 56, 70)), points(share("b", "m", 48, 80)), 0.95)
    assert (round(counted.low, 4), round(counted.high, 4), method) == (0.0524, 0.3339, "score")
    resampled = comparison.difference(points(("a", 0, "m", 5.0, 2.0, 8.0)), points(("b", 0, "m", 1.0, -3.0, 5.0)), 0.95)
    assert resampled == (Interval(4, -1, 9), "square-and-add")
    alone, method = comparison.difference(points(("a", 0, "m", 5.0)), points(("b", 0, "m", 1.0)), 0.95)
    assert (alone.value, method) == (4, "")
    assert math.isnan(alone.low)
    assert math.isnan(comparison.difference(points(("a", 0, "m", NAN)), points(("b", 0, "m", 1.0)), 0.95)[0].value)


def test_confidence_is_that_of_the_study():
    own = points(*(("a", k, "FD[x]", value) for k, value in enumerate((1.0, 2.0, 4.0))))
    for confidence in (0.6, 0.99):
        interval, kind = comparison.over_replicates(own, confidence)
        expected = stats.t.interval(confidence, 2, own["value"].mean(), stats.sem(own["value"]))
        np.testing.assert_allclose(interval[1:], expected)
        assert kind == "between replicates"


# ---- verdicts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "better", "verdict"),
    [
        (-2, -1, "lower", BETTER),
        (-2, -1, "higher", WORSE),
        (1, 2, "lower", WORSE),
        (1, 2, "higher", BETTER),
        (-1, 1, "lower", UNSEEN),
        (0, 1, "lower", UNSEEN),
        (-1, 0, "lower", UNSEEN),
        (NAN, NAN, "lower", UNMEASURED),
    ],
)
def test_a_number_is_judged_by_its_interval_and_direction(low, high, better, verdict):
    assert comparison.judge(Interval((low + high) / 2, low, high), better) == verdict


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
    ],
)
def test_several_numbers_about_one_thing(said, verdict):
    for order in itertools.permutations(said):
        assert comparison.together(order) == verdict


def test_every_number_that_decides_has_a_direction():
    assert {rule.better for rule in METRICS.values()} == {"", "lower", "higher"}
    assert {rule.decides for rule in METRICS.values()} == {"", "memorization", "quality", "forgetting", "rest"}
    assert all(rule.better for rule in METRICS.values() if rule.decides)
    assert all(rule.better == "lower" for rule in METRICS.values() if rule.decides == "memorization")


def test_a_number_is_known_by_its_name_without_space_or_set():
    assert comparison.rule_of("FD[inception]") == METRICS["FD"]
    assert comparison.rule_of("forgotten_probability[zeros]") == METRICS["forgotten_probability"]
    assert comparison.rule_of("mq@0.5 (share)") == METRICS["mq@0.5 (share)"]
    for name in ("FD[classifier] of holdout", "KID_sd[classifier]", "mq@0.5 (share) of holdout", "alpha_calibrated"):
        assert comparison.rule_of(name) is None


def table(changes: dict[str, float]) -> pd.DataFrame:
    """Two arms of one replicate that differ by ``changes``, each number with an interval of plus and minus 1."""
    rows = [("control", 0, metric, 5.0, 4.0, 6.0) for metric in changes]
    return points(*rows, *(("arm", 0, metric, 5 + by, 4 + by, 6 + by) for metric, by in changes.items()))


@pytest.mark.parametrize(
    ("flagged", "planted", "frechet", "coverage", "beats", "words"),
    [
        (-3, -3, 0, 0, True, "remembers less, no loss of quality seen"),
        (-3, 0, -3, 0, True, "remembers less, better quality"),
        (0, -3, 0, 3, True, "remembers less, better quality"),
        (-3, -3, 3, 0, False, "remembers less, worse quality"),
        (-3, -3, 0, -3, False, "remembers less, worse quality"),
        (-3, -3, -3, -3, False, "remembers less, better quality by one measure and worse by another"),
        (-3, 3, 0, 0, False, "remembers less by one measure and more by another, no loss of quality seen"),
        (0, 0, 0, 0, False, "no difference in memorization seen, no loss of quality seen"),
        (0, 0, -3, 0, False, "no difference in memorization seen, better quality"),
        (3, 0, -3, 0, False, "remembers more, better quality"),
    ],
)
def test_an_arm_beats_its_control_if_it_remembers_less_at_no_cost_of_quality(flagged, planted, frechet, coverage, beats, words):
    changes = {"flagged_generations_calibrated": flagged, "planted_extracted_calibrated": planted, "FD[x]": frechet}
    changes |= {"coverage[x]": coverage, "membership_auc": 9, "KID[x]": 9}  # these are shown and decide nothing
    compared = comparison.compare(table(changes), {"control": None, "arm": "control"}, 0.95)
    said = comparison.verdicts(compared)
    assert list(said["arm"]) == ["arm"]
    assert (said["beats_control"][0], said["verdict"][0]) == (beats, words)


def test_forgetting_is_judged_where_both_arms_are():
    changes = {"flagged_generations_calibrated": 0, "FD[x]": 0, "forgotten_probability[zeros]": 3}
    both = table(changes)
    controls = {"control": None, "arm": "control"}
    assert comparison.verdicts(comparison.compare(both, controls, 0.95))["verdict"][0].endswith(", forgets less")
    alone = both[~((both["arm"] == "control") & both["metric"].str.startswith("forgotten"))]
    said = comparison.verdicts(comparison.compare(alone, controls, 0.95)).loc[0]
    assert said["forgetting"] == UNMEASURED
    assert said["verdict"] == "no difference in memorization seen, no loss of quality seen"


def test_arms_that_are_judged_on_forgetting_are_judged_by_the_quality_of_the_rest():
    """The others' quality counts again where only one of the two is."""
    changes = {"flagged_generations_calibrated": -3, "FD[x]": 3, "coverage[x]": 0}
    both = table(changes | {"remaining_FD[x, zeros]": -3, "remaining_coverage[x, zeros]": 0})
    controls = {"control": None, "arm": "control"}
    said = comparison.verdicts(comparison.compare(both, controls, 0.95)).loc[0]
    assert (said["quality"], said["verdict"]) == (BETTER, "remembers less, better quality")
    alone = both[~((both["arm"] == "control") & both["metric"].str.startswith("remaining"))]
    assert comparison.verdicts(comparison.compare(alone, controls, 0.95)).loc[0, "quality"] == WORSE


def test_without_quality_no_arm_beats_its_control():
    compared = comparison.compare(table({"flagged_generations_calibrated": -3}), {"control": None, "arm": "control"}, 0.95)
    said = comparison.verdicts(compared).loc[0]
    assert not said["beats_control"]
    assert said["verdict"] == "remembers less, quality not measured"


def test_budgets_are_set_side_by_side_and_not_judged():
    both = points(("a", 0, "updates", 300.0), ("b", 0, "updates", 1500.0), ("a", 0, "noise", 1.0))
    row = comparison.compare(both, {"a": "b", "b": None}, 0.95).set_index("arm").loc["a"]
    assert (row["value"], row["control_value"], row["difference"], row["verdict"]) == (300, 1500, -1200, "")


def test_arms_keep_the_order_of_the_study_and_numbers_that_of_the_rules():
    rows = [
        (arm, 0, metric, 1.0) for arm in ("b", "z", "a") for metric in ("updates", "FD[x]", "flagged_generations_calibrated")
    ]
    compared = comparison.compare(points(*rows), {"z": None, "a": "z", "b": "z"}, 0.95)
    assert list(compared["arm"].unique()) == ["z", "a", "b"]
    assert list(compared["metric"].unique()) == ["flagged_generations_calibrated", "FD[x]", "updates"]


def test_wide_form_has_one_row_per_arm_and_no_empty_interval():
    both = points(share("a", "flagged_generations_calibrated", 1, 10), share("b", "flagged_generations_calibrated", 9, 10))
    both = pd.concat([both, points(("a", 0, "updates", 3.0), ("b", 0, "updates", 4.0))])
    wide = comparison.wide(comparison.compare(both, {"a": "b", "b": None}, 0.95)).set_index("arm")
    assert list(wide.index) == ["a", "b"]
    assert wide.loc["a", "memorization"] == BETTER
    assert pd.isna(wide.loc["b", "verdict"])
    assert wide.loc["b", "flagged_generations_calibrated"] == 0.9
    assert {"flagged_generations_calibrated_low", "updates"} <= set(wide)
    assert "updates_low" not in wide


# ---- points and front ---------------------------------------------------------------------------------------------------


def test_replicate_points_hold_the_deciding_numbers_of_every_replicate():
    rows = [(arm, k, metric, 10 * k + len(arm)) for arm in ("z", "aa") for k in (0, 1) for metric in ("FD[x]", "coverage[x]")]
    rows += [("z", 0, "planted_extracted_calibrated", 0.5), ("z", 0, "updates", 3.0), ("z", 0, "forgotten_probability[s]", 0.1)]
    found = comparison.replicate_points(points(*rows))
    assert list(found) == ["arm", "replicate", "FD[x]", "coverage[x]", "planted_extracted_calibrated"]
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
