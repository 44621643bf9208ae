"""``afterimage audit``: the extraction attack and the quality measures on somebody's own images or diffusers pipeline.

No study is needed. What a study knows from its split has to be given here: the images that the model was trained on, and, for the
controls, real images of the same kind that it never saw. One half of these calibrates alpha and serves as reference of the quality
measures, the other half is the control. Without them the attack still runs, but nothing says how many of its counts are
false alarms, and no quality is reported: measured against training images it would reward copying.

Written to ``--out``:

- ``pairs.parquet``: one row per generation: sample, nearest (names, or row numbers where there are none), l2, ratio_training,
  ratio_candidate (both at the fixed alpha; at most 1 means flagged);
- ``audit.html``: the same as a page, with the pairs as pictures only with ``--show-images``;
- ``audit.json``: see ``KEYS``, which ``afterimage audit --help`` prints.
"""

from __future__ import annotations

import argparse
import base64
import io
import math
import time
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from afterimage import __version__, artifacts, config
from afterimage.artifacts import Images
from afterimage.attacks import calibration, quality
from afterimage.attacks.extraction import Extraction, extract
from afterimage.config import ConfigError
from afterimage.metrics import classifier, spaces
from afterimage.standalone import images as image_sets
from afterimage.standalone import output

KEYS = """\
keys of audit.json:
  counts      generations, training, training_distinct, holdout (0 without --holdout)
  unique_images
              by anchor (training, candidate) and alpha (fixed, and calibrated with --holdout): count, of, share, low, high,
              exact_low, exact_high; different training images flagged by at least one generation
  flagged_generations
              the same for generations
  flagged_holdout
              the same for held-out images: the false alarms; calibrated counts the half that did not calibrate (null without)
  mq          IET-AGC's MQ by threshold: count and share of generations, share of held-out images
  alpha       the thresholds used, by anchor
  quality     by metric: value, low, high, and holdout (the same measure of real images; the floor), or null
  settings    everything that the numbers depend on; with seed and version
  notices     what was left out of the images, or chosen without being asked for
  images      by set: what was read, and what was not
  seconds     wall time
"""

