"""Seconds and memory of what jobs do beside networks, as measured and scaled to a study's images.

``measured.csv`` has one row for each step and study that ``benchmarks/measured.py`` read: the size
that a job of it had, and what it took. Between two measured sizes the line through them is taken,
below the smallest what that took, and beyond the largest the same in proportion, memory up to
``MOST_MB``.

A step without a row, such as a new attack, takes an upper default until it is measured: a minute
and 10 ms for each image of the study, and 8 bytes for each of their numbers twice.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from afterimage.config import Study
from afterimage.plan.cost.work import split_images, values

MOST_MB = 4096.0
"""What a step holds at most beside what is counted: of larger arrays it holds parts (``scratch``).
Steps on 1,000 images of 512 x 512 x 3, 0.8 GB, held at most 1.3 GB."""

TABLE = Path(__file__).with_name("measured.csv")
UNMEASURED = 60.0, 10e-3
"""Seconds of a step without a row, and for each image of the study."""


class Size(NamedTuple):
    """What a step's seconds and memory grow with.

    Attributes:
        numbers: That it reads: images times the numbers of one image, features, or results.
            Memory grows with them.
        compared: How many images each is compared with: seconds grow with both.
    """

    numbers: float
    compared: float = 1


class Measured(NamedTuple):
    """What a job takes beside networks.

    Attributes:
        seconds: Of one thread.
        megabytes: Beside libraries.
    """

    seconds: float = 0.0
    megabytes: float = 0.0


class Row(NamedTuple):
    """A row of the table: a step's job of a finished study."""

    step: str
    study: str
    numbers: float
    compared: float
    seconds: float
    megabytes: float


SizeOf = Callable[[Study, str], Size]
"""Study and name of a job -> its size."""


def images(study: Study) -> int:
    """Return the images of a study: those of its data and one arm's generations."""
    return split_images(study) + study.sample.images


def all_images(study: Study, name: str) -> Size:
    """Return the size of a step that reads every image a few times."""
    return Size(images(study) * values(study))


@cache
def rows() -> dict[str, list[Row]]:
    """Return step -> its measured rows."""
    found: dict[str, list[Row]] = {}
    with TABLE.open(newline="") as stream:
        for step, study, *counts in list(csv.reader(stream))[1:]:
            found.setdefault(step, []).append(Row(step, study, *map(float, counts)))
    return found


def measured(study: Study, step: str, size: Size) -> Measured:
    """Return what a job of a step takes beside networks."""
    known = rows().get(step)
    if known is None:
        fixed, each = UNMEASURED
        count = images(study)
        return Measured(fixed + each * count, min(MOST_MB, 16 * count * values(study) / 2**20))
    return Measured(
        _scaled(
            [(row.numbers * row.compared, row.seconds) for row in known],
            size.numbers * size.compared,
        ),
        min(MOST_MB, _scaled([(row.numbers, row.megabytes) for row in known], size.numbers)),
    )


def _scaled(points: list[tuple[float, float]], size: float) -> float:
    """Return what lies at a size on the line through measured points; of several at one size the
    largest counts."""
    known = sorted(dict(sorted(points)).items())
    for (low, before), (high, after) in pairwise(known):
        if size < high:
            return before + max(0.0, (size - low) / (high - low)) * (after - before)
    largest, cost = known[-1]
    return cost * max(1.0, size / largest)
