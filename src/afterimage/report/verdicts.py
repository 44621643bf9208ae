"""The rules by which an arm is judged against its control. No tables here: words from numbers.

Every function takes arrays (or single numbers) and returns arrays of words, so that a test can put
thousands of whole tables through these very rules and count the false verdicts.

**Memorization** has one primary number, ``PRIMARY``: the generations flagged at the threshold that
is calibrated on held-out images. It is the one with the most units (every generation) and so the
smallest differences seen; its rate of false alarms is known and stands next to it; and every study
has it, planted images or not. All other numbers of memorization are reported and decide nothing:
two deciding numbers would be two chances. Its p-values are adjusted after Holm over all arms that
have a control, and the adjusted value decides.

- ``better`` (remembers less), ``worse``: the adjusted p-value is below 1 - confidence.
- ``no difference seen`` otherwise, which does not say that there is none.
- ``not testable``: the control's count does not exceed its false alarms; nothing remembers less
  than nothing.

**Quality** is judged against a margin that the study states (``statistics.margin``): a loss below
it does not matter. Each deciding number is, by the two-sided interval of its difference,

- ``better``: the interval lies on the better side of zero;
- ``no worse``: the arm is better than its control made worse by the margin. A loss that was seen
  and is shown to be smaller than the margin is no worse either;
- ``worse``: the interval lies on the worse side of zero and not within the margin;
- ``not shown``: none of these. The half-width of the interval is the smallest loss that would have
  been seen.

All deciding numbers must be better or no worse for an arm to be so; a test of each at the same
level then keeps that level together (intersection-union).

An arm **beats its control** if it is better in memorization and better or no worse in quality. One
training gives no verdict, and values without spread are not measured, not certain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from afterimage.metrics.intervals import Interval

PRIMARY = "flagged_generations_calibrated"
"""The number that decides about memorization."""

BETTER, WORSE, NO_WORSE, MIXED = "better", "worse", "no worse", "mixed"
UNSEEN, UNMEASURED = "no difference seen", "not measured"
NOT_TESTABLE, ONE_TRAINING = "not testable", "one training: no verdict"
YES, NO, NOT_SHOWN, TRAINED_LESS = "yes", "no", "not shown", "control trained longer"


def by_interval(change: Interval, better: str) -> np.ndarray:
    """Return what the interval of a difference says: better, worse, unseen or unmeasured.

    Args:
        change: The difference, arm - control.
        better: ``lower`` or ``higher``.
    """
    low, high = _to_lower(change, better)
    return np.select(
        [np.isnan(low) | np.isnan(high), high < 0, low > 0],
        [UNMEASURED, BETTER, WORSE],
        UNSEEN,
    )


def by_p_value(
    difference: ArrayLike, p_adjusted: ArrayLike, better: str, level: float
) -> np.ndarray:
    """Return what an adjusted p-value says of a difference, arm - control.

    Args:
        level: The share of tables with a false verdict that is allowed where nothing differs.
    """
    p_adjusted = np.asarray(p_adjusted, float)
    loss = np.asarray(difference, float) * (1 if better == "lower" else -1)
    return np.select(
        [np.isnan(p_adjusted), (p_adjusted < level) & (loss < 0), p_adjusted < level],
        [UNMEASURED, BETTER, WORSE],
        UNSEEN,
    )


def of_quality(change: Interval, beyond: Interval, better: str) -> np.ndarray:
    """Return what a deciding number says of quality: better, no worse, worse or not shown.

    Args:
        change: The difference, arm - control.
        beyond: The difference to the control made worse by the margin (``at_margin``).
        better: ``lower`` or ``higher``.
    """
    plain, within = by_interval(change, better), by_interval(beyond, better)
    return np.select(
        [plain == UNMEASURED, plain == BETTER, within == BETTER, plain == WORSE],
        [UNMEASURED, BETTER, NO_WORSE, WORSE],
        NOT_SHOWN,
    )


def at_margin(control: np.ndarray, better: str, margin: float, relative: bool) -> np.ndarray:
    """Return the control's values made worse by the margin.

    Args:
        control: Values of its replicates.
        better: ``lower`` or ``higher``.
        margin: The loss that does not matter.
        relative: Whether ``margin`` is a share of the control's value.
    """
    loss = margin * control if relative else margin
    return control + loss if better == "lower" else control - loss


def all_of_quality(verdicts: Sequence[ArrayLike]) -> np.ndarray:
    """Return the verdict on quality of several deciding numbers; unmeasured where there is none.

    A number that is not measured leaves open whether quality is kept.
    """
    if not len(verdicts):
        return np.array(UNMEASURED)
    words = np.array(np.broadcast_arrays(*verdicts))

    def some(word: str) -> np.ndarray:
        return (words == word).any(axis=0)

    return np.select(
        [
            (words == UNMEASURED).all(axis=0),
            some(ONE_TRAINING),
            some(WORSE) & some(BETTER),
            some(WORSE),
            some(NOT_SHOWN) | some(UNMEASURED),
            some(BETTER),
        ],
        [UNMEASURED, ONE_TRAINING, MIXED, WORSE, NOT_SHOWN, BETTER],
        NO_WORSE,
    )


def beats(
    memorization: ArrayLike, quality: ArrayLike, trained_less: ArrayLike = False
) -> np.ndarray:
    """Return whether an arm beats its control.

    ``yes`` if it is better in memorization and better or no worse in quality; ``no`` if it is worse
    in memorization or quality; ``not shown`` if either is left open.

    Args:
        trained_less: Whether the arm's network was trained for fewer updates than its control's,
            those of its base included. It may remember less for that reason alone: then ``yes``
            becomes ``control trained longer``.
    """
    memorization, quality = np.broadcast_arrays(memorization, quality)

    def either(word: str) -> np.ndarray:
        return (memorization == word) | (quality == word)

    outcomes = [
        (either(ONE_TRAINING), ONE_TRAINING),
        (memorization == NOT_TESTABLE, NOT_TESTABLE),
        (memorization == UNMEASURED, UNMEASURED),
        (either(WORSE) | (quality == MIXED), NO),
        (memorization == UNSEEN, NOT_SHOWN),
        (quality == UNMEASURED, UNMEASURED),
        (quality == NOT_SHOWN, NOT_SHOWN),
        (np.asarray(trained_less, bool), TRAINED_LESS),
    ]
    return np.select([true for true, _ in outcomes], [word for _, word in outcomes], YES)


def _to_lower(change: Interval, better: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of an interval as if lower were better."""
    low, high = np.asarray(change.low, float), np.asarray(change.high, float)
    return (low, high) if better == "lower" else (-high, -low)
