"""The documented onsets of the watch are those of the committed table."""

import pandas as pd
import pytest


@pytest.fixture(scope="module")
def onset(script):
    return script("onset")


@pytest.fixture(scope="module")
def table(root):
    return pd.read_csv(root / "docs" / "onset.csv")


def test_the_page_shows_the_table(shown, onset, table):
    assert shown("watching.md", "onset") == onset["markdown"](table)


def test_there_are_ten_trainings_of_either_kind(onset, table):
    assert table.groupby("study", sort=False)["training"].nunique().to_dict() == dict.fromkeys(
        onset["STUDIES"], 10
    )


def test_how_late_counts_states_between_the_two_answers(onset, table):
    for name, rows in table.groupby("study"):
        updates = onset["STUDIES"][name]["train"]["updates"]
        states = [round(share * updates) for share in onset["SHARES"]]
        both = rows.dropna()
        late = [
            states.index(watch) - states.index(full)
            for watch, full in zip(both["watch"], both["full"], strict=True)
        ]
        assert late == both["late"].tolist()
        assert set(rows["watch"].dropna()) | set(rows["full"].dropna()) <= set(states)
