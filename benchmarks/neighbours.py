"""Nearest neighbours against what a user would run instead: torch.cdist in blocks, and topk.

    python benchmarks/neighbours.py [--queries 10000] [--gallery 25000] [--neighbours 50] [--threads 2]

Prints the wall time of both as a ratio, and how far each is from the truth (all pairs in float64, which is exact for uint8 pixels
since every sum is an integer below 2^53). Images are CIFAR-10 if the folder in AFTERIMAGE_DATA (by default ../shared/data) has
it, else random smooth fields. Half of the queries are other real images, half are gallery images with one pixel value changed by
one: the near-copies that an extraction attack is about.
"""

import argparse
import io
import os
import time
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import torch
from PIL import Image
from threadpoolctl import threadpool_limits

from afterimage.metrics.neighbours import Gallery

BLOCK = 1024


def read(path: Path, count: int) -> np.ndarray:
    pictures = pd.read_parquet(path, columns=["img"])["img"].iloc[:count]
    return np.stack(
        [
            np.asarray(Image.open(io.BytesIO(picture["bytes"])).convert("RGB"))
            for picture in pictures
        ]
    )


def images(gallery: int, queries: int) -> tuple[np.ndarray, np.ndarray, str]:
    rng = np.random.default_rng(0)
    root = Path(__file__).parent.parent
    folder = (
        Path(os.environ.get("AFTERIMAGE_DATA", root.parent / "shared" / "data")) / "cifar10-jpeg75"
    )
    if folder.is_dir():
        train, other, kind = (
            read(folder / "train.parquet", gallery),
            read(folder / "test.parquet", queries - queries // 2),
            "CIFAR-10",
        )
    else:
        coarse = rng.integers(0, 256, (gallery + queries - queries // 2, 8, 8, 3)).astype(np.uint8)
        fields = coarse.repeat(4, axis=1).repeat(4, axis=2)
        train, other, kind = fields[:gallery], fields[gallery:], "synthetic"
    copies = train[rng.choice(len(train), queries // 2)].copy()
    copies[:, 0, 0, 0] ^= 1
    return train, np.concatenate([copies, other]), kind


def by_cdist(gallery: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    everything = torch.from_numpy(gallery).flatten(1).float() / 255
    rows, distances = [], []
    for start in range(0, len(queries), BLOCK):
        some = torch.from_numpy(queries[start : start + BLOCK]).flatten(1).float() / 255
        found = torch.cdist(some, everything).topk(k, largest=False)
        rows.append(found[1].numpy())
        distances.append(found[0].numpy() / np.sqrt(everything.shape[1]))
    return np.concatenate(rows), np.concatenate(distances)


def truth(gallery: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    everything = gallery.reshape(len(gallery), -1).astype(np.float64)
    norms = (everything**2).sum(axis=1)
    rows, distances = [], []
    for start in range(0, len(queries), BLOCK):
        some = queries[start : start + BLOCK].reshape(-1, everything.shape[1]).astype(np.float64)
        squares = (some**2).sum(axis=1)[:, None] + norms - 2 * some @ everything.T
        rows.append(squares.argmin(axis=1))
        distances.append(np.sqrt(squares.min(axis=1) / everything.shape[1]) / 255)
    return np.concatenate(rows), np.concatenate(distances)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--gallery", type=int, default=25_000)
    parser.add_argument("--neighbours", type=int, default=50)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    gallery, queries, kind = images(args.gallery, args.queries)
    values = gallery[0].size
    print(
        f"{len(queries)} queries, {len(gallery)} images ({kind}), {values} values, k = {args.neighbours}, {args.threads} threads"
    )

    with threadpool_limits(args.threads):
        start = time.perf_counter()
        ours = Gallery(gallery).nearest(queries, args.neighbours, block=BLOCK)
        own_seconds = time.perf_counter() - start
        start = time.perf_counter()
        rows, distances = by_cdist(gallery, queries, args.neighbours)
        cdist_seconds = time.perf_counter() - start
        true_rows, true_distances = truth(gallery, queries)

    copies = np.arange(len(queries)) < len(queries) // 2
    for name, seconds, row, distance in (
        ("afterimage", own_seconds, ours.rows[:, 0], ours.distances[:, 0]),
        ("torch.cdist + topk", cdist_seconds, rows[:, 0], distances[:, 0]),
    ):
        errors = np.abs(distance - true_distances)
        print(
            f"{name:20} {seconds:8.1f} s   nearest image right {100 * (row == true_rows).mean():7.3f} %   "
            f"largest error of its distance {errors.max():.1e}, of near-copies {100 * (errors / true_distances)[copies].max():.2g} %"
        )
    print(
        f"ratio of time, afterimage / cdist: {own_seconds / cdist_seconds:.2f}; screened: {ours.screened} of {len(queries)}"
    )


if __name__ == "__main__":
    main()
