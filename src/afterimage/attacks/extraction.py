"""``afterimage attack extraction``: training images recovered from generations (Carlini et al.
2023, section 5.1) and MQ (IET-AGC).

Each generation is matched with its nearest training image. It is flagged if its ratio (see
``adaptive``) is at most 1, and the training image is then extracted; an image counts once, however
many generations show it, and all copies of a source count as one. Every count is given for both
anchors, and for both the fixed alpha and the alpha calibrated on held-out images; next to it come
the same counts for held-out images and for never-trained twins.

``extract`` is the attack itself: arrays in, tables out. It needs only generations and training
images; held-out images and the planted ground truth add the controls. The store of the command:

- ``pairs.parquet``: one row per generation: sample, nearest, nearest_source (ids), l2 (normalised
  l2, or tiled), ratio_training, ratio_candidate (both with the fixed alpha; infinite if all
  neighbours are copies), mq_ratio, ``flagged_<anchor>_<fixed|calibrated>``, low_detail (blank or
  blurred, see ``detail``) and flagged_verdict;
- ``holdout_pairs.parquet``: the same for the held-out images that are not duplicates of training
  images;
- ``images.parquet``: one row per training source: source, id and label of its first row, copies (as
  planted), with a planted ground truth repeat and times (what was planted and how often, see
  ``twins.Planted``), best_sample, best_l2 (the nearest of the generations matched with it),
  nearest_generations and flagged_generations (how many generations are matched with it, and how
  many of those the verdict flags), best_ratio_<anchor>, ``extracted_<anchor>_<alpha>``, and
  k_eidetic: training rows within delta in plain normalised l2, including itself (Def. 2);
- ``twins.parquet``: the same for the twins, instead of the planted images: source is the twin's id,
  twin_of the planted source;
- ``precision_recall.csv``: planted images against twins, headline anchor;
- ``results.csv``: the numbers, with the columns of ``results``. ``flagged_holdout`` with the
  calibrated alpha is the cross-fitted rate of ``calibration``, as a count rounded to whole images.

Held-out images that are training images, exactly or nearly, are removed first, and counted under
``facts`` in ``run.json``. The answer (``verdict``: copies shown, not shown, or cannot tell) is
recorded there too.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from afterimage import artifacts, config
from afterimage.artifacts import ArtifactError
from afterimage.attacks import adaptive, calibration, detail, mq, twins, verdict
from afterimage.attacks.flags import add_flags, files_of
from afterimage.attacks.table import Reading, Results
from afterimage.attacks.target import Scores, Target
from afterimage.attacks.twins import Planted
from afterimage.data.members import seen, trained_rows
from afterimage.images import Images, contents, different, load_images
from afterimage.metrics import near_duplicates, ranking

STEP = "attack/extraction"
INPUTS = ("samples", "train", "members", "holdout", "twins", "index")
"""Files and folders that are read."""

FIXED, CALIBRATED = "fixed", "calibrated"


@dataclass(frozen=True)
class Extraction:
    """The result of the attack; this module's docstring lists the columns of the tables.

    Attributes:
        pairs, images, results: Always present.
        holdout_pairs: With held-out images.
        twins, precision_recall: With a planted ground truth; empty if nothing is planted.
        left_out: Held-out images that were removed: sample, nearest, l2, and kind (exact or near
            duplicate of a training image, or repeated: the same as an earlier held-out image,
            without nearest); None without held-out images.
        readings: The anchors and thresholds used.
        verdict: The answer, with the headline anchor.
        headline: Flat name -> number, with the headline anchor.
        facts: Counts that the numbers depend on.
    """

    pairs: pd.DataFrame
    images: pd.DataFrame
    results: pd.DataFrame
    holdout_pairs: pd.DataFrame | None
    twins: pd.DataFrame | None
    precision_recall: pd.DataFrame | None
    left_out: pd.DataFrame | None
    readings: list[Reading]
    verdict: verdict.Verdict
    headline: dict[str, float]
    facts: dict[str, Any]

    @property
    def alphas(self) -> dict[str, dict[str, float]]:
        """Anchor -> ``fixed`` and, with held-out images, ``calibrated`` -> alpha."""
        by_anchor: dict[str, dict[str, float]] = {}
        for reading in self.readings:
            by_anchor.setdefault(reading.anchor, {})[reading.alpha] = reading.value
        return by_anchor


def extract(
    samples: Images,
    train: Images,
    settings: config.Extraction,
    statistics: config.Statistics,
    seed: int,
    *,
    flips: bool = False,
    holdout: Images | None = None,
    planted: Planted | None = None,
    confidence: float = verdict.CONFIDENCE,
) -> Extraction:
    """Attack generations.

    Args:
        samples: The generations, at least one.
        train: The images that the model was trained on, copies included.
        settings: Settings of the attack.
        statistics: Settings of the intervals.
        seed: Root seed; determines the splits of the held-out images and the resamples.
        flips: Compare mirror images too, as some model was trained with mirroring.
        holdout: Real images from the same distribution that the model did not see; they calibrate
            alpha and are the control.
        planted: The planted ground truth, for the control by twins and the precision-recall curve.
        confidence: Of the verdict.

    Raises:
        ArtifactError: if the sets differ in image shape, or one is empty.
        ConfigError: without training images, or for settings that do not fit the images.
    """
    # Match the generations with the training images.
    _check_shapes(train, samples, "generations")
    target = Target(train.pixels, settings, flips)
    scores = target.score(samples.pixels)
    readings = [Reading(anchor, FIXED, settings.alpha) for anchor in adaptive.ANCHORS]
    low_detail = detail.low_detail(samples.pixels, train.pixels[scores.row])
    facts = {
        "training_rows": len(train),
        "gallery_images": len(target.rows),
        "neighbours": target.neighbours,
        "mq_neighbours": target.mq_neighbours,
        "zero_means_generations": scores.zero_means,
        "low_detail_generations": int(low_detail.sum()),
    }
    table = Results(statistics, seed)

    # Match the held-out images likewise, and calibrate alpha on them.
    control = None if holdout is None else match_holdout(holdout, train, target, flips)
    holdout_pairs = None
    if control is not None:
        facts |= control.facts
        if len(control.images):
            readings = _calibrate(control, readings, settings, seed, table)
            facts["calibration_impossible"] = [r.anchor for r in readings if r.value == 0]
            holdout_pairs = _pairs(control.images, train, control.scores, readings, settings.alpha)

    # Decide whether copies are shown.
    first_rows = different(train.pixels)[0]
    answer, flagged = _decide(
        scores, low_detail, control, train, len(first_rows), settings.anchor, confidence
    )
    facts["verdict"] = answer.record
    # Tabulate the generations and the training images.
    pairs = _pairs(samples, train, scores, readings, settings.alpha)
    pairs["low_detail"], pairs["flagged_verdict"] = low_detail, flagged
    images = _images(pairs, train, target.rows, readings)
    if planted is not None:
        _check_shapes(train, planted.twins, "twins", may_be_empty=True)
        planted = planted.among(train.sources)
    copies = _copies(images["source"], train, planted)
    for place, name in enumerate(copies, start=3):
        images.insert(place, str(name), copies[name])
    first = pd.Index(train.ids).get_indexer(pd.Index(images["id"]))
    images["k_eidetic"] = target.rows_within(train.pixels[first], settings.delta)
    facts["sources"] = len(images)

    # Count, also with the planted images swapped for their twins.
    _count(table, pairs, images, readings, scores, first_rows)
    for tau in settings.mq_thresholds:
        table.share(f"mq@{tau:g}", mq.below(scores.mq, tau))
    del target  # frees its float32 copy of the images before the swapped one is built
    twin_images, curve = None, None
    if planted is not None:
        twin_images, curve = _twins_control(
            samples, train, settings, flips, planted, readings, images, table
        )
    results = table.frame()
    return Extraction(
        pairs=pairs,
        images=images,
        results=results,
        holdout_pairs=holdout_pairs,
        twins=twin_images,
        precision_recall=curve,
        left_out=None if control is None else control.left_out,
        readings=readings,
        verdict=answer,
        headline=_headline(results, settings.anchor)
        | {"extraction/copies_at_least": float(answer.copies)},
        facts=facts,
    )


def _check_shapes(train: Images, images: Images, name: str, may_be_empty: bool = False) -> None:
    if images.pixels.shape[1:] != train.pixels.shape[1:]:
        raise ArtifactError(
            f"the {name} have shape {images.pixels.shape[1:]}, but the training images "
            f"{train.pixels.shape[1:]}"
        )
    if not len(images) and not may_be_empty:
        raise ArtifactError(f"there are no {name}")


class Control(NamedTuple):
    """The held-out images that are not duplicates, matched with the training images."""

    images: Images
    scores: Scores
    low_detail: np.ndarray
    left_out: pd.DataFrame

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "holdout_left_out": self.left_out["kind"].value_counts().to_dict(),
            "holdout_smallest_rate": calibration.smallest_rate(len(self.images)),
            "zero_means_holdout": self.scores.zero_means,
            "low_detail_holdout": int(self.low_detail.sum()),
        }

    def distances(self, anchor: str) -> np.ndarray:
        """Return the relative distances; infinite for blank and blurred images."""
        return np.where(self.low_detail, np.inf, self.scores.relative[anchor])


def match_holdout(holdout: Images, train: Images, target: Target, flips: bool) -> Control:
    """Match held-out images with the training images of ``target``, duplicates removed.

    Raises:
        ArtifactError: if the two differ in image shape.
    """
    _check_shapes(train, holdout, "held-out images")
    scores = target.score(holdout.pixels)
    left_out = _left_out(holdout, train, flips)
    kept = ~np.isin(holdout.ids, left_out["sample"])
    images, scores = holdout.take(kept), scores.take(kept)
    low_detail = detail.low_detail(images.pixels, train.pixels[scores.row])
    return Control(images, scores, low_detail, left_out)


def _calibrate(
    control: Control,
    fixed: list[Reading],
    settings: config.Extraction,
    seed: int,
    table: Results,
) -> list[Reading]:
    """Return the fixed and the calibrated readings; add the held-out counts of all of them."""
    scores = control.scores
    crossed = {
        anchor: calibration.cross_fit(scores.relative[anchor], settings.calibrated_rate, seed)
        for anchor in adaptive.ANCHORS
    }
    calibrated = [Reading(anchor, CALIBRATED, crossed[anchor].alpha) for anchor in adaptive.ANCHORS]
    for reading in fixed + calibrated:
        flags = adaptive.flagged(scores.relative[reading.anchor], reading.value)
        if reading.alpha == CALIBRATED:
            flags = np.arange(len(flags)) < np.rint(crossed[reading.anchor].flagged.sum())
        table.share("flagged_holdout", flags, reading)
    for tau in settings.mq_thresholds:
        table.share(f"mq_holdout@{tau:g}", mq.below(scores.mq, tau))
    return fixed + calibrated


def _decide(
    scores: Scores,
    low_detail: np.ndarray,
    control: Control | None,
    train: Images,
    different_images: int,
    anchor: str,
    confidence: float,
) -> tuple[verdict.Verdict, np.ndarray]:
    return verdict.decide(
        np.where(low_detail, np.inf, scores.relative[anchor]),
        None if control is None else control.distances(anchor),
        np.unique(contents(train.pixels[scores.row]), return_inverse=True)[1],
        low_detail,
        scores.zero_means[anchor],
        different_images,
        confidence,
    )


def _copies(sources: pd.Series, train: Images, planted: Planted | None) -> pd.DataFrame:
    """Return how each source was planted (``Planted.of``); without a planted ground truth only
    ``copies``, how many training rows it has."""
    if planted is not None:
        return planted.of(sources)
    rows = pd.Series(train.sources).value_counts().reindex(sources)
    return pd.DataFrame({"copies": rows.to_numpy(np.int64)})


def _count(
    table: Results,
    pairs: pd.DataFrame,
    images: pd.DataFrame,
    readings: list[Reading],
    scores: Scores,
    first_rows: np.ndarray,
) -> None:
    """Add the shares of flagged generations and of extracted images, under every reading."""
    for reading in readings:
        flags = pairs[f"flagged_{reading.name}"].to_numpy()
        extracted = images[f"extracted_{reading.name}"].to_numpy()
        table.share("flagged_generations", flags, reading)
        table.share("extracted_images", extracted, reading)
        table.share("extracted_contents", np.isin(first_rows, scores.row[flags]), reading)
        for ending, subset, mask in twins.subsets(images):
            table.share(f"extracted{ending}", extracted[mask], reading, subset)


def _left_out(holdout: Images, train: Images, flips: bool) -> pd.DataFrame:
    """Return the held-out images that are training images, exactly or nearly, or that repeat an
    earlier held-out image."""
    duplicates = near_duplicates.find(holdout.pixels, train.pixels, flips)
    kind = np.full(len(holdout), "", object)
    kind[~np.isin(np.arange(len(holdout)), different(holdout.pixels)[0])] = "repeated"
    kind[duplicates.rows >= 0] = "near"
    kind[duplicates.exact] = "exact"
    nearest = train.ids[duplicates.rows].astype(object)
    nearest[duplicates.rows < 0] = None
    table = pd.DataFrame(
        {"sample": holdout.ids, "nearest": nearest, "l2": duplicates.distances, "kind": kind}
    )
    return table[kind != ""].reset_index(drop=True)


def _pairs(
    images: Images, train: Images, scores: Scores, readings: list[Reading], alpha: float
) -> pd.DataFrame:
    """Return one row per image with its nearest training image; ratios are those of the fixed
    ``alpha``."""
    columns = {
        "sample": images.ids,
        "nearest": train.ids[scores.row],
        "nearest_source": train.sources[scores.row],
        "l2": scores.distance,
    }
    columns |= {
        f"ratio_{anchor}": adaptive.ratio(scores.relative[anchor], alpha)
        for anchor in adaptive.ANCHORS
    }
    columns["mq_ratio"] = scores.mq
    for reading in readings:
        columns[f"flagged_{reading.name}"] = adaptive.flagged(
            scores.relative[reading.anchor], reading.value
        )
    return pd.DataFrame(columns)


def _images(
    pairs: pd.DataFrame, train: Images, rows: np.ndarray, readings: list[Reading]
) -> pd.DataFrame:
    """Return one row per source in the gallery, with its matched and flagged generations."""
    gallery = pd.DataFrame(
        {"source": train.sources[rows], "id": train.ids[rows], "label": train.labels[rows]}
    )
    images = gallery.drop_duplicates("source").reset_index(drop=True)
    nearest = pairs.sort_values("l2", kind="stable").drop_duplicates("nearest_source")
    nearest = nearest[["nearest_source", "sample", "l2"]].set_axis(
        ["source", "best_sample", "best_l2"], axis=1
    )
    if pd.api.types.is_integer_dtype(nearest["best_sample"]):
        # Nullable: an image that is not the nearest of any generation has no best sample.
        nearest["best_sample"] = nearest["best_sample"].astype("Int64")
    images = images.merge(nearest, on="source", how="left")
    flagged = (
        pairs["flagged_verdict"] if "flagged_verdict" in pairs else pd.Series(False, pairs.index)
    )
    for column, subset in (("nearest_generations", pairs), ("flagged_generations", pairs[flagged])):
        counts = subset["nearest_source"].value_counts()
        images[column] = images["source"].map(counts).fillna(0).astype(np.int64)
    for anchor in adaptive.ANCHORS:
        smallest = pairs.groupby("nearest_source")[f"ratio_{anchor}"].min()
        images[f"best_ratio_{anchor}"] = smallest.reindex(images["source"]).to_numpy()
    for reading in readings:
        extracted = pairs.loc[pairs[f"flagged_{reading.name}"], "nearest_source"]
        images[f"extracted_{reading.name}"] = images["source"].isin(extracted)
    return images


def _twins_control(
    samples: Images,
    train: Images,
    settings: config.Extraction,
    flips: bool,
    planted: Planted,
    readings: list[Reading],
    images: pd.DataFrame,
    table: Results,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Attack the same generations with the planted images swapped for their twins; return the table
    of the twins and the precision-recall curve."""
    swapped = twins.swap(train, planted)
    truth = pd.DataFrame({"source": planted.twins.ids, "twin_of": planted.sources})
    truth = truth.join(planted.of(planted.sources))
    if truth.empty:
        columns = dict.fromkeys([*truth, *images.columns.drop(["id", "k_eidetic"])])
        return truth.reindex(columns=list(columns)), pd.DataFrame(
            columns=["recall", "precision", "ratio"]
        )
    target = Target(swapped.pixels, settings, flips)
    pairs = _pairs(samples, swapped, target.score(samples.pixels), readings, settings.alpha)
    matched = _images(pairs, swapped, target.rows, readings)
    matched = matched.drop(columns="id")  # the id of the planted row
    twin_images = truth.merge(matched, on="source", how="left", validate="1:1")
    for reading in readings:
        flags = twin_images[f"extracted_{reading.name}"].to_numpy(bool)
        table.share("twins_flagged", flags, reading)
        for ending, subset, mask in twins.subsets(twin_images):
            table.share(f"twins_flagged{ending}", flags[mask], reading, subset)
    column = f"best_ratio_{settings.anchor}"
    best = images.set_index("source")[column].reindex(planted.sources)
    ratios = best.fillna(np.inf).to_numpy(), twin_images[column].fillna(np.inf).to_numpy()
    table.ranking("average_precision", ranking.average_precision, *ratios, settings.anchor)
    table.ranking("roc_auc", ranking.area, *ratios, settings.anchor)
    return twin_images, twins.precision_recall(*ratios)


