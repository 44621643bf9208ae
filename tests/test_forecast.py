"""The documented forecasts are those of the committed table."""

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def forecast(script):
    return script("forecast")


@pytest.fixture(scope="module")
def table(root):
    return pd.read_csv(root / "docs" / "forecast.csv")


def test_the_page_shows_the_table(shown, forecast, table):
    assert shown("watching.md", "forecast") == forecast["markdown"](table)


def test_there_are_ten_pairs(forecast, table):
    assert len(table) == 10
    assert set(zip(table["images"], table["foretold"], strict=True)) == set(
        forecast["PAIRS"].items()
    )


def test_ratios_are_those_of_the_middles(table):
    seen, told = (
        np.sqrt(table[f"{name}_after"] * table[f"{name}_from"]) for name in ("seen", "forecast")
    )
    known = table["ratio"].notna()
    np.testing.assert_allclose(table["ratio"][known], (seen / told)[known])


def test_copying_never_starts_before_the_gap_that_was_foretold(table):
    """As the page and the command say."""
    assert (table["seen_from"].isna() | (table["seen_from"] > table["forecast_after"])).all()
