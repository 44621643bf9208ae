"""``--space``: a second answer of the audit, by similarity in a feature space.

The verdict is by distance in pixels. With a space, generations and held-out images are also
compared with the training images by the cosine of their features (``attacks.feature_similarity``). Each of
the two answers then takes half of the 5 of 100 audits that may report copies where there are none.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import binomtest

from afterimage import config, seeds
from afterimage.attacks import calibration, detail, feature_similarity, verdict
from afterimage.attacks.extraction import Extraction
from afterimage.attacks.feature_networks import NORMALISATIONS, SPACES, FeatureNetwork, find
from afterimage.attacks.feature_similarity import FIXED, FeatureSimilarity
from afterimage.config import ConfigError
from afterimage.config.data import LARGEST, SMALLEST
from afterimage.data import pictures
from afterimage.images import Images, contents
from afterimage.metrics import classifier, intervals, similarity
from afterimage.standalone import flags, page
from afterimage.standalone.features import FeatureReader, KeptFeatures
from afterimage.standalone.images import ImageSet

COLUMNS = ("similarity", "nearest_by_similarity", "flagged_by_similarity")
"""Columns of pairs.parquet."""
SETS = ("samples", "train", "holdout")
_FLAGS = ("space_weights", "space_sha256", "space_normalisation", "match_size")
_ALIKE = 0.999
"""Where half of the different training images are as similar as this to another, the space hardly
tells images apart."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of ``--space``."""
    group = parser.add_argument_group("similarity in another space")
    group.add_argument(
        "--space",
        choices=["pixels", *SPACES, "classifier"],
        default="pixels",
        help="a second answer, by similarity of features: sscd (copy detection), clip, dinov2, or "
        "classifier, which is trained on half of --holdout (default: %(default)s, no second "
        "answer)",
    )
    group.add_argument(
        "--space-weights",
        type=Path,
        metavar="FILE|DIR",
        help="sscd: a TorchScript or ONNX file; clip, dinov2: a folder with config.json, "
        "preprocessor_config.json and safetensors",
    )
    group.add_argument(
        "--space-sha256",
        metavar="HASH",
        help="expected checksum of --space-weights; needed for sscd, whose file is a program",
    )
    group.add_argument(
        "--space-normalisation",
        choices=NORMALISATIONS,
        help="input of sscd: small_288 and skew_320 are of its authors, dcr of Somepalli et al. "
        "2023 (default: small_288)",
    )
    group.add_argument(
        "--match-size",
        type=int,
        metavar="SIDE",
        help="with sscd, clip or dinov2: keep of every image only a copy of this side, for the "
        "distances in pixels, so that large sets fit into memory; the space sees the image itself",
    )


def check(args: argparse.Namespace) -> None:
    """Check the flags of ``--space``.

    Raises:
        ConfigError: naming the flag.
    """
    space = args.space
    given = {flag: value for flag in _FLAGS if (value := getattr(args, flag))}
    allowed: dict[str, set[str]] = {"pixels": set(), "classifier": set()}
    allowed |= {name: {"space_weights", "space_sha256", "match_size"} for name in SPACES}
    allowed["sscd"] |= {"space_normalisation"}
    for flag in _FLAGS:
        if getattr(args, flag) is not None and flag not in allowed[space]:
            spaces = [name for name, known in allowed.items() if flag in known]
            raise ConfigError(
                f"{flags.flag(flag)} = {getattr(args, flag)}: it is for --space "
                f"{', '.join(spaces)}, not {space}"
            )
    if space in SPACES and "space_weights" not in given:
        raise ConfigError(f"--space {space} needs --space-weights")
    if space == "sscd" and "space_sha256" not in given:
        raise ConfigError(
            "--space sscd needs --space-sha256 HASH: its file is a program, which runs only if it "
            "is the one that you mean"
        )
    if args.space_sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", args.space_sha256):
        raise ConfigError(
            f"--space-sha256 = {args.space_sha256}: a sha256 has 64 hexadecimal digits"
        )
    if space == "classifier" and args.holdout is None:
        raise ConfigError("--space classifier needs --holdout: it is trained on half of it")
    _check_match_size(args)


