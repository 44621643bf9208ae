"""Nearest neighbours against what a user would run instead: torch.cdist in blocks, and topk.

    python benchmarks/neighbours.py [--queries 10000] [--gallery 25000] [--neighbours 50] [--threads 2] [--runs 3]

The search by integer products, that by float32 proposals (on processors without VNNI), and torch.cdist take turns. Prints the
median wall and processor time of each, torch.cdist's over each, and how far each is from the truth (all pairs in float64, which is exact for uint8 pixels
since every sum is an integer below 2^53). Images are CIFAR-10 if the folder in AFTERIMAGE_DATA (by default ../shared/data) has
it, else random smooth fields. Half of the queries are other real images, half are gallery images with one pixel value changed by
one: the near-copies that an extraction attack is about.
"""

import argparse
import io
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path
from unittest import mock

import faiss
import numpy as np
import pandas as pd
import torch
from PIL import Image
from threadpoolctl import threadpool_limits

from afterimage.metrics import neighbours
from afterimage.metrics.integer_search import trusted
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


def by_gallery(gallery: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    found = Gallery(gallery).nearest(queries, k, block=BLOCK)
    return found.rows, found.distances


def by_floats(gallery: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    with mock.patch.object(neighbours, "_INTEGER_FROM", np.inf):
        return by_gallery(gallery, queries, k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--gallery", type=int, default=25_000)
    parser.add_argument("--neighbours", type=int, default=50)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    gallery, queries, kind = images(args.gallery, args.queries)
    values = gallery[0].size
    print(
        f"{len(queries)} queries, {len(gallery)} images ({kind}), {values} values, "
        f"k = {args.neighbours}, {args.threads} threads, {args.runs} runs; "
        f"integer products right here: {'yes' if trusted(values) else 'no'}"
    )

    searches = {"integers": by_gallery, "floats": by_floats, "torch.cdist + topk": by_cdist}
    wall, used, found = defaultdict(list), defaultdict(list), {}
    with threadpool_limits(args.threads):
        for _ in range(args.runs):
            for name, search in searches.items():
                start, cpu = time.perf_counter(), time.process_time()
                found[name] = search(gallery, queries, args.neighbours)
                wall[name].append(time.perf_counter() - start)
                used[name].append(time.process_time() - cpu)
        true_rows, true_distances = truth(gallery, queries)

    copies = np.arange(len(queries)) < len(queries) // 2
    for name, (rows, distances) in found.items():
        row, errors = rows[:, 0], np.abs(distances[:, 0] - true_distances)
        walls, cpus = (
            statistics.median(
                other / own
                for other, own in zip(taken["torch.cdist + topk"], taken[name], strict=True)
            )
            for taken in (wall, used)
        )
        print(
            f"{name:20} {statistics.median(wall[name]):7.1f} s, processor "
            f"{statistics.median(used[name]):7.1f} s; torch.cdist takes {walls:.2f} times as long, "
            f"{cpus:.2f} times the processor time\n"
            f"{'':20} nearest image right {100 * (row == true_rows).mean():7.3f} %, largest error "
            f"of its distance {errors.max():.1e}, of near-copies "
            f"{100 * (errors / true_distances)[copies].max():.2g} %"
        )
    same = all(
        (one == other).all() for one, other in zip(found["integers"], found["floats"], strict=True)
    )
    print(f"integers and floats give the same rows and distances: {'yes' if same else 'NO'}")


if __name__ == "__main__":
    main()
