"""The documented error rate and power of an audit are those of the committed table, and the table
those of the code."""

import pandas as pd
import pytest
from scipy.stats import binom


@pytest.fixture(scope="module")
def power(script):
    return script("audit_power")


@pytest.fixture(scope="module")
def table(root):
    return pd.read_csv(root / "docs" / "audit-power.csv")


def test_the_page_shows_the_table(shown, power, table):
    assert shown("auditing.md", "audit-power") == power["markdown"](table)


def test_the_table_is_what_the_code_gives(power, table):
    for row in table[table["held_out"].isin([100, 400])].itertuples():
        found = power["shown"](row.held_out, row.copying_rate, 0.01, 200)
        low, high = binom.ppf([1e-4, 1 - 1e-4], 200, row.shown_nearest_percent) / 200
        assert low - 0.02 <= found <= high + 0.02
        assert power["visible_rate"](1000, row.held_out, 0.95) == pytest.approx(
            row.visible_rate, abs=1e-4
        )


def test_without_copies_at_most_5_of_100_audits_show_any(table):
    none = table[table["copying_rate"] == 0]
    assert (
        none[["shown_nearer_than_all", "shown_nearest_percent"]] * 1000
        <= binom.ppf(0.999, 1000, 0.05)
    ).all(axis=None)
