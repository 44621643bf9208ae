"""``afterimage data planting``: make one training set of planted duplicates from the pool of the
split.

It follows Carlini et al. 2023, sections 5 and 7.1. The training set consists of the planted images
with all their copies, and of the other images of the pool once each. Every planted image has a
twin, drawn with it from the same class, which is not trained on. A coin flip decides which of the
two is planted: until then they are exchangeable, so if planted images are extracted more often than
twins, training on them is the cause, not the choice of images.

Planted images and twins are images without a duplicate or near-duplicate
(``metrics.near_duplicates``) in the pool, so that their multiplicity is exact. The pairs are spread
evenly over the classes, in all and within each group of ``data.plant``. A twin that is a
near-duplicate of an image of the training set nevertheless, such as a perturbed copy, is used
neither as a twin nor as a planted image, and the pairs are drawn again.

All plantings of a study use the pool's images, in different roles and equal numbers.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from afterimage import artifacts, seeds
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.data import changes
from afterimage.data.fetch import count
from afterimage.images import Images, load_images
from afterimage.metrics import near_duplicates


@dataclass(frozen=True)
class Planting:
    """A training set and its controls.

    Attributes:
        train: The training images; ids 0..N-1 in shuffled order, ``sources`` the id of the
            original.
        twins: The twins, in the order of the planted images; ids as in the pool.
        index: One row per training image, then one per twin:

            - part: train or twin; id, source, label: of the image
            - copies: how often the row's source occurs in the training set; for a twin, that of its
              planted counterpart
            - copy: 0 for an original, 1, 2, ... for further copies
            - perturbed: whether the copy was perturbed
            - kind: how, as ``data.plant.perturb`` names it (noise for ``perturbation``); else empty
            - twin_of: source id of a twin's planted counterpart; otherwise -1
    """

    train: Images
    twins: Images
    index: pd.DataFrame


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pool", type=Path, required=True, help="pool.npz of data split")
    parser.add_argument("--pool-table", type=Path, required=True, help="pool.parquet of data split")
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved config of data/planting (JSON)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> None:
    config = artifacts.read_config(args.config, "data/planting")
    inputs = {"pool": args.pool, "pool_table": args.pool_table}
    with artifacts.step(config, args.out, inputs, entries=(__name__,)) as step:
        pool = load_images(args.pool)
        artifacts.check_file(args.pool_table)
        table = pd.read_parquet(args.pool_table)
        if not np.array_equal(table["id"], pool.ids):
            raise ArtifactError(f"{args.pool_table} does not describe the images of {args.pool}")
        alone = table["alone"].to_numpy()
        planting = draw(pool, alone, step.settings, config["seed"], int(config["job"]))
        planting.train.save(step.folder / "train.npz")
        planting.twins.save(step.folder / "twins.npz")
        planting.index.to_parquet(step.folder / "index.parquet", index=False)
        facts = manifest(planting, pool, step.settings["plant"])
        artifacts.write_json(step.folder / "manifest.json", facts)
        step.metric("train_images", len(planting.train))
        step.metric("twins_images", len(planting.twins))
        step.metric("class_distance", facts["class_distance"])


def draw(
    pool: Images, alone: np.ndarray, settings: dict[str, Any], seed: int, number: int
) -> Planting:
    """Draw a planting.

    Args:
        pool: The distinct images for training sets and twins.
        alone: bool, (N,): whether each is without duplicate and near-duplicate in the pool.
        settings: ``plant`` and ``flips`` of the study, as plain values.
        seed: The study's seed.
        number: Of the planting.

    Raises:
        ConfigError: if there are too few images to plant, with the numbers needed and available.
    """
    plant = settings["plant"]
    wanted = sum(group["images"] for group in plant)
    usable = alone.copy()
    while True:
        candidates = np.flatnonzero(usable)
        rows = pairs(
            pool.labels, candidates, wanted, seeds.numpy_rng(seed, "planting", number, "pairs")
        )
        once = np.setdiff1d(np.arange(len(pool)), rows)
        train, index = _training_set(pool, rows[:, 0], once, plant, seed, number)
        near = _near(pool.pixels[rows[:, 1]], train, index["perturbed"], settings["flips"])
        if not near.any():
            break
        usable[rows[near, 1]] = False
    twins = pool.take(rows[:, 1])
    copies = np.repeat(
        [group["copies"] for group in plant], [group["images"] for group in plant]
    ).astype(np.int64)
    of_twins = _rows("twin", twins, copies=copies, twin_of=pool.ids[rows[:, 0]])
    return Planting(train, twins, pd.concat([index, of_twins], ignore_index=True))


def pairs(
    labels: np.ndarray, candidates: np.ndarray, wanted: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw disjoint pairs of rows, each of one class as far as possible.

    The numbers of pairs of the classes differ by at most one, in all and among any pairs that
    follow each other, but for classes with too few rows, whose share the other classes take.

    Args:
        labels: int64, (N,): the class of every row.
        candidates: int64, (M,): the rows to draw from.
        wanted: P, the number of pairs; needs 2P <= M.

    Returns:
        int64, (P, 2): rows, first the planted one and then its twin, by a fair coin flip per pair.

    Raises:
        ConfigError: if there are too few candidates.
    """
    if 2 * wanted > len(candidates):
        raise ConfigError(
            f"data.plant asks for {wanted} images with a twin each, {2 * wanted} in all, but only "
            f"{len(candidates)} of the images for training and twins can be drawn (without a "
            "duplicate or near-duplicate among them)"
        )
    order = rng.permutation(candidates)
    alike = [np.empty((0, 2), np.int64)]
    rounds: list[tuple[int, int]] = []
    single: list[int] = []
    for rank, label in enumerate(rng.permutation(np.unique(labels[order]))):
        rows = order[labels[order] == label]
        even = len(rows) // 2 * 2
        alike.append(rows[:even].reshape(-1, 2))
        rounds += [(number, rank) for number in range(even // 2)]
        single += rows[even:].tolist()
    by_round = sorted(range(len(rounds)), key=rounds.__getitem__)
    chosen = np.concatenate(alike)[by_round[:wanted]]
    mixed = np.array(single[: 2 * (wanted - len(chosen))], np.int64).reshape(-1, 2)
    drawn = np.concatenate([chosen, mixed])
    coin = rng.integers(2, size=wanted)
    return np.stack([drawn[np.arange(wanted), coin], drawn[np.arange(wanted), 1 - coin]], axis=1)


def manifest(planting: Planting, pool: Images, plant: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the manifest (plain JSON values).

    Among others it has the number of planted images by class, ``planted_by_class``; the classes
    that have at least two fewer than another, since they have no more pairs to draw,
    ``short_of_pairs``; the number of pairs with images of two classes, ``mixed_pairs``; and the
    total variation distance between the class shares of the training images and of the pool,
    ``class_distance``.
    """
    parts = {"train": planting.train, "twins": planting.twins}
    twins = planting.index[planting.index["part"] == "twin"]
    sources, ends = twins["twin_of"], np.cumsum([0] + [group["images"] for group in plant])
    labels = dict(zip(pool.ids.tolist(), pool.labels.tolist(), strict=True))
    planted = np.array([labels[source] for source in sources], np.int64)
    by_class = {str(label): int((planted == label).sum()) for label in np.unique(pool.labels)}
    most = max(by_class.values())
    return {
        "counts": {
            name: {"images": len(part), "class": count(part.labels)} for name, part in parts.items()
        },
        "distinct_training_sources": len(pool) - len(twins),
        "pixels_sha256": {
            name: hashlib.sha256(part.pixels.tobytes()).hexdigest() for name, part in parts.items()
        },
        "planted": [
            group
            | {
                "sources": sources.iloc[start:end].tolist(),
                "twins": twins["id"].iloc[start:end].tolist(),
                "class": count(planted[start:end]),
            }
            for group, start, end in zip(plant, ends[:-1], ends[1:], strict=True)
        ],
        "planted_by_class": by_class,
        "short_of_pairs": [label for label, number in by_class.items() if number < most - 1],
        "mixed_pairs": int((planted != planting.twins.labels).sum()),
        "class_distance": class_distance(planting.train.labels, pool.labels),
    }


def class_distance(labels: np.ndarray, others: np.ndarray) -> float:
    """Return the total variation distance between the class shares of two sets of labels."""
    classes = np.unique(np.concatenate([labels, others]))
    shares = [(some[:, None] == classes).mean(axis=0) for some in (labels, others)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _near(twins: np.ndarray, train: Images, perturbed: pd.Series, flips: bool) -> np.ndarray:
    """Return which twins are duplicates or near-duplicates of training images, bool (P,).

    Perturbed copies are close to each other and shorten the distances that others are compared
    with, so the search is repeated without them.
    """
    near = np.zeros(len(twins), bool)
    for gallery in (train.pixels, train.pixels[~perturbed.to_numpy()]):
        if len(twins):
            near |= near_duplicates.find(twins, gallery, flips).rows >= 0
    return near


def _training_set(
    pool: Images,
    planted: np.ndarray,
    once: np.ndarray,
    plant: list[dict[str, Any]],
    seed: int,
    number: int,
) -> tuple[Images, pd.DataFrame]:
    """Return the shuffled training images and their rows of the index."""
    rows = [(row, 1, 0) for row in once.tolist()]
    pixels = list(pool.pixels[once])
    kinds = [""] * len(once)
    waiting = iter(planted.tolist())
    for place, group in enumerate(plant):
        change, several = group["perturbation"], group.get("perturb", [])
        rng = seeds.numpy_rng(seed, "planting", number, "perturbation", place)
        for _ in range(group["images"]):
            row = next(waiting)
            for copy in range(group["copies"]):
                rows.append((row, group["copies"], copy))
                pixel, kind = pool.pixels[row], ""
                if copy and change is not None:
                    key = f"data.plant.{place}.perturbation"
                    pixel, kind = changes.perturb(pixel, **change, rng=rng, key=key), "noise"
                elif copy and several:
                    turn = (copy - 1) % len(several)
                    key = f"data.plant.{place}.perturb.{turn}"
                    pixel = changes.change(pixel, several[turn], rng, key)
                    kind = several[turn]["kind"]
                pixels.append(pixel)
                kinds.append(kind)
    order = seeds.numpy_rng(seed, "planting", number, "order").permutation(len(rows))
    original_row, copies, copy_number = np.array(rows, np.int64)[order].T
    train = Images.of(
        np.stack(pixels)[order],
        labels=pool.labels[original_row],
        sources=pool.ids[original_row],
        official_test=pool.official_test[original_row],
        captions=pool.captions[original_row],
    )
    perturbed = (train.pixels != pool.pixels[original_row]).any(axis=(1, 2, 3))
    ordered_kinds = np.array(kinds, dtype=object)[order]
    return train, _rows(
        "train", train, copies=copies, copy=copy_number, perturbed=perturbed, kind=ordered_kinds
    )


def _rows(part: str, images: Images, **columns: np.ndarray) -> pd.DataFrame:
    """Return one part's rows of the index; other columns have their values for unplanted images."""
    index = {"part": part, "id": images.ids, "source": images.sources, "label": images.labels}
    return pd.DataFrame(
        index | {"copies": 0, "copy": 0, "perturbed": False, "kind": "", "twin_of": -1} | columns
    )
