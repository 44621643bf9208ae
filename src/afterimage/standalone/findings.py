"""The numbers of an audit: counts and shares, their table, what the sets of images allow, and the
limitations of the answer."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from afterimage import config
from afterimage.attacks import calibration, verdict
from afterimage.attacks.extraction import Extraction
from afterimage.images import Images
from afterimage.standalone import images as image_sets
from afterimage.standalone.images import ImageSet
from afterimage.standalone.record import Findings, Proportion, Verdict
from afterimage.standalone.statement import percent


def numbers(
    extraction: Extraction,
    qualities: pd.DataFrame | None,
    sets: dict[str, ImageSet],
    settings: config.Extraction,
) -> dict[str, Any]:
    """Return the counts, shares and metrics of ``audit.json``."""
    # Shares, by anchor and alpha.
    shares = {
        (row["metric"], row["anchor"], row["alpha"]): row
        for row in extraction.results[extraction.results["subset"] == "all"].to_dict("records")
    }
    # An alpha of 0 means that there is no calibrated alpha: it flags nothing, which would read as
    # an all-clear.
    readings = [reading for reading in extraction.readings if reading.value > 0]

    def share(metric: str, anchor: str = "none", kind: str = "none") -> dict[str, float] | None:
        row = shares.get((metric, anchor, kind))
        if row is None:
            return None
        ends = {end: row[end] for end in ("low", "high", "exact_low", "exact_high")}
        return {"count": int(row["count"]), "of": int(row["of"]), "share": row["value"]} | ends

    def by_reading(metric: str) -> dict[str, dict[str, Any]]:
        table: dict[str, dict[str, Any]] = {}
        for reading in readings:
            if (entry := share(metric, reading.anchor, reading.alpha)) is not None:
                table.setdefault(reading.anchor, {})[reading.alpha] = entry
        return table

    alphas: dict[str, dict[str, float]] = {}
    for reading in readings:
        alphas.setdefault(reading.anchor, {})[reading.alpha] = reading.value
    thresholds = [name.removeprefix("mq@") for name, *_ in shares if name.startswith("mq@")]

    # Quality metrics, and counts of images.
    by_metric: dict[str, dict[str, float | None]] = {}
    for row in [] if qualities is None else qualities.to_dict("records"):
        if row["of"] == "generations":
            ends = {end: None if math.isnan(row[end]) else row[end] for end in ("low", "high")}
            by_metric.setdefault(row["metric"], {}).update(value=row["value"], **ends)
        else:
            by_metric.setdefault(row["metric"], {})["holdout"] = row["value"]
    counts = {"generations": len(sets["samples"].images), "training": len(sets["train"].images)}
    extracted = extraction.images[extraction.images["flagged_generations"] > 0]
    counts |= {
        "generations_identical": int((extraction.pairs["l2"] == 0).sum()),
        "extracted": len(extracted),
        "extracted_repeated": int((extracted["copies"] > 1).sum()),
        "training_distinct": len(extraction.images),
        "training_never_nearest": int((extraction.images["nearest_generations"] == 0).sum()),
        "holdout": len(sets["holdout"].images) if "holdout" in sets else 0,
        "holdout_left_out": 0 if extraction.left_out is None else len(extraction.left_out),
    }
    return {
        "verdict": extraction.verdict.record,
        "left_out": [],
        "counts": counts,
        "unique_images": by_reading("extracted_contents"),
        "flagged_generations": by_reading("flagged_generations"),
        "flagged_holdout": by_reading("flagged_holdout") or None,
        "mq": {
            tau: {"generations": share(f"mq@{tau}"), "holdout": share(f"mq_holdout@{tau}")}
            for tau in thresholds
        },
        "alpha": alphas,
        "quality": by_metric or None,
        "facts": extraction.facts,
    }


def limits(
    extraction: Extraction, samples: Images, record: dict[str, Any], anchor: str
) -> list[str]:
    """Return the limitations of the answer, in sentences."""
    # Held-out images that were left out.
    facts, sentences = extraction.facts, []
    left_out = facts.get("holdout_left_out", {})
    kinds = {
        "exact": "exactly",
        "near": "nearly",
        "repeated": "the same as an earlier held-out image",
    }
    if left_out:
        examples = ", ".join(
            str(entry["sample"]) for entry in record["left_out"][: image_sets.NAMED]
        )
        counts = ", ".join(
            f"{left_out[kind]} {text}" for kind, text in kinds.items() if kind in left_out
        )
        sentences.append(
            f"--holdout: {sum(left_out.values())} images were left out, since they are training "
            f"images too or occur twice ({counts}): {examples}"
        )

    # Precision of the calibrated alpha.
    held_out = record["counts"]["holdout"] - record["counts"]["holdout_left_out"]
    if record["counts"]["holdout"] and held_out < calibration.FEWEST:
        sentences.append(
            f"--holdout: fewer than {calibration.FEWEST} images are left, too few for a "
            "calibrated alpha; none is reported."
        )
    elif impossible := facts.get("calibration_impossible"):
        sentences.append(
            "--holdout: no image has a ratio, so that no alpha is calibrated (anchor "
            f"{', '.join(impossible)})."
        )

    # Images without a meaningful ratio.
    for name, count in (("generations", len(samples)), ("holdout", held_out)):
        noun = {"generations": "generations", "holdout": "held-out images"}[name]
        if low := facts.get(f"low_detail_{name}"):
            sentences.append(
                f"{low} of {count} {noun} are blank or blurred next to their nearest training "
                "image, and are not counted as copies."
            )
        if zero := facts.get(f"zero_means_{name}", {}).get(anchor):
            sentences.append(
                f"{zero} of {count} {noun} are nearest to a training image whose neighbours are "
                "all its copies: no ratio."
            )
    if facts["neighbours"] < 50:
        sentences.append(
            f"The ratio's mean is over {facts['neighbours']} neighbours: there are "
            f"{record['counts']['training_distinct']} different training images, or fewer "
            "neighbours were asked for."
        )
    if identical := record["counts"]["generations_identical"]:
        sentences.append(
            f"{identical} of {len(samples)} generations are identical to a training image, as "
            "compared."
        )
    return sentences


def given(measured: Findings) -> list[str]:
    """Return whether the question can be answered with what was given, and what each set of images
    allows, in sentences."""
    counts, settings, result = measured.counts, measured.settings, measured.verdict
    origin = "drawn from --pipeline"
    if settings.pipeline is None:
        origin = "given as files, so that how they were drawn and selected is not known"
    sentences = [
        _answerable(result),
        f"Generations: {counts.generations:,}, {origin}.",
        f"Training images: {counts.training:,}, of which {counts.training_distinct:,} are "
        "different. Copies of other images are not seen.",
    ]
    if settings.holdout is None:
        sentences.append("Held-out images: none.")
    else:
        smallest, rate = measured.facts.holdout_smallest_rate, ""
        if smallest is not None and "calibrated" in measured.alpha[settings.anchor]:
            rate = (
                "; the calibrated alpha cannot show false-alarm rates below about "
                f"{percent(smallest)}"
            )
        sentences.append(f"Held-out images: {result.held_out:,} of {counts.holdout:,}{rate}.")
    if measured.conditions is None:
        sentences.append("Prompts or labels: none, so that copies are not counted by these.")
    else:
        sentences.append(
            f"Different {measured.conditions.kind}s: {measured.conditions.different:,}; copies are "
            "counted for each."
        )
    return sentences


def _answerable(result: Verdict) -> str:
    if result.outcome == verdict.CANNOT_TELL:
        return f"No: {result.reason}"
    if result.visible_rate is None or result.visible_rate > verdict.LARGEST_VISIBLE:
        return "In part: copies can be shown, but with so few images their absence could not."
    return (
        f"Yes, for copying rates from {percent(result.visible_rate)}: these are seen in "
        f"{100 * verdict.POWER:.0f} of 100 such audits, if copies are nearer than every held-out "
        "image. Rarer copies may go unseen."
    )


def rows(measured: Findings) -> list[tuple[str, str, str]]:
    """Return the numbers next to the verdict: name, value, interval."""
    anchor, counts = measured.settings.anchor, measured.counts
    table: list[tuple[str, str, str]] = []

    def add(name: str, share: Proportion, counted: bool = False) -> None:
        low, high = share.exact_low, share.exact_high
        if counted:
            interval = f"{low * share.of:.0f} to {high * share.of:.0f}"
            table.append((name, f"{share.count} of {share.of}", interval))
        else:
            interval = f"{100 * low:.2f} to {100 * high:.2f} %"
            table.append((name, f"{100 * share.share:.2f} %", interval))

    for kind, alpha in measured.alpha[anchor].items():
        reading = f"alpha {alpha:.3g}, {kind}"
        add(f"generations flagged ({reading})", measured.flagged_generations[anchor][kind])
        if measured.flagged_holdout:
            add(f"held-out images flagged ({reading})", measured.flagged_holdout[anchor][kind])
        extracted = measured.unique_images[anchor][kind]
        add(f"training images extracted ({reading})", extracted, counted=True)
    never = f"{counts.training_never_nearest} of {counts.training_distinct}"
    table.append(("different training images that no generation is nearest to", never, ""))
    if "0.5" in measured.mq:
        below = measured.mq["0.5"]
        add("MQ at 0.5 (IET-AGC), share of generations", below.generations)
        if below.holdout:
            add("MQ at 0.5, share of held-out images", below.holdout)
    for metric, metrics in (measured.quality or {}).items():
        interval = "" if metrics.low is None else f"{metrics.low:.4g} to {metrics.high:.4g}"
        name = f"{metric} (held-out images: {metrics.holdout:.4g})"
        table.append((name, f"{metrics.value:.4g}", interval))
    return table
