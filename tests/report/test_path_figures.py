"""Drawings of paths: every arm once, beside the plain training that it is compared with."""

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from afterimage.report.frontier import PRICES
from afterimage.report.path_figures import PathFigures
from afterimage.report.verdicts import PRIMARY

AXIS = "FD_balanced[classifier]"
ARMS = {"plain": "baseline", "agc": "iet_agc", "labels": "baseline", "salun": "salun", "text": "x"}


def tables(frontier: dict[str, str], arms=ARMS) -> tuple[pd.DataFrame, pd.DataFrame]:
    paths = pd.DataFrame(
        {
            "arm": arm,
            "method": "baseline" if arm == "text" else method,
            "replicate": 0,
            "state": f"path{state}",
            "share": (state + 1) / 2,
            "generations": 100,
            AXIS: 4.0 - state,
            PRIMARY: 0.1 * state,
            **dict.fromkeys(PRICES, 10.0 * (state + 1)),
        }
        for arm, method in arms.items()
        for state in range(2)
    )
    compared = pd.DataFrame({"arm": frontier.keys(), "frontier": frontier.values()}, dtype=str)
    return paths, compared


@pytest.fixture(autouse=True)
def closed():
    """Close the figures of each test."""
    yield
    plt.close("all")


def panels(figure) -> dict[str, int]:
    return {axis.get_title(): len(axis.get_lines()) for axis in figure.axes if axis.get_title()}


def test_arms_are_beside_their_plain_training():
    drawn = PathFigures(*tables({"agc": "plain", "salun": "labels"})).copies()
    assert panels(drawn) == {
        "beside plain": 2,
        "beside labels": 2,
        "compared with no plain training": 1,
    }


@pytest.mark.parametrize("arms", [ARMS, {"plain": "baseline"}])
def test_without_any_comparison_every_path_is_drawn(arms):
    drawn = PathFigures(*tables({}, arms)).copies()
    assert panels(drawn) == {"compared with no plain training": len(arms)}


def test_a_share_of_zero_is_drawn_at_half_a_generation():
    figures = PathFigures(*tables({"agc": "plain"}))
    line = figures.copies().axes[0].get_lines()[0]
    assert line.get_ydata().tolist() == pytest.approx([0.005, 0.1])


def test_arms_of_one_colour_differ_in_their_dashes():
    """In the figure of prices, which has no names at the lines, by the legend alone."""
    arms = {"plain": "baseline", "agc": "iet_agc", "iet": "iet_agc", "salun": "salun"}
    drawn = PathFigures(*tables({"agc": "plain", "iet": "plain"}, arms)).prices()
    legend = {
        text.get_text(): (line.get_color(), line.get_linestyle())
        for text, line in zip(
            drawn.legends[0].get_texts(), drawn.legends[0].get_lines(), strict=True
        )
    }
    assert list(legend) == list(arms)
    assert legend["agc"][0] == legend["iet"][0]
    assert len(set(legend.values())) == len(arms)
    for axis in drawn.axes:
        lines = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axis.lines}
        assert lines == legend