def _check_match_size(args: argparse.Namespace) -> None:
    side = args.match_size
    if side is None:
        return
    largest = LARGEST if args.resize is None else args.resize
    if not SMALLEST <= side <= largest:
        limit = "" if args.resize is None else ", the side of --resize"
        raise ConfigError(
            f"--match-size = {side}: allowed are {SMALLEST} to {largest} pixels{limit}"
        )
    if args.pipeline is not None:
        raise ConfigError(
            f"--match-size = {side}: it is for images that are read. Draw from --pipeline first, "
            "and give its drawn/ as --samples"
        )


def open_space(args: argparse.Namespace, out: Path) -> Space | None:
    """Return the space of ``--space``, its network opened and checked; None for pixels.

    Raises:
        ConfigError: naming the flag.
        ArtifactError: naming ``--space-weights``, or a damaged file of features in ``out``.
    """
    check(args)
    if args.space == "pixels":
        return None
    if args.space == "classifier":
        return Space(args, None, None)
    normalisation = args.space_normalisation or ("small_288" if args.space == "sscd" else None)
    network = find(args.space, args.space_weights, args.space_sha256, normalisation)
    return Space(args, network, KeptFeatures(out, network))


@dataclass(frozen=True)
class Answer:
    """What the space adds to an audit.

    Attributes:
        record: ``similarity`` of audit.json; None if it could not be measured.
        limits: Limitations, in sentences.
        rows: Name, value and interval of its numbers.
        figures: Its figure.
    """

    record: dict[str, Any] | None
    limits: list[str]
    rows: list[tuple[str, str, str]]
    figures: list[page.Figure]


