"""Peak memory and time of the extraction attack, by number of generations: memory must not grow with it beyond the images.

    python benchmarks/attack_memory.py [--gallery 25000] [--generations 10000 100000] [--shapes 8x8x1 32x32x3]

Each case is a process of its own. Generations are training images with noise and blends of two, half of each. ``extract`` runs
with 1,000 held-out images, without planted truth. Input is what the images themselves take.
"""

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

from afterimage import config
from afterimage.attacks.extraction import extract
from afterimage.images import Images


def synthetic(count: int, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    height, width, channels = shape
    coarse = rng.integers(0, 256, (count, height // 4, width // 4, channels)).astype(np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def case(gallery: int, generations: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    train = synthetic(gallery, shape, rng)
    samples = np.empty((generations, *shape), np.uint8)
    for start in range(0, generations, 1000):
        some = train[rng.integers(gallery, size=min(1000, generations - start))]
        half = len(some) // 2
        noisy = np.clip(some[:half] + rng.normal(0, 8, some[:half].shape), 0, 255)
        blends = some[half:] / 2 + train[rng.integers(gallery, size=len(some) - half)] / 2
        samples[start : start + len(some)] = np.concatenate([noisy, blends])
    holdout = Images.of(synthetic(1000, shape, rng))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = extract(
        Images.of(samples),
        Images.of(train),
        config.Extraction(),
        config.Statistics(bootstrap=100),
        0,
        holdout=holdout,
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{'x'.join(map(str, shape)):8} {generations:8} generations, {gallery} training images: peak {peak / 1024:6.0f} MB, "
        f"before the attack {before / 1024:6.0f} MB (input {(train.nbytes + samples.nbytes) / 2**20:.0f} MB), {seconds:6.1f} s, "
        f"{found.headline['extraction/unique_images']:.0f} images extracted"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gallery", type=int, default=25_000)
    parser.add_argument("--generations", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--shapes", nargs="+", default=["8x8x1", "32x32x3"])
    parser.add_argument("--case", action="store_true", help="run the one case here")
    args = parser.parse_args()
    if args.case:
        case(args.gallery, args.generations[0], tuple(map(int, args.shapes[0].split("x"))))
        return
    for shape in args.shapes:
        for generations in args.generations:
            one = [
                "--case",
                "--gallery",
                str(args.gallery),
                "--generations",
                str(generations),
                "--shapes",
                shape,
            ]
            subprocess.run([sys.executable, __file__, *one], check=True)


if __name__ == "__main__":
    main()
