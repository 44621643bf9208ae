"""``afterimage data split``: draw the pool of training images, held-out and reference images, and
images for dual fusion.

It follows Carlini et al. 2023, section 7.1. The pool has the distinct images that the training sets
and the twins of all plantings (``data.planting``) are made of. Held-out and reference images are
controls: none is a duplicate or near-duplicate (``metrics.near_duplicates``) of an image of the
pool or of a training image of any planting, such as a perturbed copy, and no reference image is one
of a held-out image. Such images are replaced, and listed in ``left_out.parquet``; all other images
keep their split, and the pool does not depend on them.

Arms with dual fusion (``config.arm.DualFusion``) mix further images into their training images. They
are drawn last, from the images of no other part that duplicate neither those nor a reference image.

The pool is drawn at random. It may contain duplicates from the source itself; images are replaced
only where too few without a duplicate or near-duplicate, which alone are planted, would be among
them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from afterimage import artifacts, config, scratch, seeds
from afterimage.data import planting
from afterimage.data.fetch import count
from afterimage.images import Images, contents, load_images
from afterimage.metrics import near_duplicates


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, required=True, help="images.npz of data fetch")
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved config of data/split (JSON)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> None:
    settings = artifacts.read_config(args.config, "data/split")
    fetched = args.images.with_name("manifest.json")
    inputs = {"images": args.images} | ({"manifest": fetched} if fetched.is_file() else {})
    with artifacts.step(settings, args.out, inputs, entries=(__name__,)) as step:
        images = load_images(args.images)
        parts, table, left_out, manifest = split(images, step.settings, settings["seed"])
        if fetched.is_file():
            artifacts.check_file(fetched)
            manifest["licence"] = json.loads(fetched.read_text())["licence"]
        for name, part in parts.items():
            part.save(step.folder / f"{name}.npz")
            step.metric(f"{name}_images", len(part))
        table.to_parquet(step.folder / "pool.parquet", index=False)
        left_out.to_parquet(step.folder / "left_out.parquet", index=False)
        artifacts.write_json(step.folder / "manifest.json", manifest)
        step.note(
            counts={name: len(part) for name, part in parts.items()}, dropped=manifest["dropped"]
        )


def split(
    images: Images, settings: dict[str, Any], seed: int
) -> tuple[dict[str, Images], pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Split the images.

    Args:
        images: All images; ``ids`` int64.
        settings: ``split``, ``plant``, ``plantings`` and ``flips`` of the study, as plain values.
        seed: The study's seed.

    Returns:
        The parts ``pool``, ``holdout``, ``reference`` and ``fusion``, ids as in ``images``; the
        table of the pool:

        - id, source, label: of the image
        - alone: whether it has neither a duplicate nor a near-duplicate in the pool

        the images that were left out, by id:

        - id: of the image
        - drawn: the part that it was first drawn for (holdout or reference), or none
        - like: pool or holdout, the part of the image that it duplicates
        - source: id of the original of that image
        - exact: whether it is byte-identical (or, with flips, a mirror image)
        - distance, relative: of ``near_duplicates``

        and the manifest (plain JSON values).

    Raises:
        ConfigError: if there are too few images, with the numbers needed and available.
    """
    # Check the sizes, and find the rows to draw the pool from.
    sizes, plant, flips = settings["split"], settings["plant"], settings["flips"]
    planted = sum(group["images"] for group in plant)
    others = sizes["train"] - sum(group["copies"] * group["images"] for group in plant)
    further = sum(planting.further_images(group) for group in plant)
    if others < 0:
        raise config.ConfigError(
            f"data.plant asks for {sizes['train'] - others} training images, data.split.train = "
            f"{sizes['train']}"
        )
    everything = np.arange(len(images))
    candidates = everything[~images.official_test] if sizes["official"] else everything
    size = others + 2 * planted + further
    _enough(
        "data.split.train",
        size,
        "different images and twins",
        len(candidates),
        sizes["official"],
        "training",
    )

    # Draw the pool, and all training sets that are made of it.
    content = contents(images.pixels)
    rows, alone = _pool(images, content, candidates, size, 2 * planted, flips, seed)
    pool = images.take(rows)
    galleries = [pool]
    if planted:
        for number in range(settings["plantings"]):
            galleries.append(planting.draw(pool, alone, settings, seed, number).train)

    # Draw the controls.
    rest = everything[images.official_test] if sizes["official"] else np.setdiff1d(everything, rows)
    holdout, reference, spare, left_out = _controls(
        images, content, rest, galleries, settings, seed
    )
    parts = {"pool": pool, "holdout": images.take(holdout), "reference": images.take(reference)}
    parts["fusion"] = images.take(_fusion(images, spare, parts["reference"], settings, seed))
    table = pd.DataFrame(
        {"id": pool.ids, "source": pool.sources, "label": pool.labels, "alone": alone}
    )
    return parts, table, left_out, _manifest(parts, left_out)


