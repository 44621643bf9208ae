"""The verdict of an attack: copies shown, not shown, or cannot tell. Never "no memorisation".

Generations and held-out images are compared by their relative distance (``adaptive``) over all
thresholds at once (``metrics.exceedance``). Before that, held-out images that are (near-)duplicates
of training images are removed, since they are copies themselves, and images that are blank or
blurred next to their nearest training image, on both sides, count as infinitely far.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from afterimage.metrics.exceedance import exceedance, visible_rate

Outcome = Literal["copies shown", "not shown", "cannot tell"]
SHOWN: Outcome = "copies shown"
NOT_SHOWN: Outcome = "not shown"
CANNOT_TELL: Outcome = "cannot tell"
CONFIDENCE = 0.95
"""Probability with which an attack reports no copies where there are none. An attack that gives
several answers splits what is left to 1 among them (Bonferroni)."""
POWER = 0.95
"""Probability with which the stated copying rate would have been detected."""
LARGEST_VISIBLE = 0.5
"""If not even this copying rate would have been detected, the attack cannot tell."""


@dataclass(frozen=True)
class Verdict:
    """The answer and its evidence.

    Attributes:
        outcome: ``copies shown``, ``not shown`` or ``cannot tell``.
        reason: For ``cannot tell``: what is missing.
        generations, held_out: Numbers of images compared.
        copies: Lower bound on the copies among the generations.
        flagged: Generations below the threshold of that bound.
        false_alarms: Upper bound on the flagged generations that are not copies.
        held_out_flagged: Held-out images below the same threshold.
        images: Training images extracted: different ones that are nearest to a flagged generation.
        images_at_least: Lower bound on those that are shown by a copy.
        threshold: Relative distance below which generations are flagged.
        visible_rate: Copying rate that would have been detected with probability ``POWER``; None if
            none would.
        confidence: Probability with which no copies are reported where there are none, and with
            which the bounds hold.
    """

    outcome: Outcome
    reason: str
    generations: int
    held_out: int
    copies: int = 0
    flagged: int = 0
    false_alarms: int = 0
    held_out_flagged: int = 0
    images: int = 0
    images_at_least: int = 0
    threshold: float | None = None
    visible_rate: float | None = None
    confidence: float = CONFIDENCE

    @property
    def record(self) -> dict[str, Any]:
        """Plain JSON values, with the sentence."""
        return asdict(self) | {"sentence": self.sentence}

    @property
    def sentence(self) -> str:
        """One paragraph for a person."""
        if self.outcome == CANNOT_TELL:
            return f"Cannot tell: {self.reason}"
        if self.outcome == NOT_SHOWN:
            return (
                "Copies are not shown, though a copying rate of "
                f"{_percent(self.visible_rate or 0)} would have been seen in {100 * POWER:.0f} of "
                f"100 such attacks ({self.generations} generations, {self.held_out} held-out "
                "images), if its copies are nearer than every held-out image. Rarer or less exact "
                "copies may be there."
            )
        return (
            f"Copies shown: at least {self.copies} of {self.generations} generations "
            f"({_percent(self.copies / self.generations)}) are copies of training images. "
            f"{self.flagged} are nearer than {self.held_out - self.held_out_flagged} of "
            f"{self.held_out} held-out images, at most {self.false_alarms} of them by chance "
            f"({100 * self.confidence:g} %); they show {self.images} different training images, at "
            f"least {self.images_at_least} of which are copied."
        )


def decide(
    scores: np.ndarray,
    held_out: np.ndarray | None,
    nearest: np.ndarray,
    low_detail: np.ndarray,
    zero_means: int,
    different: int,
    confidence: float = CONFIDENCE,
) -> tuple[Verdict, np.ndarray]:
    """Return the verdict and the mask of flagged generations, bool (n,).

    Args:
        scores: Relative distance of each generation, float64 (n,); infinite if it is blank or
            blurred.
        held_out: Relative distance of each held-out image that is not a duplicate of a training
            image, float64 (m,); None without held-out images.
        nearest: Row of the nearest training image of each generation, int64 (n,); equal for equal
            images.
        low_detail: bool (n,), mask of the blank or blurred generations.
        zero_means: Number of generations without a relative distance, since all neighbours are
            copies.
        different: Number of different training images.
        confidence: Of this answer.
    """
    count, nothing_flagged = len(scores), np.zeros(len(scores), bool)

    def cannot_tell(reason: str) -> tuple[Verdict, np.ndarray]:
        verdict = Verdict(
            CANNOT_TELL,
            reason,
            count,
            0 if held_out is None else len(held_out),
            confidence=confidence,
        )
        return verdict, nothing_flagged

    # Refuse comparisons that cannot show anything.
    if different < 2:
        return cannot_tell(
            "the attack compares distances between different training images, and there is only "
            "one."
        )
    if held_out is None:
        return cannot_tell(
            "no held-out images were given. Real images that the model never saw can be near to "
            "training images too; without them nothing says how many of the near generations are "
            "false alarms."
        )
    if not len(held_out):
        return cannot_tell("no held-out image is left that is not a duplicate of a training image.")
    low = int(low_detail.sum())
    if 2 * low > count:
        return cannot_tell(f"{low} of {count} generations are blank or blurred.")

    # Compare over all thresholds.
    result = exceedance(scores, held_out, confidence)
    visible = visible_rate(count, len(held_out), POWER, confidence)
    if not result.copies:
        if visible > LARGEST_VISIBLE:
            return cannot_tell(
                f"{count} generations and {len(held_out)} held-out images are too few: not even a "
                f"copying rate of {_percent(LARGEST_VISIBLE)} would have been seen. More of both "
                "are needed."
            )
        if zero_means:
            return cannot_tell(
                f"{zero_means} generations are nearest to a training image all of whose "
                "neighbours are its own copies, so that their relative distance is infinite. "
                "Count neighbours among different images (gallery: distinct)."
            )
        verdict = Verdict(
            NOT_SHOWN, "", count, len(held_out), visible_rate=visible, confidence=confidence
        )
        return verdict, nothing_flagged
    images = len(np.unique(nearest[result.nearer]))
    verdict = Verdict(
        SHOWN,
        "",
        count,
        len(held_out),
        result.copies,
        int(result.nearer.sum()),
        result.false_alarms,
        result.held_out_below,
        images,
        max(1, images - result.false_alarms),
        result.threshold if np.isfinite(result.threshold) else None,
        visible if np.isfinite(visible) else None,
        confidence,
    )
    return verdict, result.nearer


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
