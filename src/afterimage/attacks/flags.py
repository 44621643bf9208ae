"""The flags that attacks share: what they read of a study, their config and their result."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = {
    "model": "result of `afterimage train run`",
    "samples": "generations (.npz)",
    "train": "training images of the planting (.npz)",
    "members": "the rows of --train that the arm trained on (.parquet)",
    "holdout": "held-out images of the split (.npz)",
    "reference": "reference images of the split (.npz)",
    "twins": "never-trained twins of the planted images (.npz)",
    "index": "index of the planting (.parquet)",
    "classifier": "folder of the feature network",
}
"""Input -> what it is."""


def add_texts(parser: argparse.ArgumentParser) -> None:
    """Declare ``--texts``."""
    parser.add_argument(
        "--texts", type=Path, help="embeddings of captions, if the arm is conditioned on them"
    )


def add_latents(parser: argparse.ArgumentParser) -> None:
    """Declare ``--latents``."""
    parser.add_argument(
        "--latents", type=Path, help="latents of the images, if the arm denoises those"
    )


def add_flags(parser: argparse.ArgumentParser, *inputs: str) -> None:
    """Declare ``--config``, ``--out`` and one required flag for each of ``inputs``."""
    for name in inputs:
        parser.add_argument(f"--{name}", type=Path, required=True, help=HELP[name])
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved config of this step (JSON)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