FILES = ("pairs.parquet", "audit.html", "audit.json")
"""What is written."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = KEYS
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--samples", metavar="SOURCE", help="generations: a folder or zip of images, .npz, or parquet")
    what.add_argument("--pipeline", metavar="DIR|ID", help="diffusers pipeline (unconditional, pixels) to draw them from")
    parser.add_argument(
        "--train", metavar="SOURCE", required=True, help="training images: as --samples, or owner/name@revision"
    )
    parser.add_argument("--holdout", metavar="SOURCE", help="real images of the same kind that the model never saw")
    parser.add_argument("--out", type=Path, default=Path("audit"), metavar="DIR", help="folder to write (default: %(default)s)")
    parser.add_argument("--generate", type=int, default=1000, metavar="N", help="generations from --pipeline (default: 1000)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps of --pipeline (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="generations at once (default: %(default)s)")
    image_sets.arguments(parser, ("samples", "train", "holdout"))
    parser.add_argument("--flips", action="store_true", help="the model was trained with mirrored images: compare these too")
    parser.add_argument("--alpha", type=float, default=0.5, help="fixed alpha (default: %(default)s, the paper's)")
    parser.add_argument(
        "--neighbours", type=int, default=50, metavar="N", help="n of the ratio (default: %(default)s, the paper's)"
    )
    parser.add_argument("--distance", choices=["l2", "tiled"], default="l2", help="default: %(default)s")
    parser.add_argument("--tiles", type=int, default=4, help="tiles per side of --distance tiled (default: %(default)s)")
    parser.add_argument(
        "--features", choices=["classifier", "pixels", "inception"], default="classifier", help="space of quality"
    )
    parser.add_argument("--inception-weights", metavar="FILE", help="torch-fidelity's weights, with --features inception")
    parser.add_argument("--inception-sha256", metavar="HASH", help="checksum that they must have")
    parser.add_argument("--show-images", action="store_true", help="put the pairs on the page; mind who is in the pictures")
    parser.add_argument("--seed", type=int, default=0, help="of generations, halves and intervals (default: %(default)s)")


# ---- what is compared ---------------------------------------------------------------------------------------------------


def draw(args: argparse.Namespace) -> Images:
    """Draw generations from ``--pipeline``."""
    from accelerate import Accelerator

    from afterimage.diffusion import sample

    settings = config.Sample(images=args.generate, steps=args.steps, batch_size=args.batch_size)
    unet, scheduler = sample.load_denoiser(args.pipeline)
    ids = np.arange(args.generate)
    return Images.of(sample.generate(unet.to(Accelerator().device), scheduler, ids, settings, args.seed), ids)


# ---- the audit ----------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> None:
    started = time.monotonic()
    settings, quality_settings = _settings(args)
    statistics = config.Statistics()
    for flag in ("samples", "train", "holdout"):
        if getattr(args, flag):
            image_sets.source_of(flag, args)
    output.check(args.out, FILES)
    read = {flag: image_sets.read_set(flag, args) for flag in ("train", "holdout", "samples") if getattr(args, flag)}
    notices = [notice for one in read.values() for notice in one.notices()]
    train, train_names = read["train"].images, read["train"].names
    holdout = read["holdout"].images if args.holdout else None
    if args.samples:
        samples, sample_names = read["samples"].images, read["samples"].names
    else:
        samples = draw(args)
        sample_names = samples.ids
    _same_shape(train, samples, holdout, args)

    found = extract(samples, train, settings, statistics, args.seed, flips=args.flips, holdout=holdout)
    qualities = None
    if holdout is not None:
        qualities = _quality(samples, holdout, quality_settings, statistics, args.seed)

    pairs = found.pairs[["sample", "nearest", "l2", "ratio_training", "ratio_candidate"]].copy()
    rows = {name: {id_: row for row, id_ in enumerate(images.ids)} for name, images in (("s", samples), ("t", train))}
    sample_rows, nearest_rows = [rows["s"][i] for i in pairs["sample"]], [rows["t"][i] for i in pairs["nearest"]]
    pairs["sample"], pairs["nearest"] = sample_names[sample_rows], train_names[nearest_rows]

    sizes = {"samples": len(samples), "train": len(train), "holdout": 0 if holdout is None else len(holdout)}
    said = {flag: str(value) for flag in ("samples", "pipeline", "train", "holdout") if (value := getattr(args, flag))}
    said |= {"flips": args.flips, "colour": args.colour, "resize": args.resize}
    said |= {"resize_filter": args.resize_filter or "bilinear", "crop": args.crop or "centre"} if args.resize else {}
    record = _record(args, found, qualities, sizes, said | settings.model_dump() | {"features": args.features})
    record["notices"] = notices
    record["images"] = {flag: one.manifest | {"sha256": one.sha256} for flag, one in read.items()}
    record["seconds"] = round(time.monotonic() - started, 2)
    args.out.mkdir(parents=True, exist_ok=True)
    table = io.BytesIO()
    pairs.to_parquet(table, index=False)
    artifacts.write_atomically(args.out / "pairs.parquet", table.getvalue())
    artifacts.write_json(args.out / "audit.json", record)
    pictures = _figures(found, pairs, samples.pixels[sample_rows], train.pixels[nearest_rows], args.show_images)
    page = _page(record, pictures)
    artifacts.write_atomically(args.out / "audit.html", page.encode())
    _print(record, args.out)


def _settings(args: argparse.Namespace) -> tuple[config.Extraction, config.Quality]:
    try:
        extraction = config.Extraction(alpha=args.alpha, neighbours=args.neighbours, distance=args.distance, tiles=args.tiles)
        quality = config.Quality(
            features=args.features, inception_weights=args.inception_weights, inception_sha256=args.inception_sha256
        )
        config.Sample(images=args.generate, steps=args.steps, batch_size=args.batch_size)
    except ValidationError as error:
        lines = [f"--{'-'.join(map(str, e['loc'])) or 'features'} = {e['input']!r}: {e['msg']}" for e in error.errors()]
        raise ConfigError("\n".join(lines)) from error
    return extraction, quality


def _same_shape(train: Images, samples: Images, holdout: Images | None, args: argparse.Namespace) -> None:
    shapes = {"--train": train, "--pipeline" if args.pipeline else "--samples": samples, "--holdout": holdout}
    named = {flag: "x".join(map(str, images.pixels.shape[1:])) for flag, images in shapes.items() if images is not None}
    if len(set(named.values())) > 1:
        listed = ", ".join(f"{flag} {shape}" for flag, shape in named.items())
        raise ConfigError(f"images have different shapes: {listed}; --resize and --colour make them one")


def _quality(
    samples: Images, holdout: Images, settings: config.Quality, statistics: config.Statistics, seed: int
) -> pd.DataFrame:
    """Return the quality table: generations, and the control half of the held-out images, against the calibrating half.

    The classifier, where it is the space, is trained on the calibrating half only.
    """
    calibrates = calibration.halves(len(holdout), seed)
    reference, control = holdout.take(calibrates), holdout.take(~calibrates)
    measure = partial(quality.measure, samples, reference, settings, statistics, seed, holdout=control)
    if settings.features != "classifier":
        return measure(spaces.find(settings, None))
    network, _, _ = classifier.fit(reference, config.Classifier(), seed)
    return measure(lambda images: classifier.embed_with(network, images).astype(np.float64))


def _record(
    args: argparse.Namespace, found: Extraction, qualities: pd.DataFrame | None, sizes: dict[str, int], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return ``audit.json``, as ``KEYS`` describes it."""
    shares = {
        (row["metric"], row["anchor"], row["alpha"]): row
        for row in found.results[found.results["subset"] == "all"].to_dict("records")
    }

    def numbers(metric: str, anchor: str = "none", kind: str = "none") -> dict[str, float] | None:
        row = shares.get((metric, anchor, kind))
        if row is None:
            return None
        ends = {end: row[end] for end in ("low", "high", "exact_low", "exact_high")}
        return {"count": int(row["count"]), "of": int(row["of"]), "share": row["value"]} | ends

    def by_reading(metric: str) -> dict[str, dict[str, Any]] | None:
        table: dict[str, dict[str, Any]] = {}
        for reading in found.readings:
            if (one := numbers(metric, reading.anchor, reading.alpha)) is not None:
                table.setdefault(reading.anchor, {})[reading.alpha] = one
        return table or None

    alphas: dict[str, dict[str, float]] = {}
    for reading in found.readings:
        alphas.setdefault(reading.anchor, {})[reading.alpha] = reading.value
    thresholds = [name.removeprefix("mq@") for name, *_ in shares if name.startswith("mq@")]
    distinct = shares["extracted_contents", "training", "fixed"]["of"]
    by_metric: dict[str, dict[str, float | None]] = {}
    for row in [] if qualities is None else qualities.to_dict("records"):
        if row["of"] == "generations":
            ends = {end: None if math.isnan(row[end]) else row[end] for end in ("low", "high")}
            by_metric.setdefault(row["metric"], {}).update(value=row["value"], **ends)
        else:
            by_metric.setdefault(row["metric"], {})["holdout"] = row["value"]
    return {
        "counts": {"generations": sizes["samples"], "training": sizes["train"], "training_distinct": int(distinct)}
        | {"holdout": sizes["holdout"]},
        "unique_images": by_reading("extracted_contents"),
        "flagged_generations": by_reading("flagged_generations"),
        "flagged_holdout": by_reading("flagged_holdout"),
        "mq": {tau: {"generations": numbers(f"mq@{tau}"), "holdout": numbers(f"mq_holdout@{tau}")} for tau in thresholds},
        "alpha": alphas,
        "quality": by_metric or None,
        "settings": settings | {"seed": args.seed, "neighbours_used": found.facts["neighbours"], "version": __version__},
    }


