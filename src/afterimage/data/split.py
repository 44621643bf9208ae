"""``afterimage data split``: draw training, held-out and reference splits once, and plant
duplicates.

It follows Carlini et al. 2023, section 7.1. The training split consists of the planted images with
all their copies, and of other images once each. Held-out images, reference images and the twins of
``planting`` are controls: none is a duplicate or near-duplicate (``metrics.near_duplicates``) of a
training image, and no reference image is one of a held-out image. Such images are replaced, and
listed in ``left_out.parquet``; all other images keep their split, and the training split does not
depend on them. The training split may contain duplicates from the source itself, but planted
images and twins are drawn from images without a byte-identical duplicate, so that their
multiplicity is exact.
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
        parts, index, left_out, manifest = split(images, step.settings, settings["seed"])
        if fetched.is_file():
            artifacts.check_file(fetched)
            manifest["licence"] = json.loads(fetched.read_text())["licence"]
        for name, part in parts.items():
            part.save(step.folder / f"{name}.npz")
            step.metric(f"{name}_images", len(part))
        index.to_parquet(step.folder / "index.parquet", index=False)
        left_out.to_parquet(step.folder / "left_out.parquet", index=False)
        artifacts.write_json(step.folder / "manifest.json", manifest)
        step.note(
            counts={name: len(part) for name, part in parts.items()}, dropped=manifest["dropped"]
        )


def split(
    images: Images, settings: dict[str, Any], seed: int
) -> tuple[dict[str, Images], pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Split the images and plant duplicates.

    Args:
        images: All images; ``ids`` int64.
        settings: ``split``, ``plant`` and ``flips`` of the study, as plain values.
        seed: The study's seed.

    Returns:
        The splits ``train`` (ids 0..N-1 in shuffled order, ``sources`` the id of the original),
        ``holdout``, ``reference`` and ``twins`` (ids as in ``images``; twins in the order of the
        planted images); the index, one row per image of all splits:

        - part: train, holdout, reference or twin; id, source, label: of the image
        - copies: how often the row's source occurs in the training set; for a twin, that of its
          planted counterpart; otherwise 0
        - copy: 0 for an original, 1, 2, ... for further copies; 0 outside the training set
        - perturbed: whether the copy was perturbed
        - kind: how, as ``data.plant.perturb`` names it (noise for ``perturbation``); else empty
        - twin_of: source id of a twin's planted counterpart; otherwise -1

        the images that were left out, by id:

        - id: of the image
        - drawn: the split that it was first drawn for (holdout, reference or twin), or none
        - like: train or holdout, the split of the image that it duplicates
        - nearest, source: id of that image in its split, and of its original
        - exact: whether it is byte-identical (or, with flips, a mirror image)
        - distance, relative: of ``near_duplicates``

        and the manifest (plain JSON values).

    Raises:
        ConfigError: if there are too few images, with the numbers needed and available.
    """
    # Check the sizes, and find the rows to draw the training split from.
    sizes, plant = settings["split"], settings["plant"]
    planted = sum(group["images"] for group in plant)
    others = sizes["train"] - sum(group["copies"] * group["images"] for group in plant)
    if others < 0:
        raise config.ConfigError(
            f"data.plant asks for {sizes['train'] - others} training images, data.split.train = "
            f"{sizes['train']}"
        )
    content = contents(images.pixels)
    everything = np.arange(len(images))
    pool = everything[~images.official_test] if sizes["official"] else everything
    _enough(
        "data.split.train",
        others + 2 * planted,
        "different images and twins",
        len(pool),
        sizes["official"],
        "training",
    )

    # Draw the planted images with their twins, then the rest of the training split.
    _, position, times = np.unique(content, return_inverse=True, return_counts=True)
    pairs = planting.pairs(
        images.labels,
        pool[times[position[pool]] == 1],
        planted,
        seeds.numpy_rng(seed, "split", "pairs"),
    )
    left = np.setdiff1d(pool, pairs)
    once = seeds.numpy_rng(seed, "split", "train").choice(left, others, replace=False)
    train, rows = _training_set(images, pairs[:, 0], once, plant, seed)

    # Draw the controls.
    rest = everything[images.official_test] if sizes["official"] else np.setdiff1d(left, once)
    spare = np.setdiff1d(left, once)
    controls, left_out = _controls(
        images,
        rest,
        pairs,
        spare[times[position[spare]] == 1],
        train,
        rows["perturbed"].to_numpy(),
        settings,
        seed,
    )
    pairs[:, 1] = controls["twin"]

    # Index all splits, and describe them.
    parts = {
        "train": train,
        "holdout": images.take(controls["holdout"]),
        "reference": images.take(controls["reference"]),
        "twins": images.take(controls["twin"]),
    }
    index = _index(parts, rows, plant, images.ids[pairs[:, 0]])
    manifest = _manifest(parts, planted + others, plant, images.ids[pairs], left_out)
    return parts, index, left_out, manifest


