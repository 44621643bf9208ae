"""``afterimage attack quality``: how good and how varied generations are, against real images that
no arm was trained on.

A remedy that ruins the images also "forgets"; these numbers stand next to every extraction count.
Real held-out images are measured in the same way: what they reach is the floor, since they are as
good as images of this kind and number get. Fréchet distances fall with the number of images, so the
floor is fair only with about as many held-out images as generations.

The replication score (``metrics.similarity``) stands beside them: how like the arm's training
images the generations are, and, as its floor, held-out images and training images of other sources.

The store that the verb leaves is ``results.csv``: metric, of (generations, holdout; training),
value, low, high. Each metric carries its space:

- FD_balanced[classifier], the headline: the Fréchet distance at the reference's class shares.
  Classes are what the study's classifier takes the images for, whatever the space. Without labels
  to learn there is none, and FD is the headline.
- FD[classifier]: that of all images as they are. On real images of other class shares it is as high
  as on generations, and planted copies shift class shares: it measures them first.
- class_share_tv[classifier]: how far the class shares are from the reference's (total variation),
  and missing_classes[classifier]: how many classes of the reference no image is taken for, no
  interval. Their part of FD_balanced falls to the other classes, see
  ``metrics.quality.balancing_weights``.
- KID[classifier], KID_sd[classifier] (standard deviation over subsets, no interval), precision,
  recall, density, coverage.
- text_alignment[classifier], of generations that were drawn from prompts and of held-out images
  with their captions (``metrics.alignment``). Asked for is the caption of the prompt's image as it
  is, whatever variant or change of it the arm was drawn from.
- R[pixels], similarity[pixels] (mean of the same similarities) and similar[pixels] (share of them
  above 0.5).

FID is the name of FD in Inception's space; balanced, it compares with no published FID, and stays
FD_balanced[inception]. Intervals: both Fréchet distances and class_share_tv, the normal interval
from a bootstrap over the compared images (weights and shares are those of each resample); KID, the
basic one from the full sets; precision, density, text_alignment and the three of similarity, a percentile
bootstrap over the compared images; recall and coverage, over the reference images, whose shares they are.
Labels play no part but through the classifier.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from afterimage import artifacts, config, seeds
from afterimage.artifacts import ArtifactError
from afterimage.attacks import calibration
from afterimage.attacks.flags import add_flags, files_of
from afterimage.config import ConfigError
from afterimage.config.measures import NETWORKS
from afterimage.data.members import seen, trained_rows
from afterimage.diffusion.prompts import prompted
from afterimage.images import Images, load_images
from afterimage.metrics import classifier, intervals, quality, similarity, spaces
from afterimage.metrics.spaces import Classify, Space

STEP = "attack/quality"
INPUTS = ("samples", "train", "members", "reference", "holdout", "classifier")
"""Files and folders that are read."""
COLUMNS = ["metric", "of", "value", "low", "high"]


def measure(
    samples: Images,
    reference: Images,
    settings: config.Quality,
    statistics: config.Statistics,
    seed: int,
    space: Space,
    classify: Classify | None,
    *,
    holdout: Images | None = None,
) -> pd.DataFrame:
    """Measure generations, and held-out images if there are any, against reference images.

    Args:
        samples: The generations.
        reference: Real images that the model did not see.
        settings: Of the measures; ``features`` names ``space``.
        statistics: Of the intervals.
        seed: Root seed of subsets and resamples.
        space: Maps images to features, see ``spaces``.
        classify: Maps images to classes; without it what needs classes is left out.
        holdout: Other real images that the model did not see: the floor.

    Returns:
        The table that this module's docstring describes.

    Raises:
        ArtifactError: if the sets do not have images of one shape.
        ConfigError: if a set is too small for the settings.
    """
    compared = {"generations": samples} | ({} if holdout is None else {"holdout": holdout})
    _check_shapes(compared, reference)
    sets = {name: _embed(images, space, classify) for name, images in compared.items()}
    real = _embed(reference, space, classify)
    return _table(sets, real, settings, statistics, seed, balls=True)


def against_holdout(
    samples: Images,
    holdout: Images,
    settings: config.Quality,
    statistics: config.Statistics,
    seed: int,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Measure generations where the held-out images are all the unseen images that there are: one
    half is the reference.

    The other half, the control, is the floor. The halves are those of the extraction attack, and
    the classifier, where it is the space, is trained on the reference half only. Sets that are too
    small stop nothing: what needs more is left out.

    Args:
        samples: The generations, at least one.
        holdout: Real images that the model did not see, at least one.
        settings: Of the measures.
        statistics: Of the intervals.
        seed: Root seed of halves, classifier, subsets and resamples.

    Returns:
        The table of ``measure``, with the metrics that can be computed for generations and control
        alike, and metric -> reason for all others, in words that stand after the metric's name and
        hold no key of a study.

    Raises:
        ArtifactError: if the sets do not have images of one shape.
        ConfigError: if the weights that the space needs are missing.
    """
    _check_shapes({"generations": samples}, holdout)
    calibrates = (
        calibration.halves(len(holdout), seed) if len(holdout) > 1 else np.zeros(len(holdout), bool)
    )
    reference, control = holdout.take(calibrates), holdout.take(~calibrates)
    smallest = _smallest(settings)
    sizes = (
        f"{len(samples)} generations and {len(reference)} + {len(control)} held-out images "
        "(reference + control)"
    )
    fewest = min(len(samples), len(reference), len(control))
    reasons = {
        metric: f"needs at least {images} images of each kind, not {sizes}"
        for metric, images in smallest.items()
        if fewest < images
    }
    nothing = pd.DataFrame(columns=COLUMNS)
    if len(reasons) == len(smallest):
        return nothing, reasons
    classify: Classify | None = None
    without_classes = "needs a classifier, which is trained for its own feature space alone"
    if settings.features == "classifier":
        height, width = holdout.pixels.shape[1:3]
        if min(height, width) < classifier.SMALLEST_SIDE:
            small = (
                f"needs images of side {classifier.SMALLEST_SIDE} or more for its classifier, not "
                f"{height} x {width}"
            )
            return nothing, dict.fromkeys(smallest, small)
        try:
            network, description, _ = classifier.fit(reference, config.Classifier(), seed)
        except ConfigError:  # the sizes fit, so it is the loss
            return nothing, dict.fromkeys(
                smallest, "needs a classifier, whose training on the reference images diverged"
            )
        space: Space = lambda images: (  # noqa: E731
            classifier.embed_with(network, images).astype(np.float64)
        )
        if description.task == "labels":
            classify = partial(classifier.classes_with, network)
        without_classes = (
            "needs held-out images with labels of two classes or more (--label-column holdout=NAME)"
        )
    else:
        space = spaces.find(settings, None)
    if classify is None:
        reasons = dict.fromkeys(_by_class(settings), without_classes) | reasons
    sets = {
        name: _embed(images, space, classify)
        for name, images in (("generations", samples), ("holdout", control))
    }
    balls = fewest > settings.neighbours
    real = _embed(reference, space, classify)
    return _table(sets, real, settings, statistics, seed, balls=balls), reasons