def _rows(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return what a person reads first: name, value, interval."""
    anchor = record["settings"]["anchor"]
    rows: list[tuple[str, str, str]] = []

    def add(name: str, numbers: dict[str, Any], counted: bool = False) -> None:
        scale, unit = (numbers["of"], "") if counted else (100, " %")
        low, high = numbers["exact_low"] * scale, numbers["exact_high"] * scale
        value = f"{numbers['count']} of {numbers['of']}" if counted else f"{100 * numbers['share']:.2f} %"
        rows.append((name, value, f"{low:.0f} to {high:.0f}" if counted else f"{low:.2f} to {high:.2f}{unit}"))

    for kind, alpha in record["alpha"][anchor].items():
        said = f"alpha {alpha:.3g}, {kind}"
        add(f"training images given back ({said})", record["unique_images"][anchor][kind], counted=True)
        add(f"generations flagged ({said})", record["flagged_generations"][anchor][kind])
        if record["flagged_holdout"]:
            add(f"real held-out images flagged ({said})", record["flagged_holdout"][anchor][kind])
    if "0.5" in record["mq"]:
        add("MQ at 0.5 (IET-AGC), share of generations", record["mq"]["0.5"]["generations"])
        if record["mq"]["0.5"]["holdout"]:
            add("MQ at 0.5, share of held-out images", record["mq"]["0.5"]["holdout"])
    for metric, numbers in (record["quality"] or {}).items():
        interval = "" if numbers["low"] is None else f"{numbers['low']:.4g} to {numbers['high']:.4g}"
        rows.append((f"{metric} (real held-out images: {numbers['holdout']:.4g})", f"{numbers['value']:.4g}", interval))
    return rows


def _verdict(record: dict[str, Any]) -> str:
    anchor = record["settings"]["anchor"]
    if record["flagged_holdout"] is None:
        found = record["unique_images"][anchor]["fixed"]
        return (
            f"{found['count']} of {found['of']} different training images look given back at the published threshold. Without "
            "--holdout nothing says how many of them are false alarms: real images that the model never saw are flagged too."
        )
    flagged, control = record["flagged_generations"][anchor]["calibrated"], record["flagged_holdout"][anchor]["calibrated"]
    found = record["unique_images"][anchor]["calibrated"]
    said = (
        f"At the threshold calibrated on held-out images, {100 * flagged['share']:.2f} % of generations and "
        f"{100 * control['share']:.2f} % of other held-out images are flagged; {found['count']} different training images are concerned. "
    )
    if flagged["exact_low"] > control["exact_high"]:
        return said + "More is flagged than chance resemblance explains: the model gives back training images."
    return said + "That is no more than the intervals allow for chance resemblance: no memorisation is shown."


NOTES = {
    "intervals": "Intervals are exact (Clopper-Pearson) for counts and shares, and from a bootstrap over generations for quality. They "
    "say how sure the numbers are for these images; another training of the same model may give others.",
    "flagged": "A generation is flagged if its distance to the nearest training image is at most alpha times the mean distance of that "
    "image to its nearest neighbours among the training images (Carlini et al. 2023, section 5.1).",
    "quality": "Quality is measured against one half of the held-out images; the value in parentheses is what the other half of "
    "these real images gets, and so the best to hope for.",
    "no holdout": "No quality is reported without --holdout: measured against training images it would reward copying.",
}


def _figures(
    found: Extraction, pairs: pd.DataFrame, generated: np.ndarray, nearest: np.ndarray, show: bool
) -> list[tuple[str, str, str]]:
    """Return title, explanation and PNG (base64) of each figure."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    def finish(figure: Any, title: str, text: str) -> tuple[str, str, str]:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=110, bbox_inches="tight")
        plt.close(figure)
        return title, text, base64.b64encode(png.getvalue()).decode()

    figures = []
    if show:
        best = pairs.reset_index(names="row").sort_values("ratio_training", kind="stable").drop_duplicates("nearest").head(32)
        columns = 8
        figure, axes = plt.subplots(
            -(-len(best) // columns), columns, figsize=(12, 1.3 * -(-len(best) // columns)), squeeze=False
        )
        for axis in axes.flat:
            axis.axis("off")
        for axis, pair in zip(axes.flat, best.to_dict("records"), strict=False):
            gap = np.full((generated.shape[1], max(1, generated.shape[2] // 16), generated.shape[3]), 255, np.uint8)
            image = np.concatenate([generated[pair["row"]], gap, nearest[pair["row"]]], axis=1)
            axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_title(f"{pair['l2']:.3f}  ratio {pair['ratio_training']:.2f}", fontsize=8, pad=2)
        text = "Left the generation, right the training image nearest to it, with their distance; one pair per training image."
        figures.append(finish(figure, "The nearest pairs", text))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3))
    for axis, column, label in zip(
        axes, ("l2", "ratio_training"), ("distance to the nearest training image", "ratio"), strict=True
    ):
        shown = [("generations", found.pairs[column])]
        if found.holdout_pairs is not None:
            shown.append(("real held-out images", found.holdout_pairs[column]))
        finite = np.concatenate([values[np.isfinite(values)] for _, values in shown])
        bins = np.linspace(0, np.quantile(finite, 0.995), 50)
        for name, values in shown:
            axis.hist(
                values, bins, density=True, histtype="stepfilled" if name == "generations" else "step", alpha=0.8, label=name
            )
        axis.set_xlabel(label)
        axis.set_yticks([])
    axes[1].axvline(1, color="red", linewidth=0.8)
    axes[0].legend(frameon=False)
    text = "Generations that lie nearer to training images than real unseen images do are what the attack looks for."
    return [*figures, finish(figure, "Distances", text)]


def _page(record: dict[str, Any], figures: list[tuple[str, str, str]]) -> str:
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string((files("afterimage.report") / "audit.html").read_text())
    notes = [*record["notices"], NOTES["flagged"], NOTES["intervals"], NOTES["quality" if record["quality"] else "no holdout"]]
    return template.render(
        verdict=_verdict(record), rows=_rows(record), notes=notes, figures=figures, settings=list(record["settings"].items())
    )


def _print(record: dict[str, Any], out: Path) -> None:
    rows = [("measure", "value", "95 % interval"), *_rows(record)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, value, interval in rows:
        print(f"{name:<{widths[0]}}  {value:>{widths[1]}}  {interval:>{widths[2]}}")
    print("", *record["notices"], sep="\n")
    print(f"\n{_verdict(record)}\n{out / 'audit.html'}, {out / 'audit.json'} and {out / 'pairs.parquet'} written")
