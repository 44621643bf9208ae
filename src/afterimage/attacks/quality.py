"""``afterimage attack quality``: how good and how varied generations are, against real images that no arm was trained on.

A remedy that ruins the images also "forgets"; these numbers stand beside every extraction count. Real held-out images are measured
in the same way: what they reach is the floor, since they are as good as images of this kind and number get. Fréchet distances
fall with the number of images, so the floor is fair only with about as many held-out images as generations.

The store that the verb leaves is ``results.csv``: metric, of (generations or holdout), value, low, high. Each metric carries its
space: FD[classifier], KID[classifier], KID_sd[classifier] (standard deviation over subsets, no interval), precision, recall, density,
coverage. Intervals: FD, the normal interval from a bootstrap over the compared images; KID, the basic one from the full sets; precision and density, a percentile bootstrap over the compared images; recall and coverage,
over the reference images, whose shares they are. Labels play no part.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from afterimage import artifacts, config, seeds
from afterimage.artifacts import ArtifactError, Images
from afterimage.metrics import intervals, quality, spaces
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
            *intervals.percentile(intervals.resampled(partial(_mean_of, each), len(each), resamples, rng(metric)), confidence),
        )
    return numbers


def _mean_of(each: np.ndarray, rows: np.ndarray) -> float:
    return float(each[rows].mean())


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    parser.add_argument("--samples", type=Path, required=True, help="generations (.npz)")
    parser.add_argument("--reference", type=Path, required=True, help="reference part of the split (.npz)")
    parser.add_argument("--holdout", type=Path, required=True, help="held-out part of the split (.npz)")
    parser.add_argument("--classifier", type=Path, required=True, help="folder of the feature network")
    parser.add_argument("--config", type=Path, required=True, help="resolved config of this step (JSON)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> None:
    """Measure one arm's generations and store the table."""
    resolved = artifacts.read_config(args.config, STEP)
    inputs = {name: getattr(args, name) for name in ("samples", "reference", "holdout", "classifier")}
    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        own = dict(step.settings)
        statistics = config.Statistics(**own.pop("statistics"))
        settings = config.Quality(**own)
        reference = artifacts.load_images(args.reference)
        samples, holdout = artifacts.load_images(args.samples), artifacts.load_images(args.holdout)
        space = spaces.find(settings, args.classifier)
        table = measure(samples, reference, settings, statistics, resolved["seed"], space, holdout=holdout)
        table.to_csv(step.folder / "results.csv", index=False)
        for metric, of, value in zip(table["metric"], table["of"], table["value"], strict=True):
            step.metric(metric if of == "generations" else f"{metric} of {of}", value)
        step.note(generations=len(samples), reference=len(reference), holdout=len(holdout), features=settings.features)
