"""``afterimage attack quality``: how good and how varied generations are, against real images that no arm was trained on.

A remedy that ruins the images also "forgets"; these numbers stand beside every extraction count. Real held-out images are measured
in the same way: what they reach is the floor, since they are as good as images of this kind and number get. Fréchet distances
fall with the number of images, so the floor is fair only with about as many held-out images as generations.

The replication score (``metrics.similarity``) stands beside them: how like the arm's training images the generations are, and, as
its floor, held-out images and training images of other sources.

The store that the verb leaves is ``results.csv``: metric, of (generations, holdout; training), value, low, high. Each metric carries
its space: FD[classifier], KID[classifier], KID_sd[classifier] (standard deviation over subsets, no interval), precision, recall, density,
coverage; R[pixels], similarity[pixels] (mean of the same similarities) and similar[pixels] (share of them above 0.5). Intervals: FD,
the normal interval from a bootstrap over the compared images; KID, the basic one from the full sets; precision, density and the
three of similarity, a percentile bootstrap over the compared images; recall and coverage, over the reference images, whose shares
they are. Labels play no part.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from afterimage import artifacts, config, seeds
from afterimage.artifacts import ArtifactError, Images
from afterimage.attacks import calibration
from afterimage.attacks.extraction import trained_rows
from afterimage.metrics import classifier, intervals, quality, similarity, spaces
from afterimage.metrics.spaces import Space

STEP = "attack/quality"


def measure(
    samples: Images,
    reference: Images,
    settings: config.Quality,
    statistics: config.Statistics,
    seed: int,
    space: Space,
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
        holdout: Other real images that the model did not see: the floor.

    Returns:
        The table that this module's docstring describes.

    Raises:
        ArtifactError: if the sets do not have images of one shape.
        ConfigError: if a set is too small for the settings.
    """
    compared = {"generations": samples} | ({} if holdout is None else {"holdout": holdout})
    for name, images in compared.items():
        if images.pixels.shape[1:] != reference.pixels.shape[1:]:
            shapes = f"{images.pixels.shape[1:]}, but the reference images {reference.pixels.shape[1:]}"
            raise ArtifactError(f"the {name} have shape {shapes}")
    real = space(reference.pixels)
    frechet = quality.Frechet(quality.Gaussian.fit(real))
    rows = []
    for name, images in compared.items():
        features = space(images.pixels)
        for metric, (value, low, high) in _numbers(features, real, frechet, settings, statistics, seed, name).items():
            rows.append({"metric": metric, "of": name, "value": value, "low": low, "high": high})
    return pd.DataFrame(rows)


def against_halves(
    samples: Images, holdout: Images, settings: config.Quality, statistics: config.Statistics, seed: int
) -> pd.DataFrame:
    """Measure generations, and one half of the held-out images as the floor, against the other half.

    Arguments and errors are those of ``measure``. A classifier, where it is the space, is trained on the half measured against.
    """
    reference_rows = calibration.halves(len(holdout), seed)
    reference, control = holdout.take(reference_rows), holdout.take(~reference_rows)
    if settings.features == "classifier":
        network, _, _ = classifier.fit(reference, config.Classifier(), seed)
        space: Space = partial(_embedding, network)
    else:
        space = spaces.find(settings, None)
    return measure(samples, reference, settings, statistics, seed, space, holdout=control)


def _embedding(network: Any, images: np.ndarray) -> np.ndarray:
    return classifier.embed_with(network, images).astype(np.float64)


def _numbers(
    features: np.ndarray,
    real: np.ndarray,
    frechet: quality.Frechet,
    settings: config.Quality,
    statistics: config.Statistics,
    seed: int,
    name: str,
) -> dict[str, tuple[float, float | None, float | None]]:
    """Return metric -> value, low, high of one set of features."""

    def rng(metric: str) -> np.random.Generator:
        return seeds.numpy_rng(seed, "quality", metric, name)

    space, resamples, confidence = settings.features, statistics.bootstrap, statistics.confidence
    fd = frechet.to(quality.Gaussian.fit(features))
    fds = intervals.resampled(
        lambda rows: frechet.to(quality.Gaussian.fit(features[rows])), len(features), resamples, rng("fd")
    )
    low, high = intervals.normal(fd, fds, confidence)
    numbers: dict[str, tuple[float, float | None, float | None]] = {
        f"{'FID' if space == 'inception' else 'FD'}[{space}]": (fd, max(0.0, low), high)
    }
    kid, spread = quality.kid(features, real, settings.kid_subsets, settings.kid_subset_size, rng("kid"))
    moved = quality.resampled_mmd2(features, real, resamples, rng("kid interval"))
    numbers[f"KID[{space}]"] = (kid, *intervals.basic(kid, kid + moved, confidence))
    numbers[f"KID_sd[{space}]"] = (spread, None, None)
    overlap = quality.overlap(features, real, settings.neighbours)
    for metric, each in vars(overlap).items():
        numbers[f"{metric}[{space}]"] = (
            float(each.mean()),
            *intervals.percentile(
                intervals.resampled(partial(_of_rows, np.mean, each), len(each), resamples, rng(metric)), confidence
            ),
        )
    return numbers