def _index(
    parts: dict[str, Images], rows: pd.DataFrame, plant: list[dict[str, Any]], planted: np.ndarray
) -> pd.DataFrame:
    """Return the index of all splits, with the training ``rows``; ``planted`` are source ids."""
    copies = np.repeat(
        [group["copies"] for group in plant], [group["images"] for group in plant]
    ).astype(np.int64)
    return pd.concat(
        [
            rows,
            _rows("holdout", parts["holdout"]),
            _rows("reference", parts["reference"]),
            _rows("twin", parts["twins"], copies=copies, twin_of=planted),
        ],
        ignore_index=True,
    )


def _manifest(
    parts: dict[str, Images],
    sources: int,
    plant: list[dict[str, Any]],
    pairs: np.ndarray,
    left_out: pd.DataFrame,
) -> dict[str, Any]:
    """Return the manifest.

    Args:
        parts: The splits.
        sources: Number of different training images.
        plant: Groups of planted images.
        pairs: (P, 2), source ids of the planted images and their twins.
        left_out: Table of the images that were left out.
    """
    ends = np.cumsum([0] + [group["images"] for group in plant])
    return {
        "counts": {
            name: {"images": len(part), "class": count(part.labels)} for name, part in parts.items()
        },
        "distinct_training_sources": sources,
        "pixels_sha256": {
            name: hashlib.sha256(part.pixels.tobytes()).hexdigest() for name, part in parts.items()
        },
        "planted": [
            group | {"sources": pairs[start:end, 0].tolist(), "twins": pairs[start:end, 1].tolist()}
            for group, start, end in zip(plant, ends[:-1], ends[1:], strict=True)
        ],
        "dropped": {
            f"{kind}_{part}": int(((left_out["like"] == like) & (left_out["exact"] == exact)).sum())
            for part, like in (("training", "train"), ("holdout", "holdout"))
            for kind, exact in (("identical_to", True), ("near", False))
        },
        "licence": "unknown",
    }


