"""``afterimage audit``: does this model copy its training images? For your own images or diffusers
pipeline.

No study is needed. What a study knows from its split has to be given here: the images that the
model was trained on, and real images from the same distribution that it never saw. Without the
latter the attack still runs, but cannot distinguish copies from chance resemblance.

Written to ``--out``: see ``HELP``, which ``afterimage audit --help`` prints.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from afterimage import __version__, artifacts, config
from afterimage.attacks import quality
from afterimage.attacks.extraction import Extraction, extract
from afterimage.config import ConfigError
from afterimage.images import Images, contents
from afterimage.metrics import spaces as quality_spaces
from afterimage.standalone import (
    audit_page,
    captions,
    drawing,
    drawing_flags,
    features,
    findings,
    flags,
    next_steps,
    output,
    record,
    spaces,
    statement,
)
from afterimage.standalone import images as image_sets
from afterimage.standalone.command_line import CommandLine
from afterimage.standalone.images import ImageSet
from afterimage.standalone.record import SCHEMA_VERSION, AuditRecord, Findings

FILES = (
    *("audit.html", "audit.json", "statement.txt"),
    *("extracted.csv", "pairs.parquet", "training.parquet"),
)
CONDITIONS = "conditions.csv"
"""One more file, if generations have prompts or labels."""
KEPT = "samples.npz"
SETS = ("train", "samples", "holdout")

HELP = f"""\
words:
  flagged     a generation: nearer to its nearest training image than a threshold (verdict, fixed,
              calibrated)
  extracted   a training image: the nearest one of a flagged generation

files:
  audit.html        the answer as a page; pictures of pairs only with --show-images
  audit.json        see below; audit.schema.json in the package says the type of every key
  statement.txt     a risk statement to be filed: what was measured, against what attacker, what
                    was found, and what was not measured
  extracted.csv     the extracted training images: file, copies, flagged_generations,
                    nearest_generations, best_generation, best_l2, best_ratio
  training.parquet  the same for every different training image; nearest_generations is 0 for
                    images that are the nearest of no generation
  pairs.parquet     one row per generation: sample, nearest (file names, or row numbers), l2,
                    ratio_training, ratio_candidate (both at the fixed alpha), low_detail,
                    flagged_verdict; with --space also similarity, nearest_by_similarity,
                    flagged_by_similarity
  conditions.csv    if generations have prompts or labels, one row for each of these: generations,
                    flagged_generations, extracted_images, best_ratio; pairs.parquet then has it for
                    every generation
  drawn/            with --pipeline: the generations as PNG files, numbered as in `sample`;
                    metadata.jsonl has the prompt or label of each. The same command goes on with a
                    drawing that was interrupted
  features/         with --space sscd, clip or dinov2: the features of all images, by network and
                    image. The same command goes on with an audit that was interrupted
  DIR/samples.npz   with --keep-samples DIR: the generations, for `afterimage attribute --queries`
                    or another audit

keys of audit.json:
{record.keys()}
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP
    generations = parser.add_mutually_exclusive_group(required=True)
    generations.add_argument(
        "--samples",
        metavar="SOURCE",
        help="generations: a folder or zip of images, .npz, or parquet",
    )
    generations.add_argument(
        "--pipeline",
        metavar="DIR|ID",
        help="diffusers pipeline to draw them from: a folder, or a Hub id with --revision",
    )
    parser.add_argument(
        "--train",
        metavar="SOURCE",
        required=True,
        help="training images: as --samples, or owner/name@revision",
    )
    parser.add_argument(
        "--holdout",
        metavar="SOURCE",
        help="real images from the same distribution that the model never saw",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("audit"),
        metavar="DIR",
        help="folder to write (default: %(default)s)",
    )
    drawing_flags.arguments(parser.add_argument_group("drawing from --pipeline"))
    image_sets.arguments(parser, SETS)
    spaces.arguments(parser)
    _attack_flags(parser)
    _quality_flags(parser)
    parser.add_argument(
        "--show-images",
        action="store_true",
        help="show the pairs on the page; mind the privacy of people in them",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of generations, splits and intervals (default: %(default)s)",
    )


