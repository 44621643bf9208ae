"""Which near-duplicates deduplication finds, by kind of change, on real CIFAR-10 images.

    AFTERIMAGE_DATA=... python benchmarks/duplicates.py docs/duplicates.csv

2,000 images are searched together with one changed copy each of 150 of them per change, all copies of a change in a search of its
own; 2,000 other images set thresholds. Detectors are those of a study, at their defaults. A found pair of different images counts
as false, though CIFAR-10 has a few near-duplicates of its own.
"""

import argparse
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from afterimage import config
from afterimage.data import dedup
from afterimage.data.changes import change

ORIGINALS, COPIES = 2000, 150
SEED = 0
CHANGES = (
    {"kind": "jpeg", "quality": 50},
    {"kind": "jpeg", "quality": 20},
    {"kind": "noise", "deviation": 0.02},
    {"kind": "noise", "deviation": 0.1},
    {"kind": "colour", "strength": 0.1},
    {"kind": "colour", "strength": 0.4},
    {"kind": "contrast", "strength": 0.4},
    {"kind": "blur", "deviation": 1.0},
    {"kind": "shift", "pixels": 1},
    {"kind": "shift", "pixels": 4},
    {"kind": "mirror"},
    {"kind": "crop", "share": 0.05},
    {"kind": "crop", "share": 0.2},
)
DETECTORS = ("exact", "phash", "pixels", "pca", "likeness")


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images to search and images for thresholds, uint8 (2000, 32, 32, 3) each."""
    cells = pd.read_parquet(folder / "cifar10-jpeg75/train.parquet", columns=["img"])["img"]
    pictures = [
        np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB"))
        for cell in cells.iloc[: 2 * ORIGINALS]
    ]
    return np.stack(pictures[:ORIGINALS]), np.stack(pictures[ORIGINALS:])


def detect(pixels: np.ndarray, reference: np.ndarray) -> dict[str, dedup.Pairs]:
    """Return the pairs of every detector in ``DETECTORS``."""
    found = {
        "exact": dedup.exact_pairs(pixels),
        "phash": dedup.hash_pairs(
            dedup.perceptual_hashes(pixels), config.PerceptualHash().max_bits
        ),
    }
    for space in ("pixels", "pca"):
        settings = config.Embedding(features=space)
        vectors = dedup.features(pixels, reference, settings, SEED)
        found[space] = dedup.cosine_pairs(vectors, settings.similarity)
    _, found["likeness"] = dedup.likeness_pairs(pixels, reference, config.Likeness(), SEED)
    return found


def table(folder: Path, changes: Sequence[dict[str, Any]] = CHANGES) -> pd.DataFrame:
    """Return one row per change: the share of its copies that each detector finds, and its false
    pairs."""
    images, reference = read(folder)
    rng = np.random.default_rng(SEED)
    rows = []
    for setting in changes:
        copied = rng.choice(ORIGINALS, COPIES, replace=False)
        copies = np.stack([change(images[row], setting, rng, "CHANGES") for row in copied])
        source = np.concatenate([np.arange(ORIGINALS), copied])
        row = {"change": " ".join(map(str, setting.values()))}
        for name, pairs in detect(np.concatenate([images, copies]), reference).items():
            true = source[pairs.a] == source[pairs.b]
            row |= {f"found_{name}": true.sum() / COPIES, f"false_{name}": int((~true).sum())}
        rows.append(row)
    return pd.DataFrame(rows)


def markdown(found: pd.DataFrame) -> str:
    """Return the table as ``docs/remedies.md`` shows it."""
    lines = [
        f"| change of the copy | {' | '.join(DETECTORS)} |",
        "|---|" + "---|" * len(DETECTORS),
    ]
    for row in found.to_dict("records"):
        cells = [f"{100 * row[f'found_{name}']:.0f} %" for name in DETECTORS]
        lines.append(f"| {row['change']} | {' | '.join(cells)} |")
    most = [f"{found[f'false_{name}'].max()}" for name in DETECTORS]
    lines.append(f"| most false pairs of a search | {' | '.join(most)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="CSV file to write")
    out = parser.parse_args().out
    root = Path(__file__).parent.parent
    found = table(Path(os.environ.get("AFTERIMAGE_DATA", root.parent / "shared" / "data")))
    found.to_csv(out, index=False, float_format="%.4f")
    print(markdown(found))
