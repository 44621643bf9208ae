"""``afterimage config dvc``: write the keys that each stage of ``dvc.yaml`` depends on, from the
declared steps.

DVC runs a stage again when one of its ``params`` changes. These are the blocks that the settings of
the phase's steps come from (``plan.step.Step.keys``), if ``params.yaml`` has them: DVC requires
every listed key to exist there.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from afterimage import config
from afterimage.artifacts import write_atomically
from afterimage.config import ConfigError, Study
from afterimage.plan.jobs import PHASES, STEPS


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--study", type=Path, default=Path("params.yaml"), help="study file (default: %(default)s)"
    )
    parser.add_argument(
        "--dvc", type=Path, default=Path("dvc.yaml"), help="file to rewrite (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Rewrite the ``params`` of every phase's stage."""
    text = args.dvc.read_text()
    for phase, keys in params(set(config.read_yaml(args.study))).items():
        stage = re.compile(rf"(?m)(^  {phase}:\n(?:    .*\n)*?    params: )\[.*\]$")
        text, matches = stage.subn(rf"\g<1>[{', '.join(keys)}]", text)
        if not matches:
            raise ConfigError(f"{args.dvc} has no stage {phase} with a line `params: [...]`")
    write_atomically(args.dvc, text.encode())


def params(present: set[str]) -> dict[str, list[str]]:
    """Return phase -> the keys that its results depend on, in the order of the study's fields.

    Args:
        present: Keys of the study file; others have their defaults.
    """
    keys: dict[str, set[str]] = {phase: {"study", "seed"} for phase in PHASES}
    for step in STEPS.values():
        addressed = {"arm": "arms", "replicate": "replicates"}
        keys[step.phase_name] |= {
            *step.keys,
            *(addressed[field] for field in step.address if field in addressed),
        }
    for phase_keys in keys.values():
        if "arms" in phase_keys:  # a sweep makes arms
            phase_keys.add("sweeps")
    return {
        phase: [key for key in Study.model_fields if key in phase_keys & present]
        for phase, phase_keys in keys.items()
    }