def _attack_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--flips",
        action="store_true",
        help="the model was trained with mirrored images: compare these too",
    )
    attack = config.Extraction()
    parser.add_argument(
        "--alpha",
        type=float,
        default=attack.alpha,
        help="fixed alpha (default: %(default)s, the paper's)",
    )
    parser.add_argument(
        "--neighbours",
        type=int,
        default=attack.neighbours,
        metavar="N",
        help="n of the ratio (default: %(default)s)",
    )
    parser.add_argument(
        "--gallery",
        choices=["distinct", "all"],
        default=attack.gallery,
        help="neighbours among different training images, or among all, including copies, as "
        "published (default: %(default)s)",
    )
    parser.add_argument(
        "--distance", choices=["l2", "tiled"], default=attack.distance, help="default: %(default)s"
    )
    parser.add_argument(
        "--tiles",
        type=int,
        default=attack.tiles,
        help="tiles per side of --distance tiled (default: %(default)s)",
    )


def _quality_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--features",
        choices=["classifier", "pixels", "inception"],
        default="classifier",
        help="feature space of the quality metrics (default: %(default)s)",
    )
    parser.add_argument(
        "--inception-weights",
        metavar="FILE",
        help="torch-fidelity's weights, with --features inception",
    )
    parser.add_argument("--inception-sha256", metavar="HASH", help="their expected checksum")


def run(args: argparse.Namespace) -> None:
    """Read, draw, attack, and write the answer."""
    # Check the flags.
    started = time.monotonic()
    line = CommandLine.of("afterimage audit", arguments, args)
    settings, quality_settings = _settings(args)
    if args.samples is not None:
        drawing_flags.refuse_without_pipeline(args)
        out = output.check(args.out, {*FILES, CONDITIONS, *features.files(args.out)})
    else:
        drawing_flags.check_counts(args)
        ours = drawing.files(args.out) | features.files(args.out)
        out = output.check(args.out, {*FILES, CONDITIONS, *ours})
        if args.keep_samples is not None:
            output.check(args.keep_samples, (KEPT,), flag="--keep-samples")
    for name in SETS:
        if getattr(args, name) is not None:
            image_sets.source_of(name, args)

    space = spaces.open_space(args, out)
    plan = None if args.pipeline is None else _plan(args)

    # Read the images; draw generations from the pipeline.
    sets = {
        name: image_sets.read_set(name, args, each=space.reader(name) if space else None)
        for name in SETS
        if getattr(args, name) is not None
    }
    drawn: dict[str, Any] = {}
    notices = [notice for image_set in sets.values() for notice in image_set.notices()]
    if plan is not None:
        image_sets.check_shapes(sets)
        generated = plan.draw(sets["train"], out)
        sets["samples"], drawn = generated.images, generated.settings
        notices += generated.notes
        if args.keep_samples is not None:
            _keep(args.keep_samples / KEPT, generated.images.images)
    else:
        try:
            texts = captions.of(sets["samples"], args)
        except captions.AmbiguousError as error:  # the audit can do without
            texts = None
            notices.append(f"{error}; none were read")
        if texts is not None:
            sets["samples"] = replace(sets["samples"], captions=tuple(texts))
    image_sets.check_shapes(sets)
    samples = sets["samples"]
    train = replace(sets["train"], images=_by_content(sets["train"].images))
    holdout = sets["holdout"].images if "holdout" in sets else None

    # Attack, and measure quality.
    statistics = config.Statistics()
    extraction = extract(
        samples.images,
        train.images,
        settings,
        statistics,
        args.seed,
        flips=args.flips,
        holdout=holdout,
        confidence=spaces.confidence(args),
    )
    qualities: pd.DataFrame | None = None
    missing = {
        "quality": "needs --holdout: measured against training images it would reward copying"
    }
    if holdout is not None:
        qualities, missing = quality.against_holdout(
            samples.images, holdout, quality_settings, statistics, args.seed
        )

    # Assemble the record.
    pairs = _named(extraction.pairs, samples, train)
    similar = (
        space.compare(sets, extraction, pairs, settings, statistics)
        if space
        else spaces.Answer(None, [], [], [])
    )
    training = _training(extraction, samples, train)
    kind, by_condition = _by_condition(pairs, samples)
    sources = {
        flag: str(value)
        for flag in ("pipeline", *SETS)
        if (value := getattr(args, flag)) is not None
    }
    values = findings.numbers(extraction, qualities, sets, settings)
    if extraction.left_out is not None:
        left_out = _named(extraction.left_out, sets["holdout"], train)[list(extraction.left_out)]
        values["left_out"] = json.loads(left_out.to_json(orient="records"))
    values |= {
        "command": line.text(),
        "notices": notices,
        "conditions": None
        if by_condition is None
        else {
            "kind": kind,
            "different": len(by_condition),
            "with_copies": int((by_condition["flagged_generations"] > 0).sum()),
        },
        "limits": findings.limits(extraction, samples.images, values, settings.anchor)
        + similar.limits,
        "similarity": similar.record,
        "quality_missing": missing,
        "inputs": {
            name: {"sha256": image_set.sha256, "manifest": image_set.manifest}
            for name, image_set in sets.items()
        },
        "settings": sources
        | drawn
        | {"flips": args.flips, "colour": args.colour, "resize": args.resize}
        | {"resize_filter": args.resize_filter or "bilinear", "crop": args.crop or "centre"}
        | settings.model_dump()
        | {"space": args.space, "match_size": args.match_size}
        | {"features": args.features, "neighbours_used": extraction.facts["neighbours"]}
        | {"seed": args.seed, "version": __version__},
        "seconds": round(time.monotonic() - started, 2),
    }
    measured = Findings.model_validate_json(json.dumps(values, allow_nan=False))
    audited = AuditRecord(
        **dict(measured),
        schema_version=SCHEMA_VERSION,
        given=findings.given(measured),
        risk_statement=statement.risk_statement(measured),
        next_steps=next_steps.next_steps(measured, line, str(args.out)),
    )
    # Write and print it.
    extracted = training[training["flagged_generations"] > 0]
    rows = findings.rows(measured) + similar.rows
    figures = audit_page.figures(extraction, pairs, samples.images, train.images, args.show_images)
    figures += similar.figures
    html = audit_page.render(audited, rows, extracted, figures, by_condition, args.show_images)
    _write(out, audited, pairs, training, extracted, by_condition, html)
    if plan is not None:
        drawing.audited(out)
    _print(audited, rows, extracted, by_condition, args.out)


