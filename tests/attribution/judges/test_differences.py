"""The table of differences between attributors, and its adjustment for the number of pairs."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from afterimage.attribution.judges import differences, lds


def test_holm_on_numbers_worked_out_by_hand():
    """4 x 0.01, 3 x 0.02, 2 x 0.03 raised to the one before, 0.04 likewise; in any order."""
    p_values = np.array([0.03, 0.01, 0.04, 0.02])
    assert differences.holm(p_values) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert differences.holm(np.array([0.9, 0.8])) == pytest.approx([1, 1])


def test_a_missing_p_value_makes_the_others_no_smaller():
    found = differences.holm(np.array([0.01, np.nan, 0.02]))
    assert found == pytest.approx([0.03, np.nan, 0.04], nan_ok=True)


def test_holm_is_never_below_a_false_discovery_rate_nor_above_bonferroni():
    p_values = np.random.default_rng(0).uniform(size=40) ** 3
    found = differences.holm(p_values)
    assert (found >= false_discovery_control(p_values) - 1e-12).all()
    assert (found <= np.minimum(40 * p_values, 1) + 1e-12).all()


def test_every_pair_stands_in_the_table_once_with_its_difference():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(16, 20))
    noise = {"good": 0.3, "fair": 0.9, "poor": 5.0}
    correlations = {
        name: lds.correlate(truth + size * rng.normal(size=truth.shape), truth)
        for name, size in noise.items()
    }
    table = differences.between_attributors(correlations, 0.95)
    assert table.columns.tolist() == differences.COLUMNS
    assert table[["attributor", "other"]].to_numpy().tolist() == [
        ["good", "fair"],
        ["good", "poor"],
        ["fair", "poor"],
    ]
    score = {name: lds.score_of(each, 0.95).value for name, each in correlations.items()}
    for row in table.to_dict("records"):
        assert row["difference"] == pytest.approx(score[row["attributor"]] - score[row["other"]])
        assert 0 < row["low"] < row["difference"] < row["high"]
    assert table["p_adjusted"].to_numpy() == pytest.approx(differences.holm(table["p"].to_numpy()))


def test_where_nothing_differs_few_families_have_a_finding():
    """Ten attributors of the same quality, 45 pairs: any finding in at most 5 % of 100 tables, give
    or take; unadjusted, in most."""
    adjusted, unadjusted, tables = 0, 0, 100
    for table in range(tables):
        rng = np.random.default_rng(table)
        truth, signal = rng.normal(size=(2, 16, 12))
        names = [f"attributor_{number}" for number in range(10)]
        correlations = {
            name: lds.correlate(truth + signal + rng.normal(size=truth.shape), truth)
            for name in names
        }
        found = differences.between_attributors(correlations, 0.95)
        adjusted += (found["p_adjusted"] < 0.05).any()
        unadjusted += (found["p"] < 0.05).any()
    assert adjusted <= 11
    assert unadjusted > tables / 2


def test_a_single_attributor_has_no_differences():
    truth = np.random.default_rng(0).normal(size=(8, 3))
    table = differences.between_attributors({"das": lds.correlate(truth, truth)}, 0.95)
    assert table.columns.tolist() == differences.COLUMNS
    assert table.empty