class Space:
    """The space of one audit: reads the sets of images, then compares their features."""

    def __init__(
        self, args: argparse.Namespace, network: FeatureNetwork | None, kept: KeptFeatures | None
    ) -> None:
        self._args, self._network, self._kept = args, network, kept
        self._readers: dict[str, FeatureReader] = {}
        self._sizes: dict[str, Counter[tuple[int, int]]] = {}

    # ---- reading ---------------------------------------------------------------------------------

    def reader(self, name: str) -> Any:
        """Return what takes each image of a set as it is read; None if images are kept whole, whose
        features are computed when all sets are known to have one shape."""
        side = self._args.match_size
        if self._network is None or side is None:
            return None
        reader = self._reader(name)
        sizes = self._sizes.setdefault(name, Counter())

        def each(image: str, pixels: np.ndarray) -> np.ndarray:
            sizes[pixels.shape[1], pixels.shape[0]] += 1
            reader.add(image, pixels)
            if pixels.shape[:2] == (side, side):
                return pixels
            grey = pixels.shape[-1] == 1
            picture = Image.fromarray(pixels[..., 0] if grey else pixels)
            small = np.asarray(pictures.resize(picture, side, "bilinear", "centre"))
            return small[..., None] if grey else small

        return each

    def _reader(self, name: str) -> FeatureReader:
        assert self._network is not None
        assert self._kept is not None
        reader = FeatureReader(self._network, self._kept, f"--{name}", self._args.flips)
        self._readers[name] = reader
        return reader

    def _features(self, sets: dict[str, ImageSet]) -> dict[str, np.ndarray]:
        """Return the features, float32 (V, N, D), of each set."""
        for name in SETS:
            if name in sets and name not in self._readers:
                reader = self._reader(name)
                for image, pixels in zip(sets[name].names, sets[name].images.pixels, strict=True):
                    reader.add(str(image), pixels)
        return {name: self._readers[name].finish() for name in SETS if name in sets}

    # ---- comparing -------------------------------------------------------------------------------

    def compare(
        self,
        sets: dict[str, ImageSet],
        extraction: Extraction,
        pairs: pd.DataFrame,
        settings: config.Extraction,
        statistics: config.Statistics,
    ) -> Answer:
        """Compare the features of generations and held-out images with those of training images.

        Args:
            sets: ``samples``, ``train`` and, if given, ``holdout``.
            extraction: The attack in pixels, which says what held-out images are left out, and what
                is blank or blurred.
            pairs: Receives ``COLUMNS``.
            settings: Of the attack.
            statistics: Of the intervals.

        Raises:
            ArtifactError: naming the image, if its features cannot be computed.
        """
        args, train = self._args, sets["train"].images
        if self._network is not None:
            features = self._features(sets)
            kept = held_out = None
            if "holdout" in sets:
                kept = _kept_rows(sets["holdout"].images, extraction)
                held_out = features["holdout"][:, kept]
        else:
            kept = _kept_rows(sets["holdout"].images, extraction)
            reference, kept = _halves(kept, args.seed)
            if reason := _unfit(sets["holdout"].images, reference):
                return Answer(None, [f"--space classifier: {reason}"], [], [])
            features, reason = _classified(sets, reference, args)
            if reason:
                return Answer(None, [f"--space classifier: {reason}"], [], [])
            held_out = features["holdout"][:, kept]
        result = feature_similarity.compare(
            features["samples"],
            features["train"],
            held_out,
            contents(train.pixels),
            extraction.pairs["low_detail"].to_numpy(),
            None if kept is None else _low_detail(sets["holdout"].images, kept, train, extraction),
            settings.calibrated_rate,
            args.seed,
            confidence(args),
        )
        names = sets["train"].names[result.generations.rows]
        values = (result.generations.similarities, names, result.flagged)
        for column, value in zip(COLUMNS, values, strict=True):
            pairs[column] = value
        record = self._record(result, features["train"].shape[-1], statistics)
        limits = self._limits(sets, result)
        return Answer(record, limits, rows(record), [figure(result, args.space)])

    def _record(
        self, result: FeatureSimilarity, dimension: int, statistics: config.Statistics
    ) -> dict[str, Any]:
        """Return ``similarity`` of audit.json."""
        seed, cut = self._args.seed, statistics.confidence

        def numbers(values: np.ndarray, name: str, above: float | None) -> dict[str, Any]:
            rng = seeds.numpy_rng(seed, "audit", "similarity", name)
            resampled = intervals.resampled(
                lambda drawn: float(values[drawn].mean()), len(values), statistics.bootstrap, rng
            )
            low, high = intervals.percentile(resampled, cut)
            lower, upper = intervals.quantile_limits(values, similarity.PERCENTILE / 100, cut)
            return {
                "images": len(values),
                "mean": {"value": float(values.mean()), "low": low, "high": high},
                "percentile_95": {
                    "value": similarity.replication(values),
                    "low": max(lower, -1.0),
                    "high": min(upper, 1.0),
                },
                "above_fixed": _share(int((values > FIXED).sum()), len(values), cut),
                "above_level": None
                if above is None
                else _share(round(float(above)), len(values), cut),
            }

        held_out, background = result.holdout, result.background
        above = None if result.above_level is None else float(result.above_level.sum())
        unseen_above = (
            None if result.holdout_above_level is None else float(result.holdout_above_level.sum())
        )
        answer = result.verdict.record
        threshold = answer.pop("threshold")
        answer["level"] = None if threshold is None else 1 - threshold
        answer["sentence"] = f"By similarity ({self._args.space}): {answer['sentence']}"
        network = self._network
        facts = dict.fromkeys(("weights", "weights_sha256", "format", "normalisation")) | {
            "input": "as in pixels; features are centred on the mean of the half that trains it"
        }
        return {
            "space": self._args.space,
            **(facts if network is None else network.facts),
            "dimension": dimension,
            "verdict": answer,
            "fixed": FIXED,
            "level": result.level,
            "generations": numbers(result.generations.similarities, "generations", above),
            "holdout": None
            if held_out is None
            else numbers(held_out.similarities, "holdout", unseen_above),
            "train_train": None if background is None else numbers(background, "train", None),
        }

    def _limits(self, sets: dict[str, ImageSet], result: FeatureSimilarity) -> list[str]:
        space, side, limits = self._args.space, self._args.match_size, []
        if result.holdout is None:
            limits.append(
                f"Without --holdout the share above {FIXED} has no false-alarm rate: unseen images "
                "can be above it too, by network and data."
            )
        else:
            each = 100 * (1 - result.verdict.confidence)
            limits.append(
                "Two answers are given, by distance in pixels (the verdict) and by similarity "
                f"({space}). Each reports copies in at most {each:g} of 100 audits without copies, "
                f"so that either does in at most {2 * each:g}."
            )
            if result.level is None:
                few = len(result.holdout.rows) < calibration.FEWEST
                limits.append(
                    f"--space {space}: no level is calibrated: "
                    + (
                        f"it needs {calibration.FEWEST} held-out images or more."
                        if few
                        else "held-out images are as similar to training images as copies are."
                    )
                )
            else:
                smallest = 100 * calibration.smallest_rate(len(result.holdout.rows))
                limits.append(
                    f"The calibrated level rests on {len(result.holdout.rows)} held-out images, "
                    f"which cannot show false-alarm rates below about {smallest:.2g} %."
                )
        if result.background is not None and np.median(result.background) > _ALIKE:
            limits.append(
                f"The space {space} hardly tells these images apart: half of the different "
                f"training images have a similarity above {_ALIKE} to another."
            )
        enlarged = ", ".join(
            f"{reader.enlarged} of {len(sets[name].images)} of --{name}"
            for name, reader in self._readers.items()
            if reader.enlarged
        )
        if enlarged:
            limits.append(
                f"Images smaller than what the network of {space} takes were enlarged for it: "
                f"{enlarged}."
            )
        if side is not None:
            limits.append(
                f"Distances in pixels, near-duplicates, blur and quality are of copies of "
                f"{side}x{side} (--match-size); what is finer does not count. The space {space} "
                "saw the images themselves."
            )
            limits += [self._policy(name, sizes) for name, sizes in self._sizes.items()]
        return [limit for limit in limits if limit]

    def _policy(self, name: str, sizes: Counter[tuple[int, int]]) -> str:
        """Say what became of images of several sizes; empty if all have one size and are square."""
        side = self._args.match_size
        ((width, height), most), *others = sizes.most_common()
        oblong = sum(count for (wide, high), count in sizes.items() if wide != high)
        small = sum(count for size, count in sizes.items() if min(size) < side)
        if not (others or oblong or small):
            return ""
        parts = [
            f"{len(sizes)} sizes (most have {width}x{height}: {most})" if others else "",
            f"{oblong} not square, cropped to the centre" if oblong else "",
            f"{small} smaller, enlarged" if small else "",
        ]
        return (
            f"--{name}: for the copies of {side}x{side} the shorter side was scaled: "
            + "; ".join(part for part in parts if part)
            + "."
        )


