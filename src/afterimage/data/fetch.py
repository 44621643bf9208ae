"""``afterimage data fetch``: read the source into one checked array file.

It is the only step that may use the network. The order is fixed: read (colour first, then size),
keep the classes, keep N images (in id order).

The store: ``images.npz``; ``manifest.json``; and ``captions.parquet``, one row per image with its
id, and a column for each variant of the captions that is another column of the source
(``text.captions``).
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from afterimage import artifacts, config, seeds
from afterimage.data import sources
from afterimage.images import Images


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved config of data/fetch (JSON)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> None:
    settings = artifacts.read_config(args.config, "data/fetch")
    source = source_of(settings["settings"])
    with artifacts.step(settings, args.out, {}, entries=(__name__, source.reader)) as step:
        images, manifest = fetch(step.settings, settings["seed"])
        images.save(step.folder / "images.npz")
        variants = pa.table({"id": images.ids} | manifest.pop("variants", {}))
        pq.write_table(variants, step.folder / "captions.parquet")
        artifacts.write_json(step.folder / "manifest.json", manifest)
        step.metric("images", len(images))
        step.metric("skipped", len(manifest["skipped"]))
        step.note(image_shape=manifest["image_shape"], licence=manifest["licence"])


def source_of(settings: dict[str, Any]) -> config.Source:
    """Return the block of the source that resolved settings name."""
    source: config.Source = TypeAdapter(config.Source).validate_python(settings["source"])
    return source


def fetch(settings: dict[str, Any], seed: int) -> tuple[Images, dict[str, Any]]:
    """Return the chosen images and the manifest of ``sources.read`` with counts.

    Ids and sources of the images are row numbers in the source.

    Raises:
        ConfigError: if ``data.images`` or ``data.classes`` asks for more than there is.
        ArtifactError: as ``sources.read``.
    """
    keys = ("classes", "colour", "resize", "resize_filter", "crop")
    own = {key: settings[key] for key in keys}
    captions = settings.get("captions")
    images, manifest = sources.read(source_of(settings), **own, captions=captions)
    size = settings["images"]
    if size is not None:
        if size > len(images):
            raise config.ConfigError(
                f"data.images = {size}: the source has only {len(images)} images of the wanted "
                "classes"
            )
        rows = np.sort(seeds.numpy_rng(seed, "fetch").choice(len(images), size, replace=False))
        images = images.take(rows)
        if manifest["names"] is not None:
            manifest["names"] = [manifest["names"][row] for row in rows]
        for name, texts in manifest.get("variants", {}).items():
            manifest["variants"][name] = [texts[row] for row in rows]
    test = images.official_test
    manifest |= {
        "images": len(images),
        "pixels_sha256": hashlib.sha256(images.pixels.data).hexdigest(),
        "counts": {
            "class": count(images.labels),
            "official_train": count(images.labels[~test]),
            "official_test": count(images.labels[test]),
        },
    }
    return images, manifest


def count(labels: np.ndarray) -> dict[str, int]:
    """Return label -> number of images, the label as text (JSON keys are text)."""
    values, numbers = np.unique(labels, return_counts=True)
    return {str(value): int(number) for value, number in zip(values, numbers, strict=True)}
