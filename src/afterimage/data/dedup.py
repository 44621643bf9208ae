"""``afterimage data dedup``: find near-duplicates and keep one image of each group.

The procedure follows Carlini et al. 2023, section 7.1. Three detectors always run: equal bytes, a
64-bit perceptual hash, and cosine neighbours in a feature space. A fourth, ``metrics.likeness``,
runs where the study names it: it comes closest to what people call duplicates, and takes longer.
Where images have captions, equal captions are a detector too, and can be a condition for all others
(Somepalli et al. 2023, "Understanding and Mitigating Copying in Diffusion Models", tell duplicates
of images, of captions and of both apart). The study names the ones that decide: their pairs are
joined into groups (connected components), and one image of each is kept.

Ground truth are the planted duplicates: a pair is true if both images were planted as copies of
one source image. Near-duplicates that the data set contains anyway count as false, so precision is
a lower bound of what a person would find; and so do images that only carry one caption, which are
no duplicates. What a detector finds of the pairs that were planted with, without, or only by their
captions is in columns of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
import pandas as pd
from PIL import Image
from scipy import fft
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.decomposition import PCA

from afterimage import artifacts, config, seeds
from afterimage.artifacts import ArtifactError
from afterimage.images import Images, contents, folded, load_images
from afterimage.metrics.likeness import Likeness

_BLOCK = 1024  # images compared with all others at once
_MOST_PAIRS = 20_000_000
_ROUNDING = 1e-6  # of a float32 cosine; equal images must reach similarity 1


class Pairs(NamedTuple):
    """Near-duplicate pairs: rows ``a`` < ``b``, int64 (P,), and the detector's ``score``, float64
    (P,)."""

    a: np.ndarray
    b: np.ndarray
    score: np.ndarray


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", type=Path, required=True, help="train.npz of data planting")
    parser.add_argument("--index", type=Path, required=True, help="index.parquet of data planting")
    parser.add_argument("--reference", type=Path, required=True, help="reference.npz of data split")
    parser.add_argument(
        "--classifier",
        type=Path,
        help="folder of data classifier; needed with features: classifier",
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved config of data/dedup (JSON)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> None:
    resolved = artifacts.read_config(args.config, "data/dedup")
    settings = config.Dedup.model_validate(resolved["settings"])
    inputs = {"train": args.train, "index": args.index, "reference": args.reference}
    if settings.embedding.features == "classifier":
        if args.classifier is None:
            raise config.ConfigError(
                "dedup.embedding.features = classifier needs --classifier, the folder of data "
                "classifier"
            )
        inputs["classifier"] = args.classifier
    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        # Load the training part and its index.
        train = load_images(args.train)
        reference = load_images(args.reference)
        artifacts.check_file(args.index)
        index = pd.read_parquet(args.index)
        index = index[index["part"] == "train"].set_index("id")
        if (
            not np.array_equal(np.sort(train.ids), np.sort(index.index))
            or (train.sources != index.loc[train.ids, "source"]).any()
        ):
            raise ArtifactError(f"{args.index} does not describe the images of {args.train}")

        # Run all detectors, and score each as if it alone decided.
        vectors = features(
            train.pixels, reference.pixels, settings.embedding, resolved["seed"], args.classifier
        )
        detected = {
            "exact": exact_pairs(train.pixels),
            "phash": hash_pairs(perceptual_hashes(train.pixels), settings.phash.max_bits),
            "embedding": cosine_pairs(vectors, settings.embedding.similarity),
        }
        if "likeness" in settings.methods:
            threshold, detected["likeness"] = likeness_pairs(
                train.pixels, reference.pixels, settings.likeness, resolved["seed"]
            )
            step.metric("likeness/threshold", threshold)
        if (train.captions != "").any():
            detected["caption"] = caption_pairs(train.captions)
        perturbed = index.loc[train.ids, "perturbed"].to_numpy()
        kinds = index.loc[train.ids, "kind"].to_numpy()
        repeat = index.loc[train.ids, "repeat"].to_numpy()
        table: dict[str, dict[str, float | None]] = {}
        for method, pairs in detected.items():
            group = groups(len(train), [pairs])
            kept = keep(group, vectors, settings.keep)
            table[method] = score(pairs, group, kept, train.sources, perturbed, kinds)
            table[method] |= recall_by_repeat(pairs, train, repeat)

        # Group the images by the detectors that decide.
        deciding = [detected[method] for method in settings.methods]
        if settings.same_caption:
            deciding = [of_one_caption(pairs, train.captions) for pairs in deciding]
        group = groups(len(train), deciding)
        kept = keep(group, vectors, settings.keep)
        joined = union(deciding)
        table["combined"] = score(joined, group, kept, train.sources, perturbed, kinds)
        table["combined"] |= recall_by_repeat(joined, train, repeat)

        # Write the kept images and the tables.
        train.take(kept).save(step.folder / "train.npz")
        pd.DataFrame(
            {"id": train.ids, "source": train.sources, "group": group, "kept": kept}
        ).to_parquet(step.folder / "groups.parquet", index=False)
        frames = [
            pd.DataFrame(
                {
                    "method": method,
                    "a": train.ids[pairs.a],
                    "b": train.ids[pairs.b],
                    "score": pairs.score,
                }
            )
            for method, pairs in detected.items()
        ]
        pd.concat(frames, ignore_index=True).to_parquet(step.folder / "pairs.parquet", index=False)
        rows = [{"method": method} | row for method, row in table.items()]
        pd.DataFrame(rows).to_csv(step.folder / "table.csv", index=False)
        for method, row in table.items():
            for name, value in row.items():
                if value is not None:
                    step.metric(f"{method}/{name}", value)
        step.note(images=len(train), kept=int(kept.sum()), methods=settings.methods)


# ---- detectors -----------------------------------------------------------------------------------


def exact_pairs(pixels: np.ndarray) -> Pairs:
    """Return all pairs of byte-identical images, score 0.

    Args:
        pixels: uint8, (N, H, W, C).
    """
    return _equal_pairs([content.tobytes() for content in contents(pixels)], "exact")


def caption_pairs(captions: np.ndarray) -> Pairs:
    """Return all pairs with the same caption, but for case and white space, score 0.

    Args:
        captions: text, (N,).
    """
    return _equal_pairs(folded(captions).tolist(), "caption")


def of_one_caption(pairs: Pairs, captions: np.ndarray) -> Pairs:
    """Return the pairs whose two images have the same caption, as ``caption_pairs`` compares."""
    texts = folded(captions)
    return Pairs(*(column[texts[pairs.a] == texts[pairs.b]] for column in pairs))


def _equal_pairs(values: Iterable[Hashable], method: str) -> Pairs:
    """Return all pairs of rows with equal values."""
    rows: dict[Hashable, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    blocks = []
    for same in rows.values():
        first, second = np.triu_indices(len(same), k=1)
        members = np.array(same, np.int64)
        blocks.append((members[first], members[second], np.zeros(len(first))))
    return _gather(blocks, f"dedup.methods: {method}")


def perceptual_hashes(pixels: np.ndarray) -> np.ndarray:
    """Return the 64-bit DCT hash of every image, uint8 (N, 8): the bits of ``imagehash.phash``.

    Args:
        pixels: uint8, (N, H, W, C).
    """
    bits = np.empty((len(pixels), 64), bool)
    for start in range(0, len(pixels), _BLOCK):
        block = _grey(pixels[start : start + _BLOCK]).astype(np.float64)
        waves = fft.dct(fft.dct(block, axis=1), axis=2)[:, :8, :8].reshape(len(block), 64)
        bits[start : start + _BLOCK] = waves > np.median(waves, axis=1, keepdims=True)
    return np.packbits(bits, axis=1)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """Return images as Pillow's grey values at 32 x 32, uint8 (N, 32, 32)."""
    if pixels.shape[-1] == 3:
        weights = np.array([19595, 38470, 7471], np.uint32)  # Pillow's, of 2^16
        grey = ((pixels @ weights + 0x8000) >> 16).astype(np.uint8)
    else:
        grey = pixels[..., 0]
    if grey.shape[1:] == (32, 32):
        return grey
    resized = (Image.fromarray(image).resize((32, 32), Image.Resampling.LANCZOS) for image in grey)
    return np.stack([np.asarray(image) for image in resized])