def confidence(args: argparse.Namespace) -> float:
    """Return the confidence of each answer of the audit."""
    answers = 1 if args.space == "pixels" else 2
    return 1 - (1 - verdict.CONFIDENCE) / answers


def _kept_rows(holdout: Images, extraction: Extraction) -> np.ndarray:
    """Return the rows of the held-out images that are not training images."""
    assert extraction.left_out is not None
    return np.flatnonzero(~np.isin(holdout.ids, extraction.left_out["sample"]))


def _low_detail(
    holdout: Images, rows: np.ndarray, train: Images, extraction: Extraction
) -> np.ndarray:
    """Return the mask of the held-out images that are blank or blurred next to the training image
    that is nearest in pixels, as the attack has it."""
    if extraction.holdout_pairs is None:
        return np.zeros(len(rows), bool)
    nearest = extraction.holdout_pairs.set_index("sample")["nearest"][holdout.ids[rows]]
    positions = pd.Index(train.ids).get_indexer(nearest)
    return detail.low_detail(holdout.pixels[rows], train.pixels[positions])


def _share(count: int, of: int, level: float) -> dict[str, Any]:
    exact = binomtest(count, of).proportion_ci(level, method="exact")
    return {
        "count": count,
        "of": of,
        "share": count / of,
        "exact_low": float(exact.low),
        "exact_high": float(exact.high),
    }


# ---- the classifier ------------------------------------------------------------------------------


