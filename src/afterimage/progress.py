"""Progress of a long computation: a bar on a terminal, or plain lines with the time left in a
log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

EVERY = 30.0
"""Seconds between two lines of a log."""


def batches(total: int, size: int, verb: str, noun: str) -> Iterator[int]:
    """Yield the first row of each batch, 0, size, 2 size, ..., and report the finished rows on
    standard error.

    On a terminal the report is a bar. Elsewhere it is a line at most every ``EVERY`` seconds, such
    as "drawn 320 of 1000 generations (32 %), 3 min 10 s left"; a shorter computation prints
    nothing. The time left assumes a constant speed.

    Args:
        total: Total number of rows.
        size: Rows per batch; the last may be shorter.
        verb: What is done with each row, as a participle: "drawn".
        noun: What rows are, in the plural: "generations".
    """
    started = printed = time.monotonic()
    # disable=None: disabled without a terminal.
    with tqdm(total=total, desc=verb, unit=f" {noun}", disable=None) as bar:
        for first in range(0, total, size):
            yield first
            done = min(first + size, total)
            bar.update(done - first)
            now = time.monotonic()
            if bar.disable and done < total and now - printed >= EVERY:
                printed = now
                left = span((now - started) / done * (total - done))
                print(
                    f"{verb} {done} of {total} {noun} ({100 * done // total} %), {left} left",
                    file=sys.stderr,
                    flush=True,
                )


def span(seconds: float) -> str:
    """Return a duration for people: "40 s", "3 min 10 s", "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