_HEADLINE = {
    "extraction/unique_images": ("extracted_images", FIXED, "count"),
    "extraction/unique_images_calibrated": ("extracted_images", CALIBRATED, "count"),
    "extraction/flagged_generations": ("flagged_generations", FIXED, "value"),
    "extraction/flagged_generations_calibrated": ("flagged_generations", CALIBRATED, "value"),
    "extraction/flagged_holdout": ("flagged_holdout", FIXED, "value"),
    "extraction/flagged_holdout_calibrated": ("flagged_holdout", CALIBRATED, "value"),
    "extraction/twins_flagged": ("twins_flagged", FIXED, "count"),
    "extraction/twins_flagged_calibrated": ("twins_flagged", CALIBRATED, "count"),
    "extraction/alpha_calibrated": ("extracted_images", CALIBRATED, "alpha_value"),
    "extraction/average_precision": ("average_precision", "none", "value"),
}
"""Flat name -> metric, alpha and column of ``results``; names with ``unique``, ``twins`` or ``mq``
are counts, others shares."""


def _headline(results: pd.DataFrame, anchor: str) -> dict[str, float]:
    rows = results[
        (results["subset"] == "all") & results["anchor"].isin([anchor, "none"])
    ].set_index(["metric", "alpha"])
    headline = {
        name: rows[column].get((metric, alpha))
        for name, (metric, alpha, column) in _HEADLINE.items()
    }
    for metric in results["metric"]:
        if metric.startswith("mq"):
            headline[metric] = rows["count"][metric, "none"]
    return {name: float(value) for name, value in headline.items() if value is not None}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_flags(parser, *INPUTS)


def run(args: argparse.Namespace) -> None:
    """Attack one arm's generations and store the results."""
    resolved = artifacts.read_config(args.config, STEP)
    inputs = files_of(args, INPUTS)
    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        settings = dict(step.settings)
        mirrors, statistics = (
            settings.pop("mirrors"),
            config.Statistics(**settings.pop("statistics")),
        )
        artifacts.check_file(args.index)
        result = extract(
            load_images(args.samples),
            trained_rows(load_images(args.train), seen(args.members)),
            config.Extraction(**settings),
            statistics,
            resolved["seed"],
            flips=mirrors,
            holdout=load_images(args.holdout),
            planted=twins.read(pd.read_parquet(args.index), load_images(args.twins)),
        )
        for name in ("pairs", "holdout_pairs", "images", "twins"):
            getattr(result, name).to_parquet(step.folder / f"{name}.parquet", index=False)
        for name in ("results", "precision_recall"):
            getattr(result, name).to_csv(step.folder / f"{name}.csv", index=False)
        for name, value in result.headline.items():
            step.metric(name, value)
        step.note(**result.facts)
