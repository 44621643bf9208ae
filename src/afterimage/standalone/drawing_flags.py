"""Flags of the generations that are drawn from ``--pipeline``, and the checks of their numbers."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from afterimage import config
from afterimage.config import ConfigError
from afterimage.standalone import captions, flags
from afterimage.standalone.conditions import DEFAULT

BATCH = {"pixels": 64, "own": 8}
"""Default of ``--batch-size``: for pixel-space U-Nets, and for any other pipeline."""

DTYPES = ("float32", "float16", "bfloat16")

OWN = (
    *("variant", "dtype", "lora", "prompts", "per_prompt", "guidance"),
    *("negative_prompt", "height", "width", "truncate_prompts"),
)
PIXELS = ("weights", "sampler")
BOTH = ("revision", "labels", "generate", "steps", "device")
"""Flags by the pipelines that they are for: any other one, U-Nets of pixels, or both."""


def arguments(group: argparse._ArgumentGroup) -> None:
    """Declare the flags of drawing."""
    pipeline_flags(group)
    group.add_argument(
        "--weights",
        choices=["ema", "raw"],
        help="weights of a trainer's checkpoint (default: ema if it has them)",
    )
    _condition_flags(group)
    group.add_argument("--sampler", choices=["ddpm", "ddim"], help="default: the pipeline's own")
    call_flags(group)
    group.add_argument(
        "--keep-samples", type=Path, metavar="DIR", help="folder to keep the generations in"
    )


def pipeline_flags(group: argparse._ArgumentGroup) -> None:
    """Declare the flags that say which weights are opened, and how."""
    weight_flags(group)
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision to draw in (default: float32)",
    )


def weight_flags(group: argparse._ArgumentGroup) -> None:
    """Declare the flags that say which weights are opened."""
    group.add_argument(
        "--revision", metavar="COMMIT", help="commit, tag or branch of a Hub id; it needs one"
    )
    group.add_argument("--variant", metavar="NAME", help="variant of the weights, e.g. fp16")
    group.add_argument(
        "--lora", type=Path, metavar="FILE", help="LoRA weights to add, a safetensors file"
    )


def call_flags(group: argparse._ArgumentGroup) -> None:
    """Declare the flags of a pipeline's call."""
    group.add_argument(
        "--steps",
        type=int,
        help="denoising steps (default: the call's own; 50 of DDIM, 250 of DDPM for a pixel U-Net)",
    )
    group.add_argument("--guidance", type=float, help="guidance scale (default: the call's own)")
    group.add_argument(
        "--negative-prompt", metavar="TEXT", help="what prompts are guided away from"
    )
    group.add_argument("--height", type=int, help="in pixels (default: the call's own)")
    group.add_argument("--width", type=int, help="in pixels (default: the call's own)")
    group.add_argument(
        "--batch-size",
        type=int,
        help=f"generations per batch (default: {BATCH['pixels']} for a pixel U-Net, else "
        f"{BATCH['own']})",
    )
    group.add_argument(
        "--device", help="where to draw, e.g. cpu or cuda:1 (default: a GPU if there is one)"
    )
    truncation_flag(group)


def truncation_flag(group: argparse._ArgumentGroup) -> None:
    """Declare the flag of prompts that are too long."""
    group.add_argument(
        "--truncate-prompts",
        action="store_true",
        default=None,
        help="let the tokenizer cut prompts that are too long, as trainers do",
    )


def _condition_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--generate",
        type=int,
        metavar="N",
        help=f"generations (default: {DEFAULT}, or fewer if there are fewer prompts)",
    )
    group.add_argument(
        "--labels",
        type=int,
        nargs="+",
        metavar="LABEL",
        help="labels to draw, in turn, from a class-conditional pipeline (default: all)",
    )
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts of a text-to-image pipeline, one per line (default: captions of --train)",
    )
    group.add_argument("--per-prompt", type=int, metavar="N", help="images per prompt (default: 1)")
    captions.arguments(group)


def check_counts(args: argparse.Namespace) -> None:
    """Check the numbers among the flags.

    Raises:
        ConfigError: naming the flag.
    """
    with flags.named("sample"):
        config.Sample(
            images=DEFAULT if args.generate is None else args.generate,
            steps=1 if args.steps is None else args.steps,
            batch_size=BATCH["pixels"] if args.batch_size is None else args.batch_size,
        )
    for flag in ("per_prompt", "height", "width"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise ConfigError(f"{flags.flag(flag)} = {value}: allowed are numbers from 1")
    if args.guidance is not None and not math.isfinite(args.guidance):
        raise ConfigError(f"--guidance = {args.guidance}: a finite number is needed")


def refuse_without_pipeline(args: argparse.Namespace) -> None:
    """Check that no flag of drawing is given with ``--samples``.

    Raises:
        ConfigError: naming the flag.
    """
    for flag in (*OWN, *PIXELS, *BOTH):
        if getattr(args, flag) is not None:
            raise ConfigError(
                f"{flags.flag(flag)} is for drawing from --pipeline; it does not go with --samples"
            )