def hash_pairs(hashes: np.ndarray, max_bits: int) -> Pairs:
    """Return all pairs of hashes that differ in at most ``max_bits`` bits; the score is the number
    of bits.

    Args:
        hashes: uint8, (N, 8).
    """
    index = faiss.IndexBinaryFlat(8 * hashes.shape[1])
    index.add(np.ascontiguousarray(hashes))
    # faiss returns distances below the radius.
    return _search(index, hashes, max_bits + 1, "dedup.phash.max_bits")


def cosine_pairs(vectors: np.ndarray, similarity: float) -> Pairs:
    """Return all pairs with a cosine similarity of at least ``similarity``, which is also the
    score.

    Args:
        vectors: float32, (N, D), rows of length 1 or 0.
    """
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    return _search(index, vectors, similarity - _ROUNDING, "dedup.embedding.similarity")


def likeness_pairs(
    pixels: np.ndarray, reference: np.ndarray, settings: config.Likeness, seed: int
) -> tuple[float, Pairs]:
    """Return the threshold that ``false_pairs`` gives, and all pairs of at least this likeness.

    Args:
        pixels: uint8, (N, H, W, C): the training images.
        reference: uint8, (M, H, W, C).

    Raises:
        ConfigError: if no threshold can be derived from the reference.
    """
    state = seeds.derive(seed, "dedup", "likeness") % 2**32
    measure = Likeness(reference, settings.mirrors, state)
    threshold = measure.threshold(reference, settings.false_pairs, len(pixels))
    return threshold, Pairs(*measure.within(pixels, threshold))