class ClassShares:
    """The class shares of compared images beside those of reference images.

    Args:
        classes: int64, (N,), of the compared images.
        real: int64, (M,), of the reference images.
    """

    def __init__(self, classes: np.ndarray, real: np.ndarray) -> None:
        self._classes, self._count = classes, int(max(classes.max(), real.max())) + 1
        self._reference = quality.class_shares(real, self._count)

    def balanced(self, distance: quality.WeightedDistance, rows: np.ndarray) -> float:
        """Return a Fréchet distance of some rows at the reference's class shares."""
        weights = quality.balancing_weights(self._classes[rows], self._reference)
        return distance(rows, weights)

    def distance(self, rows: np.ndarray) -> float:
        """Return the total variation between the class shares of some rows and the reference's."""
        shares = quality.class_shares(self._classes[rows], self._count)
        return quality.total_variation(shares, self._reference)

    @property
    def missing(self) -> int:
        """How many classes of the reference no compared image has."""
        own = quality.class_shares(self._classes, self._count)
        return int(((self._reference > 0) & (own == 0)).sum())


@dataclass(frozen=True)
class _Embedded:
    """A set of images as it is measured.

    Attributes:
        features: float64, (N, D).
        classes: int64, (N,); None where there is no classifier that knows classes.
    """

    features: np.ndarray
    classes: np.ndarray | None