def replication(
    samples: Images,
    train: Images,
    reference: Images,
    settings: config.Quality,
    statistics: config.Statistics,
    seed: int,
    space: Space,
    holdout: Images,
) -> pd.DataFrame:
    """Measure how like the training images generations are, and held-out images, and training images of other sources.

    Args:
        samples: The generations.
        train: The images that the model was trained on.
        reference: Real images that the model did not see; see ``centred``.
        settings: Of the measures; ``similarity`` names ``space``.
        statistics: Of the intervals.
        seed: Root seed of resamples.
        space: Maps images to features, see ``spaces``.
        holdout: Other real images that the model did not see: the floor.

    Returns:
        A table with the columns of ``measure``.
    """
    features = centred(space, reference)
    seen = features(train.pixels)
    found = {
        name: similarity.top1(features(images.pixels), seen)
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
            resampled = intervals.resampled(partial(_of_rows, statistic, each), len(each), statistics.bootstrap, rng)
            low, high = intervals.percentile(resampled, statistics.confidence)
            row = {"metric": f"{metric}[{settings.similarity}]", "of": name, "value": float(statistic(each))}
            rows.append(row | {"low": low, "high": high})
    return pd.DataFrame(rows)


def centred(space: Space, reference: Images) -> Space:
    """Return the space with the mean of the reference images as its origin: what all images of the kind share does not count."""
    centre = space(reference.pixels).mean(axis=0)
    return lambda pixels: space(pixels) - centre


def _of_rows(statistic: Callable[[np.ndarray], Any], each: np.ndarray, rows: np.ndarray) -> float:
    return float(statistic(each[rows]))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument("--samples", type=Path, required=True, help="generations (.npz)")
    parser.add_argument("--train", type=Path, required=True, help="training part of the split (.npz)")
    parser.add_argument("--members", type=Path, required=True, help="which of its rows the arm trained on (.parquet)")
    parser.add_argument("--reference", type=Path, required=True, help="reference part of the split (.npz)")
    parser.add_argument("--holdout", type=Path, required=True, help="held-out part of the split (.npz)")
    parser.add_argument("--classifier", type=Path, required=True, help="folder of the feature network")
    parser.add_argument("--config", type=Path, required=True, help="resolved config of this step (JSON)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> None:
    """Measure one arm's generations and store the table."""
    resolved = artifacts.read_config(args.config, STEP)
    inputs = {name: getattr(args, name) for name in ("samples", "train", "members", "reference", "holdout", "classifier")}
    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        own = dict(step.settings)
        statistics = config.Statistics(**own.pop("statistics"))
        settings = config.Quality(**own)
        reference = artifacts.load_images(args.reference)
        samples, holdout = artifacts.load_images(args.samples), artifacts.load_images(args.holdout)
        artifacts.check_file(args.members)
        train = trained_rows(artifacts.load_images(args.train), pd.read_parquet(args.members))
        space, near = (spaces.find(settings, args.classifier, name) for name in (settings.features, settings.similarity))
        table = pd.concat(
            [
                measure(samples, reference, settings, statistics, resolved["seed"], space, holdout=holdout),
                replication(samples, train, reference, settings, statistics, resolved["seed"], near, holdout),
            ]
        )
        table.to_csv(step.folder / "results.csv", index=False)
        for metric, of, value in zip(table["metric"], table["of"], table["value"], strict=True):
            step.metric(metric if of == "generations" else f"{metric} of {of}", value)
        step.note(generations=len(samples), reference=len(reference), holdout=len(holdout), features=settings.features)