# ---- inputs --------------------------------------------------------------------------------------


def _settings(args: argparse.Namespace) -> tuple[config.Extraction, config.Quality]:
    """Return the settings of the attack and of the quality metrics, after checking that their
    weights exist."""
    if args.features == "inception" and not (args.inception_weights and args.inception_sha256):
        raise ConfigError(
            "--features inception needs --inception-weights FILE and --inception-sha256 HASH"
        )
    names = ("alpha", "neighbours", "gallery", "distance", "tiles")
    with flags.named("extraction"):
        extraction = config.Extraction(**{name: getattr(args, name) for name in names})
    with flags.named("quality"):
        quality_settings = config.Quality(
            features=args.features,
            inception_weights=args.inception_weights,
            inception_sha256=args.inception_sha256,
        )
        if args.features == "inception":
            quality_spaces.find(quality_settings, None)
    return extraction, quality_settings


def _plan(args: argparse.Namespace) -> Any:
    """Return how to draw from ``--pipeline``; diffusers is imported for it alone."""
    from afterimage.standalone import generations

    return generations.plan(args)


def _keep(path: Path, drawn: Images) -> None:
    """Keep generations as one file."""
    stream = io.BytesIO()
    np.savez_compressed(stream, images=drawn.pixels, ids=drawn.ids, labels=drawn.labels)
    artifacts.write_atomically(path, stream.getvalue())


def _by_content(train: Images) -> Images:
    """Return the training images with byte-identical images as copies of one source, the first of
    them."""
    _, first, inverse = np.unique(contents(train.pixels), return_index=True, return_inverse=True)
    return replace(train, sources=train.ids[first[inverse]])


# ---- outputs -------------------------------------------------------------------------------------


def _write(
    out: Path,
    audited: AuditRecord,
    pairs: pd.DataFrame,
    training: pd.DataFrame,
    extracted: pd.DataFrame,
    by_condition: pd.DataFrame | None,
    html: str,
) -> None:
    """Write ``FILES``, and ``CONDITIONS`` if there are any, each atomically."""
    columns = [
        "sample",
        "nearest",
        "l2",
        "ratio_training",
        "ratio_candidate",
        "low_detail",
        "flagged_verdict",
        *(name for name in spaces.COLUMNS if name in pairs),
        *({"prompt", "label"} & set(pairs)),
    ]
    out.mkdir(parents=True, exist_ok=True)
    for name, table in (("pairs.parquet", pairs[columns]), ("training.parquet", training)):
        stream = io.BytesIO()
        table.to_parquet(stream, index=False)
        artifacts.write_atomically(out / name, stream.getvalue())
    artifacts.write_atomically(out / "extracted.csv", extracted.to_csv(index=False).encode())
    if by_condition is None:
        (out / CONDITIONS).unlink(missing_ok=True)  # of an earlier audit
    else:
        artifacts.write_atomically(out / CONDITIONS, by_condition.to_csv(index=False).encode())
    artifacts.write_json(out / "audit.json", audited.model_dump(mode="json"))
    artifacts.write_atomically(out / "statement.txt", statement.document(audited).encode())
    artifacts.write_atomically(out / "audit.html", html.encode())


