"""The inputs that several steps of attribution read, as flags."""

from __future__ import annotations

import argparse
from pathlib import Path

INPUTS = {
    "model": ("DIR", "result of `afterimage train run` for the explained arm"),
    "train": ("NPZ", "training images"),
    "members": ("PARQUET", "which of them the arm was trained on"),
    "queries": ("DIR", "result of `afterimage attribution queries`"),
    "scores": ("DIR", "result of `afterimage attribution scores`"),
    "texts": ("DIR", "embeddings of captions, if the arm is conditioned on them"),
    "latents": ("DIR", "latents of the images, if the arm denoises those"),
    "others": ("NPZ", "pictures that are mixed into training images, if the arm has dual_fusion"),
}
"""Input -> what stands for its path in the help, and what it is."""


def add_inputs(parser: argparse.ArgumentParser, *names: str, required: bool = True) -> None:
    """Declare a flag for each of the named ``INPUTS``."""
    for name in names:
        metavar, what = INPUTS[name]
        parser.add_argument(f"--{name}", type=Path, required=required, metavar=metavar, help=what)


def add_explained(parser: argparse.ArgumentParser) -> None:
    """Declare what a step reads that retrains the explained network: ``--model``, ``--train``,
    ``--members``, ``--queries`` and, for an arm on captions or latents, ``--texts``,
    ``--latents`` and ``--others``."""
    add_inputs(parser, "model", "train", "members", "queries")
    add_inputs(parser, "texts", "latents", "others", required=False)