def _embed(images: Images, space: Space, classify: Classify | None) -> _Embedded:
    classes = None if classify is None else classify(images.pixels)
    return _Embedded(space(images.pixels), classes)


def _check_shapes(compared: dict[str, Images], reference: Images) -> None:
    for name, images in compared.items():
        if images.pixels.shape[1:] != reference.pixels.shape[1:]:
            shapes = (
                f"{images.pixels.shape[1:]}, but the reference images {reference.pixels.shape[1:]}"
            )
            raise ArtifactError(f"the {name} have shape {shapes}")


def _by_class(settings: config.Quality) -> list[str]:
    """Return the metrics that need classes; shares of classes are the classifier's in any space."""
    space = settings.features
    return [f"FD_balanced[{space}]", "class_share_tv[classifier]", "missing_classes[classifier]"]


def _smallest(settings: config.Quality) -> dict[str, int]:
    """Return metric -> how many images of each kind it needs, in the order of the table."""
    moments = ("FID" if settings.features == "inception" else "FD", "KID", "KID_sd")
    balls = (field.name for field in fields(quality.Overlap))
    needed = dict.fromkeys(moments, 2) | dict.fromkeys(balls, settings.neighbours + 1)
    return dict.fromkeys(_by_class(settings), 2) | {
        f"{metric}[{settings.features}]": images for metric, images in needed.items()
    }


Numbers = dict[str, tuple[float, float | None, float | None]]
"""Metric -> value, low, high."""


