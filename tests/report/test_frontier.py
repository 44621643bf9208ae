"""Paths against plain training: known differences, what cannot be compared, and what it cost."""

import numpy as np
import pandas as pd
import pytest

from afterimage.report import frontier, verdicts
from afterimage.report.tables import prices

SHARES = {"path1": 0.25, "path2": 0.5, "last": 1.0}
AXIS, COVERAGE = "FD_balanced[classifier]", "coverage[classifier]"


def path(arm, replicate, flagged, distances, planted=(2, 8, 16), alarms=1):
    """Return the results of one path: copies among 1,000 generations, and distances."""
    rows = []
    for (state, share), copies, distance, found in zip(
        SHARES.items(), flagged, distances, planted, strict=True
    ):
        cell = {"arm": arm, "replicate": replicate, "state": state, "share": share}
        counts = {
            verdicts.PRIMARY: (copies, 1000),
            frontier.ALARMS: (alarms, 1000),
            "planted_extracted_calibrated": (found, 32),
        }
        for metric, (count, of) in counts.items():
            rows.append(cell | {"metric": metric, "value": count / of, "count": count, "of": of})
        rows.append(cell | {"metric": AXIS, "value": distance})
        rows.append(cell | {"metric": COVERAGE, "value": 1 - distance / 10})
    return pd.DataFrame(rows)


def plain(replicate, extra=0):
    return path("plain", replicate, (10 + extra, 50 + extra, 300 + extra), (6.0, 3.0, 1.5))


def deciding(*paths, **frontiers):
    table = frontier.compare(pd.concat(paths), {"plain": None, **frontiers}, 0.95)
    return table[table["decides"]].set_index("arm")


