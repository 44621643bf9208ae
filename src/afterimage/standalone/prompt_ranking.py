"""``afterimage prompts``: which prompts bring memorised images out of a text-to-image model?

Neither a study nor the training images are needed. Each prompt is scored by detectors of the
literature, and compared with held-out prompts: texts of the same kind whose images the model was
not trained on. Without these, prompts are ranked, and none is flagged.

Written to ``--out``: see ``HELP``, which ``afterimage prompts --help`` prints.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from afterimage import __version__, artifacts, config
from afterimage.artifacts import ArtifactError
from afterimage.attacks.prompts import anisotropy, cliques, control, one_step
from afterimage.config import ConfigError
from afterimage.data.pictures import Transform
from afterimage.metrics import intervals
from afterimage.metrics.ranking import roc_auc
from afterimage.standalone import (
    conditions,
    drawing,
    drawing_flags,
    output,
    prompt_page,
)
from afterimage.standalone.conditions import Conditions

FILES = ("prompts.html", "prompts.json", "prompts.csv")

PER_PROMPT = 16
"""Default of ``--per-prompt``."""

RATE = 0.05
"""False discovery rate of the prompts that are flagged."""

DETECTORS = {
    "cliques": "diameter of the images that agree best, negative (Carlini et al. 2023)",
    "noise_difference": "magnitude of the text-conditional noise difference (Wen et al. 2024)",
    "one_step": "denoising confidence score of one step (Webster 2023)",
    "edges": "edges that one-step images have in common (Webster 2023)",
    "anisotropy": "norm and alignment of the guidance (Asthana and Belagiannis 2026)",
}
"""Detector -> its statistic; larger for memorised prompts."""

HELP = f"""\
detectors, each a column whose values are larger for memorised prompts:
  cliques           the negative of the smallest threshold at which --clique images of the prompt
                    are all joined, by their tiled distance (Carlini et al. 2023, section 4.2)
  noise_difference  norm of the difference between the predictions with and without the prompt, mean
                    over steps and images (Wen et al. 2024); first_difference: at the first step
  one_step          mean squared difference between the noise and the image of one step (Webster
                    2023, white box)
  edges             share of edges that {one_step.SEEDS} one-step images have in common (Webster
                    2023, black box)
  anisotropy        norm of the first difference plus --alignment-weight times its cosine with the
                    prediction without prompt, at little noise (Asthana and Belagiannis 2026)

files:
  prompts.html  the answer and the detectors' figures as a page; pictures of the first prompts only
                with --show-images
  prompts.csv   one row per prompt, held-out ones included, highest value of --decide-by first: set,
                prompt, the detectors; with --holdout-prompts also p_<detector> (rank among held-out
                prompts, unadjusted) and flagged (by --decide-by, adjusted for all prompts)
  prompts.json  outcome (prompts stand out, none stands out, cannot tell, ranked only), sentence,
                flagged (how many); detectors: for each what it is, and AUC against held-out prompts
                with its interval, or why it was not measured; notices; settings
  drawn/        the images as PNG files, --per-prompt for each prompt in turn; metadata.jsonl has
                their prompts. The same command goes on with a drawing that was interrupted
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP
    parser.add_argument(
        "--pipeline",
        metavar="DIR|ID",
        required=True,
        help="text-to-image pipeline of diffusers: a folder, or a Hub id with --revision",
    )
    parser.add_argument(
        "--prompts", type=Path, required=True, metavar="FILE", help="prompts, one per line"
    )
    parser.add_argument(
        "--holdout-prompts",
        type=Path,
        metavar="FILE",
        help="prompts of the same kind whose images the model was not trained on",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("prompts"),
        metavar="DIR",
        help="folder to write (default: %(default)s)",
    )
    _detector_flags(parser)
    group = parser.add_argument_group("drawing")
    drawing_flags.pipeline_flags(group)
    drawing_flags.call_flags(group)
    parser.add_argument(
        "--show-images",
        action="store_true",
        help="show images of the first prompts on the page; mind the privacy of people in them",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the noise (default: %(default)s)"
    )
    parser.set_defaults(weights=None, sampler=None, labels=None, generate=None)