def _search(index: Any, queries: np.ndarray, radius: float, key: str) -> Pairs:
    def blocks() -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for start in range(0, len(queries), _BLOCK):
            block = np.ascontiguousarray(queries[start : start + _BLOCK])
            limits, scores, neighbour = index.range_search(block, radius)
            query = start + np.repeat(np.arange(len(block)), np.diff(limits.astype(np.int64)))
            once = query < neighbour
            yield query[once], neighbour[once].astype(np.int64), scores[once].astype(np.float64)

    return _gather(blocks(), key)


def _gather(blocks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], key: str) -> Pairs:
    """Join blocks of pairs and sort them.

    Raises:
        ConfigError: if there are more than ``_MOST_PAIRS``, as with too loose a threshold.
    """
    gathered = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    total = 0
    for block in blocks:
        total += len(block[0])
        if total > _MOST_PAIRS:
            raise config.ConfigError(
                f"{key}: more than {_MOST_PAIRS:,} pairs of images count as duplicates; choose a "
                "stricter threshold"
            )
        gathered.append(block)
    a, b, scores = (np.concatenate(column) for column in zip(*gathered, strict=True))
    order = np.lexsort((b, a))
    return Pairs(a[order], b[order], scores[order])


def features(
    pixels: np.ndarray,
    reference: np.ndarray,
    settings: config.Embedding,
    seed: int,
    classifier: Path | None = None,
) -> np.ndarray:
    """Return the feature vectors for cosine similarity, float32 (N, D), of unit length.

    The vector of an image that equals the mean is zero. ``pixels`` centres on the mean training
    image; ``pca`` projects onto the principal components of the reference images, which planted
    copies do not affect; ``classifier`` uses the study's own network.

    Args:
        pixels: uint8, (N, H, W, C): the training images.
        reference: uint8, (M, H, W, C).
        classifier: Folder of the network, with ``features: classifier``.

    Raises:
        ConfigError: if ``components`` is more than the reference images allow.
    """
    vectors: np.ndarray
    if settings.features == "classifier":
        from afterimage.metrics.classifier import embed

        assert classifier is not None
        vectors = np.asarray(embed(classifier, pixels), np.float32)
    else:
        vectors = pixels.reshape(len(pixels), -1).astype(np.float32) / 255
        if settings.features == "pca":
            flat = reference.reshape(len(reference), -1).astype(np.float32) / 255
            if settings.components > min(flat.shape):
                raise config.ConfigError(
                    f"dedup.embedding.components = {settings.components}: {flat.shape[0]} "
                    f"reference images of {flat.shape[1]} values have at most {min(flat.shape)}"
                )
            state = seeds.derive(seed, "dedup", "pca") % 2**32
            vectors = (
                PCA(settings.components, random_state=state)
                .fit(flat)
                .transform(vectors)
                .astype(np.float32)
            )
        else:
            vectors -= vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


# ---- groups --------------------------------------------------------------------------------------


def groups(images: int, detected: list[Pairs]) -> np.ndarray:
    """Return the group of every image, int64 (N,): the connected components of all pairs.

    Groups are numbered in the order of their first images.
    """
    a, b = (np.concatenate([getattr(pairs, side) for pairs in detected]) for side in "ab")
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(images, images))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def keep(group: np.ndarray, vectors: np.ndarray, which: str) -> np.ndarray:
    """Choose the image of each group that is kept.

    Args:
        group: int64, (N,).
        vectors: float32, (N, D), as ``features`` gives them.
        which: ``first`` keeps the lowest row; ``medoid`` the one of smallest mean cosine distance
            to its group, the lowest row among equals.

    Returns:
        bool, (N,): True for images that are kept.
    """
    kept = np.zeros(len(group), bool)
    if which == "first":
        kept[np.unique(group, return_index=True)[1]] = True
        return kept
    sums = np.zeros((group.max() + 1, vectors.shape[1]))
    np.add.at(sums, group, vectors)
    size = np.bincount(group)[group]
    # Rounded to 6 digits, so that ties in float32 stay ties.
    distance = np.round(1 - np.einsum("nd,nd->n", vectors, sums[group]) / size, 6)
    order = np.lexsort((np.arange(len(group)), distance, group))
    kept[order[np.unique(group[order], return_index=True)[1]]] = True
    return kept


def union(detected: list[Pairs]) -> Pairs:
    """Return every pair once, with score 0: scores of different detectors are not comparable."""
    both = np.unique(np.concatenate([np.stack(pairs[:2], axis=1) for pairs in detected]), axis=0)
    return Pairs(both[:, 0], both[:, 1], np.zeros(len(both)))


