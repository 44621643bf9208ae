"""What the pages compute themselves, with answers that were known before."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from afterimage import artifacts
from afterimage.metrics.intervals import Interval
from afterimage.report import comparison, names, verdicts
from afterimage.report.notebook import by_keys
from afterimage.report.pages import erasediff, extraction
from afterimage.report.pages.comparison import HEADS, axis_limit, groups
from afterimage.report.pages.frontier import Frontier

NAN = math.nan


def test_a_control_heads_its_group_and_stands_in_that_of_its_own_control():
    control_of = {"b": "a", "c": "b", "d": "a"}
    assert groups(["e", "a", "b", "c", "d"], control_of) == [["a", "b", "d"], ["b", "c"], ["e"]]
    assert groups(["a", "b"], {}) == [["a"], ["b"]]


def test_every_outcome_has_a_head():
    outcomes = (verdicts.YES, verdicts.NO, verdicts.NOT_SHOWN, verdicts.TRAINED_LESS)
    alone = (verdicts.NOT_TESTABLE, verdicts.UNMEASURED, verdicts.ONE_TRAINING)
    assert set(HEADS) == {*outcomes, *alone}


@pytest.mark.parametrize(
    ("replicates", "compared", "said"),
    [
        (5, 2, "Student's over replicates; the p-values that decide are adjusted for 2 "),
        (1, 2, "One training of each arm has no interval and decides nothing."),
        (5, 0, ""),
    ],
)
def test_the_caption_of_paths_speaks_of_intervals_where_there_are_some(replicates, compared, said):
    tables = {
        "paths": pd.DataFrame(
            {"arm": ["plain"], "method": "baseline", "share": 1.0, "generations": 50, "FD[x]": 1.0}
        ),
        "frontier": pd.DataFrame(
            {"arm": "agc", "frontier": "plain", "decides": True, "replicates": replicates},
            index=range(compared),
        ),
    }
    caption = Frontier(SimpleNamespace(table=tables.get, level="95 %")).caption()
    points, stand, rest = caption.partition("states without a copy stand at 1 %.")
    assert points.startswith("Points are the states of each training (100 % of its budget)")
    assert stand
    assert said in rest
    assert bool(rest) == bool(said)
    assert ("p-values" in rest) == (replicates > 1 and compared > 0)


def rows(*ends: tuple[float, float, float]) -> list[dict[str, float]]:
    columns = ("difference", "difference_low", "difference_high")
    return [dict(zip(columns, row, strict=True)) for row in ends]


@pytest.mark.parametrize(
    ("ends", "limit"),
    [
        ([(0, -1, 1), (0, -2, 1), (0, -1, 2)], 2.2),
        ([(0, -1, 1), (0, -1, 1), (0, -1, 1), (0, -1, 50)], 1.1),  # one that is much wider
        ([(3, NAN, NAN), (-4, NAN, NAN)], 4.4),  # none has an interval
        ([(3, NAN, NAN), (0, -1, 1)], 1.1),
        ([], 1),
    ],
)
def test_a_panel_reaches_as_far_as_most_intervals(ends, limit):
    assert axis_limit(rows(*ends)) == pytest.approx(limit)


def test_every_count_of_copies_has_its_false_alarms():
    """The same pairs by which verdicts are judged."""
    for metric, rule in comparison.METRICS.items():
        if rule.alarms and metric in ("flagged_generations", *extraction.CALIBRATED):
            assert extraction.floor_of(metric) == rule.alarms
    assert extraction.floor_of("FD[classifier]") == "FD[classifier] of holdout"
    assert names.frechet_of(["FD[a] of holdout", "FD[a]"]) == "FD[a]"


def test_the_answer_of_an_attack_in_words():
    verdict = {
        **{"outcome": "not shown", "copies": 0, "generations": 9, "flagged": 1},
        **{"false_alarms": 2, "images_at_least": 0, "held_out": 50, "visible_rate": None},
    }
    facts = {
        "verdict": verdict,
        "holdout_left_out": {"exact": 2, "near": 3},
        "low_detail_generations": 4,
        "zero_means_generations": {"training": 1, "candidate": 6},
        "calibration_impossible": ["training", "candidate"],
    }
    answer = extraction.answer(facts)
    assert answer["copying rate that would be seen"] == "none"
    assert answer["left out as duplicates"] == 5
    assert answer["without a ratio"] == 6
    assert answer["no calibrated alpha"] == "training, candidate"
    verdict["visible_rate"] = 0.0456
    assert extraction.answer(facts)["copying rate that would be seen"] == "4.6 %"


@pytest.mark.parametrize(
    ("verdict", "lower", "said"),
    [
        (verdicts.BETTER, True, "as published"),
        (verdicts.WORSE, False, "as published"),
        (verdicts.BETTER, False, "the other way round"),
        (verdicts.WORSE, True, "the other way round"),
        (verdicts.UNSEEN, True, verdicts.UNSEEN),
        (verdicts.NOT_TESTABLE, False, verdicts.NOT_TESTABLE),
    ],
)
def test_orders_are_held_against_the_published_ones(verdict, lower, said):
    assert erasediff.order(verdict, lower) in (said, f"<b>{said}</b>")


def test_differences_in_words():
    change = Interval(-0.25, -0.5, -0.125)
    told = comparison.Difference(change, comparison.PAIRED, 0.01)
    found = erasediff.worded(told, verdicts.BETTER)
    assert found == "<b>lower</b>: -0.25 <small>[-0.5, -0.125]</small>"
    found = erasediff.worded(told, verdicts.UNSEEN)
    assert found.startswith("no difference seen: -0.25")
    equal = comparison.Difference(change, comparison.WITHIN)
    assert erasediff.worded(equal, verdicts.UNMEASURED).startswith("the same in all trainings: ")
    unknown = comparison.Difference(Interval(NAN, NAN, NAN), "")
    assert erasediff.worded(unknown, verdicts.UNMEASURED).startswith("not measured")


def test_pairs_are_counted_by_their_order():
    orders = [erasediff.order(verdict, True) for verdict in (verdicts.BETTER, verdicts.WORSE)]
    table = [{"the order": order} for order in [orders[0], *orders, verdicts.UNSEEN]]
    assert erasediff.counted(table) == (
        "Of these 4 pairs: 2 as published, 1 the other way round, 1 no difference seen."
    )


def test_exact_intervals_come_before_those_of_the_bootstrap():
    numbers = pd.DataFrame(
        {"low": [1.0, 2], "high": [3.0, 4], "exact_low": [NAN, 0], "exact_high": [NAN, 9]}
    )
    taken = erasediff.with_exact_intervals(numbers)
    np.testing.assert_array_equal(taken[["low", "high"]], [[1, 3], [0, 9]])


def test_rows_by_their_keys_and_never_two_of_one():
    table = pd.DataFrame({"arm": ["a", "b"], "metric": ["m", "m"], "value": [1.0, 2.0]})
    assert by_keys(table, "arm", "metric")["b", "m"]["value"] == 2
    with pytest.raises(artifacts.ArtifactError, match="same metric"):
        by_keys(table, "metric")