def _detector_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--per-prompt",
        type=int,
        default=PER_PROMPT,
        metavar="N",
        help="images per prompt (default: %(default)s; published: 500)",
    )
    parser.add_argument(
        "--clique",
        type=int,
        metavar="N",
        help=f"images that have to agree (default: {cliques.SIZE}, but at most half of "
        "--per-prompt)",
    )
    parser.add_argument(
        "--tiles",
        type=int,
        default=cliques.TILES,
        help="tiles per side of the distance between images (default: %(default)s)",
    )
    parser.add_argument(
        "--decide-by",
        choices=list(DETECTORS),
        help="the detector that ranks and flags prompts, the others are for comparison (default: "
        "cliques; noise_difference with --first-step-only)",
    )
    parser.add_argument(
        "--alignment-weight",
        type=float,
        default=anisotropy.WEIGHT,
        metavar="W",
        help="weight of the alignment in anisotropy (default: %(default)s, published for Stable "
        "Diffusion 1; 0.1 for 2)",
    )
    parser.add_argument(
        "--first-step-only",
        action="store_true",
        help="take the first step of each image alone: no images, no cliques, and the noise "
        "difference of the first step",
    )


def run(args: argparse.Namespace) -> None:
    """Draw, score, compare with held-out prompts, and write the ranking."""
    # Check the flags.
    started = time.monotonic()
    _check(args)
    out = output.check(args.out, {*FILES, *drawing.files(args.out)})
    prompts = conditions.read_prompts(args.prompts)
    held_out = _held_out(args, prompts)

    # Draw, and observe the network.
    from afterimage.standalone import prompt_scores

    model = prompt_scores.Model.of(args)
    asked = Conditions(
        "prompt",
        (*prompts, *held_out),
        args.per_prompt,
        args.per_prompt * (len(prompts) + len(held_out)),
    )
    observed = model.first_steps(asked) if args.first_step_only else model.draw(asked, out)

    # Score the prompts.
    sets = ["prompts"] * len(prompts) + ["holdout"] * len(held_out)
    table = pd.DataFrame({"set": sets, "prompt": list(asked.values)})
    missing, notices = dict(observed.missing), list(observed.notes)
    if args.first_step_only:
        missing["cliques"] = "--first-step-only draws no images"
    else:
        table["cliques"] = _cliques(args, out, asked, observed.blackened, notices)
    for name, values in observed.of_images.items():
        table[name] = values.reshape(len(table), -1).mean(axis=1)
    if observed.edges is not None:
        table["edges"] = observed.edges
    if "alignment" in table:
        table["anisotropy"] = table["first_difference"] + args.alignment_weight * table["alignment"]

    # Compare with held-out prompts, and write the result.
    decisive = _decisive(args)
    if decisive not in table:
        raise ArtifactError(
            f"--pipeline: {decisive}, which decides, cannot be measured: {missing[decisive]}; "
            "--decide-by names another detector"
        )
    areas = _compare(table, decisive) if held_out else {}
    table = table.sort_values(decisive, ascending=False, kind="stable")
    detectors = {
        name: {"statistic": text, "decides": name == decisive}
        | ({"auc": areas.get(name)} if name in table else {"not_measured": missing[name]})
        for name, text in DETECTORS.items()
    }
    notices += [
        f"{name} was not measured: {detector['not_measured']}"
        for name, detector in detectors.items()
        if "not_measured" in detector
    ]
    record: dict[str, Any] = {
        "flagged": int(table["flagged"].sum()) if held_out else None,
        "counts": {"prompts": len(prompts), "holdout": len(held_out)},
        "detectors": detectors,
        "notices": notices,
        "settings": {
            **{name: str(getattr(args, name)) for name in ("pipeline", "prompts")},
            "holdout_prompts": None if not held_out else str(args.holdout_prompts),
            "decide_by": decisive,
            "per_prompt": args.per_prompt,
            "clique": None if args.first_step_only else _clique_size(args),
            "tiles": args.tiles,
            "alignment_weight": args.alignment_weight,
            "false_discovery_rate": RATE,
            "seed": args.seed,
            "version": __version__,
            **observed.settings,
        },
        "seconds": round(time.monotonic() - started, 2),
    }
    record["outcome"], record["sentence"] = _answer(record)
    html = prompt_page.render(record, table, _pictures(args, out, table, asked))
    artifacts.write_atomically(out / "prompts.html", html.encode())
    artifacts.write_json(out / "prompts.json", record)
    artifacts.write_atomically(out / "prompts.csv", table.to_csv(index=False).encode())
    if not args.first_step_only:
        drawing.audited(out)
    _print(table, record, args.out)


