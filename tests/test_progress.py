"""Lines of a log, against a clock that the test moves."""

import pytest

from afterimage import progress


def test_a_log_gets_a_line_at_most_every_thirty_seconds_with_the_time_left(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    seen = []
    for first in progress.batches(1000, 160, "drawn", "generations"):
        seen.append(first)
        clock[0] += 20.0
    assert seen == [0, 160, 320, 480, 640, 800, 960]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [  # after 40, 80 and 120 s, at 8 generations a second
        "drawn 320 of 1000 generations (32 %), 1 min 25 s left",
        "drawn 640 of 1000 generations (64 %), 45 s left",
        "drawn 960 of 1000 generations (96 %), 5 s left",
    ]


def test_what_is_soon_done_says_nothing(capsys):
    assert list(progress.batches(5, 2, "drawn", "generations")) == [0, 2, 4]
    assert list(progress.batches(0, 2, "drawn", "generations")) == []
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_instead(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    for _ in progress.batches(4, 2, "drawn", "generations"):
        clock[0] += 60.0
    said = capsys.readouterr().err
    assert "4/4" in said
    assert " left" not in said


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (190, "3 min 10 s"), (7500, "2 h 5 min")],
)
def test_lengths_of_time_are_said_as_people_do(seconds, words):
    assert progress.span(seconds) == words
