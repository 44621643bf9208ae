"""The flags that attacks share: what they read of a study, their config and their result."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from afterimage import artifacts

HELP = {
    "model": "result of `afterimage train run`",
    "samples": "generations (.npz)",
    "train": "training images of the planting (.npz)",
    "members": "the rows of --train that the arm trained on (.parquet), and those of the arms that "
    "it starts from",
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
        number = {"nargs": "+"} if name == "members" else {}
        parser.add_argument(f"--{name}", type=Path, required=True, help=HELP[name], **number)
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved config of this step (JSON)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def files_of(args: argparse.Namespace, inputs: Iterable[str]) -> dict[str, Path]:
    """Return the files of ``inputs``, by name."""
    files = {name: getattr(args, name) for name in inputs}
    return files | artifacts.numbered("members", files["members"])