# ---- flags ---------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> None:
    """Check the numbers among the flags."""
    drawing_flags.check_counts(args)
    size = _clique_size(args)
    if not args.first_step_only and args.per_prompt < 2:
        raise ConfigError(
            f"--per-prompt = {args.per_prompt}: cliques need at least 2 images of a prompt; "
            "--first-step-only does without"
        )
    if not args.first_step_only and not 2 <= size <= args.per_prompt:
        raise ConfigError(
            f"--clique = {size}: allowed are numbers from 2 to --per-prompt = {args.per_prompt}"
        )
    if args.first_step_only and args.show_images:
        raise ConfigError("--show-images: --first-step-only draws no images")
    if args.first_step_only and args.decide_by == "cliques":
        raise ConfigError("--decide-by = cliques: --first-step-only draws no images")
    if args.first_step_only and args.clique is not None:
        raise ConfigError(f"--clique = {args.clique}: --first-step-only draws no images")
    if args.tiles < 1:
        raise ConfigError(f"--tiles = {args.tiles}: allowed are numbers from 1")
    if not np.isfinite(args.alignment_weight):
        raise ConfigError(
            f"--alignment-weight = {args.alignment_weight}: a finite number is needed"
        )


def _clique_size(args: argparse.Namespace) -> int:
    if args.clique is not None:
        return args.clique
    return min(cliques.SIZE, max(2, args.per_prompt // 2))


def _decisive(args: argparse.Namespace) -> str:
    return args.decide_by or ("noise_difference" if args.first_step_only else "cliques")


def _held_out(args: argparse.Namespace, prompts: list[str]) -> list[str]:
    """Return the held-out prompts; none without ``--holdout-prompts``."""
    if args.holdout_prompts is None:
        return []
    held_out = conditions.read_prompts(args.holdout_prompts, "--holdout-prompts")
    if both := sorted(set(prompts) & set(held_out)):
        raise ConfigError(
            f"--holdout-prompts {args.holdout_prompts}: {len(both)} of its prompts are in "
            f"--prompts too, the first is {both[0]!r}; a held-out prompt is of no training image"
        )
    return held_out


# ---- scores --------------------------------------------------------------------------------------


def _cliques(
    args: argparse.Namespace, out: Path, asked: Conditions, black: set[int], notices: list[str]
) -> np.ndarray:
    """Return the statistic of each prompt, float64 (prompts,); add what limits it to ``notices``.

    Images that a safety checker replaced by black ones agree with each other, and are left out.
    """
    size, statistics = _clique_size(args), np.full(len(asked.values), -np.inf)
    bounded, few = 0, 0
    for row in range(len(asked.values)):
        first = row * asked.each
        images = drawing.read(out, asked.each, Transform(), first)
        _check_tiles(args.tiles, images)
        images = images[[first + number not in black for number in range(asked.each)]]
        if len(images) < size:
            few += 1
            continue
        clique = cliques.tightest(cliques.pairwise(images, args.tiles), size)
        statistics[row] = -clique.diameter
        bounded += clique.bounded
    if few:
        notices.append(
            f"{few} prompts have fewer than --clique = {size} images that the pipeline's safety "
            "checker did not replace by black ones, and rank last by cliques"
        )
    if bounded:
        notices.append(
            f"the search for cliques was given up for {bounded} prompts after "
            f"{cliques.MOST_CLIQUES} cliques: their images may agree better than said"
        )
    return statistics


def _pictures(
    args: argparse.Namespace, out: Path, table: pd.DataFrame, asked: Conditions
) -> dict[str, np.ndarray]:
    """Return the images of the first prompts, by prompt; none without ``--show-images``."""
    if args.first_step_only or not args.show_images:
        return {}
    rows = {prompt: row for row, prompt in enumerate(asked.values)}
    first = table.loc[table["set"] == "prompts", "prompt"].head(prompt_page.PROMPTS)
    return {
        prompt: drawing.read(out, asked.each, Transform(), rows[prompt] * asked.each)
        for prompt in first
    }


def _check_tiles(tiles: int, images: np.ndarray) -> None:
    height, width = images.shape[1:3]
    if height % tiles or width % tiles:
        raise ConfigError(
            f"--tiles = {tiles}: it has to divide the sides of the images, {height} and {width}"
        )


# ---- comparison ----------------------------------------------------------------------------------


def _compare(table: pd.DataFrame, decisive: str) -> dict[str, dict[str, float]]:
    """Add p-values and flags to ``table``; return each detector's AUC with its interval."""
    is_prompt = (table["set"] == "prompts").to_numpy()
    areas = {}
    for name in [name for name in DETECTORS if name in table]:
        values = table[name].to_numpy()
        prompts, held_out = values[is_prompt], values[~is_prompt]
        p = control.p_values(prompts, held_out)
        table.loc[is_prompt, f"p_{name}"] = p
        if name == decisive:
            table["flagged"] = False
            table.loc[is_prompt, "flagged"] = control.flagged(p, RATE)
        areas[name] = intervals.auc(
            roc_auc(-prompts, -held_out),
            len(prompts),
            len(held_out),
            config.Statistics().confidence,
        )._asdict()
    return areas


def _answer(record: dict[str, Any]) -> tuple[str, str]:
    """Return the outcome, and the answer as a paragraph for a person."""
    count, held_out = record["counts"]["prompts"], record["counts"]["holdout"]
    decisive, flagged = record["settings"]["decide_by"], record["flagged"]
    if not held_out:
        return "ranked only", (
            f"{count} prompts are ranked by {decisive}. Without held-out prompts "
            "(--holdout-prompts) it cannot be told whether the first of them are memorised."
        )
    together = control.together(count, held_out, RATE)
    if together > count:
        return "cannot tell", (
            f"Cannot tell: {held_out} held-out prompts are too few to flag any of {count} prompts; "
            f"at least {control.fewest(RATE)} are needed."
        )
    if flagged:
        return "prompts stand out", (
            f"{flagged} of {count} prompts stand out from {held_out} held-out prompts by "
            f"{decisive}. At most {100 * RATE:.0f} % of prompts that stand out are expected to do "
            "so by chance (false discovery rate), if both files have prompts of the same kind. "
            "Whether their images are copies is shown by an audit with the training images: "
            "afterimage audit --prompts."
        )
    return "none stands out", (
        f"None of {count} prompts stands out from {held_out} held-out prompts by {decisive}, where "
        f"{together} or more beyond every held-out prompt would have. Fewer, or less clear ones, "
        "may be memorised."
    )


def _print(table: pd.DataFrame, record: dict[str, Any], out: Path) -> None:
    for notice in record["notices"]:
        print(notice)
    print(f"\n{record['sentence']}\n")
    shown = table[table["set"] == "prompts"].head(10)
    columns = ["prompt", *(name for name in (*DETECTORS, "flagged") if name in table)]
    print(f"the first {len(shown)} prompts, all in prompts.csv:")
    print(shown[columns].round(4).to_string(index=False, max_colwidth=60) + "\n")
    for name, detector in record["detectors"].items():
        if area := detector.get("auc"):
            print(
                f"{name}: AUC against held-out prompts {area['value']:.3f} "
                f"({area['low']:.3f} to {area['high']:.3f})"
            )
    print(f"\n{', '.join(FILES)} written to {out}")