def test_half_the_odds_at_equal_quality_is_better_whatever_the_budget():
    """The remedy needs more of its budget for the same distances: that is not held against it."""
    rng = np.random.default_rng(0)
    paths = []
    for k in range(5):
        odds = np.array([10, 50, 300]) / (1000 - np.array([10, 50, 300])) / 2
        copies = np.rint(1000 * odds / (1 + odds)).astype(int) + rng.integers(-1, 2, 3)
        paths += [plain(k, k), path("remedy", k, copies + k // 2, (6.0, 3.0, 1.5))]
    row = deciding(*paths, remedy="plain").loc["remedy"]
    assert row["difference"] == pytest.approx(-np.log(2), abs=0.1)
    assert row["difference_low"] < row["difference"] < row["difference_high"] < 0
    assert row["verdict"] == verdicts.BETTER
    assert (row["best"], row["worst"]) == pytest.approx((1.5, 6.0))
    assert row["p_adjusted"] == row["p"] < 0.05
    assert 0 < row["detectable"] < np.log(2)


def test_the_same_path_walked_slower_is_no_advantage():
    rng = np.random.default_rng(1)
    paths = []
    for k in range(5):
        shared = int(rng.integers(0, 9))
        copies = (5 + shared, 10 + shared, 50 + shared)
        paths += [plain(k, shared), path("slow", k, copies, (7.0, 6.0, 3.0 + 0.05 * k))]
    row = deciding(*paths, slow="plain").loc["slow"]
    assert abs(row["difference"]) < 0.1
    assert row["verdict"] != verdicts.BETTER


def test_what_is_reached_by_one_alone_is_not_compared():
    far = [path("far", k, (0, 0, 1), (30.0, 20.0, 10.0)) for k in range(3)]
    some = [*far[:2], path("far", 2, (0, 0, 1), (30.0, 20.0, 5.0))]
    for paths, overlapping in ((far, 0), (some, 1)):
        row = deciding(*paths, *map(plain, range(3)), far="plain").loc["far"]
        assert row["verdict"] == frontier.NO_OVERLAP
        assert row["overlapping"] == overlapping
        assert np.isnan(row["p_adjusted"])


def test_nothing_is_less_than_false_alarms():
    """Both stop before plain training copies: the distances that both reach tell nothing."""
    paths = [path("plain", k, (0, 1, 0 + k), (6.0, 3.0, 1.5)) for k in range(3)]
    paths += [path("early", k, (0, 0, k), (7.0, 5.0, 2.0)) for k in range(3)]
    assert deciding(*paths, early="plain")["verdict"]["early"] == verdicts.NOT_TESTABLE


def test_one_training_gives_no_verdict_and_equal_ones_no_measure():
    odds = path("remedy", 0, (5, 20, 100), (6.0, 3.0, 1.5))
    assert deciding(plain(0), odds, remedy="plain")["verdict"]["remedy"] == verdicts.ONE_TRAINING
    equal = [table.assign(replicate=k) for k in range(3) for table in (plain(0), odds)]
    row = deciding(*equal, remedy="plain").loc["remedy"]
    assert row["verdict"] == verdicts.UNMEASURED
    assert row["difference"] < 0


def test_every_compared_arm_is_in_the_family():
    rng = np.random.default_rng(2)
    arms = [f"arm{n}" for n in range(4)]
    paths = [plain(k, k) for k in range(4)]
    for arm in arms:
        for k in range(4):
            copies = tuple(int(c + k + rng.integers(0, 15)) for c in (8, 40, 280))
            paths.append(path(arm, k, copies, (6.0, 3.0, 1.5)))
    table = deciding(*paths, **dict.fromkeys(arms, "plain"))
    ordered = table.sort_values("p")
    assert ordered["p_adjusted"].iloc[0] == pytest.approx(min(1, 4 * ordered["p"].iloc[0]))
    assert (table["p_adjusted"] >= table["p"]).all()


def test_one_number_decides_and_the_others_are_reported():
    paths = [
        table for k in range(3) for table in (plain(k, k), path("x", k, (9, 40 + k, 99), (6, 3, 2)))
    ]
    table = frontier.compare(pd.concat(paths), {"plain": None, "x": "plain"}, 0.95)
    assert [tuple(row) for row in table[["axis", "metric", "decides"]].to_numpy()] == [
        (AXIS, verdicts.PRIMARY, True),
        (AXIS, "planted_extracted_calibrated", False),
        (COVERAGE, verdicts.PRIMARY, False),
        (COVERAGE, "planted_extracted_calibrated", False),
    ]
    along = table[table["axis"] == COVERAGE].iloc[0]
    assert (along["best"], along["worst"]) == pytest.approx((0.8, 0.4))
    assert table["verdict"].ne("").tolist() == [True, False, False, False]


def test_a_study_without_paths_has_empty_tables():
    nothing = pd.DataFrame(columns=["arm", "replicate", "state", "share", "metric", "value"])
    assert frontier.compare(nothing, {"plain": None}, 0.95).empty
    assert frontier.paths(nothing, {}).empty


# ---- what it cost --------------------------------------------------------------------------------


def run(base, updates, samples, seconds):
    facts = {"updates_per_model": updates, "kept_samples": samples, "training_seconds": seconds}
    return {"config": {"settings": {"arm": {"base": base}}}, "facts": facts}


def test_a_state_costs_its_share_and_all_that_its_base_cost():
    runs = {
        ("plain", 0): run(None, 100, 6400, 10.0),
        ("tuned", 0): run("plain", 20, 1280, 4.0),
        ("again", 0): run("tuned", 8, 512, 2.0),
    }
    numbers = pd.concat([path(arm, 0, (1, 2, 3), (3, 2, 1)) for arm, _ in runs])
    table = frontier.paths(numbers, prices(runs)).set_index(["arm", "state"])
    assert table.loc[("plain", "path1"), list(frontier.PRICES)].tolist() == [25, 1600, 2.5]
    assert table.loc[("tuned", "path2"), list(frontier.PRICES)].tolist() == [110, 7040, 12]
    assert table.loc[("again", "last"), list(frontier.PRICES)].tolist() == [128, 8192, 16]
    assert list(dict.fromkeys(table.index.get_level_values("arm"))) == ["plain", "tuned", "again"]
