"""Memory and time of the steps that read images, at a paper's size: 10,000 photographs of 256 x 256 pixels and more.

    python benchmarks/images_memory.py FOLDER [--images 10000] [--side 256] [--threads 2]

JPEG files of smooth random pictures are made in FOLDER, where they stay. Then the steps of a study run on them one after the other, in
this process: fetch, split, planting, exact and perceptual deduplication, and the search of 200 generations' nearest training images.
Printed are seconds, and the largest memory that cannot be given back (``RssAnon``, looked at every 0.2 s): what is memory-mapped comes
on top only while the system has room for it. Files without a name take space in the folder for temporary files.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scores_memory import Peak

from afterimage.attacks.target import Target
from afterimage.config import Extraction, ImageFolder
from afterimage.data import planting, sources
from afterimage.data.dedup import exact_pairs, hash_pairs, perceptual_hashes
from afterimage.data.split import split
from afterimage.images import Images, load_images


def pictures(folder: Path, count: int, side: int, first: int = 0) -> None:
    """Write JPEG files, or those that are missing; each number, from ``first`` on, is another."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        file = folder / f"{number:06}.jpg"
        if file.exists():
            continue
        coarse = np.random.default_rng(number).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(file, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pictures(args.folder / "pictures", args.images, args.side)
    whole = args.images * args.side**2 * 3
    print(f"{args.images} images of {args.side} x {args.side}: {whole / 2**30:.1f} GB of pixels")
    tenth = args.images // 10
    plant = [{"copies": 4, "images": 20, "perturbation": {"noise": 0.02, "brightness": 0.0}}]
    settings: dict[str, Any] = {
        "split": {
            "train": 8 * tenth - 100,
            "holdout": tenth // 2,
            "reference": tenth,
            "official": False,
        },
        "plant": plant,
        "plantings": 1,
        "flips": False,
    }

    def opened(name: str) -> Images:
        return load_images(args.folder / f"{name}.npz", check=False)

    def fetch() -> None:
        source = ImageFolder(kind="image_folder", path=str(args.folder / "pictures"))
        sources.read(source)[0].save(args.folder / "images.npz")

    def draw() -> None:
        parts, table, _, _ = split(opened("images"), settings, 0)
        for name, part in parts.items():
            part.save(args.folder / f"{name}.npz")
        table.to_parquet(args.folder / "pool.parquet")
        alone = table["alone"].to_numpy()
        planting.draw(opened("pool"), alone, settings, 0, 0).train.save(args.folder / "train.npz")

    def dedup() -> None:
        train = opened("train").pixels
        exact_pairs(train)
        hash_pairs(perceptual_hashes(train), 0)

    def attack() -> None:
        target = Target(opened("train").pixels, Extraction(), flips=False)
        target.score(opened("holdout").pixels[:200])

    steps: dict[str, Callable[[], None]] = {
        "fetch": fetch,
        "split and planting": draw,
        "deduplication": dedup,
        "nearest training images": attack,
    }
    peak = Peak()
    for name, step in steps.items():
        started = time.perf_counter()
        peak.start()
        step()
        seconds = time.perf_counter() - started
        print(f"{name:24} {seconds:7.0f} s, at most {peak.gigabytes:5.2f} GB", flush=True)


if __name__ == "__main__":
    main()