def _halves(rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the held-out images that train the classifier, and of those that stay
    unseen by it."""
    if len(rows) < 2:
        return rows[:0], rows
    half = calibration.halves(len(rows), seed)
    return rows[half], rows[~half]


def _unfit(holdout: Images, reference: np.ndarray) -> str:
    """Say why no classifier can be trained; empty if it can."""
    sides = holdout.pixels.shape[1:3]
    if min(sides) < classifier.SMALLEST_SIDE:
        return (
            f"it needs images of side {classifier.SMALLEST_SIDE} or more, not "
            f"{sides[0]} x {sides[1]}; no similarity is given."
        )
    if len(reference) < 2:
        return (
            "it needs at least 4 held-out images that are not training images; no similarity is "
            "given."
        )
    return ""


def _classified(
    sets: dict[str, ImageSet], reference: np.ndarray, args: argparse.Namespace
) -> tuple[dict[str, np.ndarray], str]:
    """Return the features, (V, N, D), of each set by a classifier trained on held-out images, with
    the mean of these as their origin, or why there are none."""
    known = sets["holdout"].images.take(reference)
    try:
        network, _, _ = classifier.fit(known, config.Classifier(), args.seed)
    except ConfigError:  # the sizes fit, so it is the loss
        return {}, "its training on half of the held-out images diverged; no similarity is given."
    origin = classifier.embed_with(network, known.pixels).mean(axis=0)
    features = {}
    for name, image_set in sets.items():
        views = [image_set.images.pixels]
        if args.flips:
            views.append(views[0][:, :, ::-1])
        features[name] = np.stack([classifier.embed_with(network, view) - origin for view in views])
    return features, ""


# ---- on the page ---------------------------------------------------------------------------------


def rows(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, value and interval of the numbers of ``similarity``."""
    table = []
    titles = {
        "generations": "generations",
        "holdout": "held-out images",
        "train_train": "training images, to the most similar other one",
    }
    for key, title in titles.items():
        if (numbers := record[key]) is None:
            continue
        for name, text in (("mean", "mean"), ("percentile_95", "95th percentile (R)")):
            entry = numbers[name]
            table.append(
                (
                    f"similarity ({record['space']}), {text}: {title}",
                    f"{entry['value']:.3f}",
                    f"{entry['low']:.3f} to {entry['high']:.3f}",
                )
            )
        fixed = f"above {record['fixed']}"
        if record["holdout"] is None and key == "generations":
            fixed += ", no false-alarm rate without --holdout"
        shares = {fixed: numbers["above_fixed"]}
        if numbers["above_level"] is not None:
            shares[f"above {record['level']:.3f}, calibrated"] = numbers["above_level"]
        for text, entry in shares.items():
            low, high = 100 * entry["exact_low"], 100 * entry["exact_high"]
            table.append(
                (
                    f"similarity ({record['space']}), {text}: {title}",
                    f"{100 * entry['share']:.2f} %",
                    f"{low:.2f} to {high:.2f} %",
                )
            )
    return table


def figure(result: FeatureSimilarity, space: str) -> page.Figure:
    """Return the histogram of similarities."""
    pyplot = page.pyplot()
    drawing, axis = pyplot.subplots(figsize=(10, 3))
    shown = {"generations": result.generations.similarities}
    if result.holdout is not None:
        shown["held-out images"] = result.holdout.similarities
    if result.background is not None:
        shown["training images, to each other"] = result.background
    everything = np.concatenate([*shown.values(), [FIXED]])
    bins = np.linspace(min(everything.min(), 0), max(everything.max(), 1), 60)
    for (name, values), kind in zip(shown.items(), ("stepfilled", "step", "step"), strict=False):
        style = ":" if name.startswith("training") else "-"
        axis.hist(values, bins, density=True, histtype=kind, linestyle=style, alpha=0.8, label=name)
    axis.axvline(FIXED, color="grey", linewidth=0.8, linestyle="--", label=f"{FIXED}, published")
    if result.level is not None:
        axis.axvline(result.level, color="red", linewidth=0.8, label="calibrated level")
    axis.set_xlabel(f"similarity to the nearest training image ({space})")
    axis.set_yticks([])
    axis.legend(frameon=False, fontsize=8)
    text = (
        "Cosine of features with the most similar training image. Generations to the right of all "
        "held-out images look like copies; those among them do not."
    )
    return page.finish(drawing, f"Similarity ({space})", text)
