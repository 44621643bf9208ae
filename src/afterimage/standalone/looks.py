"""When does a training start to copy? Looks at its networks as they are made, with one error rate
for all looks together.

Each look compares the generations of one network with held-out images, over all thresholds
(``metrics.exceedance``), at the level 0.05 divided by the number of looks that are planned
(Bonferroni: generations of different updates are compared with the same held-out images, so that
looks depend on each other). A training that copies nothing is therefore said to copy, at any of the
planned looks, in at most 5 of 100 trainings. The training copies from the first look that shows
copies; it may have started at any update after the look before.

``Watch`` can be used inside a training loop (``docs/watching.md``); ``afterimage watch`` uses it on
a folder in which a trainer leaves its checkpoints.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from afterimage import config
from afterimage.attacks import adaptive, calibration, detail
from afterimage.attacks.extraction import match_holdout
from afterimage.attacks.target import Target
from afterimage.attacks.verdict import LARGEST_VISIBLE, POWER
from afterimage.config import ConfigError
from afterimage.images import Images, contents
from afterimage.metrics import classifier, quality
from afterimage.metrics.exceedance import exceedance, visible_rate
from afterimage.standalone import images as image_sets

ERROR = 0.05
"""Probability that a training which copies nothing is ever said to copy."""
MOST_LOOKS = 1000
"""Beyond, the simulated band cannot resolve the level of one look."""


@dataclass(frozen=True)
class Look:
    """What one look saw.

    Attributes:
        update: Updates of the network.
        generations: Number of images drawn.
        copies: Lower bound on the copies among them; 0 if none is shown.
        flagged, false_alarms: Generations below the threshold of that bound, and the upper bound on
            those that are not copies.
        images: Different training images that the flagged generations are nearest to.
        flagged_share, held_out_share: Share of generations below the threshold that is calibrated
            on held-out images, and the share of held-out images below it (cross-fitted).
        low_detail: Generations that are blank or blurred; they are not counted as copies.
        distance: Fréchet distance to held-out images in the features of a classifier that was
            trained on these; None where it cannot be trained.
    """

    update: int
    generations: int
    copies: int
    flagged: int
    false_alarms: int
    images: int
    flagged_share: float
    held_out_share: float
    low_detail: int
    distance: float | None

    @property
    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """One line for a person."""
        if self.copies:
            answer = f"copies shown, at least {self.copies} of {self.generations}"
        else:
            answer = f"copies not shown in {self.generations}"
        share = f"flagged {self.flagged_share:.1%} (unseen images {self.held_out_share:.1%})"
        blurred = f"; {self.low_detail} blank or blurred" if self.low_detail else ""
        distance = "" if self.distance is None else f"; FD {self.distance:.3g}"
        return f"update {self.update}: {answer}; {share}{distance}{blurred}"


class Watch:
    """The looks at one training.

    Args:
        train: The images that the model is trained on.
        holdout: Real images of the same distribution that it never sees.
        generations: Number of images of each look.
        looks: Number of looks that are planned.
        mirrors: Compare mirror images too, for trainings with mirroring.
        settings: Of the attack.
        seed: Root seed of calibration and classifier.

    Attributes:
        looks: The looks so far, in the order in which they were taken.
        different: Number of different training images.

    Raises:
        ConfigError: if so few generations or held-out images cannot show even frequent copies, or
            for a number of looks outside 1 to ``MOST_LOOKS``.
        ArtifactError: if the images have different shapes.
    """

    def __init__(
        self,
        train: Images,
        holdout: Images,
        generations: int = 256,
        looks: int = 20,
        *,
        mirrors: bool = False,
        settings: config.Extraction | None = None,
        seed: int = 0,
    ) -> None:
        if not 1 <= looks <= MOST_LOOKS:
            raise ConfigError(f"--looks = {looks}: allowed are 1 to {MOST_LOOKS}")
        settings = settings or config.Extraction()
        self.looks: list[Look] = []
        self.planned, self.generations = looks, generations
        self._train, self._anchor = train, settings.anchor
        self.different = len(np.unique(contents(train.pixels)))
        self._target = Target(train.pixels, settings, mirrors)
        control = match_holdout(holdout, train, self._target, mirrors)
        self._held_out = control.distances(settings.anchor)
        self.visible = self._visible(len(holdout))
        calibrated = calibration.cross_fit(
            control.scores.relative[settings.anchor], settings.calibrated_rate, seed
        )
        self._alpha, self._false_alarms = calibrated.alpha, float(calibrated.flagged.mean())
        self._quality = _Quality.of(control.images, seed)

    @classmethod
    def of(
        cls, train: str, holdout: str, generations: int = 256, looks: int = 20, **flags: Any
    ) -> Watch:
        """Return a watch on images in files.

        Args:
            train: Source of the training images: a folder or zip of images, .npz, or parquet.
            holdout: Likewise, of images that the training never sees.
            generations: As for the class.
            looks: As for the class.
            **flags: Values of ``afterimage watch``'s flags for reading images (``resize=64``), and
                ``flips`` and ``seed``.

        Raises:
            ConfigError: naming the flag.
        """
        parser = argparse.ArgumentParser(add_help=False)
        image_sets.arguments(parser, ("train", "holdout"))
        args = parser.parse_args([])
        vars(args).update(train=train, holdout=holdout, flips=False, seed=0)
        if unknown := sorted(set(flags) - set(vars(args))):
            raise ConfigError(f"{unknown[0]}: there is no such flag for reading images")
        vars(args).update(flags)
        images, unseen = (image_sets.read_set(name, args).images for name in ("train", "holdout"))
        return cls(images, unseen, generations, looks, mirrors=args.flips, seed=args.seed)

    def _visible(self, given: int) -> float:
        """Return the copying rate that a look sees with probability ``POWER``."""
        left = len(self._held_out)
        if left >= calibration.FEWEST:
            rate = visible_rate(self.generations, left, POWER, 1 - ERROR / self.planned)
            if rate <= LARGEST_VISIBLE:
                return rate
        raise ConfigError(
            f"--generate = {self.generations} and {left} held-out images ({given - left} of "
            f"{given} are left out as duplicates) are too few for --looks = {self.planned}: not "
            f"even a copying rate of {LARGEST_VISIBLE:.0%} would be seen. More of both, or fewer "
            "looks, are needed"
        )

    def look(self, pixels: np.ndarray, update: int) -> Look:
        """Look at the generations of a network.

        Args:
            pixels: uint8, (``generations``, H, W, C).
            update: Updates of the network.

        Raises:
            ConfigError: for another number of generations, an update that is not after that of the
                look before, or a look that was not planned.
            ArtifactError: for images of another shape.
        """
        if len(self.looks) == self.planned:
            raise ConfigError(
                f"all looks of --looks = {self.planned} are taken: another would raise the share "
                "of false answers"
            )
        if self.looks and update <= self.looks[-1].update:
            raise ConfigError(
                f"update {update} does not come after {self.looks[-1].update}, the look before"
            )
        if len(pixels) != self.generations:
            raise ConfigError(
                f"a look needs {self.generations} generations, as planned, not {len(pixels)}"
            )
        scores = self._target.score(pixels)
        low_detail = detail.low_detail(pixels, self._train.pixels[scores.row])
        relative = np.where(low_detail, np.inf, scores.relative[self._anchor])
        result = exceedance(relative, self._held_out, 1 - ERROR / self.planned)
        self.looks.append(
            Look(
                update=update,
                generations=len(pixels),
                copies=result.copies,
                flagged=int(result.nearer.sum()) if result.copies else 0,
                false_alarms=result.false_alarms if result.copies else 0,
                images=len(np.unique(scores.row[result.nearer])) if result.copies else 0,
                flagged_share=float(adaptive.flagged(relative, self._alpha).mean()),
                held_out_share=self._false_alarms,
                low_detail=int(low_detail.sum()),
                distance=None if self._quality is None else self._quality.distance(pixels),
            )
        )
        return self.looks[-1]

    @property
    def onset(self) -> Look | None:
        """The first look that shows copies; None if none does."""
        return next((look for look in self.looks if look.copies), None)

    def forecast(self, images: int) -> tuple[int, int] | None:
        """Return the updates after which, and until which, a training on ``images`` different
        images starts to copy, if it is like this one in all else; None if no look shows copies.

        Copying starts after a number of updates that grows linearly with the number of images
        (Bonnaire et al., NeurIPS 2025, who measure it for batches and networks of one size).

        Args:
            images: Number of different training images.
        """
        if self.onset is None:
            return None
        scale = images / self.different
        before = [look.update for look in self.looks if look.update < self.onset.update]
        return round(scale * max(before, default=0)), round(scale * self.onset.update)

    @property
    def sentence(self) -> str:
        """The answer so far, for a person."""
        if not self.looks:
            return "Nothing was looked at."
        onset = self.onset
        if onset is None:
            return (
                f"No copies are shown up to update {self.looks[-1].update}, though a copying rate "
                f"of {self.visible:.2g} would have been seen at each look in {POWER:.0%} of such "
                "trainings. Rarer or less exact copies may be there."
            )
        before = [look.update for look in self.looks if look.update < onset.update]
        since = f"after update {before[-1]}" if before else "before the first look"
        return (
            f"Copies from update {onset.update} on: at least {onset.copies} of "
            f"{onset.generations} generations there, of at least "
            f"{max(1, onset.images - onset.false_alarms)} training images. They may have started "
            f"at any time {since}."
        )


class _Quality:
    """Fréchet distance to held-out images, prepared for any number of looks."""

    def __init__(self, network: Any, features: np.ndarray) -> None:
        self._network = network
        self._reference = quality.Frechet(features)

    @classmethod
    def of(cls, holdout: Images, seed: int) -> _Quality | None:
        """Return it with a classifier trained on ``holdout``; None where that cannot be."""
        if min(holdout.pixels.shape[1:3]) < classifier.SMALLEST_SIDE:
            return None
        try:
            network, _, _ = classifier.fit(holdout, config.Classifier(), seed)
        except ConfigError:  # its loss diverged
            return None
        return cls(network, _embedded(network, holdout.pixels))

    def distance(self, pixels: np.ndarray) -> float:
        return float(self._reference.to(_embedded(self._network, pixels)))


def _embedded(network: Any, pixels: np.ndarray) -> np.ndarray:
    return np.asarray(classifier.embed_with(network, pixels), np.float64)
