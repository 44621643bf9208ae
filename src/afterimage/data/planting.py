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

What a group repeats (``repeat``) is one of the styles of Somepalli et al. 2023, "Understanding and
mitigating copying in diffusion models". ``both``: the image with its caption. ``image``: the image;
every copy but the first has the caption of another image of the pool, which is not trained on.
(Theirs have other captions of the same image, which most sources have not.) ``caption``: the
caption, which other images of the pool have instead of their own; every image of the group occurs
once. Images that are not planted are their fourth style, ``neither``. With ``image`` or ``caption``
among the styles, planted images, twins and the images that lend captions are drawn from those whose
caption is no other image's in the pool, so that captions occur exactly as often as planted.

All plantings of a study use the pool's images, in different roles and equal numbers.

The step also checks the study's forget sets, before any training: what they name must be some of
its training images, and not all. That changes nothing in its result, so that other sets do not make
it due again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from afterimage import artifacts, scratch, seeds
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.data import changes, forget
from afterimage.data.fetch import count
from afterimage.images import Images, folded, load_images
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
            - repeat: what of the image is planted: both, image or caption; carrier for an image
              that carries the caption of a planted one; neither for other unplanted images; for a twin,
              that of its planted counterpart
            - caption_source: id of the image that the row's caption was written for
            - caption_copies: how often the row's caption occurs in the training set, whatever its
              case and white space; for a twin, that of its planted counterpart; 0 without captions
    """

    train: Images
    twins: Images
    index: pd.DataFrame


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pool", type=Path, required=True, help="pool.npz of data split")
    parser.add_argument("--pool-table", type=Path, required=True, help="pool.parquet of data split")
    parser.add_argument(
        "--study", type=Path, required=True, help="the whole study (JSON), whose forget sets fit"
    )
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
        sets = json.loads(args.study.read_text())["forget"]
        forget.refuse_unfit(planting.train, sets, forget.OF_IMAGES)
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
    own_caption = _occurrences(pool.captions) == 1
    apart = any(further_images(group) for group in plant)
    usable = alone & own_caption if apart else alone.copy()
    lacking = "without a duplicate or near-duplicate among them"
    lacking += ", with a caption of their own" if apart else ""
    while True:
        candidates = np.flatnonzero(usable)
        rng = seeds.numpy_rng(seed, "planting", number, "pairs")
        rows = pairs(pool.labels, candidates, wanted, rng, lacking)
        rest = np.setdiff1d(np.arange(len(pool)), rows)
        rng = seeds.numpy_rng(seed, "planting", number, "captions")
        lenders, carriers = _further(plant, rest, own_caption, rng)
        once = np.setdiff1d(rest, np.concatenate([lenders, carriers]))
        further = (lenders, carriers)
        train, index = _training_set(pool, rows[:, 0], further, once, plant, seed, number)
        near = _near(pool.pixels[rows[:, 1]], train, index["perturbed"], settings["flips"])
        if not near.any():
            break
        usable[rows[near, 1]] = False
    twins, planted = pool.take(rows[:, 1]), pool.ids[rows[:, 0]]
    originals = index[index["copy"] == 0].set_index("source").loc[planted]
    columns = {name: originals[name].to_numpy() for name in ("copies", "repeat", "caption_copies")}
    of_twins = _rows("twin", twins, twin_of=planted, **columns)
    return Planting(train, twins, pd.concat([index, of_twins], ignore_index=True))


def further_images(group: dict[str, Any]) -> int:
    """Return how many images of the pool a group of ``data.plant`` takes beside its own: those that
    carry its captions, or lend theirs to its copies."""
    if group.get("repeat", "both") == "both":
        return 0
    return (group["copies"] - 1) * group["images"]


def _further(
    plant: list[dict[str, Any]],
    rest: np.ndarray,
    own_caption: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the images that lend their captions to copies, and those that carry planted captions.

    Args:
        plant: The groups.
        rest: int64: rows of the pool that are neither planted nor twins.
        own_caption: bool, (N,): whether each image of the pool has a caption of its own.
        rng: Generator.

    Returns:
        Rows, both int64: one lender for each copy with another caption, and one carrier for each
        image with another's caption, in the order of the groups.

    Raises:
        ConfigError: if too few images can lend a caption.
    """
    counts = {
        style: sum(further_images(group) for group in plant if group.get("repeat") == style)
        for style in ("image", "caption")
    }
    order = rng.permutation(rest)
    able = order[own_caption[order]]
    if counts["image"] > len(able):
        raise ConfigError(
            f"data.plant: repeat = 'image' needs {counts['image']} captions for copies, but only "
            f"{len(able)} of the images for training, without planted images and twins, have a "
            "caption of their own"
        )
    lenders = able[: counts["image"]]
    return lenders, order[~np.isin(order, lenders)][: counts["caption"]]


