"""Drawing that pages share."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from afterimage.report import figures, verdicts


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_error_bars_never_point_inwards():
    assert figures.error(1, 0.5, 3) == [[0.5], [2]]
    assert figures.error(1, 1.1, 3) == [[0], [2]]
    assert figures.error(1, math.nan, math.nan) is None


def test_axes_end_at_values_that_can_be():
    axis = Figure().subplots()
    axis.plot([-3, 0.5, 4], [0, 0, 0])
    figures.trim(axis)
    assert axis.get_xlim() == pytest.approx((-0.02, 1.02))
    axis = Figure().subplots()
    axis.plot([5, 6], [0, 0])  # all beyond the end: still an axis
    figures.trim(axis)
    assert axis.get_xlim() == pytest.approx((1.02, 1.12))


@pytest.mark.parametrize(
    ("values", "ticks"),
    [((1, 10), [1, 2, 5, 10]), ((0.9, 1200), [1, 5, 20, 100, 500]), ((3.05, 3.4), None)],
)
def test_logarithmic_ticks_are_plain_numbers(values, ticks):
    axis = Figure().subplots()
    axis.set_ylim(*values)
    figures.log_axis(axis, "y")
    assert axis.get_yscale() == "log"
    assert len(axis.get_yticks()) >= 2, "an axis without ticks cannot be read"
    assert not any("10^" in label.get_text() for label in axis.get_yticklabels())
    if ticks:
        np.testing.assert_allclose(axis.get_yticks(), ticks)


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_a_grid_has_a_panel_each_and_the_lowest_of_each_column_has_its_ticks(count):
    figure, axes = figures.grid(count, 3, 1, 1, sharex=True)
    assert len(axes) == count
    assert len([axis for axis in figure.axes if axis.axison]) == count
    for axis in axes[-3:]:
        assert axis.xaxis.get_tick_params()["labelbottom"]


def test_rows_are_named_from_the_top():
    _, axes = figures.row_panels(["a", "b", "c"], 2, at=[0, 1, 2.8])
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["a", "b", "c"]
    top, bottom = axes[1].transData.transform([(0, 0), (0, 2.8)])[:, 1]
    assert top > bottom
    assert figures.row_panels([], 1)


def test_labels_do_not_overlap_and_are_the_same_every_time():
    contents = []
    for _ in range(2):
        figure, axis = plt.subplots(figsize=(6, 4))
        points = np.array([[0.5, 0.5], [0.51, 0.5], [0.5, 0.51], [0.51, 0.51]])
        axis.set(xlim=(0, 1), ylim=(0, 1))
        figures.label_points(axis, points, ["first", "second", "third", "fourth"], ["k"] * 4)
        boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
        assert len(boxes) == 4
        assert not any(a.overlaps(b) for a in boxes for b in boxes if a is not b)
        buffer = io.BytesIO()
        figure.savefig(buffer, metadata={"Software": None})
        contents.append(buffer.getvalue())
    assert contents[0] == contents[1]


def test_every_verdict_has_a_colour_and_better_is_not_worse():
    colours = {verdict: figures.verdict_colour(verdict) for verdict in every_verdict()}
    assert colours[verdicts.BETTER] != colours[verdicts.WORSE]
    undecided = {colour for verdict, colour in colours.items() if verdict not in figures.VERDICTS}
    assert undecided == {figures.UNDECIDED[0]}
    assert figures.verdict_colour(math.nan) == figures.UNDECIDED[0]


def every_verdict() -> tuple[str, ...]:
    return (
        *(verdicts.BETTER, verdicts.WORSE, verdicts.UNSEEN, verdicts.UNMEASURED),
        *(verdicts.NOT_TESTABLE, verdicts.ONE_TRAINING, verdicts.TRAINED_LESS),
        *(verdicts.NO_WORSE, verdicts.NOT_SHOWN),
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_stand_side_by_side_with_white_between(channels):
    images = [np.full((2, 3, channels), value, np.uint8) for value in (10, 20)]
    row = figures.side_by_side(images, gap=2)
    assert row.shape == (2, 8, channels)
    assert row[0, :, 0].tolist() == [10, 10, 10, 255, 255, 20, 20, 20]
