"""The documented shares of near-duplicates found are those of the committed table, and the table
those of the code."""

import pandas as pd
import pytest
from scipy.stats import binom


@pytest.fixture(scope="module")
def duplicates(script):
    return script("duplicates")


@pytest.fixture(scope="module")
def table(root):
    return pd.read_csv(root / "docs" / "duplicates.csv")


def test_the_page_shows_the_table(shown, duplicates, table):
    assert shown("remedies.md", "duplicates") == duplicates["markdown"](table)


@pytest.mark.slow
def test_the_table_is_what_the_code_gives(real_data, duplicates, table):
    """For the two changes that tell the detectors apart best. Other copies are drawn than for the
    table; the shares agree to within chance."""
    changes = [{"kind": "colour", "strength": 0.4}, {"kind": "shift", "pixels": 4}]
    found = duplicates["table"](real_data, changes)
    expected = table.set_index("change").loc[found["change"]]
    copies = duplicates["COPIES"]
    for name in duplicates["DETECTORS"]:
        for now, before in zip(found[f"found_{name}"], expected[f"found_{name}"], strict=True):
            share = min(max(before, 1 / copies), 1 - 1 / copies)
            low, high = binom.ppf([1e-4, 1 - 1e-4], copies, share) / copies
            assert low - 0.05 <= now <= high + 0.05