def pairs(
    labels: np.ndarray,
    candidates: np.ndarray,
    wanted: int,
    rng: np.random.Generator,
    lacking: str = "without a duplicate or near-duplicate among them",
) -> np.ndarray:
    """Draw disjoint pairs of rows, each of one class as far as possible.

    The numbers of pairs of the classes differ by at most one, in all and among any pairs that
    follow each other, but for classes with too few rows, whose share the other classes take.

    Args:
        labels: int64, (N,): the class of every row.
        candidates: int64, (M,): the rows to draw from.
        wanted: P, the number of pairs; needs 2P <= M.
        rng: Generator.
        lacking: What distinguishes the candidates, for the message.

    Returns:
        int64, (P, 2): rows, first the planted one and then its twin, by a fair coin flip per pair.

    Raises:
        ConfigError: if there are too few candidates.
    """
    if 2 * wanted > len(candidates):
        raise ConfigError(
            f"data.plant asks for {wanted} images with a twin each, {2 * wanted} in all, but only "
            f"{len(candidates)} of the images for training and twins can be drawn ({lacking})"
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
        "distinct_training_sources": len(np.unique(planting.train.sources)),
        "pixels_sha256": {
            name: hashlib.sha256(part.pixels.data).hexdigest() for name, part in parts.items()
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
    for gallery in (train.pixels, scratch.taken(train.pixels, ~perturbed.to_numpy())):
        if len(twins):
            near |= near_duplicates.find(twins, gallery, flips).rows >= 0
    return near


def _training_set(
    pool: Images,
    planted: np.ndarray,
    further: tuple[np.ndarray, np.ndarray],
    once: np.ndarray,
    plant: list[dict[str, Any]],
    seed: int,
    number: int,
) -> tuple[Images, pd.DataFrame]:
    """Return the shuffled training images and their rows of the index; ``further`` are the rows of
    ``_further``."""
    rows = [(row, row, 1, 0) for row in once.tolist()]
    pixels = [pool.pixels[row] for row in once]
    kinds, styles = [""] * len(once), ["neither"] * len(once)
    waiting, lenders, carriers = (iter(part.tolist()) for part in (planted, *further))
    for place, group in enumerate(plant):
        change, several = group["perturbation"], group.get("perturb", [])
        style, times = group.get("repeat", "both"), group["copies"]
        rng = seeds.numpy_rng(seed, "planting", number, "perturbation", place)
        for _ in range(group["images"]):
            row = next(waiting)
            for copy in range(times):
                shown, caption = row, row
                if copy and style == "image":
                    caption = next(lenders)
                if copy and style == "caption":
                    shown = next(carriers)
                # Images that carry one caption are no copies of each other.
                counted = (1, 0) if style == "caption" else (times, copy)
                rows.append((shown, caption, *counted))
                pixel, kind = pool.pixels[shown], ""
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
                styles.append("carrier" if shown != row else style)
    order = seeds.numpy_rng(seed, "planting", number, "order").permutation(len(rows))
    original_row, caption_row, copies, copy_number = np.array(rows, np.int64)[order].T
    train = Images.of(
        scratch.stacked([pixels[place] for place in order]),
        labels=pool.labels[original_row],
        sources=pool.ids[original_row],
        official_test=pool.official_test[original_row],
        captions=pool.captions[caption_row],
        caption_sources=pool.ids[caption_row],
    )
    pairs = zip(train.pixels, original_row, strict=True)
    perturbed = np.array([(image != pool.pixels[row]).any() for image, row in pairs])
    columns = {
        "copies": copies,
        "copy": copy_number,
        "perturbed": perturbed,
        "kind": np.array(kinds, dtype=object)[order],
        "repeat": np.array(styles, dtype=object)[order],
        "caption_copies": _occurrences(train.captions),
    }
    return train, _rows("train", train, **columns)


def _occurrences(captions: np.ndarray) -> np.ndarray:
    """Return how often the caption of each row occurs, int64 (N,); 0 for an empty one."""
    _, position, times = np.unique(folded(captions), return_inverse=True, return_counts=True)
    return np.where(captions == "", 0, times[position])


def _rows(part: str, images: Images, **columns: np.ndarray) -> pd.DataFrame:
    """Return one part's rows of the index; other columns have their values for unplanted images."""
    of_images = {"part": part, "id": images.ids, "source": images.sources, "label": images.labels}
    unplanted = {"copies": 0, "copy": 0, "perturbed": False, "kind": "", "twin_of": -1}
    captions = {"repeat": "neither", "caption_source": images.caption_sources, "caption_copies": 0}
    return pd.DataFrame(of_images | unplanted | captions | columns)
