"""How pages write numbers and trim their plots."""

import math

import pytest
from matplotlib.figure import Figure

from afterimage.report.notebook import text, within


@pytest.mark.parametrize(
    ("arguments", "options", "shown"),
    [
        ((0.12345,), {}, "0.123"),
        ((0.12345,), {"percent": True, "sign": "+"}, "+12.3 %"),
        (
            (-0.5, -0.75, 0.25),
            {"percent": True, "sign": "+"},
            "-50.0 % <small>[-75.0, +25.0]</small>",
        ),
        ((3.75, 2.6, 4.8), {}, "3.75 <small>[2.6, 4.8]</small>"),
        ((0.5, 0.5, 0.5), {}, "0.5"),
        ((math.nan, 0.1, 0.2), {}, "n/a"),
    ],
)
def test_numbers_are_shown_with_their_intervals(arguments, options, shown):
    assert text(*arguments, **options) == shown


def test_axes_end_at_values_that_can_be():
    axis = Figure().subplots()
    axis.plot([-3, 0.5, 4], [0, 0, 0])
    within(axis)
    assert axis.get_xlim() == pytest.approx((-0.02, 1.02))
    axis.set_xlim(5, 6)  # all beyond the end: still an axis
    within(axis)
    low, high = axis.get_xlim()
    assert low < high