def _controls(
    images: Images,
    rest: np.ndarray,
    pairs: np.ndarray,
    spare: np.ndarray,
    train: Images,
    perturbed: np.ndarray,
    settings: dict[str, Any],
    seed: int,
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Draw the controls as if there were no near-duplicates, then replace near-duplicates.

    Args:
        images: All images.
        rest: The rows to draw holdout and reference from.
        pairs: (P, 2), planted rows and their twins.
        spare: The rows that may become twins; some may be drawn for holdout or reference too.
        train: The training split.
        perturbed: bool, whether each training image is a perturbed copy.
        settings: As in ``split``.
        seed: The study's seed.

    Returns:
        The rows of holdout, reference and twin, and the table of images that were left out.
    """
    # Draw holdout and reference from the images that are not byte-identical to a training image.
    sizes, flips = settings["split"], settings["flips"]
    content = contents(images.pixels)
    clean = rest[~np.isin(content[rest], contents(train.pixels))]
    rngs = {name: seeds.numpy_rng(seed, "split", name) for name in ("holdout", "reference")}
    _enough("data.split.holdout", sizes["holdout"], "images", len(clean), sizes["official"], "test")
    holdout = rngs["holdout"].choice(clean, sizes["holdout"], replace=False)
    unseen = np.setdiff1d(clean, holdout)
    candidates = unseen[~np.isin(content[unseen], content[holdout])]
    _enough_reference(sizes, len(candidates))
    reference = candidates
    if sizes["reference"] is not None:
        reference = rngs["reference"].choice(candidates, sizes["reference"], replace=False)
    drawn = {"holdout": holdout, "reference": reference, "twin": pairs[:, 1]}

    # Find near-duplicates of training images. Perturbed copies are close to each other and shorten
    # the distances that other images are compared with, so the search is repeated without them.
    trained = [np.arange(len(train))]
    if perturbed.any():
        trained.append(np.flatnonzero(~perturbed))
    like_train = _duplicates(
        images, np.unique(np.concatenate([rest, spare, pairs[:, 1]])), train, trained, flips
    )
    near = np.zeros(len(images), bool)
    near[like_train["row"]] = True

    # Replace them in the holdout and among the twins.
    lost = f" after {near[rest].sum()} duplicates and near-duplicates of training images"
    holdout = _replace_holdout(holdout, reference, candidates, near, sizes, rngs["holdout"], lost)
    twins = _twins(images, pairs, near, np.setdiff1d(spare, holdout), reference, seed)

    # Replace them, and near-duplicates of held-out images, in the reference.
    candidates = np.setdiff1d(clean[~near[clean]], np.concatenate([holdout, twins]))
    like_holdout = _duplicates(
        images, candidates, images.take(holdout), [np.arange(len(holdout))], flips
    )
    free = np.setdiff1d(candidates, like_holdout["row"])
    _enough_reference(sizes, len(free), f"{lost} and {len(like_holdout)} of held-out images")
    kept = np.intersect1d(free, reference)
    others = rngs["reference"].permutation(np.setdiff1d(free, kept))
    added = 0 if sizes["reference"] is None else sizes["reference"] - len(kept)
    reference = np.sort(np.concatenate([kept, others[:added]]))

    # List the images that were left out; of the spare rows, only those drawn for a split.
    used = np.isin(like_train["row"], np.concatenate([rest, pairs[:, 1]]))
    left_out = _left_out(images, drawn, like_train[used], like_holdout)
    return {"holdout": holdout, "reference": reference, "twin": twins}, left_out


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

    Images of no split are used first, then reference images.
    """
    free = candidates[~near[candidates]]
    of_no_split, of_reference = np.setdiff1d(free, reference), np.intersect1d(free, reference)
    free = np.concatenate([rng.permutation(of_no_split), rng.permutation(of_reference)])
    kept = holdout[~near[holdout]]
    available, official = len(kept) + len(free), sizes["official"]
    _enough("data.split.holdout", sizes["holdout"], "images", available, official, "test", lost)
    return np.sort(np.concatenate([kept, free[: sizes["holdout"] - len(kept)]]))


def _left_out(
    images: Images,
    drawn: dict[str, np.ndarray],
    like_train: pd.DataFrame,
    like_holdout: pd.DataFrame,
) -> pd.DataFrame:
    """Return the table of images that were left out, with the split that each was drawn for."""
    table = pd.concat([like_train.assign(like="train"), like_holdout.assign(like="holdout")])
    split_of = np.full(len(images), "none", dtype=object)
    for name, rows in drawn.items():
        split_of[rows] = name
    table.insert(1, "drawn", split_of[table["row"]])
    table.insert(2, "like", table.pop("like"))
    table.insert(0, "id", images.ids[table.pop("row")])
    return table.sort_values("id", ignore_index=True)


def _twins(
    images: Images,
    pairs: np.ndarray,
    near: np.ndarray,
    spare: np.ndarray,
    reference: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Return the twins, (P,), with near-duplicates of training images replaced by spare images.

    Images of the planted image's class come first, and images of no split before reference images.
    """
    twins = pairs[:, 1].copy()
    spare = seeds.numpy_rng(seed, "split", "twins").permutation(spare[~near[spare]])
    replaced = np.flatnonzero(near[twins])
    if len(replaced) > len(spare):
        raise config.ConfigError(
            f"data.plant: {len(replaced)} twins are near-duplicates of training images, but only "
            f"{len(spare)} images are left to take their places"
        )
    for pair in replaced:
        of_class = images.labels[spare] == images.labels[pairs[pair, 0]]
        first = np.lexsort((np.isin(spare, reference), ~of_class))[0]
        twins[pair], spare = spare[first], np.delete(spare, first)
    return twins


def _duplicates(
    images: Images, rows: np.ndarray, part: Images, galleries: list[np.ndarray], flips: bool
) -> pd.DataFrame:
    """Return the rows that duplicate an image of ``part``, in any gallery (rows of ``part``)."""
    tables = []
    for gallery in galleries:
        result = near_duplicates.find(images.pixels[rows], part.pixels[gallery], flips)
        duplicate = result.rows >= 0
        nearest = gallery[result.rows[duplicate]]
        tables.append(
            pd.DataFrame(
                {
                    "row": rows[duplicate],
                    "nearest": part.ids[nearest],
                    "source": part.sources[nearest],
                    "exact": result.exact[duplicate],
                    "distance": result.distances[duplicate],
                    "relative": result.relative[duplicate],
                }
            )
        )
        rows = rows[~duplicate]
    return pd.concat(tables, ignore_index=True)


def _training_set(
    images: Images, planted: np.ndarray, once: np.ndarray, plant: list[dict[str, Any]], seed: int
) -> tuple[Images, pd.DataFrame]:
    """Return the shuffled training images and their rows of the index."""
    rows = [(row, 1, 0) for row in once.tolist()]
    pixels = list(images.pixels[once])
    kinds = [""] * len(once)
    waiting = iter(planted.tolist())
    for number, group in enumerate(plant):
        change, changes = group["perturbation"], group.get("perturb", [])
        rng = seeds.numpy_rng(seed, "split", "perturbation", number)
        for _ in range(group["images"]):
            row = next(waiting)
            for copy in range(group["copies"]):
                rows.append((row, group["copies"], copy))
                pixel, kind = images.pixels[row], ""
                if copy and change is not None:
                    key = f"data.plant.{number}.perturbation"
                    pixel, kind = planting.perturb(pixel, **change, rng=rng, key=key), "noise"
                elif copy and changes:
                    turn = (copy - 1) % len(changes)
                    key = f"data.plant.{number}.perturb.{turn}"
                    pixel = planting.change(pixel, changes[turn], rng, key)
                    kind = changes[turn]["kind"]
                pixels.append(pixel)
                kinds.append(kind)
    order = seeds.numpy_rng(seed, "split", "order").permutation(len(rows))
    original_row, copies, copy_number = np.array(rows, np.int64)[order].T
    train = Images.of(
        np.stack(pixels)[order],
        labels=images.labels[original_row],
        sources=images.ids[original_row],
        official_test=images.official_test[original_row],
    )
    perturbed = (train.pixels != images.pixels[original_row]).any(axis=(1, 2, 3))
    ordered_kinds = np.array(kinds, dtype=object)[order]
    return train, _rows(
        "train", train, copies=copies, copy=copy_number, perturbed=perturbed, kind=ordered_kinds
    )


def _rows(part: str, images: Images, **columns: np.ndarray) -> pd.DataFrame:
    """Return one split's rows of the index; other columns have their values for unplanted
    images."""
    index = {"part": part, "id": images.ids, "source": images.sources, "label": images.labels}
    return pd.DataFrame(
        index | {"copies": 0, "copy": 0, "perturbed": False, "kind": "", "twin_of": -1} | columns
    )


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
