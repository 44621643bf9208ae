"""The flags of steps that need the explained network, its training images and the queries."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_explained(parser: argparse.ArgumentParser) -> None:
    """Declare ``--model``, ``--train``, ``--members``, ``--queries`` and ``--texts``."""
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="DIR",
        help="result of `afterimage train run` for the explained arm",
    )
    parser.add_argument("--train", type=Path, required=True, metavar="NPZ", help="training images")
    parser.add_argument(
        "--members",
        type=Path,
        required=True,
        metavar="PARQUET",
        help="which of them the arm was trained on",
    )
    parser.add_argument(
        "--queries",
        type=Path,
        required=True,
        metavar="DIR",
        help="result of `afterimage attribution queries`",
    )
    parser.add_argument(
        "--texts",
        type=Path,
        metavar="DIR",
        help="embeddings of captions, if the arm is conditioned on them",
    )
