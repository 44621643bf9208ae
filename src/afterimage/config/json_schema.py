"""``afterimage config schema``: print the JSON schema that editors and ``workflow/schemas`` use."""

from __future__ import annotations

import argparse
import json

from afterimage import config


def arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(args: argparse.Namespace) -> None:
    del args
    print(json.dumps(config.schema(), indent=2))
