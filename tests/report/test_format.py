"""How pages write numbers."""

import math

import pytest

from afterimage.report import format

NAN = math.nan


@pytest.mark.parametrize(
    ("ends", "options", "shown"),
    [
        ((0.12345,), {}, "0.123"),
        ((0.12345,), {"unit": "%", "sign": "+"}, "+12.3 %"),
        ((-0.5, -0.75, 0.25), {"unit": "%", "sign": "+"}, "-50.0 % <small>[-75.0, +25.0]</small>"),
        ((-0.5, -0.75, 0.25), {"unit": "points"}, "-50.0 <small>[-75.0, 25.0]</small>"),
        ((3.75, 2.6, 4.8), {}, "3.75 <small>[2.6, 4.8]</small>"),
        ((0.5, 0.5, 0.5), {}, "0.5"),
        ((NAN, 0.1, 0.2), {}, "n/a"),
        ((999.4, 12.5, 65536.4), {"digits": 4}, "999.4 <small>[12.5, 65,536]</small>"),
        ((-1234.5, NAN, NAN), {"sign": "+"}, "-1,234"),
        ((0.0, 0.0, 0.06), {"unit": "%"}, "0.0 % <small>[0.0, 6.0]</small>"),
    ],
)
def test_numbers_are_shown_with_their_intervals(ends, options, shown):
    assert format.interval(*ends, **options) == shown


def test_names_are_escaped_once():
    assert format.bold("a<b") == "<b>a&lt;b</b>"
    assert format.bold(format.italic("a<b")) == "<b><i>a&lt;b</i></b>"
    assert format.html("a<b") == "a&lt;b"
    assert format.html(format.bold("a")) == "<b>a</b>"
    assert format.html(NAN) == ""
    assert format.html(0.5) == "0.5"


@pytest.mark.parametrize(
    ("replicates", "kind"),
    [
        (1, "within the one training, exact for shares and counts"),
        (3, "between 3 replicates (Student's t)"),
    ],
)
def test_brackets_say_what_they_span(replicates, kind):
    assert format.brackets(0.9, replicates).startswith(f"In brackets: 90 % intervals {kind}")
