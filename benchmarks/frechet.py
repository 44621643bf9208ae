"""The bootstrap of a Fréchet distance: Gram matrices of features, compared with covariances.

    python benchmarks/frechet.py [--reference 176] [--images 512] [--dimension 768] [--resamples 20] [--rounds 3] [--threads 2]

The usual way fits a covariance to each resample and takes the trace of the root of S1^(1/2) S2 S1^(1/2), with the root of S1 taken
once. Ours is ``Frechet``, which multiplies the images' features by the reference's once. Features are random with a decaying
spectrum; both ways see the same resamples and are timed in turn. ``difference``: the largest of all distances, relative.
"""

import argparse
import os
import statistics
import time

import numpy as np
from threadpoolctl import threadpool_limits

from afterimage.metrics import intervals
from afterimage.metrics.quality import Frechet


def by_covariance(reference: np.ndarray, images: np.ndarray, resamples: int) -> np.ndarray:
    mean, covariance = reference.mean(axis=0), np.cov(reference, rowvar=False)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T

    def distance(rows: np.ndarray) -> float:
        other = np.cov(images[rows], rowvar=False)
        cross = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0)).sum()
        return (
            ((mean - images[rows].mean(axis=0)) ** 2).sum()
            + np.trace(covariance)
            + np.trace(other)
            - 2 * cross
        )

    return intervals.resampled(distance, len(images), resamples, np.random.default_rng(1))


def by_products(reference: np.ndarray, images: np.ndarray, resamples: int) -> np.ndarray:
    return intervals.resampled(
        Frechet(reference).of_rows(images), len(images), resamples, np.random.default_rng(1)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=int, default=176)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--resamples", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    scale = 1 / np.sqrt(np.arange(1, args.dimension + 1))
    reference = rng.normal(size=(args.reference, args.dimension)) * scale
    images = rng.normal(0.1, 1.1, size=(args.images, args.dimension)) * scale

    seconds: dict[str, list[float]] = {"usual": [], "ours": []}
    distances = {}
    with threadpool_limits(args.threads):
        for _ in range(args.rounds):
            for name, way in (("usual", by_covariance), ("ours", by_products)):
                started = time.perf_counter()
                distances[name] = way(reference, images, args.resamples)
                seconds[name].append(time.perf_counter() - started)
    ratios = [usual / ours for usual, ours in zip(seconds["usual"], seconds["ours"], strict=True)]
    each = {
        name: 1000 * statistics.median(taken) / args.resamples for name, taken in seconds.items()
    }
    print(
        f"{args.reference} reference images, {args.images} images, {args.dimension} dimensions, {args.threads} threads: "
        f"usual {each['usual']:.1f} ms a resample, ours {each['ours']:.1f} ms, "
        f"usual / ours {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}), "
        f"difference {np.max(np.abs(distances['ours'] / distances['usual'] - 1)):.1e}"
    )


if __name__ == "__main__":
    main()
