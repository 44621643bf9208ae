"""Published numbers stand once, where the pages read them."""

from pathlib import Path

import pytest

from afterimage.report import arms, published

ROOT = Path(__file__).parent.parent.parent
ERASEDIFF = [str(row.fid) for row in published.ERASEDIFF.values()]
DTRAK = [
    number for pair in published.DTRAK.values() for cell in pair for number in cell.split(" / ")
]


@pytest.mark.parametrize(
    ("study", "table", "numbers"),
    [("erasediff-cifar10", "ERASEDIFF", ERASEDIFF), ("cifar2-das", "DTRAK", DTRAK)],
)
def test_a_study_points_to_the_table_and_does_not_repeat_it(study, table, numbers):
    text = (ROOT / "studies" / f"{study}.yaml").read_text()
    assert f"`{table}` in src/afterimage/report/published.py" in text
    assert not [number for number in numbers if f" {number}" in text.split("# Costs")[0]]


def test_tables_are_of_possible_numbers():
    for row in published.ERASEDIFF.values():
        assert 0 <= row.probability <= 1
        assert 0 <= row.precision <= 1
        assert 0 <= row.recall <= 1
        assert row.fid > 0
    assert published.ERASEDIFF_SECONDS.keys() < published.ERASEDIFF.keys()


def test_rows_of_loyal_stand_for_networks_that_there_are():
    networks = [row.networks for row in published.LOYAL if row.networks]
    assert set(networks) - {published.HELD_OUT} < arms.NETWORKS.keys()
    kinds = [row[1:2] + row[3:] for row in published.LOYAL if row.networks]
    assert len(set(kinds)) == len(kinds)