def _table(
    sets: dict[str, _Embedded],
    real: _Embedded,
    settings: config.Quality,
    statistics: config.Statistics,
    seed: int,
    *,
    balls: bool,
) -> pd.DataFrame:
    """Return the rows of all named sets against those of the reference images; without ``balls``
    the moments only."""
    frechet = quality.Frechet(real.features)
    rows = []
    for name, compared in sets.items():
        measured = (settings, statistics, seed, name)
        distance = frechet.of_rows(compared.features)
        numbers = _balanced(distance, compared.classes, real.classes, *measured)
        numbers |= _moments(compared.features, real.features, distance, *measured)
        if balls:
            numbers |= _balls(compared.features, real.features, *measured)
        rows += [
            {"metric": metric, "of": name, "value": value, "low": low, "high": high}
            for metric, (value, low, high) in numbers.items()
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _balanced(
    distance: quality.WeightedDistance,
    classes: np.ndarray | None,
    real: np.ndarray | None,
    settings: config.Quality,
    statistics: config.Statistics,
    seed: int,
    name: str,
) -> Numbers:
    """Return the class-balanced Fréchet distance of one set and what its class shares are; nothing
    without classes."""
    if classes is None or real is None:
        return {}
    shares = ClassShares(classes, real)
    of_balanced, of_shares, of_missing = _by_class(settings)
    numbers: Numbers = {}
    for metric, statistic, largest in (
        (of_balanced, partial(shares.balanced, distance), math.inf),
        (of_shares, shares.distance, 1.0),
    ):
        value = statistic(np.arange(len(classes)))
        rng = seeds.numpy_rng(seed, "quality", metric, name)
        resampled = intervals.resampled(statistic, len(classes), statistics.bootstrap, rng)
        low, high = intervals.normal(value, resampled, statistics.confidence)
        numbers[metric] = value, max(0.0, low), min(largest, high)
    return numbers | {of_missing: (float(shares.missing), None, None)}


def _moments(
    features: np.ndarray,
    real: np.ndarray,
    distance: quality.WeightedDistance,
    settings: config.Quality,
    statistics: config.Statistics,
    seed: int,
    name: str,
) -> Numbers:
    """Return the Fréchet distance and KID of one set of features."""

    def rng(metric: str) -> np.random.Generator:
        return seeds.numpy_rng(seed, "quality", metric, name)

    resamples, confidence = statistics.bootstrap, statistics.confidence
    fd = distance(np.arange(len(features)))
    low, high = intervals.normal(
        fd, intervals.resampled(distance, len(features), resamples, rng("fd")), confidence
    )
    kid, spread = quality.kid(
        features, real, settings.kid_subsets, settings.kid_subset_size, rng("kid")
    )
    moved = quality.resampled_mmd2(features, real, resamples, rng("kid interval"))
    space = settings.features
    return {
        f"{'FID' if space == 'inception' else 'FD'}[{space}]": (fd, max(0.0, low), high),
        f"KID[{space}]": (kid, *intervals.basic(kid, kid + moved, confidence)),
        f"KID_sd[{space}]": (spread, None, None),
    }


def _balls(
    features: np.ndarray,
    real: np.ndarray,
    settings: config.Quality,
    statistics: config.Statistics,
    seed: int,
    name: str,
) -> Numbers:
    """Return precision, density, recall and coverage of one set of features."""
    numbers: Numbers = {}
    for metric, each in vars(quality.overlap(features, real, settings.neighbours)).items():
        rng = seeds.numpy_rng(seed, "quality", metric, name)
        resampled = intervals.resampled(
            partial(_of_rows, np.mean, each), len(each), statistics.bootstrap, rng
        )
        numbers[f"{metric}[{settings.features}]"] = (
            float(each.mean()),
            *intervals.percentile(resampled, statistics.confidence),
        )
    return numbers


def replication(
    samples: Images,
    train: Images,
    settings: config.Quality,
    statistics: config.Statistics,
    seed: int,
    space: Callable[[np.ndarray], similarity.Features],
    holdout: Images,
) -> pd.DataFrame:
    """Measure how like the training images generations are, and held-out images, and training
    images of other sources.

    Args:
        samples: The generations.
        train: The images that the model was trained on.
        settings: Of the measures; ``similarity`` names ``space``.
        statistics: Of the intervals.
        seed: Root seed of resamples.
        space: Maps images to features, see ``similar_space``.
        holdout: Other real images that the model did not see: the floor.

    Returns:
        A table with the columns of ``measure``.
    """
    seen = space(train.pixels)
    found = {
        name: similarity.top1(space(images.pixels), seen)
        for name, images in (("generations", samples), ("holdout", holdout))
    }
    found["training"] = similarity.top1(seen, seen, train.sources, train.sources)
    rows = []
    for name, values in found.items():
        measures: tuple[tuple[str, Callable[[np.ndarray], Any], np.ndarray], ...] = (
            ("R", similarity.replication, values),
            ("similarity", np.mean, values),
            ("similar", np.mean, values > 0.5),
        )
        for metric, statistic, each in measures:
            rng = seeds.numpy_rng(seed, "quality", metric, name)
            title = f"{metric}[{settings.similarity}]"
            rows.append(_row(title, name, statistic, each, statistics, rng))
    return pd.DataFrame(rows)


def prompted_by_words(samples: Images, reference: Images) -> bool:
    """Return whether text alignment can be measured: generations were drawn from prompts, and
    reference images have captions with words."""
    drawn = bool((samples.captions != "").any())
    return drawn and any(re.search(r"\w", caption) for caption in reference.captions.tolist())


def aligned(
    samples: Images,
    asked: np.ndarray,
    reference: Images,
    settings: config.Quality,
    statistics: config.Statistics,
    seed: int,
    space: Space,
    holdout: Images,
) -> pd.DataFrame:
    """Measure whether generations show what was asked for, and held-out images their captions.

    Args:
        samples: The generations.
        asked: The caption that each was asked for, text (N,).
        reference: Real images with captions that the model did not see.
        settings: Of the measures; ``features`` names ``space``.
        statistics: Of the intervals.
        seed: Root seed of resamples.
        space: Maps images to features, see ``spaces``.
        holdout: Other real images with captions that the model did not see: what can be reached.

    Returns:
        A table with the columns of ``measure``; a set with one caption alone has no row.
    """
    from afterimage.metrics.alignment import TextEncoder  # imports much of scikit-learn

    encoder = TextEncoder(reference.captions, space(reference.pixels))
    metric, rows = f"text_alignment[{settings.features}]", []
    for name, images, captions in (
        ("generations", samples, asked),
        ("holdout", holdout, holdout.captions),
    ):
        if len(np.unique(captions)) < 2:
            continue
        each = encoder.alignment(space(images.pixels), captions)
        rng = seeds.numpy_rng(seed, "quality", metric, name)
        rows.append(_row(metric, name, np.mean, each, statistics, rng))
    return pd.DataFrame(rows, columns=COLUMNS)


def once(space: Space) -> Space:
    """Return a space that maps every array of images once, however often it is asked."""
    known: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def features(pixels: np.ndarray) -> np.ndarray:
        if id(pixels) not in known:
            known[id(pixels)] = pixels, space(pixels)
        return known[id(pixels)][1]

    return features


def similar_space(
    settings: config.Quality, network: Path, reference: Images
) -> Callable[[np.ndarray], similarity.Features]:
    """Return the space of the replication score: that of a network for copies as it is, in which
    cosines are published; others relative to the reference images.

    Args:
        settings: Of the measures.
        network: Folder of the study's classifier.
        reference: Real images that the model did not see.

    Raises:
        ConfigError, ArtifactError: if a file is missing, or is not the one that the study names.
    """
    if settings.similarity == "pixels":
        origin = spaces.mean_pixels(reference.pixels)
        return lambda pixels: spaces.CentredPixels(pixels, origin)
    if settings.similarity not in NETWORKS:
        return centred(spaces.find(settings, network, settings.similarity), reference)
    from afterimage.attacks import feature_networks

    assert settings.similarity_weights is not None
    return feature_networks.find(
        settings.similarity,
        Path(config.expand(settings.similarity_weights)),
        settings.similarity_sha256,
        settings.similarity_normalisation,
        "quality.similarity_weights",
    ).of_images


def centred(space: Space, reference: Images) -> Space:
    """Return the space with the mean of the reference images as its origin: what all images of the
    kind share does not count."""
    centre = space(reference.pixels).mean(axis=0)
    return lambda pixels: space(pixels) - centre


def _row(
    metric: str,
    of: str,
    statistic: Callable[[np.ndarray], Any],
    each: np.ndarray,
    statistics: config.Statistics,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return a row of the table: a statistic of one number per image, (N,), with a percentile
    bootstrap over the images."""
    resampled = intervals.resampled(
        partial(_of_rows, statistic, each), len(each), statistics.bootstrap, rng
    )
    low, high = intervals.percentile(resampled, statistics.confidence)
    return {"metric": metric, "of": of, "value": float(statistic(each)), "low": low, "high": high}


def _of_rows(statistic: Callable[[np.ndarray], Any], each: np.ndarray, rows: np.ndarray) -> float:
    return float(statistic(each[rows]))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_flags(parser, *INPUTS)


def run(args: argparse.Namespace) -> None:
    """Measure one arm's generations and store the table."""
    resolved = artifacts.read_config(args.config, STEP)
    inputs = files_of(args, INPUTS)
    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        own = dict(step.settings)
        statistics = config.Statistics(**own.pop("statistics"))
        settings = config.Quality(**own)
        reference = load_images(args.reference)
        samples, holdout = load_images(args.samples), load_images(args.holdout)
        planted = load_images(args.train)
        train = trained_rows(planted, seen(args.members))
        space = once(spaces.find(settings, args.classifier))
        near = similar_space(settings, args.classifier, reference)
        classify = spaces.classes(args.classifier)
        measured = settings, statistics, resolved["seed"]
        tables = [
            measure(samples, reference, *measured, space, classify, holdout=holdout),
            replication(samples, train, *measured, near, holdout),
        ]
        if prompted_by_words(samples, reference):
            asked = planted.captions[prompted(len(planted), len(samples), resolved)]
            tables.append(aligned(samples, asked, reference, *measured, space, holdout))
        table = pd.concat(tables)
        table.to_csv(step.folder / "results.csv", index=False)
        for metric, of, value in zip(table["metric"], table["of"], table["value"], strict=True):
            step.metric(metric if of == "generations" else f"{metric} of {of}", value)
        step.note(
            generations=len(samples),
            reference=len(reference),
            holdout=len(holdout),
            features=settings.features,
            classes="none: no labels to learn" if classify is None else "the classifier's",
        )
