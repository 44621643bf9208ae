"""Memory and time of attribution scores at a paper's size: N = 50,000 images, T = 10, k = 4,096.

    python benchmarks/scores_memory.py [--images 50000] [--queries 96] [--dimension 4096]
        [--timesteps 10] [--attributors das das_revised dtrak] [--regularisers 13] [--threads 2]

Features are random with a decaying spectrum, held as ``read_features`` holds them. Each attributor
scores all queries with every regulariser, as the step ``attribution/scores`` does. Printed are
seconds, and the largest memory that cannot be given back (``RssAnon``, looked at every 0.2 s): what
is memory-mapped comes on top only while the system has room for it. Files without a name take the
space printed in the folder for temporary files.
"""

import argparse
import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import torch

from afterimage import scratch
from afterimage.attribution import attributors
from afterimage.attribution.attributors.inputs import AttributionInputs, ImageFeatures
from afterimage.config.attribution import ATTRIBUTOR_TABLE, readouts_of
from afterimage.images import Images


def random(shape: tuple[int, ...], scale: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return features of a decaying spectrum, float32."""
    values = scratch.empty(shape, np.float32)
    for some in scratch.blocks(shape[0], int(np.prod(shape[1:]))):
        block = rng.standard_normal((some.stop - some.start, *shape[1:]), np.float32)
        values[some] = block * scale
    return values


def anonymous() -> float:
    """Return the memory in use that no file backs, GB."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 2**20


class Peak:
    """The largest ``anonymous`` memory since the last start."""

    def __init__(self) -> None:
        self.gigabytes = 0.0
        threading.Thread(target=self._look, daemon=True).start()

    def start(self) -> None:
        """Forget what was before."""
        self.gigabytes = anonymous()

    def _look(self) -> None:
        while True:
            self.gigabytes = max(self.gigabytes, anonymous())
            time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=96)
    parser.add_argument("--dimension", type=int, default=4096)
    parser.add_argument("--timesteps", type=int, default=10)
    parser.add_argument("--attributors", nargs="+", default=["das", "das_revised", "dtrak"])
    parser.add_argument("--regularisers", type=int, default=13)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    scale = (1 / np.sqrt(np.arange(1, args.dimension + 1))).astype(np.float32)
    readouts = [name for name in readouts_of(args.attributors) if name != "probe"]
    rows = args.timesteps if "probe" in readouts_of(args.attributors) else 0

    def side(count: int) -> ImageFeatures:
        pixels = rng.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
        names = [name + suffix for name in readouts for suffix in ("", "/normalised")]
        return ImageFeatures(
            Images.of(pixels),
            {name: random((count, args.dimension), scale, rng) for name in names},
            random((count, rows, args.dimension), scale, rng),
            np.ones(count, np.float32),
            None,
        )

    inputs = AttributionInputs(
        side(args.images),
        side(args.queries),
        (),
        np.zeros((0, args.images), bool),
        np.zeros((0, args.queries)),
        0,
    )
    stored = sum(map(np.size, [*inputs.train.features.values(), inputs.train.rows]))
    print(f"features of the training images: {4 * stored / 2**30:.1f} GB", flush=True)
    print(f"before: {anonymous():.1f} GB")
    peak = Peak()
    for name in args.attributors:
        started = time.perf_counter()
        peak.start()
        scores_at = attributors.scorer(name, inputs)
        grid = np.logspace(-6, 6, args.regularisers) if ATTRIBUTOR_TABLE[name].regularised else [1]
        for relative in grid:
            scores = scores_at(relative)
            assert scores.shape == (args.queries, args.images)
        seconds = time.perf_counter() - started
        print(f"{name:24} {seconds:7.0f} s, at most {peak.gigabytes:5.1f} GB", flush=True)


if __name__ == "__main__":
    main()
