"""``afterimage data split``: draw train, holdout and reference parts once, and plant duplicates (Carlini et al. 2023, section 7.1).

The training part holds the planted images with all their copies and fills up with other images once each. Holdout images,
reference images and the twins of ``planting`` are controls: none is byte-identical to a training image. Byte-identical
doubles that the source itself has stay possible inside the training part, but planted images and twins are drawn from images
without such a double, so that their multiplicity is exact.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from afterimage import artifacts, config, seeds
from afterimage.artifacts import Images
from afterimage.data import planting
from afterimage.data.fetch import count


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, required=True, help="images.npz of data fetch")
    parser.add_argument("--config", type=Path, required=True, help="resolved config of data/split (JSON)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> None:
    settings = artifacts.read_config(args.config, "data/split")
    described = args.images.with_name("manifest.json")
    inputs = {"images": args.images} | ({"manifest": described} if described.is_file() else {})
    with artifacts.step(settings, args.out, inputs, entries=(__name__,)) as step:
        images = artifacts.load_images(args.images)
        parts, index, manifest = split(images, step.settings, settings["seed"])
        if described.is_file():
            artifacts.check_file(described)
            manifest["licence"] = json.loads(described.read_text())["licence"]
        for name, part in parts.items():
            part.save(step.folder / f"{name}.npz")
            step.metric(f"{name}_images", len(part))
        index.to_parquet(step.folder / "index.parquet", index=False)
        artifacts.write_json(step.folder / "manifest.json", manifest)
        step.note(counts={name: len(part) for name, part in parts.items()}, dropped=manifest["dropped"])


def split(images: Images, settings: dict[str, Any], seed: int) -> tuple[dict[str, Images], pd.DataFrame, dict[str, Any]]:
    """Split and plant.

    Args:
        images: All images; ``ids`` int64.
        settings: ``split`` and ``plant`` of the study, as ``config.resolve`` gives them.
        seed: The study's seed.

    Returns:
        The parts ``train`` (ids 0..N-1 in shuffled order, ``sources`` the id of the original), ``holdout``, ``reference`` and
        ``twins`` (ids as in ``images``; twins in the order of the planted images); the index, one row per image of all parts:

        - part: train, holdout, reference or twin; id, source, label: of the image
        - copies: times that the row's source stands in the training set; for a twin, its planted mate's; else 0
        - copy: 0 for an original, 1, 2, ... for further copies; 0 outside the training set
        - perturbed: whether the copy was changed
        - twin_of: source id of the planted mate of a twin; else -1

        and the manifest (plain JSON values).

    Raises:
        ConfigError: if there are too few images, naming how many were asked for and how many there are.
    """
    sizes, plant = settings["split"], settings["plant"]
    planted = sum(group["images"] for group in plant)
    others = sizes["train"] - sum(group["copies"] * group["images"] for group in plant)
    if others < 0:
        raise config.ConfigError(
            f"data.plant asks for {sizes['train'] - others} training images, data.split.train = {sizes['train']}"
        )
    content = artifacts.contents(images.pixels)
    everything = np.arange(len(images))
    pool = everything[~images.official_test] if sizes["official"] else everything
    _enough("data.split.train", others + 2 * planted, "different images and twins", len(pool), sizes["official"], "training")

    _, position, times = np.unique(content, return_inverse=True, return_counts=True)
    chosen = planting.pairs(images.labels, pool[times[position[pool]] == 1], planted, seeds.numpy_rng(seed, "split", "pairs"))
    twins = chosen[:, 1]
    left = np.setdiff1d(pool, chosen)
    once = seeds.numpy_rng(seed, "split", "train").choice(left, others, replace=False)
    train, rows = _training_set(images, chosen[:, 0], once, plant, seed)

    rest = everything[images.official_test] if sizes["official"] else np.setdiff1d(left, once)
    trained = artifacts.contents(train.pixels)
    if np.isin(content[twins], trained).any():
        raise config.ConfigError("data.plant: a perturbed copy came out identical to a held-out twin; enlarge the perturbation")
    clean = rest[~np.isin(content[rest], trained)]
    _enough("data.split.holdout", sizes["holdout"], "images", len(clean), sizes["official"], "test")
    holdout = np.sort(seeds.numpy_rng(seed, "split", "holdout").choice(clean, sizes["holdout"], replace=False))
    unseen = np.setdiff1d(clean, holdout)
    unseen_clean = unseen[~np.isin(content[unseen], content[holdout])]
    wanted = sizes["reference"]
    _enough("data.split.reference", 2 if wanted is None else wanted, "images", len(unseen_clean), sizes["official"], "test")
    reference = unseen_clean
    if wanted is not None:
        reference = np.sort(seeds.numpy_rng(seed, "split", "reference").choice(unseen_clean, wanted, replace=False))

    parts = {
        "train": train,
        "holdout": images.take(holdout),
        "reference": images.take(reference),
        "twins": images.take(twins),
    }
    copies = np.repeat([group["copies"] for group in plant], [group["images"] for group in plant]).astype(np.int64)
    index = pd.concat(
        [
            rows,
            _rows("holdout", parts["holdout"]),
            _rows("reference", parts["reference"]),
            _rows("twin", parts["twins"], copies=copies, twin_of=images.ids[chosen[:, 0]]),
        ],
        ignore_index=True,
    )
    ends = np.cumsum([0] + [group["images"] for group in plant])
    manifest = {
        "counts": {name: {"images": len(part), "class": count(part.labels)} for name, part in parts.items()},
        "distinct_training_sources": planted + others,
        "pixels_sha256": {name: hashlib.sha256(part.pixels.tobytes()).hexdigest() for name, part in parts.items()},
        "planted": [
            group
            | {
                "sources": images.ids[chosen[start:end, 0]].tolist(),
                "twins": images.ids[chosen[start:end, 1]].tolist(),
            }
            for group, start, end in zip(plant, ends[:-1], ends[1:], strict=True)
        ],
        "dropped": {
            "identical_to_training": len(rest) - len(clean),
            "identical_to_holdout": len(unseen) - len(unseen_clean),
        },
        "licence": "unknown",
    }
    return parts, index, manifest


def _training_set(
    images: Images, planted: np.ndarray, once: np.ndarray, plant: list[dict[str, Any]], seed: int
) -> tuple[Images, pd.DataFrame]:
    """Return the shuffled training images and their rows of the index."""
    rows = [(row, 1, 0) for row in once.tolist()]
    pixels = list(images.pixels[once])
    waiting = iter(planted.tolist())
    for number, group in enumerate(plant):
        change = group["perturbation"]
        rng = seeds.numpy_rng(seed, "split", "perturbation", number)
        for _ in range(group["images"]):
            row = next(waiting)
            for copy in range(group["copies"]):
                rows.append((row, group["copies"], copy))
                original = images.pixels[row]
                changed = copy > 0 and change is not None
                key = f"data.plant.{number}.perturbation"
                pixels.append(planting.perturb(original, **change, rng=rng, key=key) if changed else original)
    order = seeds.numpy_rng(seed, "split", "order").permutation(len(rows))
    original_row, copies, copy_number = np.array(rows, np.int64)[order].T
    train = Images.of(
        np.stack(pixels)[order],
        labels=images.labels[original_row],
        sources=images.ids[original_row],
        official_test=images.official_test[original_row],
    )
    perturbed = (train.pixels != images.pixels[original_row]).any(axis=(1, 2, 3))
    return train, _rows("train", train, copies=copies, copy=copy_number, perturbed=perturbed)


def _rows(part: str, images: Images, **columns: np.ndarray) -> pd.DataFrame:
    """Return one part's rows of the index; columns that are not given hold what they hold for unplanted images."""
    known = {"part": part, "id": images.ids, "source": images.sources, "label": images.labels}
    return pd.DataFrame(known | {"copies": 0, "copy": 0, "perturbed": False, "twin_of": -1} | columns)


def _enough(key: str, wanted: int, what: str, there: int, official: bool, part: str) -> None:
    if wanted > there:
        where = f" in the official {part} part" if official else ""
        raise config.ConfigError(f"{key}: {wanted} {what} are asked for, but only {there} are left{where}")