# ---- the planted truth ---------------------------------------------------------------------------


def score(
    pairs: Pairs,
    group: np.ndarray,
    kept: np.ndarray,
    sources: np.ndarray,
    perturbed: np.ndarray,
    kinds: np.ndarray,
) -> dict[str, float | None]:
    """Score detected pairs and groups against the planted duplicates.

    Args:
        pairs: Pairs of the detector.
        group: int64, (N,): the groups that they form.
        kept: bool, (N,): the images that are kept.
        sources: (N,): the source of each image; images of one source are planted copies.
        perturbed: bool, (N,): whether the image is a perturbed copy.
        kinds: str, (N,): how it was perturbed; empty for all other images.

    Returns:
        One row of the table; shares with a denominator of zero are None.

        - pairs_found, true_pairs, true_pairs_found, pair_precision, pair_recall;
          perturbed_pair_recall counts only true pairs with a perturbed copy, and recall_<kind>, for
          each kind planted, those of an unperturbed copy and one of this kind
        - group_pairs, group_precision, group_recall: the same for all pairs within groups, i.e.
          after transitive closure
        - removed: images removed; surplus_copies: planted copies beyond the first of each source;
          surplus_copies_removed (a source's last image does not count) and surplus_recall
        - unplanted_removed: removed images without a planted copy; sources_lost: sources of which
          no image is left
    """
    _, source, copies = np.unique(sources, return_inverse=True, return_counts=True)
    hit = source[pairs.a] == source[pairs.b]
    changed = hit & (perturbed[pairs.a] | perturbed[pairs.b])
    unchanged = np.bincount(source, ~perturbed, len(copies)).astype(np.int64)
    true = _two_of(copies)
    true_changed = true - _two_of(unchanged)
    by_kind: dict[str, float | None] = {}
    for kind in np.unique(kinds[perturbed]):
        of_kind = perturbed & (kinds == kind)
        one_changed = (of_kind[pairs.a] & ~perturbed[pairs.b]) | (
            of_kind[pairs.b] & ~perturbed[pairs.a]
        )
        true_of_kind = int((np.bincount(source, of_kind, len(copies)) * unchanged).sum())
        by_kind[f"recall_{kind}"] = _share(int((hit & one_changed).sum()), true_of_kind)

    in_groups = _two_of(np.bincount(group))
    both = np.unique(np.stack([group, source]), axis=1, return_counts=True)[1]
    true_in_groups = _two_of(both)

    left = np.bincount(source[kept], minlength=len(copies))
    surplus = int((copies - 1).sum())
    surplus_removed = int((copies - np.maximum(left, 1)).sum())
    return {
        "pairs_found": len(hit),
        "true_pairs": true,
        "true_pairs_found": int(hit.sum()),
        "pair_precision": _share(int(hit.sum()), len(hit)),
        "pair_recall": _share(int(hit.sum()), true),
        "perturbed_pair_recall": _share(int(changed.sum()), true_changed),
        "group_pairs": in_groups,
        "group_precision": _share(true_in_groups, in_groups),
        "group_recall": _share(true_in_groups, true),
        "removed": int((~kept).sum()),
        "surplus_copies": surplus,
        "surplus_copies_removed": surplus_removed,
        "surplus_recall": _share(surplus_removed, surplus),
        "unplanted_removed": int((~kept & (copies[source] == 1)).sum()),
        "sources_lost": int((left == 0).sum()),
        **by_kind,
    }


def recall_by_repeat(pairs: Pairs, train: Images, repeat: np.ndarray) -> dict[str, float | None]:
    """Return which share of the pairs planted in each style a detector finds; nothing if images
    are planted with their captions only.

    Args:
        pairs: Pairs of the detector.
        train: The training images.
        repeat: text, (N,): column of the planting's index.

    Returns:
        ``recall_repeated_both``, ``recall_repeated_image`` and ``recall_repeated_caption``: pairs
        of the same image and caption, of the same image, and of different images with the caption
        of one of them. None for a style without pairs.
    """
    if not np.isin(repeat, ("image", "caption")).any():
        return {}
    shares: dict[str, float | None] = {}
    for style in ("both", "image", "caption"):
        of = train.caption_sources if style == "caption" else train.sources
        planted = np.isin(repeat, ("caption", "carrier") if style == "caption" else style)
        hit = planted[pairs.a] & planted[pairs.b] & (of[pairs.a] == of[pairs.b])
        true = _two_of(np.unique(of[planted], return_counts=True)[1])
        shares[f"recall_repeated_{style}"] = _share(int(hit.sum()), true)
    return shares


def _two_of(sizes: np.ndarray) -> int:
    return int((sizes * (sizes - 1) // 2).sum())


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
