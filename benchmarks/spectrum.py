"""One eigendecomposition for all regularisers, compared with one inverse for each.

    python benchmarks/spectrum.py [--images 500] [--queries 160] [--dimension 4096]
        [--regularisers 27] [--rounds 3] [--threads 2]

The baseline is the method of the released codes of TRAK, D-TRAK and DAS: for every lambda of a grid
(27 values in D-TRAK's) the k x k Gram matrix of the features plus lambda is inverted, and the
scores are the queries' features times the inverse times the training images'. ``Spectrum``
decomposes the smaller of the two Gram matrices once. Features are random with a decaying spectrum.
Both are timed alternately; ``difference`` is the largest over all scores, in multiples of their
root mean square.
"""

import argparse
import os
import statistics
import time

import numpy as np
import torch

from afterimage.attribution.attributors.spectrum import Spectrum


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--queries", type=int, default=160)
    parser.add_argument("--dimension", type=int, default=4096)
    parser.add_argument("--regularisers", type=int, default=27)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    scale = 1 / np.sqrt(np.arange(1, args.dimension + 1))
    train, queries = (
        rng.normal(size=(n, args.dimension)) * scale for n in (args.images, args.queries)
    )
    grid = np.logspace(-3, 3, args.regularisers)

    def inverses() -> np.ndarray:
        gram = train.T @ train
        mean = np.trace(gram) / min(train.shape)  # the mean eigenvalue, as in Spectrum
        identity = np.eye(len(gram))
        return np.stack(
            [
                queries @ np.linalg.inv(gram + relative * mean * identity) @ train.T
                for relative in grid
            ]
        )

    def spectrum() -> np.ndarray:
        scores_at = Spectrum(train).kernel(queries)
        return np.stack([scores_at(relative) for relative in grid])

    seconds: dict[str, list[float]] = {"inverses": [], "spectrum": []}
    scores = {}
    for _ in range(args.rounds):
        for name, method in (("inverses", inverses), ("spectrum", spectrum)):
            started = time.perf_counter()
            scores[name] = method()
            seconds[name].append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(seconds["inverses"], seconds["spectrum"], strict=True)]
    size = np.sqrt(np.square(scores["inverses"]).mean(axis=(1, 2), keepdims=True))
    print(
        f"{args.images} training images, {args.queries} queries, k = {args.dimension}, "
        f"{args.regularisers} regularisers, {args.threads} threads: "
        f"inverses {statistics.median(seconds['inverses']):.2f} s, "
        f"spectrum {statistics.median(seconds['spectrum']):.2f} s, "
        f"inverses / spectrum {statistics.median(ratios):.1f} "
        f"({min(ratios):.1f} to {max(ratios):.1f}), "
        f"difference {np.max(np.abs(scores['spectrum'] - scores['inverses']) / size):.1e}"
    )


if __name__ == "__main__":
    main()