def _pool(
    images: Images,
    content: np.ndarray,
    candidates: np.ndarray,
    size: int,
    single: int,
    flips: bool,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the pool, ascending, and whether each has no duplicate or near-duplicate
    among them, bool.

    Args:
        images: All images.
        content: Digests of all images (``images.contents``).
        candidates: The rows to draw from.
        size: Number of images in the pool.
        single: How many of them must have no duplicate or near-duplicate. While there are fewer,
            as many others are replaced by images that were not drawn, first by those that have no
            byte-identical duplicate.
        flips: Whether a mirror image counts.
        seed: The study's seed.
    """
    rng = seeds.numpy_rng(seed, "split", "pool")
    rows = np.sort(rng.choice(candidates, size, replace=False))
    alone = near_duplicates.alone(scratch.taken(images.pixels, rows), flips)
    spare = rng.permutation(np.setdiff1d(candidates, rows))
    _, position, times = np.unique(content[candidates], return_inverse=True, return_counts=True)
    doubled = np.zeros(len(images), bool)
    doubled[candidates] = times[position] > 1
    spare = spare[np.argsort(doubled[spare], kind="stable")]
    while len(spare) and (missing := single - int(alone.sum())) > 0:
        added, spare = spare[:missing], spare[missing:]
        gone = rng.choice(rows[~alone], len(added), replace=False)
        rows = np.sort(np.concatenate([np.setdiff1d(rows, gone), added]))
        alone = near_duplicates.alone(scratch.taken(images.pixels, rows), flips)
    return rows, alone


def _manifest(parts: dict[str, Images], left_out: pd.DataFrame) -> dict[str, Any]:
    """Return the manifest."""
    return {
        "counts": {
            name: {"images": len(part), "class": count(part.labels)} for name, part in parts.items()
        },
        "pixels_sha256": {
            name: hashlib.sha256(part.pixels.data).hexdigest() for name, part in parts.items()
        },
        "dropped": {
            f"{kind}_{name}": int(((left_out["like"] == like) & (left_out["exact"] == exact)).sum())
            for name, like in (("training", "pool"), ("holdout", "holdout"))
            for kind, exact in (("identical_to", True), ("near", False))
        },
        "licence": "unknown",
    }


def _controls(
    images: Images,
    content: np.ndarray,
    rest: np.ndarray,
    galleries: list[Images],
    settings: dict[str, Any],
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, pd.DataFrame]:
    """Draw the controls as if there were no near-duplicates, then replace near-duplicates.

    Args:
        images: All images.
        content: Digests of all images (``images.contents``).
        rest: The rows to draw from.
        galleries: The pool and the training sets.
        settings: As in ``split``.
        seed: The study's seed.

    Returns:
        The rows of holdout and reference, those that are left and duplicate no image of the
        galleries and the holdout, and the table of images that were left out.
    """
    # Draw holdout and reference from the images that are not byte-identical to a training image.
    sizes, flips = settings["split"], settings["flips"]
    known = np.concatenate([contents(part.pixels) for part in galleries])
    clean = rest[~np.isin(content[rest], known)]
    rngs = {name: seeds.numpy_rng(seed, "split", name) for name in ("holdout", "reference")}
    _enough("data.split.holdout", sizes["holdout"], "images", len(clean), sizes["official"], "test")
    holdout = rngs["holdout"].choice(clean, sizes["holdout"], replace=False)
    unseen = np.setdiff1d(clean, holdout)
    candidates = unseen[~np.isin(content[unseen], content[holdout])]
    _enough_reference(sizes, len(candidates))
    reference = candidates
    if sizes["reference"] is not None:
        reference = rngs["reference"].choice(candidates, sizes["reference"], replace=False)
    drawn = {"holdout": holdout, "reference": reference}

    # Replace near-duplicates of training images in the holdout.
    like_pool = _duplicates(images, rest, galleries, flips)
    near = np.zeros(len(images), bool)
    near[like_pool["row"]] = True
    lost = f" after {near.sum()} duplicates and near-duplicates of training images"
    holdout = _replace_holdout(holdout, reference, candidates, near, sizes, rngs["holdout"], lost)

    # Replace them, and near-duplicates of held-out images, in the reference.
    candidates = np.setdiff1d(clean[~near[clean]], holdout)
    like_holdout = _duplicates(images, candidates, [images.take(holdout)], flips)
    free = np.setdiff1d(candidates, like_holdout["row"])
    _enough_reference(sizes, len(free), f"{lost} and {len(like_holdout)} of held-out images")
    kept = np.intersect1d(free, reference)
    others = rngs["reference"].permutation(np.setdiff1d(free, kept))
    added = 0 if sizes["reference"] is None else sizes["reference"] - len(kept)
    reference = np.sort(np.concatenate([kept, others[:added]]))
    spare = np.setdiff1d(free, reference)
    return holdout, reference, spare, _left_out(images, drawn, like_pool, like_holdout)


def _fusion(
    images: Images, spare: np.ndarray, reference: Images, settings: dict[str, Any], seed: int
) -> np.ndarray:
    """Draw the rows for dual fusion, ascending, from those that are left."""
    sizes = settings["split"]
    if not sizes["fusion"]:
        return np.array([], int)
    like_reference = _duplicates(images, spare, [reference], settings["flips"])["row"]
    clean = np.setdiff1d(spare, like_reference)
    lost = f" after {len(like_reference)} duplicates and near-duplicates of reference images"
    official = sizes["official"]
    _enough("data.split.fusion", sizes["fusion"], "images", len(clean), official, "test", lost)
    rng = seeds.numpy_rng(seed, "split", "fusion")
    return np.sort(rng.choice(clean, sizes["fusion"], replace=False))


def _replace_holdout(
    holdout: np.ndarray,
    reference: np.ndarray,
    candidates: np.ndarray,
    near: np.ndarray,
    sizes: dict[str, Any],
    rng: np.random.Generator,
    lost: str,
) -> np.ndarray:
    """Return the held-out rows with near-duplicates of training images replaced.

    Images of no part are used first, then reference images.
    """
    free = candidates[~near[candidates]]
    of_no_part, of_reference = np.setdiff1d(free, reference), np.intersect1d(free, reference)
    free = np.concatenate([rng.permutation(of_no_part), rng.permutation(of_reference)])
    kept = holdout[~near[holdout]]
    available, official = len(kept) + len(free), sizes["official"]
    _enough("data.split.holdout", sizes["holdout"], "images", available, official, "test", lost)
    return np.sort(np.concatenate([kept, free[: sizes["holdout"] - len(kept)]]))


def _left_out(
    images: Images,
    drawn: dict[str, np.ndarray],
    like_pool: pd.DataFrame,
    like_holdout: pd.DataFrame,
) -> pd.DataFrame:
    """Return the table of images that were left out, with the part that each was drawn for."""
    table = pd.concat([like_pool.assign(like="pool"), like_holdout.assign(like="holdout")])
    part_of = np.full(len(images), "none", dtype=object)
    for name, rows in drawn.items():
        part_of[rows] = name
    table.insert(1, "drawn", part_of[table["row"]])
    table.insert(2, "like", table.pop("like"))
    table.insert(0, "id", images.ids[table.pop("row")])
    return table.sort_values("id", ignore_index=True)


def _duplicates(
    images: Images, rows: np.ndarray, galleries: list[Images], flips: bool
) -> pd.DataFrame:
    """Return the rows that duplicate an image of any gallery."""
    tables = []
    for gallery in galleries:
        result = near_duplicates.find(scratch.taken(images.pixels, rows), gallery.pixels, flips)
        duplicate = result.rows >= 0
        tables.append(
            pd.DataFrame(
                {
                    "row": rows[duplicate],
                    "source": gallery.sources[result.rows[duplicate]],
                    "exact": result.exact[duplicate],
                    "distance": result.distances[duplicate],
                    "relative": result.relative[duplicate],
                }
            )
        )
        rows = rows[~duplicate]
    return pd.concat(tables, ignore_index=True)


def _enough_reference(sizes: dict[str, Any], available: int, lost: str = "") -> None:
    needed = 2 if sizes["reference"] is None else sizes["reference"]
    _enough("data.split.reference", needed, "images", available, sizes["official"], "test", lost)


def _enough(
    key: str, needed: int, what: str, available: int, official: bool, split: str, lost: str = ""
) -> None:
    if needed > available:
        where = f" in the official {split} split" if official else ""
        raise config.ConfigError(
            f"{key}: {needed} {what} are asked for, but only {available} are left{where}{lost}"
        )