def _named(table: pd.DataFrame, samples: ImageSet, train: ImageSet) -> pd.DataFrame:
    """Return a table of pairs with names instead of ids, and the rows of both images."""
    table = table.copy()
    for column, images in (("sample", samples), ("nearest", train)):
        rows = pd.Index(images.images.ids).get_indexer(table[column])
        names = images.names[rows].astype(object)
        names[rows < 0] = None
        table[f"{column}_row"], table[column] = (
            rows,
            names if (rows < 0).any() else images.names[rows],
        )
    return table


def _by_condition(pairs: pd.DataFrame, samples: ImageSet) -> tuple[str, pd.DataFrame | None]:
    """Return prompt or label, and one row for each, those with most copies first; None without.

    ``pairs`` receives the prompt or label of every generation.
    """
    labels = samples.images.labels
    if samples.captions is not None:
        kind, values = "prompt", np.array(samples.captions, object)
    elif (labels >= 0).any():
        kind, values = "label", labels
    else:
        return "", None
    pairs[kind] = values[pairs["sample_row"]]
    flagged = pairs[pairs["flagged_verdict"]]
    groups = pairs.groupby(kind, sort=False)
    table = pd.DataFrame(
        {
            "generations": groups.size(),
            "flagged_generations": groups["flagged_verdict"].sum(),
            "extracted_images": flagged.groupby(kind)["nearest"].nunique(),
            "best_ratio": groups["ratio_training"].min(),
        }
    )
    table["extracted_images"] = table["extracted_images"].fillna(0).astype(int)
    order = ["flagged_generations", "best_ratio"]
    table = table.sort_values(order, ascending=[False, True], kind="stable")
    return kind, table.rename_axis(kind).reset_index()


def _training(extraction: Extraction, samples: ImageSet, train: ImageSet) -> pd.DataFrame:
    """Return one row per different training image, the most extracted first."""
    table = extraction.images
    rows = pd.Index(train.images.ids).get_indexer(table["id"])
    best = pd.Index(samples.images.ids).get_indexer(table["best_sample"])
    names = pd.Series(samples.names[best], dtype=object).where(best >= 0, None)
    training = pd.DataFrame(
        {
            "file": train.names[rows],
            "copies": table["copies"],
            "flagged_generations": table["flagged_generations"],
            "nearest_generations": table["nearest_generations"],
            "best_generation": names.astype(str).where(best >= 0, None),
            "best_l2": table["best_l2"],
            "best_ratio": table["best_ratio_training"],
        }
    )
    return training.sort_values(
        ["flagged_generations", "best_ratio"], ascending=[False, True], kind="stable"
    )


def _print(
    audited: AuditRecord,
    rows: list[tuple[str, str, str]],
    extracted: pd.DataFrame,
    by_condition: pd.DataFrame | None,
    out: Path,
) -> None:
    """Print what the sets allow, the limitations, the answer, and the first ten extracted training
    images and prompts or labels."""
    for sentence in [*audited.given, *audited.notices, *audited.limits]:
        print(sentence)
    print(f"\n{audited.verdict.sentence}\n")
    if audited.similarity is not None:
        print(f"{audited.similarity.verdict.sentence}\n")
    if len(extracted):
        shown = extracted.head(10).round(3)
        print(
            f"training images extracted, the first {len(shown)} of {len(extracted)} in "
            "extracted.csv:"
        )
        print(shown.to_string(index=False) + "\n")
    if by_condition is not None and audited.conditions and audited.conditions.with_copies:
        shown = by_condition[by_condition["flagged_generations"] > 0].head(10).round(3)
        kind, number = audited.conditions.kind, audited.conditions.with_copies
        print(f"{kind}s with copies, the first {len(shown)} of {number} in {CONDITIONS}:")
        print(shown.to_string(index=False, max_colwidth=60) + "\n")
    table = [("measure", "value", "95 % interval"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for name, value, interval in table:
        print(f"{name:<{widths[0]}}  {value:>{widths[1]}}  {interval:>{widths[2]}}")
    for metric, reason in audited.quality_missing.items():
        print(f"{metric} {reason}")
    names = FILES if by_condition is None else (*FILES, CONDITIONS)
    print(f"\n{', '.join(names)} written to {out}")
