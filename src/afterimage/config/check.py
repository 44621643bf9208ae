"""``afterimage config check STUDY``: validate a study file, and summarise a valid one."""

from __future__ import annotations

import argparse

from afterimage import config


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", help="a study file, e.g. params.yaml")


def run(args: argparse.Namespace) -> None:
    study = config.load(args.study)
    planted = sum(plant.images for plant in study.data.plant)
    print(f"{args.study}: study {study.study!r} is valid")
    print(
        f"  data    {study.data.source.kind}: {study.data.split.train} training images, "
        f"{study.data.distinct} distinct, {planted} planted"
    )
    print(f"  arms    {', '.join(study.arms)}; {study.replicates} replicate(s) each")
    print(f"  sample  {study.sample.images} generations per replicate")
